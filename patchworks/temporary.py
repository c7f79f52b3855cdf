"""Stores that end with the process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def temporary_store() -> Path:
    """Return the path of a label image in a new folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="patchworks-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a child that was forked off
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder / "labels.zarr"
