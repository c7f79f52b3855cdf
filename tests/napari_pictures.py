"""Pictures of napari for the docs: ``python -m tests.napari_pictures docs/pictures``.

Needs Qt and a screen: ``xvfb-run -a -s "-screen 0 1600x1000x24"`` before it makes a virtual one.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication, QDockWidget

from patchworks import tile_process
from patchworks.plugins.napari import view_in_napari
from patchworks.plugins.napari.sample import SPACING, nuclei
from patchworks.plugins.ome_zarr import to_ome_zarr
from patchworks.segmenters import resolve_segmenter

NUCLEI = Path(__file__).parents[1] / "docs" / "nuclei.tif"
WIDTH, HEIGHT = 1400, 880
CELLS = {"name": "threshold", "sigma": 1.5}
ROUND: dict[str, Any] = {"name": "blobs", "diameter": [9, 18, 18], "contrast": 60, "smoothing": 1}
TILES: dict[str, Any] = {"tile_shape": (32, 128, 128), "overlap": (0, 50, 50)}
TITLE = "Segment this layer with patchworks"


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        QApplication.processEvents()
        time.sleep(0.02)


def rest(seconds: float = 1.5) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


def window() -> Any:
    viewer = napari.Viewer()
    viewer.window._qt_window.resize(WIDTH, HEIGHT)
    rest()
    return viewer


def take(viewer: Any, path: Path) -> None:
    rest()
    shown = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(shown).convert("RGB").quantize(256).save(path, optimize=True)
    viewer.close()
    print(path)


def in_two_dimensions(folder: Path, target: Path) -> None:
    store = to_ome_zarr(NUCLEI, folder / "nuclei.ome.zarr", progress=False)
    tile_process(
        str(store), resolve_segmenter(CELLS), tile_shape=(128, 128), overlap=32, progress=False
    )
    viewer = window()
    view_in_napari(store, viewer=viewer)
    viewer.layers[0].contrast_limits = (5, 120)
    take(viewer, target / "napari-2d.png")


def a_stack(folder: Path) -> Path:
    (image, _, _) = nuclei()[0]
    size = dict(zip("zyx", SPACING, strict=True))
    return Path(
        to_ome_zarr(image, folder / "stack.ome.zarr", axes="zyx", pixel_size=size, progress=False)
    )


def in_three_dimensions(folder: Path, target: Path) -> None:
    store = a_stack(folder)
    tile_process(
        str(store), resolve_segmenter(ROUND), **TILES, progress=False, output_component="nuclei"
    )
    viewer = window()
    view_in_napari(store, viewer=viewer)
    viewer.dims.ndisplay = 3
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.layers[0].contrast_limits = (0, 3000)
    viewer.layers[1].opacity = 1
    viewer.scene.camera.angles = (5, 30, 75)
    viewer.scene.camera.zoom *= 1.3
    take(viewer, target / "napari-3d.png")


def the_widget(folder: Path, target: Path) -> None:
    store = a_stack(folder / "again")
    viewer = window()
    view_in_napari(store, viewer=viewer)
    viewer.layers[0].contrast_limits = (0, 1500)
    dock, widget = viewer.window.add_plugin_dock_widget("patchworks", TITLE)
    assert isinstance(dock, QDockWidget)
    viewer.window._qt_window.resizeDocks([dock], [330], _horizontal())
    widget.segmenter.value = ROUND["name"]
    for name in ("diameter", "contrast", "smoothing"):
        widget.form[name].value = str(ROUND[name])
    widget.tile_shape.value, widget.overlap.value = "32, 128, 128", "0, 50, 50"
    widget.labels_name.value = "nuclei"
    widget.start()
    until(lambda: widget._run is None)
    viewer.dims.set_point(0, 16 * SPACING[0])
    assert np.any(np.asarray(viewer.layers[-1].data[16]))
    take(viewer, target / "napari-widget.png")


def _horizontal() -> Any:
    from qtpy.QtCore import Qt

    return Qt.Orientation.Horizontal


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for picture in (in_two_dimensions, in_three_dimensions, the_widget):
            picture(Path(folder), Path(target))


if __name__ == "__main__":
    main(sys.argv[1])
