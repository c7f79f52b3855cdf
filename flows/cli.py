"""The command `patchworks`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.cli_models import add_models
from flows.cli_segmenters import add_segmenters
from flows.facility.commands import add_facility
from patchworks.errors import InputError, PatchworksError
from patchworks.plugins.overview import overview_png
from patchworks.report import HALVINGS, RunReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 after an error of patchworks' own, or 130 when stopped."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
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
    segment.set_defaults(run=_segment)
    segment.add_argument(
        "image", help="OME-Zarr or zarr store, or a microscope file to convert first"
    )
    _add_function(segment)
    _add_tiles(segment)
    segment.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    segment.add_argument("--gpu", action="store_true", help="segment on the GPUs of this machine")
    segment.add_argument(
        "--cluster", help="YAML file that says which workers to use, or a Dask scheduler's address"
    )
    segment.add_argument("--png", help="write a picture with outlines there")
    segment.add_argument("--overwrite", action="store_true", help="replace another run's labels")
    _add_plan(commands)
    _add_convert(commands)
    add_models(commands)
    _add_ui(commands)
    add_segmenters(commands)
    _add_view(commands)
    add_facility(commands)
    return parser


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="tell what segmenting an image will do and cost; nothing is written"
    )
    plan.set_defaults(run=_plan)
    plan.add_argument("image", help="OME-Zarr or zarr store")
    _add_function(plan)
    plan.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="call the function on a few pieces of the image, measure it, and propose the tile "
        "shape and the overlap that are not given (default: yes)",
    )
    plan.add_argument(
        "--probe-seconds", type=float, default=60.0, help="how long that may take (default: 60)"
    )
    _add_tiles(plan)
    plan.add_argument("--workers", type=int, help="function calls at a time")
    plan.add_argument("--gpu", action="store_true", help="the function uses a GPU")


def _add_function(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--segmenter",
        default="threshold",
        help="a registered name, or package.module:function (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the segmenter, such as value=400 or diameter=[8,20,20]; repeatable",
    )


def _add_tiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile-shape", type=_tile_shape, help="core of a tile, such as 64,512,512, or auto"
    )
    parser.add_argument("--overlap", type=_integers, help="voxels of halo, one number or per axis")
    parser.add_argument("--channel", type=_integers, default=(0,), help="one, or several: 0,2")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--name", default="labels", help="name of the label image")
    parser.add_argument("--write-to", help="write the label image there, not into the image")
    parser.add_argument("--skip-empty", action="store_true", help="leave out tiles without signal")
    parser.add_argument("--slice-wise", action="store_true", help="segment slice by slice")
    parser.add_argument("--link-time", action="store_true", help="link objects of time points")
    parser.add_argument("--stitch", choices=("auto", "overlap", "touch"), default="auto")


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser("convert", help="convert a microscope file to OME-Zarr")
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source", help="TIFF, Imaris, CZI, LIF, ND2, zarr, ... or a pattern of TIFF files, quoted"
    )
    convert.add_argument("target", help="path or URL of the OME-Zarr store to make")
    convert.add_argument("--scene", default="0", help="index or name of the image, or all")
    convert.add_argument("--axes", help="axes of the source where it does not say them: czyx")
    convert.add_argument(
        "--pixel-size",
        action="append",
        default=[],
        type=_size,
        metavar="AXIS=MICROMETERS",
        help="in place of what the source says, such as y=0.2; may be repeated",
    )
    convert.add_argument("--channel-names", help="names, separated by commas")
    convert.add_argument("--levels", type=int, help="levels of the pyramid")
    convert.add_argument("--chunks", type=_integers, help="chunk shape, such as 1,16,256,256")
    convert.add_argument(
        "--shard", action=argparse.BooleanOptionalAction, help="several chunks in a file"
    )
    convert.add_argument("--ngff-version", choices=("0.5", "0.4"), default="0.5")
    convert.add_argument(
        "--reuse-pyramid", action="store_true", help="take over the levels of the source"
    )
    convert.add_argument("--reader", help="reader to use, such as bioio")
    convert.add_argument("--workers", type=int, help="threads (default: one per core)")
    convert.add_argument("--overwrite", action="store_true", help="replace an image that is there")


def _add_ui(commands: Any) -> None:
    ui = commands.add_parser("ui", help="show past and present runs in a browser, until Ctrl-C")
    ui.set_defaults(run=_ui)
    ui.add_argument("--open", action="store_true", help="open the browser")


def _add_view(commands: Any) -> None:
    view = commands.add_parser("view", help="show an image and its labels in napari")
    view.set_defaults(run=_view)
    view.add_argument("store", help="path or URL of an OME-Zarr image, or of a label image")
    view.add_argument("labels", nargs="*", help="labels to show (default: all of the image's)")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple([int(part) for part in text.split(",")])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected integers, such as 64,512,512"
        ) from None


def _one_or_several(entries: tuple[int, ...]) -> int | tuple[int, ...]:
    return entries[0] if len(entries) == 1 else entries


def _tile_shape(text: str) -> tuple[int, ...] | str:
    return text if text == "auto" else _integers(text)


def _size(text: str) -> tuple[str, Any]:
    axis, sign, size = text.partition("=")
    if not (axis and sign):
        raise argparse.ArgumentTypeError(f"{text!r}: expected AXIS=MICROMETERS, such as y=0.2")
    return axis, _value(size)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        return json.loads(text)
    except ValueError:
        return text


def _segmenter(options: argparse.Namespace) -> Any:
    pairs = [pair.partition("=") for pair in options.set]
    parameters = {key: _value(value) for key, _, value in pairs}
    if ":" not in options.segmenter:
        return {"name": options.segmenter, **parameters}
    return {"import": options.segmenter, "kwargs": parameters} if pairs else options.segmenter


def _tiling(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords that planning a run and carrying it out have in common."""
    return {
        "tile_shape": options.tile_shape,
        "overlap": options.overlap and _one_or_several(options.overlap),
        "channel": _one_or_several(options.channel),
        "level": options.level,
        "output_component": options.name,
        "write_to": options.write_to,
        "skip_empty": options.skip_empty,
        "slice_wise": options.slice_wise,
        "link_time": options.link_time,
        "stitch": options.stitch,
        "max_workers": options.workers,
        "use_gpu": options.gpu,
    }


def _segment(options: argparse.Namespace) -> None:
    from flows.segment_image import segment_image

    if options.png:
        _check_place_of(Path(options.png))
    report = segment_image(
        options.image,
        segmenter=_segmenter(options),
        **_tiling(options),
        cluster=options.cluster,
        overwrite=options.overwrite,
    )
    _say(report)
    if options.png:
        _draw(options, report.labels)


def _check_place_of(picture: Path) -> None:
    folder = picture.absolute().parent
    if picture.is_dir() or not folder.is_dir():
        problem = "is a folder" if picture.is_dir() else f"there is no folder {folder}"
        raise InputError(f"--png {picture}: {problem}; expected a file in a folder that is there")


def _draw(options: argparse.Namespace, labels: str) -> None:
    from flows.segment_image import converted_path

    try:
        picture = overview_png(
            converted_path(options.image) or options.image,
            labels,
            options.png,
            channel=_one_or_several(options.channel),
            level=options.level,
            tile_shape=None if options.tile_shape == "auto" else options.tile_shape,
        )
    except PatchworksError:
        raise
    except OSError as error:
        raise InputError(
            f"--png {options.png}: no picture ({error.strerror or error}), but the labels are "
            f"done; the same command with another --png only draws it"
        ) from error
    _print([("picture", str(picture.absolute()))])


def _plan(options: argparse.Namespace) -> None:
    from patchworks.proposal import plan_run
    from patchworks.segmenters import resolve_segmenter

    proposal = plan_run(
        options.image,
        resolve_segmenter(_segmenter(options)),
        probe=options.probe,
        probe_seconds=options.probe_seconds,
        **_tiling(options),
    )
    print(proposal)  # noqa: T201


def _convert(options: argparse.Namespace) -> None:
    from patchworks.plugins.ome_zarr import to_ome_zarr

    names = options.channel_names
    target = to_ome_zarr(
        options.source,
        options.target,
        axes=options.axes,
        pixel_size=dict(options.pixel_size) or None,
        n_levels=options.levels,
        chunks=options.chunks,
        shard=options.shard,
        channel_names=names.split(",") if names else None,
        scene=int(options.scene) if options.scene.isdecimal() else options.scene,
        ngff_version=options.ngff_version,
        reuse_pyramid=options.reuse_pyramid,
        reader=options.reader,
        max_workers=options.workers,
        overwrite=options.overwrite,
    )
    print(f"{'image':<22}{target}")  # noqa: T201


def _ui(options: argparse.Namespace) -> None:
    from flows.ui import show_ui

    show_ui(open_browser=options.open)


def _view(options: argparse.Namespace) -> None:
    from patchworks.extras import import_extra
    from patchworks.plugins.napari import view_in_napari

    napari = import_extra("napari", "napari", "patchworks view")
    view_in_napari(options.store, options.labels or None)
    napari.run()


def _say(report: RunReport) -> None:
    tiles = f"{report.n_segmented} segmented"
    for n, what in ((report.n_empty, "empty"), (report.n_reused, "done before")):
        tiles += f", {n} {what}" if n else ""
    lines = [
        ("labels", report.labels),
        ("objects", f"{report.n_objects}"),
        ("tiles", f"{report.n_tiles} ({tiles})"),
        *[(step, f"{seconds:.2f} s") for step, seconds in report.seconds.items()],
    ]
    if report.n_halvings:
        lines.append(("memory", f"{report.n_halvings} {HALVINGS}"))
    lines += [("warning", warning) for warning in report.warnings]
    _print(lines)


def _print(lines: Sequence[tuple[str, str]]) -> None:
    for name, value in lines:
        print(f"{name:<22}{value}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
