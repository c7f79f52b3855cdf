"""napari's own window: open, segment, cancel, fail, close; and a store of 200 GB.

Needs Qt and a screen, which may be a virtual one::

    pip install -e '.[napari]'
    xvfb-run -a -s "-screen 0 1600x1000x24" pytest -m slow tests/plugins/test_napari_window.py
"""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from patchworks import tile_process
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.sparse_store import sparse_store
from tests.stores import blobs, components

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of napari's and Qt's own
    pytest.mark.skipif(
        sys.platform == "linux" and not os.environ.get("DISPLAY"), reason="there is no screen"
    ),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("qtpy.QtWidgets", exc_type=Exception)
    import napari

    from patchworks.plugins.napari import view_in_napari

TITLE = "Segment this layer with patchworks"

DEAD_SLOW = """
import time
from pathlib import Path
from scipy import ndimage

def make(folder="", seconds=1.0):
    def slow(tile):
        Path(folder, str(time.monotonic_ns())).touch()
        time.sleep(seconds)
        return ndimage.label(tile > 0)[0]
    return slow
"""


@pytest.fixture
def viewer():
    window = napari.Viewer()
    yield window
    window.close()


def events():
    from qtpy.QtWidgets import QApplication

    QApplication.processEvents()
    time.sleep(0.01)


def until(condition, seconds=90.0):
    """Let the window live until a condition holds; return the longest it did not answer."""
    end, last, worst = time.monotonic() + seconds, time.monotonic(), 0.0
    while not condition():
        assert time.monotonic() < end
        events()
        now = time.monotonic()
        last, worst = now, max(worst, now - last)
    return worst


def wait(seconds):
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


def widget_of(viewer):
    return viewer.window.add_plugin_dock_widget("patchworks", TITLE)[1]


@pytest.fixture
def shown_errors(monkeypatch):
    from napari.utils.notifications import notification_manager

    told = []
    notification_manager.notification_ready.connect(told.append)
    yield told
    notification_manager.notification_ready.disconnect(told.append)


def a_store(tmp_path, shape=(8, 120, 100)):
    return to_ome_zarr(
        blobs(shape), tmp_path / "scan.ome.zarr", n_levels=2, progress=False,
        pixel_size={"z": 2, "y": 0.5, "x": 0.5},
    )  # fmt: skip


def test_it_is_in_the_menus_and_files_are_opened_by_it(tmp_path, viewer):
    def texts(menu):
        menu.aboutToShow.emit()
        for action in menu.actions():
            yield action.text()
            if action.menu():
                yield from texts(action.menu())

    for menu, title in (("layers", TITLE), ("plugins", TITLE), ("file", "Nuclei in 3-D")):
        found = list(texts(getattr(viewer.window, f"{menu}_menu")))
        assert any(title in text for text in found), found
    store = a_store(tmp_path)
    tile_process(str(store), components, progress=False, output_component="cells")
    layers = viewer.open(str(store), plugin="patchworks")
    assert [layer.name for layer in layers] == ["scan", "cells"]
    viewer.open_sample("patchworks", "nuclei")
    assert viewer.layers[-1].name == "nuclei"


@pytest.mark.parametrize("ndisplay", [2, 3])
def test_labels_lie_where_their_objects_are(tmp_path, viewer, ndisplay):
    image = np.zeros((8, 256, 256), "uint8")
    image[:, 40:120, 60:200] = 200
    store = to_ome_zarr(image, tmp_path / "a.ome.zarr", n_levels=3, progress=False)
    tile_process(str(store), components, progress=False)
    view_in_napari(store, viewer=viewer)
    image_layer, labels_layer = viewer.layers
    viewer.dims.ndisplay = ndisplay
    wait(1)
    pictures = []
    for layer in (image_layer, labels_layer):
        image_layer.visible, labels_layer.visible = layer is image_layer, layer is labels_layer
        wait(1)
        bright = viewer.screenshot(flash=False, size=(800, 800))[..., :3].max(axis=-1)
        pictures.append(bright > 0.5 * bright.max())
    one, other = pictures
    assert one.sum() > 1000
    assert (one & other).sum() / (one | other).sum() > 0.97


class TestWidget:
    def test_a_layer_of_a_store_gets_labels_in_the_store(self, tmp_path, viewer):
        store = a_store(tmp_path)
        view_in_napari(store, viewer=viewer)
        widget = widget_of(viewer)
        assert widget.image.value is viewer.layers[0]
        widget.form["value"].value = "0"
        widget.tile_shape.value, widget.overlap.value = "8, 60, 50", "8"
        start = time.monotonic()
        widget.start()
        assert time.monotonic() - start < 0.3
        worst = until(lambda: widget._run is None or widget._run.how_far.is_over)
        print(f"the window did not answer for {worst:.2f} s at most")
        assert worst < 1
        until(lambda: widget._run is None)
        image, labels = viewer.layers
        assert widget.status.value == f"{components(blobs((8, 120, 100))).max()} objects"
        assert zarr.open_group(store / "labels", mode="r").attrs["ome"]["labels"] == ["labels"]
        assert labels.scale.tolist() == image.scale.tolist() == [2, 0.5, 0.5]
        assert labels.units == image.units
        assert labels.data.shape == (8, 120, 100)

    def test_a_layer_in_memory_is_segmented_again_and_again(self, viewer):
        image = blobs((60, 80))
        layer = viewer.add_image(image, scale=(2, 3), rotate=10, name="mine")
        widget = widget_of(viewer)
        assert not widget.beside.enabled
        for value, n in (("0", components(image).max()), ("255", 0)):
            widget.form["value"].value = value
            widget.start()
            until(lambda: widget._run is None)
            assert widget.status.value == f"{n} objects"
        assert [one.name for one in viewer.layers] == ["mine", "mine labels"]
        np.testing.assert_allclose(viewer.layers[1].affine, layer.affine)
        np.testing.assert_allclose(viewer.layers[1].rotate, layer.rotate)

    def test_an_error_is_shown_as_it_was_said(self, tmp_path, viewer, shown_errors):
        store = a_store(tmp_path)
        view_in_napari(store, viewer=viewer)
        widget = widget_of(viewer)
        widget.tile_shape.value = "8, 0, 50"
        widget.start()
        until(lambda: widget._run is None)
        assert "tile_shape" in shown_errors[-1].message
        assert "tile_shape" in widget.status.value
        widget.tile_shape.value = "8, what"
        widget.start()
        assert "expected numbers, such as 64, 512, 512" in shown_errors[-1].message
        viewer.layers.clear()
        widget.start()
        assert "there is no image layer to segment" in shown_errors[-1].message
        assert widget.run.enabled
        assert not widget.cancel.enabled

    @pytest.mark.parametrize("how", ["cancel", "close"])
    def test_a_run_is_stopped_by_the_button_and_with_the_window(self, tmp_path, monkeypatch, how):
        (tmp_path / "slow_cells.py").write_text(DEAD_SLOW)
        (tmp_path / "calls").mkdir()
        monkeypatch.syspath_prepend(str(tmp_path))
        viewer = napari.Viewer()
        view_in_napari(a_store(tmp_path), viewer=viewer)
        widget = widget_of(viewer)
        spec = {"import": "slow_cells:make", "kwargs": {"folder": str(tmp_path / "calls")}}
        monkeypatch.setattr(type(widget), "_segmenter_spec", lambda self: spec)
        widget.tile_shape.value, widget.overlap.value = "8, 20, 20", "4"
        widget.start()
        run = widget._run
        until(lambda: len(list((tmp_path / "calls").iterdir())) > 2)
        process = psutil.Process(run._process.pid)
        if how == "cancel":
            widget.cancel.native.click()
            until(lambda: widget._run is None, 10)
            assert widget.status.value == "stopped; the same run goes on from there"
            assert widget.run.enabled
        viewer.close()
        until(lambda: not process.is_running(), 10)
        until(lambda: run.how_far.is_over, 10)
        assert run.how_far.state == "stopped"


CLOSED = """
import sys, napari, time
from qtpy.QtCore import QTimer
from patchworks.plugins.napari import view_in_napari
viewer = view_in_napari(sys.argv[1])
widget = viewer.window.add_plugin_dock_widget("patchworks", "Segment this layer with patchworks")[1]
widget._segmenter_spec = lambda: {
    "import": "slow_cells:make", "kwargs": {"folder": sys.argv[2], "seconds": 30}}
widget.start()
run = widget._run
def look():
    if run._process is not None and run.how_far.state == "running":
        print(run._process.pid, flush=True)
        viewer.close()
    else:
        QTimer.singleShot(100, look)
look()
napari.run()
"""


def test_napari_ends_at_once_in_the_middle_of_a_run(tmp_path):
    (tmp_path / "slow_cells.py").write_text(DEAD_SLOW)
    (tmp_path / "calls").mkdir()
    (tmp_path / "main.py").write_text(CLOSED)
    done = subprocess.Popen(
        [sys.executable, "main.py", str(a_store(tmp_path)), str(tmp_path / "calls")],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    pid, start = int(done.stdout.readline()), time.monotonic()
    done.wait(20)
    print(f"napari ended {time.monotonic() - start:.1f} s after its window was closed")
    until(lambda: not psutil.pid_exists(pid), 10)


def seconds_to_open(store, viewer):
    """Return seconds until a store is open, until it is drawn, and to another plane of it."""
    viewer.layers.clear()
    wait(0.5)
    start = time.perf_counter()
    view_in_napari(store, viewer=viewer)
    opened = time.perf_counter() - start
    for _ in range(10):
        events()
    drawn = time.perf_counter() - start
    viewer.dims.set_point(0, 5)
    events()
    return opened, drawn, time.perf_counter() - start - drawn


def test_200_gigabytes_are_open_as_fast_as_20_megabytes(tmp_path, viewer):
    small = sparse_store(tmp_path / "small.zarr", (2, 10, 1000, 1000), "czyx")
    big = sparse_store(tmp_path / "big.zarr", (2, 500, 10_000, 10_000), "czyx")
    seconds_to_open(small, viewer)  # imports, shaders
    times = {name: seconds_to_open(store, viewer) for name, store in
             (("20 MB", small), ("200 GB", big))}  # fmt: skip
    for name, (opened, drawn, moved) in times.items():
        print(f"{name}: {opened:.2f} s, drawn after {drawn:.2f} s; another plane {moved:.2f} s")
    assert [layer.data[0].shape for layer in viewer.layers] == [(500, 10_000, 10_000)] * 3
    assert times["200 GB"][1] < 2 * times["20 MB"][1] + 1
