"""From what a tile may cost to the largest sensible tile: integers, no machine.

Tiles grow from the smallest that can be, one axis a step, in an order that depends on the image
alone::

    (16, 16, 16) → (16, 16, 32) → (16, 32, 32) → (32, 32, 32) → (32, 32, 64) → ...

and stop before the first that costs too much, or that leaves workers without a tile. So more
memory never means smaller tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from patchworks.errors import MemoryBudgetError
from patchworks.geometry.grid import ceil_div
from patchworks.geometry.tile_shape import DEFAULT_OVERLAP, MAX_VOXELS, MIN_VOXELS

TILES_PER_WORKER = 4
"""With so many, workers that are done wait for the last for a fifth of the time at most."""

HALOS_PER_TILE = 4
"""Halos that a tile spans on an axis before physical aspect counts: it reads half as much again."""

MAX_ASPECT = 8.0
"""Voxels longer than this, in relation to the shortest side, count as this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What is there for a tile, and what one voxel of a tile with its halo takes of it.

    Parameters
    ----------
    what : str
        For messages, such as ``"memory for 8 workers"``.
    n_bytes, bytes_per_voxel : int
        Bytes there are; bytes per voxel.
    """

    what: str
    n_bytes: int
    bytes_per_voxel: int

    @property
    def n_voxels(self) -> int:
        """Voxels, halo included, that a tile may have."""
        return max(0, self.n_bytes) // self.bytes_per_voxel


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBudget:
    """What all the tiles that are worked on at a time may cost.

    Parameters
    ----------
    limits : tuple of Limit
        Each of which holds.
    n_workers : int
        Tiles worked on at a time.
    """

    limits: tuple[Limit, ...]
    n_workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLayout:
    """The image that is tiled: one entry per axis everywhere.

    Parameters
    ----------
    shape : tuple of int
        Its shape, in voxels.
    is_tiled : tuple of bool
        Axes that tiles extend along; on the others they are one voxel thick.
    halo : tuple of (int or None)
        Voxels of halo; None: by default.
    spacing : tuple of float
        Size of a voxel; only the relations count.
    chunks, shards : tuple of int
        Of its store, so that tiles line up with them; 1 where there are none.
    reach : tuple of int
        Voxels that a tile spans on an axis, if it can, before physical aspect counts.
    """

    shape: tuple[int, ...]
    is_tiled: tuple[bool, ...]
    halo: tuple[int | None, ...]
    spacing: tuple[float, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    reach: tuple[int, ...]

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        *,
        is_tiled: tuple[bool, ...] | None = None,
        halo: tuple[int | None, ...] | None = None,
        spacing: tuple[float, ...] | None = None,
        chunks: tuple[int, ...] | None = None,
        shards: tuple[int, ...] | None = None,
    ) -> TileLayout:
        """Return a layout, with defaults for what is not known.

        Parameters
        ----------
        shape, is_tiled, halo, spacing, chunks, shards
            As of the class.
        """
        n = len(shape)
        chunks = chunks or (1,) * n
        halo = halo or (None,) * n
        return cls(
            shape=shape,
            is_tiled=is_tiled or (True,) * n,
            halo=halo,
            spacing=sane_spacing(spacing or (1.0,) * n),
            chunks=chunks,
            shards=shards or chunks,
            reach=tuple([HALOS_PER_TILE * (DEFAULT_OVERLAP if h is None else h) for h in halo]),
        )

    def read_shape(self, tile: tuple[int, ...]) -> tuple[int, ...]:
        """Return what a tile in the midst of the image reads, halo included."""
        return tuple(
            [
                min(t + 2 * self.halo_of(axis, t), n)
                for axis, (t, n) in enumerate(zip(tile, self.shape, strict=True))
            ]
        )

    def halo_of(self, axis: int, extent: int) -> int:
        """Return the halo of a tile that extends so far: none if it is alone on the axis.

        Nor where it is one voxel thick, unless a halo was given; that a number for all axes means
        none there is not told apart.
        """
        wanted = self.halo[axis]
        if not self.is_tiled[axis] or extent >= self.shape[axis]:
            return 0
        if wanted is None:
            return min(DEFAULT_OVERLAP, extent) if extent > 1 else 0
        return wanted

    def n_tiles(self, tile: tuple[int, ...]) -> int:
        """Return how many tiles cover the image."""
        return prod([ceil_div(n, t) for n, t in zip(self.shape, tile, strict=True)])

    def extents(self, axis: int) -> list[int]:
        """Return the extents that a tile may have on an axis, increasing.

        Parts of a chunk, whole chunks, from a shard on whole shards, and the image.
        """
        n = self.shape[axis]
        if not self.is_tiled[axis]:
            return [1]
        wanted = self.halo[axis]
        least = min(n, max(1, DEFAULT_OVERLAP if wanted is None else wanted))
        chunk, shard = self.chunks[axis], max(self.chunks[axis], self.shards[axis])
        found = {ceil_div(chunk, 2**k) for k in range(chunk.bit_length())}
        found |= set(_multiples(chunk, shard)) | set(_multiples(shard, n))
        return [*sorted(t for t in found if least <= t < n), n]


def _multiples(unit: int, end: int) -> Iterator[int]:
    """Yield multiples of a unit below `end`, further and further apart, by an eighth at most."""
    extent = unit
    while extent < end:
        yield extent
        extent += unit * max(1, extent // unit // 8)


def sane_spacing(spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Return the relations of voxel sizes to the smallest, none above `MAX_ASPECT`.

    Examples
    --------
    >>> sane_spacing((2.0, 0.4, 0.4)), sane_spacing((100.0, 1.0, 0.0))
    ((5.0, 1.0, 1.0), (8.0, 1.0, 1.0))
    """
    known = [s for s in spacing if 0 < s < float("inf")]
    least = min(known, default=1.0)
    return tuple([min(s / least, MAX_ASPECT) if s in known else 1.0 for s in spacing])


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A tile shape, and why it is not larger.

    Parameters
    ----------
    tile_shape : tuple of int
        Core of a tile, in voxels.
    n_tiles : int
        Tiles that cover the image.
    reason : str
        What a larger one would exceed.
    """

    tile_shape: tuple[int, ...]
    n_tiles: int
    reason: str


def propose_tile_shape(layout: TileLayout, budget: TileBudget) -> Proposal:
    """Return the largest sensible tile that stays within a budget.

    About a cube in physical units, once it spans some halos on each axis; whole chunks where a
    chunk fits, whole shards where a shard does; not more than `MAX_VOXELS`; and so small that
    every worker has some tiles, unless tiles were tiny then (`MIN_VOXELS`).

    Parameters
    ----------
    layout : TileLayout
        The image.
    budget : TileBudget
        What tiles may cost.

    Raises
    ------
    MemoryBudgetError
        If not even the smallest tile fits.

    Examples
    --------
    >>> layout = TileLayout.of((128, 2048, 2048), chunks=(32, 256, 256), halo=(8, 8, 8))
    >>> memory = Limit(what="memory", n_bytes=2**30, bytes_per_voxel=64)
    >>> propose_tile_shape(layout, TileBudget(limits=(memory,), n_workers=2)).tile_shape
    (128, 256, 256)
    """
    allowed = [layout.extents(axis) for axis in range(len(layout.shape))]
    places = [0] * len(allowed)
    tile = tuple([extents[0] for extents in allowed])
    if complaint := _exceeded(layout, budget, tile):
        raise MemoryBudgetError(_too_small(layout, complaint, tile))
    reason = "the image"
    while (axis := _next_axis(layout, tile, allowed, places)) is not None:
        grown = (*tile[:axis], allowed[axis][places[axis] + 1], *tile[axis + 1 :])
        if limit := _exceeded(layout, budget, grown):
            reason = limit.what
        elif prod(grown) > MAX_VOXELS:
            reason = "the largest that is sensible"
        elif _idles(layout, budget, grown):
            reason = f"work for {budget.n_workers} workers"
        else:
            tile, places[axis] = grown, places[axis] + 1
            continue
        break
    even = tuple([_evened(layout, axis, t) for axis, t in enumerate(tile)])
    return Proposal(tile_shape=even, n_tiles=layout.n_tiles(even), reason=reason)


def _next_axis(
    layout: TileLayout, tile: tuple[int, ...], allowed: list[list[int]], places: list[int]
) -> int | None:
    """Return the axis on which a tile is to grow: where it has no reach, then where it is short."""
    ranked = [
        (t >= layout.reach[axis], t * layout.spacing[axis], -axis)
        for axis, t in enumerate(tile)
        if places[axis] + 1 < len(allowed[axis])
    ]
    return -min(ranked)[2] if ranked else None


def _exceeded(layout: TileLayout, budget: TileBudget, tile: tuple[int, ...]) -> Limit | None:
    n_voxels = prod(layout.read_shape(tile))
    over = [limit for limit in budget.limits if n_voxels > limit.n_voxels]
    return min(over, key=lambda limit: limit.n_voxels, default=None)


def _idles(layout: TileLayout, budget: TileBudget, tile: tuple[int, ...]) -> bool:
    if budget.n_workers == 1 or prod(tile) <= MIN_VOXELS:
        return False
    return layout.n_tiles(tile) < TILES_PER_WORKER * budget.n_workers


def _evened(layout: TileLayout, axis: int, extent: int) -> int:
    """Return the smallest extent of as many tiles, so that the last is not a sliver."""
    n, chunk, shard = layout.shape[axis], layout.chunks[axis], layout.shards[axis]
    unit = shard if extent % shard == 0 else chunk
    if extent >= n or extent % unit:
        return extent
    even = unit * ceil_div(ceil_div(n, ceil_div(n, extent)), unit)
    least = layout.halo[axis]
    return extent if even < (DEFAULT_OVERLAP if least is None else least) else even


def _too_small(layout: TileLayout, limit: Limit, tile: tuple[int, ...]) -> str:
    read = layout.read_shape(tile)
    needed = prod(read) * limit.bytes_per_voxel
    return (
        f"{limit.what}: {max(0, limit.n_bytes)} bytes, at {limit.bytes_per_voxel} per voxel, do "
        f"not hold the smallest tile of an image of {layout.shape}: {tile}, with its halo {read}, "
        f"takes {needed}; give more memory, fewer workers, or a smaller overlap"
    )
