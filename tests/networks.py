"""What tests of networks in files share: a note of each load, and the law of tiles."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchworks.image_model import ImageModel
from patchworks.process_model import ProcessModel


def noted_load(folder: str, load: Any, arguments: tuple[Any, ...]) -> Any:
    """Load a model, and leave a file that says so."""
    (Path(folder) / f"{os.getpid()}-{time.time_ns()}").touch()
    return load(*arguments)


def noting(segmenter: ImageModel, folder: Path) -> ImageModel:
    """Return the segmenter, which leaves a file in a folder whenever its model is loaded."""
    folder.mkdir()
    model = segmenter.network.model
    noted = ProcessModel(noted_load, (str(folder), model.load, model.arguments))
    return replace(segmenter, network=replace(segmenter.network, model=noted))


def loads(folder: Path) -> Counter[int]:
    """Return how often each process has loaded it."""
    return Counter(int(note.name.split("-")[0]) for note in folder.iterdir())
