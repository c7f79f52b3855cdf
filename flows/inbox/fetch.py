"""Files of a bucket, copied here: readers of other formats than zarr need local paths."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from flows.inbox.inbox import FETCHED, Inbox


def source_of(inbox: Inbox, path: str, files: Sequence[str], key: str) -> str:
    """Return the path or URL under which an image can be read, after copying it where need be.

    Parameters
    ----------
    inbox : Inbox
        The inbox.
    path : str
        The file or folder to open, below the inbox.
    files : sequence of str
        All of its files.
    key : str
        What tells the image from others.
    """
    place = inbox.listing.place(path)
    if place.is_local or path.lower().endswith(".zarr"):
        return str(place)
    folder = _folder_of(inbox, key)
    filesystem, root = inbox.listing.location.filesystem()
    for name in files:
        copy = folder / name
        if not copy.exists():  # whole, for it got its name last
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.with_name(f".{copy.name}.part")
            filesystem.get_file(f"{root}/{name}", str(part))
            part.replace(copy)
    return str(folder / path)


def forget_copy(inbox: Inbox, key: str) -> None:
    """Delete the copy of an image, if there is one; what is in the inbox stays."""
    shutil.rmtree(_folder_of(inbox, key), ignore_errors=True)


def _folder_of(inbox: Inbox, key: str) -> Path:
    return inbox.work_dir / FETCHED / key
