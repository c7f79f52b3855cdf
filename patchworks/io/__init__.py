"""The only code that touches storage: images in, staged labels, label images out."""
