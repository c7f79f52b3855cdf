"""The models that Cellpose has by name: their files, and from where they can be had."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "CELLPOSE_LOCAL_MODELS_PATH"
"""Environment variable that names the folder of weights, in Cellpose and here."""

SITES = {
    3: "https://www.cellpose.org/models/",
    4: "https://huggingface.co/mouseland/cellpose-sam/resolve/main/",
}
"""Where Cellpose itself gets weights from, per major version."""

DEFAULTS = {3: "cyto3", 4: "cpsam_v2"}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with a name.

    Parameters
    ----------
    name : str
        What users call it.
    major : int
        The major version of Cellpose whose network it is for.
    file : str
        Name of the file of its weights, in the folder and on the site.
    """

    name: str
    major: int
    file: str

    @property
    def url(self) -> str:
        """Where the weights can be had."""
        return SITES[self.major] + self.file

    @property
    def path(self) -> Path:
        """Where the weights lie on this machine, if they are there."""
        return models_folder() / self.file

    @property
    def is_transformer(self) -> bool:
        """Whether Cellpose 3 has to be told that the network is not its own U-Net."""
        return self.major == 3 and "transformer" in self.name


def models_folder() -> Path:
    """Return the folder in which Cellpose keeps weights: the variable's, else the user's."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cellpose" / "models"


def _known() -> dict[str, KnownModel]:
    of_3 = (
        "cyto3", "nuclei", "cyto2_cp3", "tissuenet_cp3", "livecell_cp3", "yeast_PhC_cp3",
        "yeast_BF_cp3", "bact_phase_cp3", "bact_fluor_cp3", "deepbacs_cp3", "cyto2", "cyto", "CP",
        "CPx", "transformer_cp3", "neurips_cellpose_default", "neurips_cellpose_transformer",
        "neurips_grayscale_cyto2", "TN1", "TN2", "TN3", "LC1", "LC2", "LC3", "LC4",
    )  # fmt: skip
    of_4 = ("cpsam_v2", "cpsam", "cpdino", "cpdino-vitb")
    first = {name: f"{name}torch_0" for name in ("cyto", "cyto2", "nuclei")}
    models = [KnownModel(name, 3, first.get(name, name)) for name in of_3]
    models += [KnownModel(name, 4, name) for name in of_4]
    return {model.name: model for model in models}


KNOWN = _known()
"""All of Cellpose 3.1 and 4, by name."""
