"""Speed and memory of conversions, beside a plain copy of the same bytes and beside the peer.

    python tests/benchmarks/conversion.py make KIND FILE MIB      # a file, as vendors write it
    python tests/benchmarks/conversion.py ours FILE OUT [LEVELS]  # to_ome_zarr, LEVELS of a pyramid
    python tests/benchmarks/conversion.py floor KIND FILE OUT [LEVELS]  # a plain copy, compressed
    python tests/benchmarks/conversion.py all FOLDER MIB [PEER [KIND ...]]  # three rounds in turn

KIND: czi (pylibCZIrw), ims (HDF5 layout, gzip 2), ome (OME-TIFF, tiles, deflate), ome-pyramid (the
same with SubIFDs), striped (OME-TIFF, strips, uncompressed), bigtiff (BigTIFF, tiles, zstd).
PEER is the interpreter of the peer's environment (shared/bench/README.md).

The floor reads the file with the vendor's library, planes or tiles as they lie, and writes level 0
in the same chunks through the same codec, in as many threads: no metadata, no resume. With 2 LEVELS
it also writes the bytes of the next level, of which it takes every second voxel instead of means.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PLANE = (2048, 2048)
KINDS = ("czi", "ims", "ome", "ome-pyramid", "striped", "bigtiff")
ENDING = {"czi": ".czi", "ims": ".ims"}


def planes(n: int) -> np.ndarray:
    """Return a stack of noisy nuclei; the planes are one plane, rolled."""
    rng = np.random.default_rng(0)
    y, x = np.indices(PLANE)
    nuclei = 900 * (np.sin(y / 9) * np.sin(x / 11) > 0.3)
    plane = rng.poisson(120 + nuclei).astype("uint16")
    return np.stack([np.roll(plane, 37 * i, (0, 1)) for i in range(n)])


def make(kind: str, path: Path, mib: int) -> None:
    """Write a file of `mib` MiB."""
    n = max(1, mib // 8)
    if kind == "czi":
        make_czi(path, n)
    elif kind == "ims":
        make_ims(path, n)
    else:
        make_tiff(kind, path, n)


def stacks(n: int):
    """Yield (first plane, planes), a few at a time."""
    some = planes(min(n, 16))
    for start in range(0, n, len(some)):
        yield start, some[: n - start]


def make_czi(path: Path, n: int) -> None:
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for start, some in stacks(n):
            for i, plane in enumerate(some):
                file.write(plane[..., None], plane={"Z": start + i, "C": 0, "T": 0})
        file.write_metadata(scale_x=2e-7, scale_y=2e-7, scale_z=1e-6)


def make_ims(path: Path, n: int) -> None:
    import h5py

    def text(value: object) -> np.ndarray:
        return np.array([c.encode() for c in str(value)], "S1")

    with h5py.File(path, "w") as file:
        channel = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        for axis, extent in zip("ZYX", (n, *PLANE), strict=True):
            channel.attrs[f"ImageSize{axis}"] = text(extent)
        padded = (-(-n // 16) * 16, *PLANE)
        data = channel.create_dataset(
            "Data", shape=padded, chunks=(16, 256, 256), dtype="u2", compression=2
        )
        image = file.create_group("DataSetInfo/Image")
        for i, (axis, extent) in enumerate(zip("XYZ", (*PLANE, n), strict=True)):
            image.attrs[axis] = text(extent)
            image.attrs[f"ExtMin{i}"] = text(0)
            image.attrs[f"ExtMax{i}"] = text(extent * (1.0 if axis == "Z" else 0.2))
        image.attrs["Unit"] = text("um")
        file.create_group("DataSetInfo/Channel 0").attrs["Name"] = text("nuclei")
        for start, some in stacks(n):
            data[start : start + len(some)] = some


def make_tiff(kind: str, path: Path, n: int) -> None:
    import tifffile

    how = {
        "ome": {"tile": (512, 512), "compression": "zlib", "compressionargs": {"level": 2}},
        "ome-pyramid": {"tile": (512, 512), "compression": "zlib", "subifds": 2},
        "striped": {"rowsperstrip": 64},
        "bigtiff": {"tile": (256, 256), "compression": "zstd", "compressionargs": {"level": 1}},
    }[kind]
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 1.0}
    with tifffile.TiffWriter(path, bigtiff=kind == "bigtiff" or n > 400, ome=True) as file:

        def frames(step: int):
            edge = how.get("tile", PLANE)[0]
            for _, some in stacks(n):
                for plane in some[:, ::step, ::step]:
                    for top in range(0, plane.shape[0], edge):
                        for left in range(0, plane.shape[1], edge):
                            yield plane[top : top + edge, left : left + edge]

        shape = (n, *PLANE)
        file.write(frames(1), shape=shape, dtype="uint16", metadata=metadata, **how)
        for level in range(1, how.get("subifds", 0) + 1):
            small = (n, PLANE[0] >> level, PLANE[1] >> level)
            below = {k: v for k, v in how.items() if k != "subifds"}
            file.write(frames(2**level), shape=small, dtype="uint16", subfiletype=1, **below)


def open_plain(kind: str, path: Path):
    """Return (shape, function that reads planes [a, b)) by the vendor's library."""
    if kind == "czi":
        from pylibCZIrw import czi

        file = czi.CziReader(str(path))
        n = file.total_bounding_box["Z"][1]
        return (n, *PLANE), lambda a, b: np.stack(
            [file.read(plane={"Z": z, "C": 0, "T": 0})[..., 0] for z in range(a, b)]
        )
    if kind == "ims":
        import h5py

        data = h5py.File(path)["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"]
        n = int(b"".join(data.parent.attrs["ImageSizeZ"]))
        return (n, *PLANE), lambda a, b: data[a:b]
    import tifffile

    tiff = tifffile.TiffFile(path)
    tiff.filehandle.set_lock(True)  # it is read by several threads
    pages = tiff.series[0].pages
    return (len(pages), *PLANE), lambda a, b: np.stack(
        [pages[z].asarray(maxworkers=1) for z in range(a, b)]
    )


def floor(kind: str, path: Path, out: Path, levels: int = 1) -> None:
    """Copy a file into a zarr array: nothing but reading, compressing and writing."""
    import zarr
    from zarr.codecs import BloscCodec

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    shape, read = open_plain(kind, path)
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=2)
    targets = [
        zarr.create_array(
            out / str(level),
            shape=(shape[0], shape[1] >> level, shape[2] >> level),
            chunks=(min(16, shape[0]), 256, 256),
            dtype="uint16",
            compressors=codec,
        )
        for level in range(levels)
    ]

    def copy(start: int) -> None:
        stop = min(start + 16, shape[0])
        voxels = read(start, stop)
        for level, target in enumerate(targets):
            step = 2**level
            target[start:stop] = np.ascontiguousarray(voxels[:, ::step, ::step])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(copy, range(0, shape[0], 16)))


def run(*arguments: str) -> tuple[float, float]:
    """Return seconds and peak memory (MiB) of a command of this script in a process of its own."""
    python = sys.executable
    if arguments[0] == "peer":
        python, arguments = arguments[1], arguments[2:]
        code = (
            "import sys, time, resource\n"
            "from patchworks.plugins.ome_zarr import to_ome_zarr\n"
            "start = time.perf_counter()\n"
            "to_ome_zarr(sys.argv[1], sys.argv[2], n_levels=2, progress=False, overwrite=True)\n"
            "print(time.perf_counter() - start, "
            "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
        )
        command = [python, "-P", "-c", code, *arguments]  # not the package beside this file
    else:
        command = [python, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-600:])
        return float("nan"), float("nan")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def everything(folder: Path, mib: int, peer: str | None, *kinds: str, rounds: int = 3) -> None:
    """Print medians of every kind of file: the floor, ours without and with a pyramid, the peer."""
    jobs = ["floor 1", "ours 1", "floor 2", "ours 2", *(["peer 2"] if peer else [])]
    print(
        "kind         " + "".join(f"{job:>9}" for job in jobs) + "   MB/s  ours 1/floor 1  "
        "ours 2/floor 2  ours 2/floor 1  peer 2/ours 2"
    )
    for kind in kinds or KINDS:
        path, out = folder / f"{kind}{ENDING.get(kind, '.ome.tif')}", folder / "out.zarr"
        make(kind, path, mib)
        seconds: dict[str, list[float]] = {job: [] for job in jobs}
        for _ in range(rounds):
            for job in jobs:
                shutil.rmtree(out, ignore_errors=True)
                command = {
                    "floor 1": ("floor", kind, str(path), str(out), "1"),
                    "floor 2": ("floor", kind, str(path), str(out), "2"),
                    "ours 1": ("ours", str(path), str(out), "1"),
                    "ours 2": ("ours", str(path), str(out), "2"),
                    "peer 2": ("peer", str(peer), str(path), str(out)),
                }[job]
                seconds[job].append(run(*command)[0])
        middle = {job: statistics.median(found) for job, found in seconds.items()}
        rate = mib * 2**20 / 1e6 / middle["ours 2"]
        ratios = [("ours 1", "floor 1"), ("ours 2", "floor 2"), ("ours 2", "floor 1")]
        ratios += [("peer 2", "ours 2")] if peer else []
        print(
            f"{kind:<13}"
            + "".join(f"{middle[job]:>9.2f}" for job in jobs)
            + f"{rate:>7.0f}"
            + "".join(f"{middle[a] / middle[b]:>15.2f} " for a, b in ratios),
            flush=True,
        )
        shutil.rmtree(out, ignore_errors=True)
        path.unlink()


def main(job: str, *arguments: str) -> None:
    """Run a job; it prints seconds and peak memory in MiB."""
    if job == "make":
        make(arguments[0], Path(arguments[1]), int(arguments[2]))
        return
    if job == "all":
        everything(Path(arguments[0]), int(arguments[1]), *(arguments[2:] or (None,)))
        return
    if job == "floor":
        start = time.perf_counter()
        floor(arguments[0], Path(arguments[1]), Path(arguments[2]), *map(int, arguments[3:4]))
    else:
        from patchworks.plugins.ome_zarr import to_ome_zarr

        start = time.perf_counter()
        levels = int(arguments[2]) if len(arguments) > 2 else None
        to_ome_zarr(arguments[0], arguments[1], n_levels=levels, progress=False)
    seconds = time.perf_counter() - start
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
