"""From a model's name or path to the file of its weights, before any work and without torch.

Cellpose takes its default where it does not know a name or path, and downloads it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from patchworks.errors import InputError, MissingExtraError
from patchworks.plugins.cellpose.installed import major_of
from patchworks.plugins.cellpose.known_models import (
    DEFAULTS,
    FOLDER_VARIABLE,
    KNOWN,
    KnownModel,
    models_folder,
)
from patchworks.weights import Weights

KEY_OF_4 = b"W2"
KEY_OF_DINO = b"encoder.cls_token"
"""Names of weights by which Cellpose tells the networks of 4, and among them those on DINO."""


def find_weights(model: str | None, version: str) -> Weights:
    """Return the weights of a model.

    Parameters
    ----------
    model : str or None
        Name of a model of Cellpose's, or of a file in its folder, or a path; None for the default.
    version : str
        The installed Cellpose.

    Raises
    ------
    InputError
        If there is no such model or file, or it is for another version.
    MissingExtraError
        If its network needs a package that is not installed.
    """
    major = major_of(version)
    name = DEFAULTS[major] if model is None else str(model)
    known = KNOWN.get(name)
    path = _file_of(known, version) if known else _own_file(name, major)
    weights = Weights.at(path, "cellpose_fn model")
    check_network(weights.path, major)
    _check_packages(weights.path)
    return weights


def _file_of(known: KnownModel, version: str) -> Path:
    if known.major != major_of(version):
        extra = "cellpose3" if known.major == 3 else "cellpose"
        raise InputError(
            f"cellpose_fn model {known.name!r} is one of Cellpose {known.major}; Cellpose "
            f"{version} is installed here: pip install 'patchworks[{extra}]', or choose one of "
            f"{_names(major_of(version))}"
        )
    if not known.path.is_file():
        raise InputError(
            f"cellpose_fn model {known.name!r}: its weights are not on this machine; expected "
            f"them at {known.path} (in the folder that {FOLDER_VARIABLE} names, by default "
            f"~/.cellpose/models). With a network, `patchworks models fetch {known.name}` puts "
            f"them there; without one, run that elsewhere and copy the file. A run never downloads"
        )
    return known.path


def _own_file(name: str, major: int) -> Path:
    """Return a file that was named by its path, or by its name in the folder of models."""
    for path in (Path(name).expanduser(), models_folder() / name):
        if path.is_file():
            return path
    raise InputError(
        f"cellpose_fn model {name!r}: no model of Cellpose {major} is called that, and there is no "
        f"such file, here or in {models_folder()}; expected one of {_names(major)}, or the path of "
        f"weights"
    )


def _names(major: int) -> list[str]:
    return [model.name for model in KNOWN.values() if model.major == major]


def check_network(path: str, major: int) -> None:
    """Raise InputError for what is no file of weights, or for another version's network."""
    names = _names_in(path)
    if names is None:
        return
    of = 4 if _is_among(KEY_OF_4, names) else 3
    if of != major:
        raise InputError(
            f"cellpose_fn model {path}: weights of a network of Cellpose {of}, which Cellpose "
            f"{major} cannot use"
        )


def _check_packages(path: str) -> None:
    """Raise MissingExtraError if the network needs a package that is not installed."""
    names = _names_in(path)
    if names and _is_among(KEY_OF_DINO, names) and find_spec("dinov3") is None:
        raise MissingExtraError(
            f"cellpose_fn model {path}: its network needs the package dinov3, which is not "
            f"installed: pip install git+https://github.com/facebookresearch/dinov3"
        )


def _is_among(key: bytes, names: bytes) -> bool:
    return b"X" + len(key).to_bytes(4, "little") + key in names


def _names_in(path: str) -> bytes | None:
    """Return the pickle with the names of weights; None where they cannot be read so (old files).

    Raises
    ------
    InputError
        If it is nothing that PyTorch has saved.
    """
    try:
        with ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
            if pickles:
                return archive.read(pickles[0])
    except BadZipFile:
        with Path(path).open("rb") as file:
            if file.read(1) == b"\x80":  # a pickle: as PyTorch saved before 1.6
                return None
    raise InputError(
        f"cellpose_fn model {path}: this is no file of PyTorch weights; expected what Cellpose "
        f"trained or `patchworks models fetch` got"
    )
