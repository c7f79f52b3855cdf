"""How an image of an inbox is processed: settings files beside it, over those of the deployment.

::

    inbox/patchworks.yaml            for all images below
    inbox/alice/patchworks.yaml      for those of this folder and below
    inbox/alice/scan.yaml            for scan.czi alone

Each group (`segmenter`, `tiles`, ...) is taken whole from the nearest file that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml
from pydantic import Field, ValidationError

from flows.cluster import ClusterSpec
from flows.inbox.arrivals import SETTINGS_SUFFIXES, settings_beside
from flows.inbox.listing import Entry, Listing
from flows.parameters import Conversion, Group, Labels, Run, Selection, Tiles
from flows.segmenter_choice import Imported, SegmenterChoice
from patchworks.errors import InputError
from patchworks.fingerprint import digest

FOLDER_WIDE = tuple([f"patchworks{suffix}" for suffix in SETTINGS_SUFFIXES])
MOST_BYTES = 1_000_000


class Settings(Group):
    """How images are converted and segmented; what is left out is as the flow has it."""

    segmenter: SegmenterChoice | None = None
    """The function that segments."""
    conversion: Conversion | None = None
    """How the file is converted."""
    selection: Selection | None = None
    """Which part of the image is segmented."""
    tiles: Tiles | None = None
    """How it is cut into tiles, and how their labels are joined."""
    labels: Labels | None = None
    """Where the label image goes."""
    run: Run | None = None
    """How the run is carried out."""
    cluster: ClusterSpec | None = None
    """Where its tasks run."""
    deployment: str | None = Field(default=None, pattern=r"^[^/]+/[^/]+$")
    """Which deployment carries it out, such as process image/gpu."""

    def over(self, below: Settings) -> Settings:
        """Return these settings, and those of another where these say nothing.

        Examples
        --------
        >>> Settings(tiles=Tiles(overlap=4)).over(Settings(deployment="a/b")).deployment
        'a/b'
        """
        said = {name: getattr(self, name) for name in type(self).model_fields}
        return below.model_copy(update={n: v for n, v in said.items() if v is not None})

    def parameters(self) -> dict[str, Any]:
        """Return the groups that are said, as JSON for a flow."""
        said = {name: getattr(self, name) for name in type(self).model_fields}
        del said["deployment"]
        return {
            name: group.model_dump(mode="json", by_alias=True)
            for name, group in said.items()
            if group is not None
        }


def settings_files(listing: Listing, path: str) -> list[Entry]:
    """Return the settings files that count for an image, the nearest first."""
    folders = [str(folder) for folder in PurePosixPath(path).parents]
    found: list[Entry] = []
    for depth, folder in enumerate(folders):
        inside = listing.entries("" if folder == "." else folder)
        own = settings_beside(path, inside) if depth == 0 else []
        found += [entry for entry in (*own, *inside) if entry in own or entry.name in FOLDER_WIDE]
    return list(dict.fromkeys(found))


def digest_of(files: list[Entry]) -> str:
    """Return what changes when settings files come, go or are written to."""
    return digest("settings", [(f.path, f.n_bytes, f.stamp) for f in files])[:16]


def settings_of(
    listing: Listing, files: list[Entry], default: Settings, *, trusted: bool
) -> Settings:
    """Return the settings of an image.

    Parameters
    ----------
    listing : Listing
        The inbox.
    files : list of Entry
        The settings files that count, the nearest first.
    default : Settings
        Those of the deployment.
    trusted : bool
        Whether the files may name code to import and places to write to.

    Raises
    ------
    InputError
        If one of them is none, or says what there is not; it names the file and the key.
    """
    said = default
    for file in reversed(files):
        said = _read(listing, file, trusted=trusted).over(said)
    return said


def _read(listing: Listing, file: Entry, *, trusted: bool) -> Settings:
    if file.n_bytes > MOST_BYTES:
        raise InputError(f"{file.path}: {file.n_bytes} bytes; expected a short file of settings")
    try:
        with listing.open(file.path) as opened:
            content = yaml.safe_load(opened.read().decode("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file.path}: not a YAML file: {error}") from error
    if content is None:
        return Settings()
    if not isinstance(content, Mapping):
        raise InputError(
            f"{file.path}: expected groups such as 'tiles: {{overlap: 16}}'; got "
            f"{type(content).__name__}"
        )
    try:
        settings = Settings.model_validate(dict(content))
    except ValidationError as error:
        raise InputError(f"{file.path}: {_problems(error)}") from error
    if not trusted:
        _check_harmless(file.path, settings)
    return settings


def _problems(error: ValidationError) -> str:
    """Say what is wrong with each key; of alternatives that were all tried, each once."""
    problems = []
    for each in error.errors(include_url=False):
        key = ".".join(str(part) for part in each["loc"])
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            message = "no such key"
        problems.append(f"{key}: {message} (got {each['input']!r})")
    return "; ".join(dict.fromkeys(problems))


def _check_harmless(path: str, settings: Settings) -> None:
    """Raise InputError if settings would run code or write anywhere in the name of the worker."""
    asked = []
    if isinstance(settings.segmenter, Imported):
        asked.append("segmenter: import")
    cluster = settings.cluster
    if cluster is not None and (cluster.kind, cluster.host) != ("local", ClusterSpec().host):
        asked.append("cluster: of other machines")
    if settings.labels is not None and settings.labels.write_to is not None:
        asked.append("labels: write_to")
    if settings.run is not None and settings.run.stage_dir is not None:
        asked.append("run: stage_dir")
    if asked:
        raise InputError(
            f"{path}: {', '.join(asked)}: refused, since whoever may write to the inbox could then "
            f"run code or write files as the worker; name a registered segmenter, put it into the "
            f"settings of the deployment, or set trust_settings there"
        )
