"""The widget "segment this layer with patchworks"."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from magicgui.types import FileDialogMode
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    Label,
    LineEdit,
    ProgressBar,
    PushButton,
    create_widget,
)
from napari.layers import Image, Labels
from napari.utils.notifications import show_error
from napari.viewer import Viewer
from qtpy.QtCore import QTimer

from patchworks.errors import InputError, PatchworksError
from patchworks.io.find_labels import FoundLabels
from patchworks.io.location import Location
from patchworks.plugins.napari.form import field_of, parameters_of, value_of
from patchworks.plugins.napari.layers import KEY, labels_layer
from patchworks.plugins.napari.run import HowFar, Run
from patchworks.plugins.napari.target import CopyOfLayer, check_layer, stored_image
from patchworks.plugins.napari.view import add_layer
from patchworks.segmenters.description import NOTHING, FactoryParameter
from patchworks.segmenters.registry import known_segmenters

POLL_MS = 100
"""How often the window looks how far a run is."""

TRANSFORMS = ("scale", "translate", "rotate", "shear")
"""What lays labels over their image; `affine`, `units` and names of axes as well."""


class SegmentWidget(Container[Any]):
    """Choose a layer and a segmenter, run it tile by tile, and see the labels.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Given by napari.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self._run: Run | None = None
        self._shown_layer: Any = None
        self._parameters: tuple[FactoryParameter, ...] = ()
        self._copies: WeakKeyDictionary[Any, CopyOfLayer] = WeakKeyDictionary()
        self._make_fields()
        super().__init__(widgets=self._fields(), scrollable=True)
        super().native.layout().addStretch(1)
        self.status.native.setWordWrap(True)
        self.segmenter.changed.connect(self._show_parameters)
        self.run.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self.image.changed.connect(self._show_target)
        self._timer = QTimer(self.native)
        self._timer.timeout.connect(self._look)
        self.native.destroyed.connect(self._end)
        self._show_parameters()
        self._show_target()

    @property
    def native(self) -> Any:
        """What napari docks: with the bars by which a long form is scrolled."""
        return self.root_native_widget

    def _make_fields(self) -> None:
        self.image: Any = create_widget(annotation=Image, label="image layer")
        self.segmenter = ComboBox(label="segmenter", choices=[*known_segmenters()])
        self.form: Container[Any] = Container(labels=True)
        self.form.margins = (12, 0, 0, 0)
        self.tile_shape = LineEdit(
            label="tile shape",
            value="auto",
            tooltip="voxels per axis, such as 64, 512, 512; auto: what fits the memory",
        )
        self.overlap = LineEdit(
            label="overlap",
            tooltip="voxels that each tile reads beyond its own, one number or one per axis: more "
            "than the segmenter looks around a voxel; empty: 16, or what the tile allows",
        )
        self.slice_wise = CheckBox(text="slice by slice, in 2-D", label="")
        self.skip_empty = CheckBox(text="leave out tiles without signal", label="")
        self.use_gpu = CheckBox(text="the segmenter uses a GPU", label="")
        self.labels_name = LineEdit(label="labels", value="labels", tooltip="name of the labels")
        self.beside = CheckBox(text="keep them in the image's store", label="", value=True)
        self.write_to = FileEdit(label="or in", mode=FileDialogMode.OPTIONAL_FILE, nullable=True)
        self.overwrite = CheckBox(text="replace labels of that name", label="")
        self.run = PushButton(text="Segment")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.bar = ProgressBar(label="", min=0, max=1, value=0)
        self.status = Label(label="", value="")

    def _fields(self) -> list[Any]:
        buttons = Container(widgets=[self.run, self.cancel], layout="horizontal", labels=False)
        return [
            self.image, self.segmenter, buttons, self.bar, self.status, self.form, self.tile_shape,
            self.overlap, self.slice_wise, self.skip_empty, self.use_gpu, self.labels_name,
            self.beside, self.write_to, self.overwrite,
        ]  # fmt: skip

    def _show_parameters(self) -> None:
        """Show the parameters of the segmenter that is chosen."""
        self.form.clear()
        self._parameters, self.status.value = (), ""
        try:
            self._parameters = parameters_of(self.segmenter.value)
        except PatchworksError as error:
            self.status.value = str(error)
        for parameter in self._parameters:
            self.form.append(field_of(parameter))

    def _show_target(self) -> None:
        """Offer the image's store for the labels where there is one."""
        layer = self.image.value
        try:
            is_stored = layer is not None and stored_image(layer) is not None
        except PatchworksError:
            is_stored = False
        self.beside.enabled = is_stored

    def start(self) -> None:
        """Start a run; it goes on beside the window."""
        try:
            run = self._new_run()
        except PatchworksError as error:
            self._fail(str(error))
            return
        self._run = run
        self.run.enabled, self.cancel.enabled = False, True
        run.start()
        self._look()
        self._timer.start(POLL_MS)

    def stop(self) -> None:
        """Stop the run; what is done of it is kept."""
        if self._run is not None:
            self._run.stop()
        self.cancel.enabled = False

    def _new_run(self) -> Run:
        layer = self.image.value
        check_layer(layer)
        stored, name = stored_image(layer), self.labels_name.value.strip()
        if not name or "/" in name or name.startswith("."):
            raise InputError(f"labels={name!r}: expected a name for the labels, without a slash")
        options: dict[str, Any] = {
            "tile_shape": _numbers("tile shape", self.tile_shape.value),
            "overlap": _numbers("overlap", self.overlap.value),
            "slice_wise": self.slice_wise.value,
            "skip_empty": self.skip_empty.value,
            "use_gpu": self.use_gpu.value,
            "output_component": name,
            "overwrite": self.overwrite.value,
        }
        if stored is not None and stored.channel is not None:
            options["channel"] = stored.channel
        copy = self._copies.get(layer)
        if copy is None and (stored is None or not self._is_placed()):
            copy = self._copies[layer] = CopyOfLayer(layer)
            layer.events.data.connect(lambda: self._copies.pop(layer, None))
        place = self._place(stored.path if stored else "", copy, name)
        if not (stored is not None and self._is_beside()):
            options["write_to"] = place
            options["overwrite"] |= copy is not None and place == copy.labels(name)
        self._shown_layer = layer
        path = None if stored is None else stored.path
        return Run(
            lambda is_stopped: path or str(copy.write(is_stopped)),  # type: ignore[union-attr]
            self._segmenter_spec(),
            options,
            place,
        )

    def _is_beside(self) -> bool:
        return bool(self.beside.enabled and self.beside.value)

    def _is_placed(self) -> bool:
        """Whether labels do not go to a temporary store."""
        return self._is_beside() or bool(self._chosen_place())

    def _chosen_place(self) -> str:
        value = self.write_to.value
        return "" if value in (None, Path()) else str(value)

    def _place(self, image: str, copy: CopyOfLayer | None, name: str) -> str:
        """Return where the labels go: into the image's store, as chosen, or for this session."""
        if self._is_beside():
            return (Location.parse(image) / "labels" / name).url
        if chosen := self._chosen_place():
            return Location.parse(chosen).url
        assert copy is not None
        return copy.labels(name)

    def _segmenter_spec(self) -> dict[str, Any]:
        fields = zip(self._parameters, self.form, strict=True)
        values = {parameter.name: value_of(parameter, field) for parameter, field in fields}
        needed = [p.name for p in self._parameters if p.is_required and values[p.name] is NOTHING]
        if needed:
            raise InputError(f"segmenter {self.segmenter.value!r}: give {', '.join(needed)}")
        given = {name: value for name, value in values.items() if value is not NOTHING}
        return {"name": self.segmenter.value, **given}

    def _look(self) -> None:
        """Show how far the run is."""
        if self._run is None:
            return
        found = self._run.how_far
        self.bar.max, self.bar.value = max(found.n_total, 1), found.n_done
        self.status.value = _told(found)
        if not found.is_over:
            return
        self._timer.stop()
        run, self._run = self._run, None
        self.run.enabled, self.cancel.enabled = True, False
        if found.state == "failed":
            self._fail(found.message)
        elif found.state == "done":
            self.bar.value = self.bar.max
            self._show_labels(run.labels)

    def _show_labels(self, place: str) -> None:
        """Add the labels as a layer over the image; one of an earlier run gives way."""
        name = f"{self._shown_layer.name} {self.labels_name.value.strip()}"
        layer = labels_layer(FoundLabels(name, Location.parse(place)))
        for old in [one for one in self._viewer.layers if isinstance(one, Labels)]:
            if old.metadata.get(KEY, {}).get("labels") == place:
                self._viewer.layers.remove(old)
        layer.options.update(_laid_over(self._shown_layer, layer.levels[0].ndim))
        add_layer(self._viewer, layer)

    def _fail(self, message: str) -> None:
        self.status.value = message.partition("\n")[0]
        show_error(message)

    def _end(self) -> None:
        """Stop what goes on when the window closes."""
        if self._run is not None:
            self._run.stop()


def _laid_over(image: Any, ndim: int) -> dict[str, Any]:
    """Return what lays a layer of `ndim` axes, voxel on voxel, over an image layer."""
    if ndim != image.ndim:
        last = slice(image.ndim - ndim, None)
        names = {"scale": image.scale, "translate": image.translate, "units": image.units}
        return {key: list(value[last]) for key, value in names.items()}
    same = {key: getattr(image, key) for key in TRANSFORMS}
    return {**same, "affine": image.affine, "units": image.units, "axis_labels": image.axis_labels}


def _numbers(name: str, text: str) -> Any:
    """Return what a line of a form says: a word, a number, several, or None for nothing."""
    text = text.strip().strip("()[]")
    if not text:
        return None
    if text == "auto":
        return text
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"{name}={text!r}: expected numbers, such as 64, 512, 512") from error
    return list(found) if isinstance(found, tuple) else found


def _told(found: HowFar) -> str:
    """Return one line on how far a run is."""
    if found.state == "running":
        return f"{found.step}: {found.n_done} of {found.n_total}"
    if found.state == "done":
        return f"{found.n_objects} objects"
    if found.state == "stopped":
        return "stopped; the same run goes on from there"
    return {"starting": f"{found.step} ...", "stopping": "stopping ..."}.get(found.state, "")
