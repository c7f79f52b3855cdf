"""What users can choose of Cellpose's computation, checked without importing it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from patchworks.errors import InputError
from patchworks.run import finite_number, whole_number


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of one evaluation; see `cellpose_fn`.

    Raises
    ------
    InputError
        If one is out of its range.
    """

    diameter: float | None = None
    channels: tuple[int, ...] | None = None
    do_3D: bool = False  # noqa: N815 - Cellpose's name
    anisotropy: float | None = None
    stitch_threshold: float = 0.0
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_size: int = 15
    max_size_fraction: float = 0.4
    niter: int | None = None
    augment: bool = False
    resample: bool = True
    flow3D_smooth: float = 0.0  # noqa: N815 - Cellpose's name
    batch_size: int = 8
    tile_overlap: float = 0.1

    def __post_init__(self) -> None:
        for name in ("do_3D", "augment", "resample"):
            flag(name, getattr(self, name))
        for name, low, high in (
            ("stitch_threshold", 0.0, 1.0),
            ("flow_threshold", 0.0, None),
            ("flow3D_smooth", 0.0, None),
            ("tile_overlap", 0.05, 0.5),
            ("cellprob_threshold", None, None),
        ):
            in_range(name, getattr(self, name), low, high)
        for name in ("diameter", "anisotropy", "max_size_fraction"):
            number = finite_number(f"cellpose_fn {name}", getattr(self, name))
            if number is not None and number <= 0:
                raise InputError(f"cellpose_fn {name}={number!r}: expected a number above 0")
        if self.max_size_fraction is None:
            raise InputError("cellpose_fn max_size_fraction=None: expected a number above 0")
        whole_number("cellpose_fn batch_size", self.batch_size, 1, 2**20)
        whole_number("cellpose_fn min_size", self.min_size, -1, 2**62)
        if self.niter is not None:
            whole_number("cellpose_fn niter", self.niter, 1, 10**6)
        if self.do_3D and self.stitch_threshold > 0:
            raise InputError(
                f"cellpose_fn do_3D=True, stitch_threshold={self.stitch_threshold}: planes are "
                f"stitched where they were segmented one by one; give one of the two"
            )

    @property
    def wants_volumes(self) -> bool:
        """Whether tiles have to be ``(Z, Y, X)``."""
        return self.do_3D or self.stitch_threshold > 0

    def for_cellpose(self, tile: Sequence[int], image: Sequence[int] | None) -> dict[str, Any]:
        """Return the keywords that Cellpose 3 and 4 have in common.

        Parameters
        ----------
        tile, image : sequence of int
            Spatial shapes; of the image None where it is not known. What is too large to be an
            object is measured against the image.
        """
        n_axes = 3 if self.do_3D else 2
        whole = prod((image or tile)[-n_axes:])
        share = self.max_size_fraction * whole / prod(tile[-n_axes:])
        return {
            "batch_size": int(self.batch_size),
            "resample": bool(self.resample),
            "diameter": None if self.diameter is None else float(self.diameter),
            "flow_threshold": float(self.flow_threshold),
            "cellprob_threshold": float(self.cellprob_threshold),
            "flow3D_smooth": float(self.flow3D_smooth),
            "min_size": int(self.min_size),
            "max_size_fraction": min(1.0, share),
            "niter": self.niter,
            "augment": bool(self.augment),
            "tile_overlap": float(self.tile_overlap),
        }


def flag(name: str, value: object) -> bool:
    """Return `value`, or raise InputError if it is neither True nor False."""
    if not isinstance(value, bool):
        raise InputError(f"cellpose_fn {name}={value!r}: expected True or False")
    return value


def in_range(name: str, value: object, low: float | None, high: float | None) -> float:
    """Return `value` as a float from `low` to `high`, or raise InputError."""
    number = finite_number(f"cellpose_fn {name}", value)
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        upper = "" if high is None else f" and at most {high:g}"
        lower = "" if low is None else f" of at least {low:g}"
        raise InputError(f"cellpose_fn {name}={value!r}: expected a number{lower}{upper}")
    return number


def positions(name: str, value: object) -> tuple[int, ...] | None:
    """Return positions among the channels of a tile, None as None; raise InputError otherwise."""
    if value is None:
        return None
    entries: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    found = tuple([whole_number(f"cellpose_fn {name}", entry, 0, 2**20) for entry in entries])
    if not found or len(set(found)) < len(found):
        raise InputError(
            f"cellpose_fn {name}={value!r}: expected different positions, such as [0, 1]"
        )
    return found


def pairs(name: str, value: object) -> tuple[tuple[float, float], ...] | None:
    """Return a flat list of lows and highs in pairs, None as None; raise InputError otherwise."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not value or len(value) % 2:
        raise InputError(
            f"cellpose_fn {name}={value!r}: expected a low and a high intensity, such as "
            f"[100, 2000], or as many pairs as channels"
        )
    numbers = [in_range(name, entry, None, None) for entry in value]
    found = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    for low, high in found:
        if not low < high:
            raise InputError(f"cellpose_fn {name}={value!r}: {low:g} is not below {high:g}")
    return found


def device_name(value: object) -> str | None:
    """Return the name of a device, None as None; raise InputError otherwise."""
    if value is None or (isinstance(value, str) and re.fullmatch(r"cpu|mps|cuda(:\d+)?", value)):
        return value
    raise InputError(
        f"cellpose_fn device={value!r}: expected 'cpu', 'cuda', 'cuda:1', 'mps', or None for the "
        f"GPU if there is one"
    )
