"""What a run will do and cost, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from patchworks.geometry.grid import ceil_div

if TYPE_CHECKING:
    from patchworks.run_proposal import RunProposal

WIDTH = 12


def described(proposal: RunProposal) -> str:
    """Return a proposal in lines of a name and what there is to say of it."""
    plan = proposal.plan
    lines = [f"{plan.source.name}, {plan.segmenter_name!r}: nothing is written"]
    lines += [f"{name:<{WIDTH}}{text}" for name, text in _lines(proposal)]
    return "\n".join(lines)


def _lines(proposal: RunProposal) -> Iterator[tuple[str, str]]:
    plan, place = proposal.plan, proposal.workers.place
    source, grid = plan.source, plan.spec.grid
    chunks = "" if source.chunks is None else f", chunks {source.chunks}"
    yield "image", f"{source.shape} {source.dtype}, {_bytes(proposal.n_bytes)}{chunks}"
    if proposal.existing:
        yield "labels", proposal.existing
    why = f"; a larger tile would exceed {proposal.reason}" if proposal.reason else ""
    yield "tile shape", f"{grid.tile_shape}: a grid of {grid.dims}, {grid.n_tiles} tiles{why}"
    yield "overlap", f"{grid.halo}{_why_this_halo(proposal)}"
    yield "signal", _occupied(proposal)
    n_read = proposal.read_amplification * proposal.n_bytes
    yield "reading", f"{_bytes(n_read)}, each voxel {proposal.read_amplification:.1f} times"
    yield "memory", _memory(proposal)
    n_workers = min(place.n_workers, grid.n_tiles)
    if proposal.probe is None:
        yield "time", "unknown without a probe (probe=True)"
        return
    if proposal.seconds is not None and proposal.function_s is not None:
        yield (
            "time",
            f"about {_seconds(proposal.seconds)}; {_seconds(proposal.function_s)} in the function, "
            f"{n_workers} at a time",
        )
    if proposal.result_bytes is not None:
        yield "result", f"about {_bytes(proposal.result_bytes)}, all levels"
    if proposal.tiles_per_batch is not None:
        n = ceil_div(grid.n_tiles, proposal.tiles_per_batch)
        yield "batches", f"{n}, of {proposal.tiles_per_batch} tiles each"
    yield "probe", _probed(proposal)


def _why_this_halo(proposal: RunProposal) -> str:
    halo = proposal.halo
    if halo is None:
        is_tried = proposal.probe is not None
        return " by default: too few objects, or voxels, to try others" if is_tried else ""
    tried = ", ".join([f"{max(t.halo)}: {t.fidelity.f1:.3f}" for t in halo.trials])
    few = "" if halo.is_certain else " (few: no proof)"
    return (
        f"; F1 of the objects in tiles against those of the whole, on {halo.box.shape} with "
        f"{halo.n_cut} objects on cuts{few}: {tried}"
    )


def _occupied(proposal: RunProposal) -> str:
    if not proposal.plan.spec.skip_empty:
        return "every tile is segmented (skip_empty is off)"
    about = "" if proposal.is_counted else "about "
    return f"{about}{proposal.n_occupied} of {proposal.n_tiles} tiles; the others are left out"


def _memory(proposal: RunProposal) -> str:
    plan, place = proposal.plan, proposal.workers.place
    is_one = proposal.workers.are_threads or place.n_processes == 1
    each = "" if is_one else f" in each of {place.n_processes} processes"
    how = "assumed" if proposal.probe is None else "measured"
    of_gpu = ""
    if plan.need.gpu_bytes_per_voxel and place.gpu is not None:
        voxels = max(tile.read.size for tile in (plan.spec.grid[plan.spec.grid.n_tiles // 2],))
        n_bytes = plan.need.gpu_fixed_bytes + plan.need.gpu_bytes_per_voxel * voxels
        of_gpu = f"; {_bytes(n_bytes)} of {place.gpu}"
    return (
        f"up to {_bytes(proposal.projected_bytes)} of {_bytes(proposal.available_bytes)}{each}; "
        f"the function takes {plan.need.bytes_per_voxel:.1f} bytes a voxel ({how}){of_gpu}"
    )


def _probed(proposal: RunProposal) -> str:
    probe = proposal.probe
    if probe is None:
        return ""
    ended = f"; {probe.ended}" if probe.ended else ""
    seconds = sum(piece.seconds for piece in probe.pieces)
    return f"{len(probe.pieces)} calls, {_seconds(seconds)}, up to {probe.largest.box.shape}{ended}"


UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def _bytes(n_bytes: float) -> str:
    power = 0
    while n_bytes >= 1024 and power < len(UNITS) - 1:
        n_bytes, power = n_bytes / 1024, power + 1
    n_digits = 1 if power and n_bytes < 100 else 0
    return f"{n_bytes:.{n_digits}f} {UNITS[power]}"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
