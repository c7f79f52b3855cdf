"""Stores that end with the process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from pathlib import Path


def temporary_store() -> Path:
    """Return the path for a label image in a folder that is removed when the process ends.

    Nothing is made yet: a call that is refused leaves nothing behind.
    """
    folder = Path(tempfile.gettempdir()) / f"patchworks-{uuid.uuid4().hex[:12]}"
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a child that was forked off
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder / "labels.zarr"
