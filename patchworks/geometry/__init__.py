"""Pure integers: boxes, halos, tile grids, seams, pyramid shapes.

The one place where anything is divided by a tile, a chunk or a factor, or clipped to an image.
"""
