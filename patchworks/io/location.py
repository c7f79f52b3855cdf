"""Where a store lies: a local path or a URL."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore

from patchworks.errors import (
    InputError,
    MissingExtraError,
    PatchworksError,
    SourceNotFoundError,
)
from patchworks.io.literal_store import LiteralStore, remove_tree

ZarrArray = zarr.Array[Any]

ZARRS_PIPELINE = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
"""Compiled codecs: several times faster at writing compressed labels than the default.

In one thread, for engines run several at once, and with more the chunks of a shard would lie in the
order in which they are ready: the same voxels, but never twice the same bytes.
"""

UNCACHED = {"use_listings_cache": False}
"""Listings that fsspec made before are not asked: others write to the same bucket."""

_pipeline_choice = threading.Lock()  # zarr's configuration is one per process


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file system, as one string: an absolute local path or a URL."""

    url: str

    @classmethod
    def parse(cls, value: str | os.PathLike[str], name: str = "path") -> Location:
        """Return the location that a user's path or URL names; `name` is the argument's."""
        text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
        if not isinstance(text, str) or not text or "\0" in text:
            raise InputError(f"{name}={value!r}: expected a path or a URL that is not empty")
        if text.startswith("file://"):
            text = unquote(text.removeprefix("file://").removeprefix("localhost"))
        protocol, separator, rest = text.partition("://")
        if separator:
            if not protocol or not rest.strip("/"):  # else it would be a folder called "s3:"
                raise InputError(f"{name}={value!r}: expected a URL such as s3://bucket/image.zarr")
            return cls(text.rstrip("/"))
        try:
            return cls(str(Path(text).expanduser().absolute()))
        except RuntimeError as error:
            raise InputError(f"{name}={value!r}: no path ({error})") from error

    def followed(self, name: str = "path") -> Location:
        """Return where a symbolic link leads, whether anything is there yet or not.

        What is written beside its place, and renamed, would take the place of the link.
        """
        try:
            is_link = self.is_local and self.path.is_symlink()
            return Location(str(self.path.resolve())) if is_link else self
        except (OSError, RuntimeError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{name}={self.url!r}: no path, or no end of links ({said})"
            ) from error

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.url

    @property
    def path(self) -> Path:
        """The local path."""
        return Path(self.url)

    @property
    def name(self) -> str:
        """The last part, without the ending of a store."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zarr").removesuffix(".ome")

    def __truediv__(self, part: str) -> Location:
        return Location(f"{self.url}/{part}")

    def __str__(self) -> str:
        return self.url

    def store(self, *, read_only: bool) -> Store:
        """Return the zarr store at this location."""
        if self.is_local:
            return LocalStore(self.path, read_only=read_only)
        self.filesystem()
        return LiteralStore.from_url(self.url, storage_options=UNCACHED, read_only=read_only)

    def filesystem(self) -> tuple[Any, str]:
        """Return the file system of a URL, and the path in it.

        Raises
        ------
        MissingExtraError
            If the protocol needs a package that is not installed.
        InputError
            If there is no such protocol.
        """
        protocol = self.url.partition("://")[0]
        try:
            filesystem, path = fsspec.core.url_to_fs(self.url, **UNCACHED)
        except ImportError as error:
            raise MissingExtraError(
                f"{self.url}: {protocol}:// needs another package ({error}); install it with "
                f"pip install 'fsspec[{protocol}]'"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{self.url}: {protocol}:// is no protocol of fsspec ({error}); expected a path, "
                f"or a URL such as s3://bucket/image.zarr"
            ) from error
        return filesystem, path

    def exists(self) -> bool:
        """Return whether anything lies here."""
        if self.is_local:
            try:
                return self.path.exists()
            except OSError as error:
                raise InputError(f"{self.url}: no path ({error.strerror or error})") from error
        filesystem, path = self.filesystem()
        try:
            return bool(filesystem.exists(path))
        except Exception as error:  # each protocol raises what its own package raises
            raise SourceNotFoundError(
                f"{self.url}: cannot be reached ({type(error).__name__}: {error}); check the URL, "
                f"the network, and the credentials in the environment"
            ) from error

    def remove(self) -> None:
        """Delete what lies here, if anything does."""
        if self.is_local:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self.exists():
            remove_tree(*self.filesystem())


@contextmanager
def readable(location: Location) -> Iterator[None]:
    """Turn what a closed file or folder raises into a SourceNotFoundError that names it."""
    try:
        yield
    except PatchworksError:
        raise
    except PermissionError as error:
        raise SourceNotFoundError(
            f"{location}: may not be read ({error}); ask its owner for the right to read it, or "
            f"for a copy"
        ) from error


def outermost(path: Path) -> Path:
    """Return the zarr group around a path that no other group holds, or the path itself."""
    while path != path.parent and any(
        (path.parent / name).exists() for name in ("zarr.json", ".zgroup")
    ):
        path = path.parent
    return path


def open_group(location: Location, *, mode: str = "r") -> zarr.Group:
    """Open the group at `location`; errors are zarr's own."""
    store = location.store(read_only=mode == "r")
    return zarr.open_group(store, mode=mode)  # type: ignore[arg-type]


def open_array(location: Location, component: str = "", *, mode: str = "r") -> ZarrArray:
    """Open the array at `location`, with compiled codecs where the store is local.

    The pipeline is chosen when an array is opened; the process's own setting stays as it is.
    """
    store = location.store(read_only=mode == "r")
    array = zarr.open_array(store, path=component, mode=mode)
    if not (location.is_local and _suits_zarrs(array)):
        return array
    with _pipeline_choice, zarr.config.set(ZARRS_PIPELINE):
        return zarr.open_array(store, path=component, mode=mode)


def _suits_zarrs(array: ZarrArray) -> bool:
    """Whether the compiled pipeline is known to read and write such an array as zarr does."""
    metadata = array.metadata
    if array.dtype.kind not in "biuf" or not array.dtype.isnative:
        return False
    if metadata.zarr_format == 2:
        codec = metadata.compressor
        known = codec is None or getattr(codec, "codec_id", "") in ("blosc", "zstd", "gzip")
        return known and metadata.order == "C" and not metadata.filters
    names = {codec.to_dict().get("name") for codec in metadata.codecs}
    return names <= {"bytes", "zstd", "blosc", "gzip", "crc32c", "sharding_indexed"}
