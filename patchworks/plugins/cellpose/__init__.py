"""Cellpose 3 and 4 as a segmenter: one plugin, which finds out what is installed."""

from patchworks.plugins.cellpose.function import cellpose_fn

__all__ = ["cellpose_fn"]
