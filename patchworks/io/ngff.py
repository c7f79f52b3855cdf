"""OME-NGFF metadata, read and written: multiscales, axes, scales, `image-label`.

Follows the OME-NGFF specification, versions 0.4 (zarr 2) and 0.5 (zarr 3). Older versions are
read as far as their axes can be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from patchworks.errors import InputError
from patchworks.geometry.pyramid import PyramidPlan

Version = Literal["0.4", "0.5"]

PROVENANCE_KEY = "patchworks"
"""Attribute under which a label image says which run made it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an image: name, type (`space`, `time`, `channel`) and unit, as in the store."""

    name: str
    type: str | None = None
    unit: str | None = None

    @property
    def is_space(self) -> bool:
        """Whether voxels along it have neighbours in space."""
        return self.type == "space" or (self.type is None and self.name.lower() in "zyx")

    @property
    def as_dict(self) -> dict[str, str]:
        """The axis as the specification writes it."""
        pairs = (("name", self.name), ("type", self.type), ("unit", self.unit))
        return {key: value for key, value in pairs if value is not None}


@dataclass(frozen=True, slots=True)
class Channel:
    """What is known of a channel; None for what is not.

    Parameters
    ----------
    name : str or None
        As the file has it.
    color : str or None
        Six hexadecimal digits, ``"RRGGBB"``.
    window : tuple of float or None
        Intensities that are shown as black and as full colour.
    """

    name: str | None = None
    color: str | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """One dataset of a multiscale image: its path, voxel size and position, per axis."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Multiscale:
    """The first multiscale image of a group."""

    version: str
    name: str
    axes: tuple[Axis, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a label image takes over from its image: axes, and voxel size and position on each."""

    axes: tuple[Axis, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]

    @classmethod
    def unknown(cls, names: tuple[str, ...]) -> Calibration:
        """Return axes of these names with nothing known about size and position."""
        kinds = {"t": "time", "c": "channel"}
        axes = tuple([Axis(n, kinds.get(n, "space")) for n in names])
        return cls(axes, (1.0,) * len(names), (0.0,) * len(names))


def default_axis_names(ndim: int) -> tuple[str, ...]:
    """Return the names for the axes of an array that has none."""
    known = {2: "yx", 3: "zyx", 4: "tzyx", 5: "tczyx"}
    return tuple(known.get(ndim) or [f"axis{i}" for i in range(ndim)])


def read_multiscale(attributes: Mapping[str, Any], where: str) -> Multiscale | None:
    """Return the first multiscale image that a group's attributes describe, or None.

    Raises
    ------
    InputError
        If there is one but it cannot be understood.
    """
    ome = attributes.get("ome", attributes)
    found = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not found:
        return None
    try:
        image = found[0]
        version = str(ome.get("version", image.get("version", "0.4")))
        rank = _rank(image)
        axes = _axes(image, rank)
        shared = _transform(image.get("coordinateTransformations"), rank)
        levels = tuple([_level(dataset, rank, shared) for dataset in image["datasets"]])
        return Multiscale(version, str(image.get("name", "")), axes, levels)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: the multiscales metadata cannot be read ({type(error).__name__}: {error}); "
            f"expected OME-NGFF 0.4 or 0.5"
        ) from error


def _rank(image: Mapping[str, Any]) -> int:
    return len(image["axes"]) if "axes" in image else 5  # before 0.3 always t, c, z, y, x


def _axes(image: Mapping[str, Any], rank: int) -> tuple[Axis, ...]:
    kinds = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    axes = []
    for axis in image.get("axes", default_axis_names(rank)):
        if isinstance(axis, str):
            axes.append(Axis(axis, kinds.get(axis)))
        else:
            name = str(axis["name"])
            axes.append(Axis(name, axis.get("type", kinds.get(name)), axis.get("unit")))
    return tuple(axes)


def _level(
    dataset: Mapping[str, Any], rank: int, shared: tuple[tuple[float, ...], tuple[float, ...]]
) -> Level:
    scale, translation = _transform(dataset.get("coordinateTransformations"), rank)
    return Level(
        str(dataset["path"]),
        tuple([a * b for a, b in zip(scale, shared[0], strict=True)]),
        tuple([a * f + b for a, f, b in zip(translation, *shared, strict=True)]),
    )


def _transform(steps: Any, rank: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and translation of a list of coordinateTransformations."""
    scale, translation = (1.0,) * rank, (0.0,) * rank
    for step in steps or ():
        if step["type"] == "scale":
            scale = tuple([float(v) for v in step["scale"]])
        elif step["type"] == "translation":
            translation = tuple([float(v) for v in step["translation"]])
    if len(scale) != rank or len(translation) != rank:
        raise ValueError(f"a transformation does not have {rank} entries, one per axis")
    return scale, translation


def label_attributes(
    version: Version,
    *,
    name: str,
    calibration: Calibration,
    pyramid: PyramidPlan,
    source: str | None,
) -> dict[str, Any]:
    """Return the attributes of a label image's group.

    Parameters
    ----------
    version : {"0.4", "0.5"}
        Version of the specification to write.
    name : str
        Name of the label image.
    calibration : Calibration
        Axes, and size and position of level 0.
    pyramid : PyramidPlan
        The levels. A voxel of a level stands for a cell of the level above: its centre lies
        (factor - 1) / 2 voxels further in.
    source : str or None
        Path to the image from the label image, if it lies in the same store.
    """
    multiscale = {
        "name": name,
        "axes": [axis.as_dict for axis in calibration.axes],
        "datasets": _datasets(calibration, pyramid),
        **_method("mode"),
    }
    label: dict[str, Any] = {} if source is None else {"source": {"image": source}}
    if version == "0.4":
        return {
            "multiscales": [{"version": version, **multiscale}],
            "image-label": {"version": version, **label},
        }
    return {"ome": {"version": version, "multiscales": [multiscale], "image-label": label}}


def image_attributes(
    version: Version,
    *,
    name: str,
    calibration: Calibration,
    pyramid: PyramidPlan,
    pooled: bool = True,
    omero: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the attributes of an image's group.

    Parameters
    ----------
    version, name, calibration, pyramid
        As in `label_attributes`.
    pooled : bool
        Whether a voxel of a level stands for a cell; else it is the first voxel of the cell.
    omero : mapping, optional
        How the channels are shown, see `omero_of`.
    """
    multiscale = {
        "name": name,
        "axes": [axis.as_dict for axis in calibration.axes],
        "datasets": _datasets(calibration, pyramid, pooled=pooled),
        **_method("mean" if pyramid.scales is None else "kept"),
    }
    shown = {} if omero is None else {"omero": dict(omero)}
    if version == "0.4":
        return {"multiscales": [{"version": version, **multiscale}], **shown}
    return {"ome": {"version": version, "multiscales": [multiscale], **shown}}


def with_levels(
    attributes: Mapping[str, Any],
    version: Version,
    *,
    name: str,
    calibration: Calibration,
    pyramid: PyramidPlan,
    base: str,
    method: str,
) -> dict[str, Any]:
    """Return the attributes of a group with all levels of a pyramid in its multiscales.

    Parameters
    ----------
    attributes : mapping
        The group's attributes; what they say beside the levels stays.
    version, name, calibration, pyramid
        As in `label_attributes`; `name` for a group that has none.
    base : str
        Path of level 0; the others are called by their number.
    method : str
        How a level is made from the one above.
    """
    datasets = _datasets(calibration, pyramid)
    datasets[0]["path"] = base
    kept = dict(attributes)
    ome = dict(kept.get("ome", {})) if version == "0.5" else kept
    first = dict(ome["multiscales"][0]) if ome.get("multiscales") else {"name": name}
    first.update(
        axes=[axis.as_dict for axis in calibration.axes], datasets=datasets, **_method(method)
    )
    first.pop("coordinateTransformations", None)  # those of the whole are in the levels' now
    if version == "0.4":
        first["version"] = version
    else:
        ome["version"] = version
    ome["multiscales"] = [first, *ome.get("multiscales", [])[1:]]
    return {**kept, "ome": ome} if version == "0.5" else ome


METHODS = {
    "mean": "mean of each cell; integers are rounded to the nearest",
    "mode": "most frequent label of each cell; ties go to the object",
    "kept": "levels as the source has them",
}


def _method(name: str) -> dict[str, Any]:
    """Return how levels are made, as the specification says it."""
    return {"type": name, "metadata": {"description": METHODS[name]}}


PALETTE = ("00FFFF", "FF00FF", "FFFF00", "FF0000", "00FF00", "0000FF")
"""Colours for channels of which a file says something, but no colour."""


def omero_of(
    channels: Sequence[Channel],
    limits: tuple[float, float],
    measured: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Return the `omero` part of the metadata: how channels are called and shown.

    Parameters
    ----------
    channels : sequence of Channel
        What is known of them.
    limits : tuple of float
        Smallest and largest intensity that there may be.
    measured : sequence of tuple of float
        Smallest and largest intensity that there is, per channel; the window of a channel for
        which the file has none.
    """
    described = []
    for index, (channel, found) in enumerate(zip(channels, measured, strict=True)):
        start, end = channel.window or found
        one = {
            "active": True,
            "color": channel.color or ("FFFFFF" if len(channels) == 1 else PALETTE[index % 6]),
            "window": {
                "min": min(limits[0], start),
                "max": max(limits[1], end),
                "start": start,
                "end": end,
            },
        }
        described.append(one if channel.name is None else {"label": channel.name, **one})
    return {"channels": described, "rdefs": {"model": "color"}}


def read_channels(attributes: Mapping[str, Any]) -> tuple[Channel, ...]:
    """Return what the `omero` part of an image's attributes says of its channels."""
    ome = attributes.get("ome", attributes)
    omero = ome.get("omero") if isinstance(ome, Mapping) else None
    listed = omero.get("channels") if isinstance(omero, Mapping) else None
    channels = []
    for one in listed if isinstance(listed, list) else ():
        if not isinstance(one, Mapping):
            return ()
        color, window, label = one.get("color"), one.get("window"), one.get("label")
        window = window if isinstance(window, Mapping) else {}
        ends = (window.get("start"), window.get("end"))
        known = all(isinstance(end, (int, float)) for end in ends)
        channels.append(
            Channel(
                name=None if label is None else str(label),
                color=None if color is None else str(color).lstrip("#").upper()[:6],
                window=ends if known else None,  # type: ignore[arg-type]
            )
        )
    return tuple(channels)


def _datasets(
    calibration: Calibration, pyramid: PyramidPlan, *, pooled: bool = True
) -> list[dict[str, Any]]:
    """Return path, scale and translation of every level."""
    datasets = []
    for level in range(pyramid.n_levels):
        factors = pyramid.scale(level)
        scale = [s * f for s, f in zip(calibration.scale, factors, strict=True)]
        translation = [
            t + s * (f - 1) / 2 * pooled
            for t, s, f in zip(calibration.translation, calibration.scale, factors, strict=True)
        ]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(translation):
            steps.append({"type": "translation", "translation": translation})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    return datasets


def with_label_listed(
    attributes: Mapping[str, Any], version: Version, name: str, where: str
) -> dict[str, Any]:
    """Return the attributes of a `labels` group with `name` added to the labels it lists.

    Raises
    ------
    InputError
        If it lists what can be no names; null is none, and text is one.
    """
    found = dict(attributes)
    said = (found.get("ome") or {}) if version == "0.5" else found
    listed = said.get("labels") if isinstance(said, Mapping) else said
    labels = [] if listed is None else [listed] if isinstance(listed, str) else listed
    if not (isinstance(said, Mapping) and isinstance(labels, list)):
        raise InputError(
            f"{where}: its metadata list the labels {listed!r}; expected a list of names, such as "
            f"['nuclei']: repair or remove it"
        )
    names = labels if name in labels else [*labels, name]
    if version == "0.4":
        return {**found, "labels": names}
    return {**found, "ome": {**said, "version": said.get("version", version), "labels": names}}
