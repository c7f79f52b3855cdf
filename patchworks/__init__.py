"""Run any segmentation function on microscopy images of any size: tiled equals untiled."""

from patchworks.auto_overlap import auto_overlap
from patchworks.auto_tile_shape import auto_tile_shape
from patchworks.auto_tile_shape_cellpose import auto_tile_shape_cellpose
from patchworks.errors import PatchworksError
from patchworks.estimate_empty_tiles import estimate_empty_tiles
from patchworks.execution.cluster import make_local_cluster
from patchworks.lazy import load_ome_zarr
from patchworks.merge_tile_labels import merge_tile_labels
from patchworks.proposal import plan_run
from patchworks.relabel_sequential import relabel_sequential_array, relabel_sequential_zarr
from patchworks.run_proposal import RunProposal
from patchworks.tile_process import tile_process

__all__ = [
    "PatchworksError",
    "RunProposal",
    "auto_overlap",
    "auto_tile_shape",
    "auto_tile_shape_cellpose",
    "estimate_empty_tiles",
    "load_ome_zarr",
    "make_local_cluster",
    "merge_tile_labels",
    "plan_run",
    "relabel_sequential_array",
    "relabel_sequential_zarr",
    "tile_process",
]
