"""From any image file to a calibrated OME-Zarr image with a pyramid."""
