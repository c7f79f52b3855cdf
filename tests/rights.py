"""Folders as somebody sees them who may not look into all of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def without_rights() -> Iterator[None]:
    """Look at folders as a user who is not root: it may look into any."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that everybody may look into; those of pytest are their owner's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def closed(path: Path, mode: int = 0) -> Iterator[None]:
    """Take from a folder or file the rights that `mode` does not give, then look without rights."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with without_rights():
            yield
    finally:
        path.chmod(before)
