"""Images and their labels in napari, and a widget that segments what is seen there."""

from patchworks.plugins.napari.view import view_in_napari

__all__ = ["view_in_napari"]
