"""What kind of model a file of torch holds, seen without torch and without running any of it.

A pickle runs whatever code its author wanted when it is loaded. A TorchScript file is read by
torch's own reader, which makes tensors and modules of TorchScript and nothing else. An exported
program may hold pickles, and even compiled code, beside its graph; what holds those is refused,
and tensors in it are read by torch's `weights_only` reader.
"""

from __future__ import annotations

import re
import zipfile
from typing import Literal

from patchworks.errors import InputError

TorchKind = Literal["script", "exported"]

HOW_TO_EXPORT = (
    "export the model, on the machine where its class is known: "
    "torch.jit.script(model.eval()).save('model.pt'), torch.jit.trace(model.eval(), example)"
    ".save('model.pt'), or torch.export.save(torch.export.export(model.eval(), (example,), "
    "dynamic_shapes=...), 'model.pt2'); see docs/models.md"
)

PARTS_OF_A_PROGRAM = re.compile(
    r"models/[^/]+\.json|archive_format|archive_version|version|byteorder|\.data/[^/]+|extra/.*"
    r"|data/weights/(weight_\d+|[^/]+_config\.json|[^/]+\.pt)"
    r"|data/constants/(tensor_\d+|[^/]+_config\.json|[^/]+\.pt)|data/sample_inputs/[^/]+\.pt"
    r"|serialized_[a-z_]+\.(json|pt)"  # torch before 2.8
)
"""Files of an exported program that are a graph, its numbers, or what was said of them."""


def torch_kind(path: str, what: str) -> TorchKind:
    """Return what kind of model a file holds.

    Parameters
    ----------
    path : str
        The file.
    what : str
        What messages call it, such as ``"torch_fn model"``.

    Raises
    ------
    InputError
        If it is neither TorchScript nor an exported program, or holds more than one: pickled
        objects, compiled code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{what} {path} is neither TorchScript nor an exported program ({error}); "
            f"{HOW_TO_EXPORT}"
        ) from error
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "script"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        others = [name for name in names if not PARTS_OF_A_PROGRAM.fullmatch(name)]
        if others:
            raise InputError(
                f"{what} {path}: an exported program that holds {others[0]!r}, which could run any "
                f"code; expected a graph and tensors alone: export the plain module"
            )
        return "exported"
    if "data.pkl" in names:
        raise InputError(
            f"{what} {path} is a pickle, of weights alone (a state dict) or of a whole module: the "
            f"first is no model without its class, the second could run any code; {HOW_TO_EXPORT}"
        )
    raise InputError(f"{what} {path} is an archive that torch does not write; {HOW_TO_EXPORT}")
