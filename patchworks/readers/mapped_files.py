"""Files mapped into memory, of which any part can be read by several threads."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from pathlib import Path

MOST_MAPPED = 32
"""Files of one image that are mapped at once."""


class MappedFiles:
    """Files mapped into memory, each when it is first needed, and no more than some at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mapped: OrderedDict[Path, mmap.mmap] = OrderedDict()

    def __getitem__(self, path: Path) -> mmap.mmap:
        with self._lock:
            if path not in self._mapped:
                with path.open("rb") as file:
                    self._mapped[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped.move_to_end(path)
            while len(self._mapped) > MOST_MAPPED:
                self._mapped.popitem(last=False)
            content = self._mapped[path]
        if content.size() != len(content):
            raise OSError(f"{path} was {len(content)} bytes long when opened, and is not now")
        return content

    def forget(self) -> None:
        """Let go of what was read: it stays cached, but is not this process's memory any more."""
        with self._lock:
            mapped = list(self._mapped.values())
        for content in mapped:
            if hasattr(content, "madvise"):
                content.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap all files; a read that is going on in another thread keeps its own."""
        with self._lock:
            self._mapped.clear()
