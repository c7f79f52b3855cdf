"""The command `patchworks`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchworks.errors import PatchworksError
from patchworks.plugins.overview import overview_png
from patchworks.report import RunReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 after an error of patchworks' own, or 130 when stopped."""
    options = _parser().parse_args(arguments)
    try:
        _segment(options)
    except PatchworksError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"patchworks: {error}{notes}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("patchworks: stopped; the same command goes on from there", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="patchworks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    segment = commands.add_parser(
        "segment", help="segment an image tile by tile and write one label image"
    )
    segment.add_argument("image", help="OME-Zarr or zarr store, or a TIFF file to convert first")
    segment.add_argument(
        "--segmenter",
        default="threshold",
        help="a registered name, or package.module:function (default: %(default)s)",
    )
    segment.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the segmenter, such as value=400; may be repeated",
    )
    segment.add_argument("--tile-shape", type=_integers, help="core of a tile, such as 64,512,512")
    segment.add_argument("--overlap", type=_integers, help="voxels of halo, one number or per axis")
    segment.add_argument("--channel", type=int, default=0)
    segment.add_argument("--level", type=int, default=0)
    segment.add_argument("--name", default="labels", help="name of the label image")
    segment.add_argument("--write-to", help="write the label image there, not into the image")
    segment.add_argument("--skip-empty", action="store_true", help="leave out tiles without signal")
    segment.add_argument("--stitch", choices=("auto", "overlap", "touch"), default="auto")
    segment.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    segment.add_argument("--png", help="write a picture with outlines there")
    segment.add_argument("--overwrite", action="store_true", help="replace another run's labels")
    return parser


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple([int(part) for part in text.split(",")])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected integers, such as 64,512,512"
        ) from None


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _segmenter(options: argparse.Namespace) -> Any:
    pairs = [pair.partition("=") for pair in options.set]
    parameters = {key: _value(value) for key, _, value in pairs}
    if ":" not in options.segmenter:
        return {"name": options.segmenter, **parameters}
    return {"import": options.segmenter, "kwargs": parameters} if pairs else options.segmenter


def _segment(options: argparse.Namespace) -> None:
    from flows.segment_image import converted_path, segment_image

    overlap = options.overlap
    report = segment_image(
        options.image,
        segmenter=_segmenter(options),
        tile_shape=options.tile_shape,
        overlap=overlap[0] if overlap and len(overlap) == 1 else overlap,
        channel=options.channel,
        level=options.level,
        output_component=options.name,
        write_to=options.write_to,
        skip_empty=options.skip_empty,
        stitch=options.stitch,
        max_workers=options.workers,
        overwrite=options.overwrite,
    )
    picture = None
    if options.png:
        picture = overview_png(
            converted_path(options.image) or options.image,
            report.labels,
            options.png,
            channel=options.channel,
            level=options.level,
            tile_shape=options.tile_shape,
        )
    _say(report, picture)


def _say(report: RunReport, picture: Path | None) -> None:
    tiles = f"{report.n_segmented} segmented"
    for n, what in ((report.n_empty, "empty"), (report.n_reused, "done before")):
        tiles += f", {n} {what}" if n else ""
    lines = [
        ("labels", report.labels),
        ("objects", f"{report.n_objects}"),
        ("tiles", f"{report.n_tiles} ({tiles})"),
        *[(step, f"{seconds:.2f} s") for step, seconds in report.seconds.items()],
    ]
    if picture is not None:
        lines.append(("picture", str(picture.absolute())))
    for name, value in lines:
        print(f"{name:<22}{value}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
