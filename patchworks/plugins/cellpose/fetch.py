"""Getting the weights of a model, once, on a machine that has a network."""

from __future__ import annotations

import http.client
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tqdm.auto import tqdm

from patchworks.errors import DownloadError, InputError, TargetExistsError, TargetNotWritableError
from patchworks.plugins.cellpose.find_weights import check_network
from patchworks.plugins.cellpose.known_models import KNOWN, KnownModel

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Without a byte for so long, the site is taken to be out of reach."""

PIECE_BYTES = 2**20


def fetch_model(name: str, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Put the weights of a model into Cellpose's folder, whole or not at all.

    Parameters
    ----------
    name : str
        A model of Cellpose 3 or 4; `KNOWN` has them all. Cellpose need not be installed.
    overwrite : bool
        Replace weights that are there.
    progress : bool
        Show a bar.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    InputError
        If there is no such model.
    TargetExistsError
        If its weights are there already.
    TargetNotWritableError
        If the folder cannot be written.
    DownloadError
        If they cannot be had: no network, or what came is not what should have come.
    """
    known = KNOWN.get(name)
    if known is None:
        raise InputError(f"model {name!r} is not known; expected one of {sorted(KNOWN)}")
    path = known.path
    if path.exists() and not overwrite:
        raise TargetExistsError(
            f"{path}: the weights of {name} are there; overwrite (--overwrite) replaces them"
        )
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            _download(known, file, path, progress=progress)
            file.flush()
            os.fsync(file.fileno())
        _check(known, part)
        part.replace(path)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise TargetNotWritableError(f"{path.parent} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    logger.info("weights of %s from %s: %s", name, known.url, path)
    return path


def _download(known: KnownModel, file: BinaryIO, path: Path, *, progress: bool) -> None:
    try:
        with urlopen(known.url, timeout=TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdecimal() else None
            shown = tqdm(
                total=total, desc=known.name, unit="B", unit_scale=True, disable=not progress
            )
            with shown:
                n_bytes = _copy(answer, file, shown.update)
    except HTTPError as error:
        error.close()
        raise DownloadError(
            _failed(known, path, f"answered {error.code} {error.reason}")
        ) from error
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise DownloadError(_failed(known, path, f"cannot be reached: {why}")) from error
    if total is not None and n_bytes != total:
        raise DownloadError(_failed(known, path, f"sent {n_bytes} of {total} bytes"))


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, said: Callable[[int], object]) -> int:
    n_bytes = 0
    while piece := answer.read(PIECE_BYTES):
        file.write(piece)
        n_bytes += len(piece)
        said(len(piece))
    return n_bytes


def _check(known: KnownModel, part: Path) -> None:
    """Raise DownloadError if what came are no weights for the model's version of Cellpose."""
    try:
        check_network(str(part), known.major)
    except InputError as error:
        raise DownloadError(
            _failed(known, known.path, "sent something else than its weights")
        ) from error


def _failed(known: KnownModel, path: Path, why: str) -> str:
    return (
        f"weights of {known.name}: {known.url} {why}. On a machine without a network, get that "
        f"file elsewhere and put it to {path}"
    )
