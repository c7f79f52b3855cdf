"""Deletion at URLs, where names such as ``scan[1].zarr`` are no patterns.

fsspec takes ``[``, ``*`` and ``?`` in a path that it deletes for a pattern: for ``scan[1].zarr`` it
would delete ``scan1.zarr``, another image. Escaping them does not help: before May 2026 it takes
what a pattern has found for patterns again.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import has_magic
from typing import Any

from fsspec.core import url_to_fs
from zarr.storage import FsspecStore

AT_ONCE = 16
"""Objects that are deleted at a time, where they cannot be deleted in bulk."""


class LiteralStore(FsspecStore):
    """A zarr store at a URL that deletes what has the name, and nothing that is like it."""

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one: zarr does it for every chunk that is empty."""
        path = f"{self.path}/{key}"
        if not has_magic(path):
            await super().delete(key)
            return
        self._check_writable()
        with suppress(*self.allowed_exceptions):
            await self.fs._rm_file(path)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects whose keys begin so."""
        path = f"{self.path}/{prefix}".rstrip("/")
        if not has_magic(path):
            await super().delete_dir(prefix)
            return
        self._check_writable()
        # What is asynchronous belongs to zarr's own thread, and cannot be called from here.
        filesystem, _ = url_to_fs(self.fs.unstrip_protocol(path), use_listings_cache=False)
        with suppress(*self.allowed_exceptions):
            await asyncio.to_thread(remove_tree, filesystem, path)


def remove_tree(filesystem: Any, path: str) -> None:
    """Delete what lies at a path of a file system, and below it.

    Parameters
    ----------
    filesystem : fsspec.AbstractFileSystem
        The file system.
    path : str
        The path in it, taken as it is.
    """
    if not has_magic(path):
        filesystem.rm(path, recursive=True)
        return
    found = filesystem.find(path, withdirs=True, detail=True)
    files = [name for name, entry in found.items() if entry["type"] != "directory"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(filesystem.rm_file, files))
    for folder in sorted([name for name in found if name not in set(files)], reverse=True):
        if filesystem.isdir(folder):  # in an object store a folder is gone with what was in it
            with suppress(OSError):
                filesystem.rmdir(folder)
