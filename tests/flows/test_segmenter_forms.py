"""Forms of other packages' segmenters, made from the signatures of their factories."""

import json
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import numpy as np
import pytest
from annotated_types import Ge
from pydantic import ValidationError

from flows import segmenter_forms
from flows.cli import main
from flows.form_types import form_type
from flows.segmenter_forms import SegmenterForm, form_of
from patchworks.errors import InputError
from patchworks.segmenters import registry, resolve_segmenter
from patchworks.segmenters.description import describe_factory, parameter_texts
from tests.images import ome_zarr

HERE = "tests.flows.test_segmenter_forms"


def entry(factory: str, name: str = "theirs") -> EntryPoint:
    return EntryPoint(name, f"{HERE}:{factory}", registry.GROUP)


def return_given(given: dict[str, Any]) -> Callable[[np.ndarray], dict[str, Any]]:
    def segment(tile: np.ndarray) -> dict[str, Any]:
        return given

    return segment


def of_all_kinds(
    size: int,
    weights: "str | Path",
    *,
    ratio: float = 0.5,
    method: Literal["fast", "exact"] = "fast",
    is_dark: bool = False,
    radii: Sequence[float] | None = None,
    least: Annotated[int, Ge(1)] = 1,
    weird: "no_such_type" = 3,  # noqa: F821 - as where only a type checker imports it
    rule: Callable[[float], float] = abs,
    options: Mapping[str, int] | None = None,
    plain=7,
):
    """Return a segmenter.

    It does much.

    Parameters
    ----------
    size : int
        How large,
        in voxels.
    ratio, least : float
        Two numbers.
    """
    return return_given(dict(locals()))


def of_odd_names(*, schema: int = 1, model_config: str = "a", _hidden: int = 2, import_: int = 3):
    """Return a segmenter."""
    return return_given(dict(locals()))


def with_others(size: int = 1, **others: int):
    return return_given({"size": size, **others})


def without_names(size, /):
    return return_given({})


def named(name):
    return return_given({})


class Slow:
    """A class as a factory.

    Parameters
    ----------
    size : int
        How large.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        return np.ones(tile.shape, int)


NO_FACTORY = 17


def properties(form: type[SegmenterForm]) -> dict[str, Any]:
    found = form.model_json_schema(by_alias=True)
    assert json.loads(json.dumps(found)) == found
    return found["properties"]


# --- what is shown ------------------------------------------------------------------------------


def test_a_form_has_the_types_the_defaults_and_the_words_of_the_factory():
    form = form_of(entry("of_all_kinds"))
    schema, shown = form.model_json_schema(), properties(form_of(entry("of_all_kinds")))
    assert (schema["title"], schema["description"]) == ("Theirs", "Return a segmenter.")
    assert schema["required"] == ["size", "weights"]
    assert schema["additionalProperties"] is False
    assert shown["name"]["const"] == "theirs"
    assert shown["size"]["description"] == "How large, in voxels."
    assert shown["ratio"] == {
        "type": "number", "default": 0.5, "description": "Two numbers.", "title": "Ratio",
    }  # fmt: skip
    assert {k: shown[k].get("type") for k in ("size", "weights", "is_dark", "plain")} == {
        "size": "integer", "weights": "string", "is_dark": "boolean", "plain": "integer",
    }  # fmt: skip
    assert shown["method"]["enum"] == ["fast", "exact"]
    assert shown["least"]["minimum"] == 1
    assert shown["radii"]["anyOf"] == [
        {"type": "array", "items": {"type": "number"}}, {"type": "null"}
    ]  # fmt: skip
    assert shown["rule"]["default"] is None
    assert "type" not in shown["rule"]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int | None, int | None),
        (Optional[str], str | None),  # noqa: UP045 - older packages write it so
        (list[int] | int, list[int] | int),
        (list, list[Any]),
        (np.ndarray, Any),
        (np.ndarray | None, Any),
        (np.ndarray | int | None, int | None),
        (Path | None, str | None),
        (dict[str, int], dict[str, int]),
        (tuple[int, int], list[int]),
        (tuple[int, str], list[int | str]),
        (list[np.ndarray], list[Any]),
        (Literal["a", None], Literal["a", None]),
        (Literal[b"a"], Any),
        ("text", Any),
        (Any, Any),
        (object, Any),
        ([], Any),
    ],
)
def test_what_a_form_cannot_show_is_left_out(annotation, expected):
    assert form_type(annotation) == expected


# --- what is handed on --------------------------------------------------------------------------


def test_only_what_is_given_is_handed_on():
    form = form_of(entry("of_all_kinds"))
    given = {"name": "theirs", "size": 3, "weights": "w.pt", "radii": [1, 2.5], "rule": None}
    assert form.model_validate(given).given() == {
        "name": "theirs", "size": 3, "weights": "w.pt", "radii": [1.0, 2.5],
    }  # fmt: skip


def test_names_that_fields_cannot_have_are_parameters_all_the_same():
    form = form_of(entry("of_odd_names"))
    given = {"name": "theirs", "schema": 5, "model_config": "b", "_hidden": 6, "import_": 7}
    assert set(properties(form)) == set(given)
    assert form.model_validate(given).given() == given


def test_a_factory_that_takes_others_gets_them():
    given = {"name": "theirs", "size": 2, "more": 3}
    assert form_of(entry("with_others")).model_validate(given).given() == given


def test_a_class_can_be_a_factory():
    shown = properties(form_of(entry("Slow")))
    assert (shown["size"]["description"], shown["size"]["default"]) == ("How large.", 4)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"size": "large"},
        {"size": 1.5},
        {"ratio": float("nan")},
        {"method": "slow"},
        {"radii": 3},
        {"least": 0},
        {"sise": 3},
        {"name": "ours"},
    ],
)
def test_what_does_not_fit_is_refused(bad):
    given = {"name": "theirs", "weights": "w.pt", **({"size": 3} if bad else {}), **bad}
    with pytest.raises(ValidationError):
        form_of(entry("of_all_kinds")).model_validate(given)


@pytest.mark.parametrize("name", ["theirs", "the-irs", "2d cells", "Zellen.größer"])
def test_any_name_makes_a_form(name):
    form = form_of(entry("with_others", name))
    assert form.__name__.isidentifier()
    assert form.model_validate({"name": name}).given() == {"name": name}


# --- what cannot have a form --------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["without_names", "named", "NO_FACTORY", "no_such"])
def test_what_has_no_form_is_said_and_breaks_nothing(factory, monkeypatch, caplog):
    points = [entry(factory, "bad"), entry("with_others", "good")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with caplog.at_level(logging.WARNING):
        assert list(dict(segmenter_forms._made_forms())) == ["good"]
    assert "'bad'" in caplog.text
    assert "gets no form" in caplog.text


def test_a_package_that_raises_when_it_is_imported_breaks_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "broken_segmenter.py").write_text("raise OSError('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("broken", "broken_segmenter:fn", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert dict(segmenter_forms._made_forms()) == {}
    assert "no driver" in caplog.text
    with pytest.raises(InputError, match=r"'broken'.*no driver"):
        resolve_segmenter("broken")


def test_the_form_of_a_package_that_is_not_installed_here_fits_nothing():
    sent = b"cflows.segmenter_forms\nSegmenter_not_here\n."  # what a pickle of the class holds
    absent = pickle.loads(sent)
    assert absent is pickle.loads(sent)
    with pytest.raises(ValidationError):
        absent.model_validate({"name": "not_here"})
    with pytest.raises(AttributeError):
        _ = segmenter_forms.nothing


def test_what_a_segmenter_takes_and_is_not_installed_is_said(tmp_path, monkeypatch, capsys):
    about = tmp_path / "their_package-1.dist-info"
    about.mkdir()
    wanted = ["numpy>=2 ; extra == 'theirs'", 'no-such.package>=1; extra == "theirs"', "no-other"]
    lines = ["Metadata-Version: 2.1", "Name: their-package", "Version: 1"]
    lines += [f"Requires-Dist: {each}" for each in wanted]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    registered = f"[{registry.GROUP}]\ntheirs = {HERE}:with_others\n"
    (about / "entry_points.txt").write_text(registered)
    monkeypatch.syspath_prepend(tmp_path)
    point = registry.known_segmenters()["theirs"]
    assert registry.missing_packages(point) == ["no-such.package"]
    said = properties(form_of(point))["name"]["description"]
    assert "their-package" in said
    assert "no-such.package (pip install 'their-package[theirs]')" in said
    assert main(["segmenters", "theirs"]) == 0
    assert "not installed: no-such.package; pip install" in capsys.readouterr().out


def test_forms_of_what_is_installed_are_sent_by_name():
    for form in segmenter_forms.FORMS.values():
        assert pickle.loads(pickle.dumps(form)) is form


# --- descriptions -------------------------------------------------------------------------------


def test_only_parameters_are_described_as_parameters():
    text = "A.\n\nParameters\n----------\na : int\n    One.\n\nReturns\n-------\nb : int\n    Two."
    assert parameter_texts(text) == {"a": "One."}
    assert parameter_texts("No sections.") == {}
    assert parameter_texts("") == {}


def test_a_partial_function_is_described():
    described = describe_factory(partial(with_others, size=4))
    assert described.takes_others
    assert [p.default for p in described.parameters] == [4]


# --- the command --------------------------------------------------------------------------------


def test_the_command_lists_what_is_known(monkeypatch, capsys):
    points = [entry("of_all_kinds"), entry("no_such", "bad")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert main(["segmenters"]) == 0
    said = capsys.readouterr().out
    assert "theirs  (patchworks)\n  Return a segmenter.\n    size: int\n" in said
    assert "    ratio: float = 0.5\n        Two numbers.\n" in said
    assert "bad  (patchworks)\n  its parameters are not known: segmenter 'bad'" in said
    assert said.index("threshold  (") < said.index("blobs  (") < said.index("theirs  (")


def test_the_command_shows_one_in_full(capsys):
    assert main(["segmenters", "blobs"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("blobs  (patchworks)")
    assert "Raise it where noise" in said
    assert main(["segmenters", "blob"]) == 1
    assert "did you mean 'blobs'?" in capsys.readouterr().err


def test_a_list_can_be_set_from_the_command_line(tmp_path, capsys):
    store = ome_zarr(tmp_path / "cells.zarr", np.zeros((4, 90, 80), "uint8"))
    arguments = ["plan", str(store), "--segmenter", "blobs", "--set", "diameter=[12,12]"]
    assert main([*arguments, "--no-probe"]) == 1
    assert "diameter=[12.0, 12.0]: 2 numbers for tiles of 3 axes" in capsys.readouterr().err
    assert main([*arguments, "--no-probe", "--slice-wise"]) == 0
