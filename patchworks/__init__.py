"""Run any segmentation function on microscopy images of any size: tiled equals untiled."""

from patchworks.errors import PatchworksError
from patchworks.estimate_empty_tiles import estimate_empty_tiles
from patchworks.execution.cluster import make_local_cluster
from patchworks.geometry.tile_shape import auto_tile_shape
from patchworks.lazy import load_ome_zarr
from patchworks.merge_tile_labels import merge_tile_labels
from patchworks.relabel_sequential import relabel_sequential_array, relabel_sequential_zarr
from patchworks.tile_process import tile_process

__all__ = [
    "PatchworksError",
    "auto_tile_shape",
    "estimate_empty_tiles",
    "load_ome_zarr",
    "make_local_cluster",
    "merge_tile_labels",
    "relabel_sequential_array",
    "relabel_sequential_zarr",
    "tile_process",
]
