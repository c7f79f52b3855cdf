"""The result artifact of a run: picture, counts, warnings, where the result lies."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname
from uuid import UUID

from PIL import Image

from flows.artifacts.desk import publish
from flows.artifacts.units import bytes_text, count_text, seconds_text
from patchworks.conversion.run import ConversionReport
from patchworks.report import HALVINGS, RunReport

MAX_PICTURE_BYTES = 150_000
"""Bytes of a picture as it stands in the artifact: a row of the server's database holds them."""

MAX_WARNINGS = 20

_MEDIA_TYPES = {b"\x89PNG": "image/png", b"RIFF": "image/webp", b"\xff\xd8\xff": "image/jpeg"}


def max_picture_bytes() -> int:
    r"""Return how large a picture's file may be: in the artifact it is a third longer.

    Examples
    --------
    >>> len(data_uri(b"\x89PNG" + bytes(max_picture_bytes() - 4))) <= MAX_PICTURE_BYTES
    True
    """
    return (MAX_PICTURE_BYTES - 64) // 4 * 3


def data_uri(picture: bytes) -> str:
    """Return a PNG, WebP or JPEG file as a URI that holds it."""
    kinds = [media for start, media in _MEDIA_TYPES.items() if picture.startswith(start)]
    kind = kinds[0] if kinds else "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def publish_result(
    report: RunReport,
    picture: bytes | None = None,
    warnings: Sequence[str] = (),
    *,
    n_bytes: int | None = None,
    image: str = "",
    flow_run_id: UUID | None = None,
) -> UUID | None:
    """Publish the markdown artifact ``result`` of a segmentation; return its id, if it has one.

    Parameters
    ----------
    report : RunReport
        What was done.
    picture : bytes, optional
        The overview, best a file of at most `max_picture_bytes`: a larger one is compressed again.
    warnings : sequence of str
        What whoever uses the labels should know.
    n_bytes : int, optional
        Bytes of the labels on disk.
    image : str
        Path or URL of the image.
    flow_run_id : UUID, optional
        The current flow run by default.
    """
    labels = path_text(report.labels)
    seconds = sum(report.seconds.values())
    unread = f" ({count_text(report.n_unread)} of them not read)" * bool(report.n_unread)
    tiles = [
        (report.n_segmented, "segmented"),
        (report.n_empty, f"left out as empty{unread}"),
        (report.n_reused, "done before"),
    ]
    rows = {
        "objects": count_text(report.n_objects),
        "tiles": f"{count_text(report.n_tiles)}: "
        + (", ".join(f"{count_text(n)} {what}" for n, what in tiles if n) or "none to do"),
        "time": seconds_text(seconds),
        "objects per second": f"{report.n_objects / max(seconds, 1e-9):.3g}",
    }
    if report.n_halvings:
        rows["memory"] = f"{count_text(report.n_halvings)} {HALVINGS}"
    if n_bytes is not None:
        rows["size on disk"] = bytes_text(n_bytes)
    markdown = _page(
        title=f"{count_text(report.n_objects)} objects",
        picture=picture,
        legend="Outlines of the objects over the image",
        rows=rows,
        places={"labels": labels, "image": path_text(image)},
        warnings=warnings,
        code=_code_to_open(labels, path_text(image), "labels"),
    )
    description = f"Labels of {_name_of(image or labels)}"
    return publish("markdown", "result", markdown, description, flow_run_id=flow_run_id)


def publish_conversion(
    report: ConversionReport,
    picture: bytes | None = None,
    warnings: Sequence[str] = (),
    *,
    source: str = "",
    flow_run_id: UUID | None = None,
) -> UUID | None:
    """Publish the markdown artifact ``result`` of a conversion; return its id, if it has one.

    Parameters
    ----------
    report : ConversionReport
        What was done.
    picture : bytes, optional
        A thumbnail, best a file of at most `max_picture_bytes`: a larger one is compressed again.
    warnings : sequence of str
        What whoever uses the image should know.
    source : str
        Path or URL of what was converted.
    flow_run_id : UUID, optional
        The current flow run by default.
    """
    target = path_text(report.target)
    rows = {
        "size, uncompressed": bytes_text(report.n_bytes),
        "regions": count_text(report.n_regions)
        + (f", {count_text(report.n_reused)} of them done before" if report.n_reused else ""),
        "time": seconds_text(report.seconds),
    }
    if report.n_reused < report.n_regions:
        rows["speed"] = f"{bytes_text(report.n_bytes / max(report.seconds, 1e-9))}/s"
    markdown = _page(
        title="OME-Zarr image",
        picture=picture,
        legend="Maximum projection of the image",
        rows=rows,
        places={"image": target, "made from": path_text(source)},
        warnings=warnings,
        code=_code_to_open(target, "", "image"),
    )
    description = f"OME-Zarr image of {_name_of(source or target)}"
    return publish("markdown", "result", markdown, description, flow_run_id=flow_run_id)


def path_text(place: str) -> str:
    """Return a ``file:`` URL as the path it names, anything else as it is.

    Examples
    --------
    >>> path_text("file:///scans/my%20scan.zarr"), path_text("s3://bucket/scan.zarr")
    ('/scans/my scan.zarr', 's3://bucket/scan.zarr')
    """
    parts = urlsplit(place)
    return url2pathname(unquote(parts.path)) if parts.scheme == "file" else place


def fenced(text: str, language: str = "") -> str:
    """Return text as a block of markdown that shows it as it is, whatever it holds.

    Examples
    --------
    >>> print(fenced("x = 1", "python"))
    ```python
    x = 1
    ```
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " * (longest > 0)
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def _page(
    *,
    title: str,
    picture: bytes | None,
    legend: str,
    rows: Mapping[str, str],
    places: Mapping[str, str],
    warnings: Sequence[str],
    code: str,
) -> str:
    parts = [f"## {title}"]
    if warnings:
        parts.append(_list_of(warnings))
    fitting = None if picture is None else _fitting(picture)
    if fitting is not None:
        parts.append(f"![{legend}]({data_uri(fitting)})")
    places_known = {name: _code(place) for name, place in places.items() if place}
    parts.append(_table({**rows, **places_known}))
    parts.append("To open it:")
    parts.append(fenced(code, "python"))
    return "\n\n".join(parts) + "\n"


def _fitting(picture: bytes) -> bytes | None:
    """Return the picture, compressed again if it is too large, or None if it is none."""
    if len(picture) <= max_picture_bytes():
        return picture
    try:
        opened = Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, ValueError):
        return None
    for share in (1.0, 0.9, 0.75, 0.6, 0.4, 0.2):
        size = max(1, int(opened.width * share)), max(1, int(opened.height * share))
        with io.BytesIO() as file:
            opened.resize(size).save(file, "WEBP", quality=60, method=4)
            if file.tell() <= max_picture_bytes():
                return file.getvalue()
    return None


def _list_of(warnings: Sequence[str]) -> str:
    shown = [f"- **Warning:** {' '.join(text.split())}" for text in warnings[:MAX_WARNINGS]]
    if len(warnings) > MAX_WARNINGS:
        shown.append(f"- and {len(warnings) - MAX_WARNINGS} more, in the log")
    return "\n".join(shown)


def _table(rows: Mapping[str, str]) -> str:
    lines: Iterable[str] = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join(["|   |   |", "|---|---|", *lines])


def _code_to_open(place: str, image: str, kind: str) -> str:
    shown = [place]
    if kind == "labels" and image and _is_store(image):
        shown = [image, place]
    lines = [
        "import napari",
        "from patchworks.plugins.napari import view_in_napari",
        "",
        f"view_in_napari({', '.join([repr(path) for path in shown])})",
        "napari.run()",
    ]
    return "\n".join(lines)


def _is_store(image: str) -> bool:
    return image.rstrip("/").endswith(".zarr")


def _name_of(place: str) -> str:
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]
