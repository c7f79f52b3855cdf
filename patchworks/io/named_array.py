"""Arrays whose axes have names, such as an `xarray.DataArray` → the array itself, and the names.

Nothing here imports xarray: what has ``dims`` and ``data`` is such an array.
"""

from __future__ import annotations

from typing import Any

KNOWN = {"t": "t", "c": "c", "z": "z", "y": "y", "x": "x", "time": "t", "channel": "c"}
"""What names of axes mean, in lower case."""


def has_names(image: object) -> bool:
    """Whether this is an array with names for its axes around a NumPy or Dask array."""
    if not isinstance(getattr(image, "dims", None), tuple):  # a Dask Delayed has any attribute
        return False
    return all(hasattr(image, name) for name in ("data", "chunks", "__dask_graph__"))


def bare_array(image: Any) -> Any:
    """Return the array inside one whose axes have names; anything else as it is."""
    return image.data if has_names(image) else image


def axis_names(image: Any) -> tuple[str, ...] | None:
    """Return the names of an array's axes as OME-NGFF spells them; None if they say nothing.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> held = {"data": None, "chunks": None, "__dask_graph__": None}
    >>> axis_names(SimpleNamespace(dims=("Time", "Y", "X"), **held))
    ('t', 'y', 'x')
    >>> axis_names(SimpleNamespace(dims=("dim_0", "dim_1"), **held)) is None
    True
    """
    if not has_names(image):
        return None
    given = [str(name).lower() for name in image.dims]
    names = tuple([KNOWN.get(name, name) for name in given])
    is_said = set(names) & set(KNOWN.values()) and len(set(names)) == len(names)
    return names if is_said else None
