"""A model's weights in a file: found before any work, and told apart by their content."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from patchworks.errors import InputError


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what stands for its content.

    Its content is part of what it is, so that a run whose weights were replaced is another run.

    Parameters
    ----------
    path : str
        The file, absolute.
    digest : str
        SHA-256 of its content, hexadecimal.
    """

    path: str
    digest: str

    @classmethod
    def at(cls, path: str | os.PathLike[str], what: str) -> Weights:
        """Return the weights in a file.

        Parameters
        ----------
        path : path
            The file; ``~`` is the user's home.
        what : str
            What messages call it, such as ``"torch_fn model"``.

        Raises
        ------
        InputError
            If it is no file, or cannot be read.
        """
        file = Path(path).expanduser().absolute()
        if not file.is_file():
            found = "a folder" if file.is_dir() else "nothing"
            raise InputError(f"{what} {str(path)!r}: {found} at {file}; expected a file of weights")
        try:
            status = file.stat()
            times = (status.st_mtime_ns, status.st_ctime_ns)
            return cls(str(file), _digest_of(str(file), status.st_size, times))
        except OSError as error:
            raise InputError(f"{what} {file} cannot be read: {error}") from error


@functools.lru_cache(maxsize=256)
def _digest_of(file: str, _size: int, _times_ns: tuple[int, int]) -> str:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
