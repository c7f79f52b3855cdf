"""Which files a folder or a pattern means, and where their names say that they belong."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchworks.errors import InputError, SourceNotFoundError

FILE_AXES = "tcz"
SUFFIXES = (".tif", ".tiff")
MARKS = re.compile(
    r"(?:^|[_\-. ])((?:(?:time|t|channel|ch|c|z)[_=]?\d+)+)(?=$|[_\-. ])", re.IGNORECASE
)
MARK = re.compile(r"(t|c|z)[a-z]*[_=]?(\d+)", re.IGNORECASE)
LEFT_BEHIND = {"thumbs.db", "desktop.ini"}
MOST_NAMED = 8
"""Missing files that a message names, at most."""

PLACEHOLDER = re.compile(r"\{([tcz])\}")


@dataclass(frozen=True)
class Grid:
    """Files on a grid of axes.

    Parameters
    ----------
    axes : str
        Axes along which there is more than one file.
    shape : tuple of int
        Number of files along each.
    files : tuple of Path
        In C order.
    """

    axes: str
    shape: tuple[int, ...]
    files: tuple[Path, ...]

    @classmethod
    def along(cls, axis: str, files: tuple[Path, ...]) -> Grid:
        """Return files along one axis; a single file is along none."""
        return cls(axis, (len(files),), files) if len(files) > 1 else cls("", (), files)

    def __getitem__(self, place: Sequence[int]) -> Path:
        index = 0
        for i, n in zip(place, self.shape, strict=True):
            index = index * n + i
        return self.files[index]


def is_sequence(path: Path) -> bool:
    """Whether a path means several TIFF files: a pattern, or a folder that holds nothing else."""
    if path.is_dir():
        entries = _entries(path)
        return bool(entries) and all(e.name.lower().endswith(SUFFIXES) for e in entries)
    return not path.exists() and (_named(path) is not None or _is_glob(str(_split(path)[1])))


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Return a key by which names sort with their numbers by value.

    Examples
    --------
    >>> [str(p) for p in sorted([Path("z10.tif"), Path("z2.tif")], key=natural_key)]
    ['z2.tif', 'z10.tif']
    """
    words = re.split(r"(\d+)", str(path))
    return tuple([(1, int(w), w) if w.isdecimal() else (0, 0, w) for w in words if w])


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files of a sequence in natural order.

    Raises
    ------
    SourceNotFoundError
        If there are none, or one is a link to nothing.
    """
    if path.is_dir():
        files = [e for e in _entries(path) if e.name.lower().endswith(SUFFIXES)]
    else:
        folder, rest = _split(path)
        found = folder.glob(str(rest.with_name(PLACEHOLDER.sub("*", rest.name))))
        there = [f for f in found if f.is_file() or _is_broken(f)]
        files = [f for f in there if _is_ours(f) or rest.name.startswith(".")]
        files = [f for f in files if _named(path) is None or _marks(f, path)]
    if not files:
        raise SourceNotFoundError(f"{path}: no TIFF file there; check the folder or the pattern")
    for file in filter(_is_broken, files):
        raise SourceNotFoundError(
            f"{file}: a link to {file.readlink()}, where nothing is; bring the file back, or "
            f"remove the link"
        )
    return tuple(sorted(files, key=natural_key))


def by_marks(files: Sequence[Path], path: Path) -> Grid | None:
    """Return files on the grid that the marks in their names say, or None if there are no marks.

    Raises
    ------
    InputError
        If two files have the same place, or a place has none.
    """
    marks = [_marks(file, path) for file in files]
    common = [a for a in FILE_AXES if all(a in mark for mark in marks)]
    axes = "".join([a for a in common if len({mark[a] for mark in marks}) > 1])
    if not axes:
        return None
    placed: dict[tuple[int, ...], Path] = {}
    for file, mark in zip(files, marks, strict=True):
        place = tuple([mark[a] for a in axes])
        if place in placed:
            raise InputError(
                f"{path}: {placed[place].name} and {file.name} have the same {', '.join(axes)}; "
                f"narrow the pattern, or name the files' axis with axes="
            )
        placed[place] = file
    steps = [_steps({place[i] for place in placed}) for i in range(len(axes))]
    n_missing = math.prod([_size(step) for step in steps]) - len(placed)
    if n_missing:
        gaps = (place for place in _places(steps) if place not in placed)
        shown = [
            "".join([f"{a}{n}" for a, n in zip(axes, place, strict=True)])
            for place in itertools.islice(gaps, MOST_NAMED)
        ]
        raise InputError(
            f"{path}: {n_missing} of the files are missing: {', '.join(shown)}"
            f"{' and more' if n_missing > len(shown) else ''}; add them, or name the files' axis "
            f"with axes="
        )
    shape = tuple([len(step) for step in steps])
    return Grid(axes, shape, tuple([placed[place] for place in itertools.product(*steps)]))


def _steps(numbers: set[int]) -> range:
    """Return the evenly spaced numbers that reach from the least to the greatest."""
    low, high = min(numbers), max(numbers)
    step = math.gcd(*[n - low for n in numbers]) or 1
    return range(low, high + 1, step)


def _size(step: range) -> int:
    """Return how many numbers there are, where `len` could not: dates and times are numbers too."""
    return (step[-1] - step[0]) // step.step + 1


def _places(steps: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """Yield the places of a grid in C order; `itertools.product` would make lists of its sides."""
    if not steps:
        yield ()
        return
    for number in steps[0]:
        for rest in _places(steps[1:]):
            yield (number, *rest)


def _marks(file: Path, path: Path) -> dict[str, int]:
    """Return the number after each mark in a file's name."""
    named = _named(path)
    if named is not None:
        found = named.fullmatch(file.name)
        return {} if found is None else {a: int(n) for a, n in found.groupdict().items()}
    return {
        axis.lower(): int(number)
        for group in MARKS.findall(file.stem)
        for axis, number in MARK.findall(group)
    }


def _named(path: Path) -> re.Pattern[str] | None:
    """Return what matches names if the pattern has placeholders."""
    if not PLACEHOLDER.search(path.name):
        return None
    words = PLACEHOLDER.split(path.name)
    escaped = [re.escape(w).replace(r"\*", ".*").replace(r"\?", ".") for w in words[::2]]
    return re.compile(
        escaped[0]
        + "".join(f"(?P<{a}>\\d+){w}" for a, w in zip(words[1::2], escaped[1:], strict=True))
    )


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _split(path: Path) -> tuple[Path, Path]:
    """Return the folder that is there, whatever is in its name, and the pattern below it."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder, path.relative_to(folder)


def _is_broken(file: Path) -> bool:
    """Whether a file is a link to nothing."""
    return file.is_symlink() and not file.exists()


def _is_ours(file: Path) -> bool:
    """Whether a file is more than what file managers leave in folders."""
    return not file.name.startswith(".") and file.name.lower() not in LEFT_BEHIND


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if _is_ours(entry)]
