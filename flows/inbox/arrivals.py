"""One look at an inbox → the images in it: their files, and for how long they have not changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from flows.inbox.companions import (
    ZARR_MARKS,
    Parts,
    is_image,
    is_zarr_store,
    parts_of,
    sequence_in,
)
from flows.inbox.listing import Entry, Listing
from flows.inbox.memory import Memory
from patchworks.fingerprint import digest

SETTINGS_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An image in an inbox.

    Parameters
    ----------
    path : str
        The file or folder to open, below the inbox.
    files : tuple of Entry
        The files whose sizes and times tell this image from another one of the same name: all of
        them, or those with the metadata where there may be millions.
    quiet_s : float
        Seconds for which nothing of it has changed.
    waits_for : str
        What is missing, in words; empty if nothing is.
    """

    path: str
    files: tuple[Entry, ...]
    quiet_s: float
    waits_for: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other image, and from itself if it is written anew."""
        files = sorted([(f.path, f.n_bytes, f.stamp) for f in self.files])
        return digest("arrival", self.path, files)[:32]

    @property
    def modified(self) -> float:
        """When the newest of its files was written, in seconds since 1970."""
        return max([file.modified for file in self.files], default=0.0)

    @property
    def age_order(self) -> tuple[float, str]:
        """A key by which the oldest image comes first."""
        return self.modified, self.path


@dataclass(frozen=True, slots=True)
class _Found:
    """A file, or a folder that is one image."""

    path: str
    files: tuple[Entry, ...]
    signature: str
    siblings: tuple[Entry, ...] = ()
    parts: Parts | None = None


def look(
    listing: Listing, memory: Memory, *, now: float, settle_s: float, leave_out: Collection[str]
) -> list[Arrival]:
    """Look at an inbox once.

    Parameters
    ----------
    listing : Listing
        The inbox.
    memory : Memory
        What was seen before; brought up to date.
    now : float
        This moment, in seconds since 1970.
    settle_s : float
        Seconds after which a file that has not changed is looked into.
    leave_out : collection of str
        Folders below the inbox that hold no arrivals, such as that of the results.

    Returns
    -------
    list of Arrival
        The oldest first.
    """
    found = {each.path: each for each in _walk(listing, "", frozenset(leave_out))}
    quiet = {path: memory.note(path, each.signature, now) for path, each in found.items()}
    said = {
        path: _looked_into(listing, memory, each, is_quiet=quiet[path] >= settle_s)
        for path, each in found.items()
    }
    memory.forget_all_but(set(found))
    arrivals = [_arrival(members, said, found, quiet) for members in together(said)]
    return sorted(arrivals, key=lambda arrival: arrival.age_order)


def _looked_into(listing: Listing, memory: Memory, found: _Found, *, is_quiet: bool) -> Parts:
    if found.parts is not None:
        return found.parts
    seen = memory.seen[found.path]
    if is_quiet and (seen.parts is None or seen.parts.waits_for):  # that may have come meanwhile
        seen.parts = parts_of(listing, found.files[0], found.siblings)
    return seen.parts or Parts(found.path)


def together(said: Mapping[str, Parts]) -> list[set[str]]:
    """Return the files that belong together, of what each of them says.

    Examples
    --------
    >>> said = {"a": Parts("a", ("b",)), "b": Parts("b"), "c": Parts("c")}
    >>> [sorted(members) for members in together(said)]
    [['a', 'b'], ['c']]
    """
    group: dict[str, set[str]] = {}
    for path, parts in said.items():
        joined = {path, parts.main, *parts.others}
        for member in list(joined):
            joined |= group.get(member, set())
        for member in joined:
            group[member] = joined
    return list({id(members): members for members in group.values()}.values())


def _arrival(
    members: set[str],
    said: Mapping[str, Parts],
    found: Mapping[str, _Found],
    quiet: Mapping[str, float],
) -> Arrival:
    mains = sorted({said[m].main for m in members if m in said})
    main = next((m for m in mains if m in found), mains[0])
    files = {f.path: f for m in members if m in found for f in found[m].files}
    present = {e.path for m in members if m in found for e in found[m].siblings} | set(found)
    missing = sorted(members - present)
    waits_for = next(
        (said[m].waits_for for m in sorted(members & said.keys()) if said[m].waits_for), ""
    )
    if missing and not waits_for:
        shown = ", ".join(missing[:5]) + f" and {len(missing) - 5} more" * (len(missing) > 5)
        waits_for = f"it is in {len(members)} files, of which these are not there: {shown}"
    return Arrival(
        path=main,
        files=tuple([files[path] for path in sorted(files)]),
        quiet_s=min([quiet[m] for m in members if m in quiet], default=0.0),
        waits_for=waits_for,
    )


def _walk(listing: Listing, folder: str, leave_out: frozenset[str]) -> Iterator[_Found]:
    """Yield the files, and the folders that are one image, below a folder."""
    inside = [e for e in listing.entries(folder) if not e.is_hidden and e.path not in leave_out]
    for entry in inside:
        if not entry.is_utf8 and (entry.is_folder or is_image(entry.name)):
            listing.warn_once(entry.path, "its name is not UTF-8; rename it")
    inside = [entry for entry in inside if entry.is_utf8]
    files = tuple([entry for entry in inside if not entry.is_folder])
    for entry in files:
        if is_image(entry.name):
            settings = settings_beside(entry.path, files)
            yield _Found(entry.path, (entry,), _signature((entry, *settings)), files)
    for entry in inside:
        if entry.is_folder:
            yield from _folder(listing, entry, files, leave_out)


def _folder(
    listing: Listing, folder: Entry, beside: Sequence[Entry], leave_out: frozenset[str]
) -> Iterator[_Found]:
    inside = listing.entries(folder.path)
    settings = settings_beside(folder.path, beside)
    if is_zarr_store(folder, inside):
        everything = listing.files_below(folder.path)
        metadata = tuple([entry for entry in everything if entry.name in ZARR_MARKS])
        signature = _signature((*everything, *settings))
        waits_for = "" if metadata else "it is no zarr store yet: there is no metadata in it"
        yield _Found(
            folder.path, metadata, signature, parts=Parts(folder.path, waits_for=waits_for)
        )
        return
    sequence = sequence_in(inside, is_named=bool(settings))
    if sequence is None:
        yield from _walk(listing, folder.path, leave_out)
        return
    files = tuple([entry for entry in inside if not entry.is_hidden])
    whole = Parts(folder.path, waits_for=sequence.waits_for)
    yield _Found(folder.path, files, _signature((*files, *settings)), parts=whole)


def settings_beside(path: str, siblings: Iterable[Entry]) -> list[Entry]:
    """Return the settings file of an image: of its name, with another ending.

    Examples
    --------
    >>> settings_beside("a/scan.ome.tif", [Entry(path="a/scan.yaml"), Entry(path="a/b.yaml")])
    [Entry(path='a/scan.yaml', is_folder=False, n_bytes=0, stamp='', modified=0.0)]
    """
    stem = stem_of(PurePosixPath(path).name)
    return [e for e in siblings if e.name in [f"{stem}{ending}" for ending in SETTINGS_SUFFIXES]]


def stem_of(name: str) -> str:
    """Return the name of an image without its ending, whatever it is made of.

    Examples
    --------
    >>> [stem_of(name) for name in ("a.czi", "b.ome.tiff", "c.ome.zarr", "d.companion.ome", "e.1")]
    ['a', 'b', 'c', 'd', 'e.1']
    """
    for ending in (".companion.ome", ".zarr"):
        if name.lower().endswith(ending):
            return name[: -len(ending)].removesuffix(".ome")
    if is_image(name):
        return name[: name.rindex(".")].removesuffix(".ome")
    return name


def _signature(entries: Iterable[Entry]) -> str:
    return digest("seen", sorted([(e.path, e.n_bytes, e.stamp) for e in entries]))[:32]
