"""`view_in_napari`: an image and its labels, lazily and calibrated, in a napari viewer."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchworks.errors import MissingExtraError
from patchworks.extras import import_extra
from patchworks.io.find_labels import FoundLabels, labels_named
from patchworks.io.location import Location
from patchworks.plugins.napari.layers import Layer, layers_of

if TYPE_CHECKING:
    from napari.components import ViewerModel

PathLike = str | os.PathLike[str]

N_COLORS = 1021
"""Colours of labels. Numbers that differ by a multiple of it share one: with napari's own 49 that
are 0.6 % of the neighbours in an image of 256 tiles, with this prime number none."""

SEED = 0.5
"""Of the order of colours: by this one no two of those neighbours are alike (CIE76 < 5)."""

DARKEST = 50.0
"""Lightness (L*) of a colour at least: darker ones do not show over a dark image."""


def view_in_napari(
    store: PathLike,
    labels: PathLike | Sequence[PathLike] | None = None,
    *,
    viewer: ViewerModel | None = None,
    show: bool = True,
) -> Any:
    """Show an image and its labels in napari, at once, whatever their size.

    Levels are read where and when they are looked at. Channels become layers with the names,
    colours and contrast of the store; sizes, positions and units are those of its metadata.

    Parameters
    ----------
    store : path or URL
        An OME-Zarr image, a collection of them, a plain zarr array, or a label image.
    labels : path, URL or name, or several, optional
        Label images to show: in the store or beside it, or any other. By default all that belong to
        the image: those in its store, and beside it those that have its shape and name. None of
        them is shown for an empty list.
    viewer : napari.Viewer or napari.components.ViewerModel, optional
        Where to add the layers; by default a new window.
    show : bool
        Whether a new window is shown at once.

    Returns
    -------
    napari.Viewer
        The viewer. In a script, call ``napari.run()`` after it.

    Raises
    ------
    MissingExtraError
        If napari is not installed.
    SourceNotFoundError, InputError
        If there is no such store or label image, or it cannot be understood.

    Examples
    --------
    >>> view_in_napari("scan.zarr")  # doctest: +SKIP
    """
    import_extra("napari", "napari", "view_in_napari")
    place = Location.parse(store, "store")
    layers = layers_of(place, None if labels is None else _chosen(place, labels))
    if viewer is None:
        viewer = _window(show=show)
    for layer in layers:
        add_layer(viewer, layer)
    return viewer


def _window(*, show: bool) -> Any:
    """Return a new window of napari."""
    try:
        import napari._qt  # noqa: F401 - napari itself comes without a Qt
    except ImportError as error:
        raise MissingExtraError(
            "a window of napari needs a Qt binding, and none can be imported: "
            "pip install 'patchworks[napari]'"
        ) from error
    return import_extra("napari.viewer", "napari", "view_in_napari").Viewer(show=show)


def add_layer(viewer: Any, layer: Layer) -> Any:
    """Add a layer to a viewer, and return napari's."""
    data, options, kind = layer.as_tuple
    if kind == "labels":
        return viewer.add_labels(data, **options, colormap=label_colors())
    return viewer.add_image(data, **_with_colormap(options))


def as_layer_data(layer: Layer) -> tuple[Any, dict[str, Any], str]:
    """Return a layer as napari's readers return it, coloured."""
    data, options, kind = layer.as_tuple
    if kind == "labels":
        return data, {**options, "colormap": label_colors()}, kind
    return data, _with_colormap(options), kind


def _with_colormap(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with a colormap from black to a channel's colour."""
    colors = options.get("colormap")
    if colors is None:
        return options
    from napari.utils.colormaps import Colormap

    return {**options, "colormap": Colormap(colors, name=colors[-1])}


@functools.cache
def label_colors() -> Any:
    """Return a colormap for labels: napari's colours, more of them, and none too dark."""
    from napari.utils.colormaps import CyclicLabelColormap, label_colormap
    from skimage.color import rgb2lab

    background, *colors = label_colormap(3 * N_COLORS, SEED).colors
    light = rgb2lab(np.array(colors)[:, :3])[:, 0] >= DARKEST
    chosen = np.array([background, *np.array(colors)[light][:N_COLORS]])
    return CyclicLabelColormap(
        name="patchworks labels",
        colors=chosen,
        controls=np.linspace(0, 1, len(chosen) + 1),
        interpolation="zero",
        background_value=0,
        seed=SEED,
    )


def _chosen(image: Location, labels: PathLike | Sequence[PathLike]) -> list[FoundLabels]:
    """Return the label images that a user names."""
    named = [labels] if isinstance(labels, (str, os.PathLike)) else labels
    places = [labels_named(image, os.fspath(name)) for name in named]
    return [FoundLabels(place.name, place) for place in places]
