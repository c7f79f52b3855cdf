"""What kind of model a file of torch holds is seen without torch; pickles are never opened."""

import pickle
import zipfile

import pytest

from patchworks.errors import InputError, MissingExtraError
from patchworks.plugins.torch import torch_fn
from patchworks.torch_file import torch_kind

SCRIPT = ["data.pkl", "constants.pkl", "code/__torch__/net.py", "version", "data/0"]
PROGRAM = [
    "models/model.json", "archive_format", "archive_version", "byteorder", ".data/version",
    "data/weights/weight_0", "data/weights/model_weights_config.json",
    "data/constants/tensor_0", "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
]  # fmt: skip
OLD_PROGRAM = [
    "version", "serialized_exported_program.json", "serialized_state_dict.pt",
    "serialized_constants.pt", "serialized_example_inputs.pt",
]  # fmt: skip


def archive(path, names, top="m/"):
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(f"{top}{name}", b"")
    return str(path)


@pytest.mark.parametrize(
    "names, top, kind",
    [(SCRIPT, "m/", "script"), (PROGRAM, "m/", "exported"), (OLD_PROGRAM, "", "exported")],
    ids=["script", "program", "old program"],
)
def test_models_are_told_apart(tmp_path, names, top, kind):
    assert torch_kind(archive(tmp_path / "m", names, top), "model") == kind


@pytest.mark.parametrize(
    "names, named",
    [
        (["data.pkl", "version", "data/0"], r"is a pickle, .*torch\.jit\.script.*torch\.export"),
        (["something"], "that torch does not write"),
        ([*PROGRAM, "data/constants/opaque_obj_0"], "opaque_obj_0', which could run any code"),
        ([*PROGRAM, "data/constants/custom_obj_0"], "custom_obj_0', which could run any code"),
        ([*PROGRAM, "data/aotinductor/model/x.so"], r"x\.so', which could run any code"),
        ([*PROGRAM, "data/weights/../constants/opaque_obj_0"], "could run any code"),
    ],
)
def test_what_could_run_code_is_refused(tmp_path, names, named):
    with pytest.raises(InputError, match=named):
        torch_kind(archive(tmp_path / "m", names), "model")


@pytest.mark.parametrize("content", [pickle.dumps({"weight": 1}), b"", b"text"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.pt is neither TorchScript nor .*torch\.jit\.trace"):
        torch_kind(str(tmp_path / "m.pt"), "torch_fn model")


def test_without_torch_the_line_to_install_it_is_named(tmp_path, monkeypatch):
    path = archive(tmp_path / "m.pt", SCRIPT)
    monkeypatch.setattr("patchworks.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[torch\]'"):
        torch_fn(path)
    monkeypatch.setattr("patchworks.extras.find_spec", lambda name: name)
    with pytest.raises(InputError, match="nothing at"):
        torch_fn(tmp_path / "other.pt")
    assert torch_fn(path).network.dtype == "float32"
