"""What a segmentation function is, and the functions that are known by a name.

A segmenter is any callable that turns a tile of the image into labels of the same shape: integers,
0 for background, one positive number per object. Of several channels (``channel=[0, 2]``) the tile
has a leading axis, ``(C, Z, Y, X)``, which the labels do not have. A tile lies in one time point,
and slice by slice it is ``(Y, X)`` or ``(C, Y, X)``. A segmenter may carry one optional method::

    prepared = segmenter.prepare(sample)

which is called once per run with a sample of the whole image, flat (of several channels
``(C, n)``: the same voxels of each), and returns the segmenter to use on every tile. Statistics
that must be the same everywhere (a global threshold, percentiles) belong there: computed per tile
they would make every seam visible. One that needs to know what an image is like carries::

    calibrated = segmenter.at_scale(voxel_size, shape)

which is called once per run before all else, and returns the segmenter to use from then on.
`voxel_size` gives micrometers per axis of the tile but for channels, None where they are unknown;
`shape` is that of the tile that would hold a whole time point, slice or image: of several channels
``(C, Z, Y, X)``. What it finds wrong with them it says there, as an InputError, before any work.

And another one, which is then called instead of the segmenter itself::

    labels = segmenter.segment_view(tile, margins)

`margins` gives per axis of the labels the voxels of halo on the lower and the upper side, 0 where
the image ends. A segmenter that knows how far it looks can leave out what it cannot know there.

An attribute `reach`, a number of voxels or one per axis of the labels, says how far that is: a run
whose overlap is not more warns of it.

What a segmenter of this package needs of SciPy it imports when it is called: worker processes that
run another function are up sooner.
"""

from patchworks.segmenters.blobs import Blobs, blobs
from patchworks.segmenters.otsu import otsu_threshold
from patchworks.segmenters.registry import GROUP, known_segmenters
from patchworks.segmenters.resolve import resolve_segmenter
from patchworks.segmenters.segmenter import Segmenter, name_of
from patchworks.segmenters.sendable import check_sendable, pickled
from patchworks.segmenters.stored import StoredSegmenter, loaded
from patchworks.segmenters.threshold import Threshold, threshold

__all__ = [
    "GROUP",
    "Blobs",
    "Segmenter",
    "StoredSegmenter",
    "Threshold",
    "blobs",
    "check_sendable",
    "known_segmenters",
    "loaded",
    "name_of",
    "otsu_threshold",
    "pickled",
    "resolve_segmenter",
    "threshold",
]
