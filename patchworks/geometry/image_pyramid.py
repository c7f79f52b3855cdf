"""Chunks, shards and write regions of an image that is converted from a file.

A region is read from the file once and written once. It therefore holds whole blocks of the file
(what the file decodes at once: a plane, a strip, a tile) and whole chunks, or shards, of the
store::

    file, strips of 8 rows      |8|8|8|8|8|8|8|8|...
    store, chunks of 512 rows   |------512------|------512------|...
    regions                     |-------------1024--------------|...

Where the two cannot be brought together on an axis, a region spans the whole axis; and where that
would be too much at a time, blocks at the borders of regions are decoded again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm, prod

from patchworks.errors import InputError
from patchworks.geometry.grid import ceil_div
from patchworks.geometry.pyramid import PyramidPlan, fused_chunks, level_shapes

SCREEN = 1024
"""Voxels in y and x that a viewer shows at a time."""

REGION_BYTES = 2**25
"""Bytes of a region where the file can be cut at will: enough to be worth a task."""

MAX_REGION_BYTES = 2**27
"""Bytes of a region at most, and of a shard, wherever the file's blocks allow it."""

DEEP, WIDE, FLAT = 16, 256, 512
"""Chunk extents to aim for: z, and y and x of stacks, 2 MB of uint16; y and x of planes."""

GROWN = 2048
"""Extent of a region in y and x before it grows on the other axes."""

MANY_FILES = 100_000
"""Chunks from which on several share a file: more are a burden to file systems."""


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """What is asked of the layout of an image; None for what is left to be chosen.

    Parameters
    ----------
    chunks : tuple of int, optional
        Chunk shape.
    n_levels : int, optional
        Levels; by default as many as bring y and x under a screen.
    downscale : int
        Factor in y and x from one level to the next.
    shard : bool or None
        Whether several chunks share a file; None to choose by their number.
    """

    chunks: tuple[int, ...] | None = None
    n_levels: int | None = None
    downscale: int = 2
    shard: bool | None = False


def plan_image_pyramid(
    axes: str,
    shape: tuple[int, ...],
    itemsize: int,
    block: tuple[int, ...],
    layout: ImageLayout,
) -> PyramidPlan:
    """Choose levels, chunks, shards and regions for an image.

    Parameters
    ----------
    axes : str
        Such as ``"czyx"``; y and x last.
    shape : tuple of int
        In voxels.
    itemsize : int
        Bytes of a voxel.
    block : tuple of int
        What the file decodes at once; 1 where any part can be read.
    layout : ImageLayout
        What is asked for.

    Examples
    --------
    >>> plan = plan_image_pyramid("zyx", (100, 2048, 2048), 2, (1, 2048, 2048), ImageLayout())
    >>> plan.chunks[0], plan.region_shape, plan.n_fused, plan.shapes[-1]
    ((16, 256, 256), (16, 2048, 2048), 2, (100, 1024, 1024))
    """
    ndim = len(shape)
    factor = (1,) * (ndim - 2) + (layout.downscale, layout.downscale)
    stop_at, most = (SCREEN, 32) if layout.n_levels is None else (1, layout.n_levels)
    shapes = level_shapes(shape, factor, most, stop_at)
    chunk, unit, aligned = _chunk_and_unit(axes, shape, itemsize, block, layout.chunks)
    n_chunks = sum(prod(map(ceil_div, s, chunk)) for s in shapes)
    shard = n_chunks > MANY_FILES if layout.shard is None else layout.shard
    # The larger a region, the fewer blocks lie on its borders.
    budget = REGION_BYTES if aligned and not shard else MAX_REGION_BYTES
    region = _grown(unit, shape, budget // itemsize, factor)
    chunks = fused_chunks(chunk, region, factor, shapes)
    n_fused = len(chunks)
    chunks += [tuple(map(min, chunk, s)) for s in shapes[n_fused:]]
    shards = _shards(shapes, tuple(chunks), region, factor, n_fused) if shard else None
    return PyramidPlan(shapes, tuple(chunks), factor, region, n_fused, shards)


def plan_kept_levels(
    axes: str,
    shapes: tuple[tuple[int, ...], ...],
    itemsize: int,
    block: tuple[int, ...],
    layout: ImageLayout,
) -> PyramidPlan:
    """Choose chunks and regions where the file's own levels are taken over as they are.

    Parameters
    ----------
    shapes : tuple of tuple of int
        Of the file's levels.
    axes, itemsize, block, layout
        As in `plan_image_pyramid`.
    """
    first = replace(layout, n_levels=1)
    plan = plan_image_pyramid(axes, shapes[0], itemsize, block, first)
    chunks = tuple([tuple(map(min, plan.chunks[0], shape)) for shape in shapes])
    shards = None
    if plan.shards is not None:
        shards = tuple(
            [
                tuple(
                    [
                        c if c < first_chunk else min(shard, ceil_div(n, c) * c)
                        for n, c, first_chunk, shard in zip(
                            shape, chunk, plan.chunks[0], plan.shards[0], strict=True
                        )
                    ]
                )
                for shape, chunk in zip(shapes, chunks, strict=True)
            ]
        )
    scales = tuple([_scale(shapes[0], shape) for shape in shapes])
    ones = (1,) * len(shapes[0])
    return PyramidPlan(shapes, chunks, ones, plan.region_shape, 1, shards, scales)


def _scale(first: tuple[int, ...], shape: tuple[int, ...]) -> tuple[float, ...]:
    """Return how many voxels of the first level one voxel spans; whole where rounding explains."""
    scale = []
    for n, m in zip(first, shape, strict=True):
        near = round(n / m)
        scale.append(float(near) if m in (n // near, ceil_div(n, near)) else n / m)
    return tuple(scale)


def _chunk_and_unit(
    axes: str,
    shape: tuple[int, ...],
    itemsize: int,
    block: tuple[int, ...],
    chunks: tuple[int, ...] | None,
) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Return the chunk shape, the smallest region, and whether it holds whole blocks.

    The deepest chunk is taken whose smallest region stays in the budget; if whole blocks would
    leave only shallow ones, blocks at the borders of regions are decoded again instead.
    """
    n_voxels = MAX_REGION_BYTES // itemsize
    if chunks is not None:
        chunk = tuple(map(min, chunks, shape))
        unit = _units(shape, block, chunk, whole_blocks=True)
        if prod(map(min, unit, shape)) <= n_voxels:
            return chunk, unit, True
        return chunk, _units(shape, block, chunk, whole_blocks=False), False
    depth = dict(zip(axes, shape, strict=True)).get("z", 1)
    depths = [min(DEEP, depth)]
    while depths[-1] > 1:
        depths.append(depths[-1] // 2)
    tries = [(deep, True) for deep in depths if 4 * deep >= depths[0]]
    for deep, whole_blocks in tries + [(deep, False) for deep in depths]:
        wide = FLAT if depth == 1 else WIDE
        target = [{"z": deep, "y": wide, "x": wide}.get(axis, 1) for axis in axes]
        chunk = tuple([_chunk(n, b, t) for n, b, t in zip(shape, block, target, strict=True)])
        unit = _units(shape, block, chunk, whole_blocks=whole_blocks)
        if prod(map(min, unit, shape)) <= n_voxels:
            break
    aligned = unit == _units(shape, block, chunk, whole_blocks=True)
    return chunk, unit, aligned


def _chunk(extent: int, block: int, target: int) -> int:
    """Return a chunk extent near `target` whose grid meets that of the blocks."""
    target = min(target, extent)
    if block >= extent or block == 1:
        return target
    if block <= target:
        return target // block * block
    divisors = [d for d in range(max(1, target // 2), target + 1) if block % d == 0]
    if divisors:
        return divisors[-1]
    return block if block <= 2 * target else target


def _units(
    shape: tuple[int, ...], block: tuple[int, ...], chunk: tuple[int, ...], *, whole_blocks: bool
) -> tuple[int, ...]:
    """Return per axis the smallest extent that holds whole chunks, and whole blocks if it must."""
    units = []
    for n, b, c in zip(shape, block, chunk, strict=True):
        both = lcm(min(b, n), c) if b < n else n
        if both > max(b, c) and b < n and not whole_blocks:
            units.append(ceil_div(b, c) * c)
        elif both < n:
            units.append(both)
        else:  # the last block of an axis may be cut off: the axis is one region
            units.append(ceil_div(n, c) * c)
    return tuple(units)


def _grown(
    unit: tuple[int, ...], shape: tuple[int, ...], n_voxels: int, factor: tuple[int, ...]
) -> tuple[int, ...]:
    """Return a region made of units, multiplied axis by axis up to `n_voxels`: x and y first."""
    region = list(unit)
    plane = [len(shape) - 1, len(shape) - 2]
    rest = list(range(len(shape) - 3, -1, -1))

    def can_grow(axis: int, most: int) -> bool:
        step = max(2, factor[axis])
        fits = prod(map(min, region, shape)) * step <= n_voxels
        return region[axis] < shape[axis] and region[axis] * step <= most and fits

    for axes, most in ((plane, GROWN), (rest, 2**62), (plane, 2**62)):
        while growing := [axis for axis in axes if can_grow(axis, most)]:
            # The plane grows evenly, the other axes one after the other.
            axis = min(growing, key=region.__getitem__) if axes is plane else growing[0]
            region[axis] *= max(2, factor[axis])
    return tuple(region)


def _shards(
    shapes: tuple[tuple[int, ...], ...],
    chunks: tuple[tuple[int, ...], ...],
    region: tuple[int, ...],
    factor: tuple[int, ...],
    n_fused: int,
) -> tuple[tuple[int, ...], ...]:
    """Return a shard shape per level: whole chunks, and whole in a region that writes them."""
    shards = []
    for level, (shape, chunk) in enumerate(zip(shapes, chunks, strict=True)):
        extents = []
        for n, c, r, f in zip(shape, chunk, region, factor, strict=True):
            inside = r // f**level if level < n_fused else r // f
            whole = ceil_div(n, c) * c
            extents.append(min(whole, max(c, inside // c * c)))
        shards.append(tuple(extents))
    return tuple(shards)


def check_layout(layout: ImageLayout, axes: str) -> None:
    """Raise InputError unless what is asked for can be had for an image of these axes."""
    if layout.downscale < 2:
        raise InputError(f"downscale={layout.downscale!r}: expected an integer of 2 or more")
    if layout.n_levels is not None and layout.n_levels < 1:
        raise InputError(f"n_levels={layout.n_levels!r}: expected an integer of 1 or more")
    if layout.chunks is not None and (
        len(layout.chunks) != len(axes) or any(c < 1 for c in layout.chunks)
    ):
        raise InputError(
            f"chunks={layout.chunks!r}: expected {len(axes)} positive integers, for axes {axes!r}"
        )
