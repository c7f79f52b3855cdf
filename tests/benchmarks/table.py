"""The table of speed: patchworks beside a bare floor and the peer, as ratios of one run.

    python tests/benchmarks/table.py SCRATCH [--jobs label,constant,...] [--rounds 5]
        [--bench FOLDER --floor-python PYTHON --peer-python PYTHON] [--gib 1]

FOLDER holds `make_volume.py`, `floor.py` and `peer.py`; without it only what needs neither is run.
Every timed call is a process of its own; what is compared takes turns, round by round; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
TILE = ["64,512,512", "16"]
LEVELS = 5

Row = tuple[str, str, str, str]


class Bench:
    """Runs programs in turn and keeps what they say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.scratch = Path(options.scratch)
        self.scratch.mkdir(parents=True, exist_ok=True)

    def volume(self, gib: float, fill: float = 1.0) -> Path:
        """Return a volume of nuclei, made when it is first asked for."""
        path = self.scratch / f"volume-{gib:g}-{fill:g}.zarr"
        if not path.exists():
            shape = [str(int(128 * gib)), "2048", "2048"]
            more = ["--fill", str(fill)] if fill < 1 else []
            program = [sys.executable, str(Path(self.options.bench) / "make_volume.py")]
            subprocess.run(
                [*program, str(path), *shape, *more], check=True, stdout=subprocess.DEVNULL
            )
        return path

    def job(self, name: str, *arguments: object) -> dict[str, float]:
        """Run a job of `jobs.py` and return what it measured."""
        command = [sys.executable, str(HERE / "jobs.py"), name, *map(str, arguments)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_env())
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    def seconds_of(self, pattern: str, *command: object) -> float:
        """Run another program and return the seconds that it prints."""
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, env=env
        )
        return float(re.findall(pattern, done.stdout)[-1])

    def floor(self, image: Path) -> float:
        """Return the seconds of the bare label job."""
        out = self.scratch / "floor.zarr"
        shutil.rmtree(out, ignore_errors=True)
        program = [self.options.floor_python, Path(self.options.bench) / "floor.py"]
        return self.seconds_of(r"total ([\d.]+)s", *program, image, out, *TILE)

    def peer(self, pattern: str, *arguments: object) -> float:
        """Return the seconds of the peer's job."""
        # -P: the peer's package has our name, and the program's folder must not come first.
        program = [self.options.peer_python, "-P", Path(self.options.bench) / "peer.py"]
        return self.seconds_of(pattern, *program, *arguments)

    def medians(self, **runs: Callable[[], float]) -> dict[str, float]:
        """Run everything in turn, several rounds, and return the medians."""
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.options.rounds):
            for name, run in runs.items():
                found[name].append(run())
        print({name: [round(s, 2) for s in all_] for name, all_ in found.items()}, file=sys.stderr)
        return {name: statistics.median(all_) for name, all_ in found.items()}


def _env() -> dict[str, str]:
    root = str(HERE.parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def row(what: str, measured: str, ratio: float, target: str, *, at_most: float) -> Row:
    """Return a line of the table for a ratio that may be so much at most."""
    return what, measured, f"{ratio:.2f} (target {target})", "yes" if ratio <= at_most else "NO"


def label(bench: Bench) -> Iterator[Row]:
    image = bench.volume(bench.options.gib)
    out = bench.scratch / "peer.zarr"
    s = bench.medians(
        floor=lambda: bench.floor(image),
        ours=lambda: bench.job("label", image)["seconds"],
        peer=lambda: bench.peer(r"label touch ([\d.]+) s", "label", image, out, *TILE, "touch"),
    )
    measured = f"ours {s['ours']:.2f} s, floor {s['floor']:.2f} s, peer {s['peer']:.2f} s"
    yield row("label job / floor", measured, s["ours"] / s["floor"], "<= 1.2", at_most=1.2)
    yield row("label job / peer", measured, s["ours"] / s["peer"], "<= 1/3", at_most=1 / 3)


def constant(bench: Bench) -> Iterator[Row]:
    image = bench.volume(bench.options.gib)
    s = bench.medians(
        ours=lambda: bench.job("constant", image)["seconds"],
        zarrs=lambda: bench.job("once", image, "zarrs")["seconds"],
        zarr=lambda: bench.job("once", image, "zarr")["seconds"],
    )
    for name in ("zarrs", "zarr"):
        measured = f"ours {s['ours']:.2f} s, read and written once with {name} {s[name]:.2f} s"
        ratio = s["ours"] / s[name]
        yield row(f"compare with a constant / {name}", measured, ratio, "<= 1.3", at_most=1.3)


def merge(bench: Bench) -> Iterator[Row]:
    image, scratch = bench.volume(bench.options.gib), bench.scratch / "peer-merge"
    staged = bench.scratch / "staged.zarr"
    bench.job("stage", image, staged)

    def peer() -> tuple[float, float]:
        program = [bench.options.peer_python, "-P", str(Path(bench.options.bench) / "peer.py")]
        command = [*program, "merge", str(image), str(scratch), TILE[0]]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
        shutil.rmtree(scratch, ignore_errors=True)
        default = re.findall(r"default ([\d.]+) s", done.stdout)
        given = re.findall(r"counts given ([\d.]+) s", done.stdout)
        return float(default[-1]), float(given[-1])

    ours: dict[int, list[float]] = {1: [], LEVELS: []}
    default, given = [], []
    for _ in range(bench.options.rounds):
        for levels, seconds in ours.items():
            seconds.append(bench.job("merge", staged, levels)["seconds"])
        for kept, took in zip((default, given), peer(), strict=True):
            kept.append(took)
    b, c = map(statistics.median, (default, given))
    for levels, seconds in ours.items():
        a = statistics.median(seconds)
        measured = f"ours {a:.2f} s, peer {b:.2f} s, with counts {c:.2f} s (one level)"
        what = f"merge, {levels} level(s)"
        yield row(f"{what} / peer's default", measured, a / b, "<= 1/6", at_most=1 / 6)
        yield row(f"{what} / peer with counts", measured, a / c, "<= 1/2.5", at_most=1 / 2.5)


def stitch(bench: Bench) -> Iterator[Row]:
    image = bench.volume(bench.options.gib)
    s = bench.medians(
        agreement=lambda: bench.job("label", image, "auto")["seconds"],
        touch=lambda: bench.job("label", image, "touch")["seconds"],
    )
    measured = f"agreement {s['agreement']:.2f} s, touch {s['touch']:.2f} s"
    ratio = s["agreement"] / s["touch"]
    yield row("stitching by agreement / touch", measured, ratio, "<= 1.1", at_most=1.1)


def tiny(bench: Bench) -> Iterator[Row]:
    # Not on a disk: for minutes after many files are deleted ext4 makes new ones far more slowly.
    if Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = "/dev/shm"
    s = bench.medians(
        few=lambda: bench.job("tiny", 64)["ms_a_tile"],
        many=lambda: bench.job("tiny", 256)["ms_a_tile"],
    )
    measured = f"4096 tiles {s['few']:.2f} ms each, 65536 tiles {s['many']:.2f} ms each"
    yield row("ms a tile", measured, max(s.values()), "<= 1 ms", at_most=1.0)
    yield row("65536 / 4096 tiles", measured, s["many"] / s["few"], "<= 1", at_most=1.05)


def sleep(bench: Bench) -> Iterator[Row]:
    image = bench.volume(bench.options.gib)
    found = [bench.job("sleep", image) for _ in range(bench.options.rounds)]
    step = statistics.median(f["of_step"] for f in found)
    call = statistics.median(f["of_call"] for f in found)
    measured = f"function busy {step:.1%} of the step, {call:.1%} of the call"
    yield row("sleep: idle share of the step", measured, 1 - step, "<= 0.05", at_most=0.05)
    yield row("sleep: idle share of the call", measured, 1 - call, "<= 0.50", at_most=0.5)


def lock(bench: Bench) -> Iterator[Row]:
    for n_tiles in (120, 360):
        s = bench.medians(
            one=lambda n=n_tiles: bench.job("lock", 1, n)["seconds"],
            two=lambda n=n_tiles: bench.job("lock", 2, n)["seconds"],
        )
        one, two = s["one"], s["two"]
        measured = f"one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} times"
        what = f"pure Python, {n_tiles} tiles, 2 cores / 1"
        yield row(what, measured, two / one, "<= 1/1.8", at_most=1 / 1.8)


def empty(bench: Bench) -> Iterator[Row]:
    full, sparse = bench.volume(bench.options.gib), bench.volume(bench.options.gib, 0.2)

    def first(tile: str) -> float:
        shutil.rmtree(f"{sparse}.maxima", ignore_errors=True)
        return bench.job("label", sparse, "auto", "skip", tile)["seconds"]

    for tile in ("64,512,512", "128,256,256"):
        s = bench.medians(
            full=lambda t=tile: bench.job("label", full, "auto", "", t)["seconds"],
            first=lambda t=tile: first(t),
            again=lambda t=tile: bench.job("label", sparse, "auto", "skip", t)["seconds"],
        )
        for name, said in (("first", "no map yet"), ("again", "with its map")):
            measured = f"full {s['full']:.2f} s, 80 % empty with skip_empty {s[name]:.2f} s"
            what = f"80 % empty / full, tiles {tile}, {said}"
            yield row(what, measured, s[name] / s["full"], "<= 0.35", at_most=0.35)


def memory(bench: Bench) -> Iterator[Row]:
    large = 8 * bench.options.gib
    small = bench.job("label", bench.volume(bench.options.gib))
    found = bench.job("label", bench.volume(large))
    measured = (
        f"{small['peak'] / 2**20:.0f} MiB, 8 times the image {found['peak'] / 2**20:.0f} MiB, "
        f"projected {found['projected'] / 2**20:.0f} MiB"
    )
    ratio = found["peak"] / small["peak"]
    yield row("peak memory, image x 8", measured, ratio, "<= 1.1", at_most=1.1)
    over = max(found["peak"] / found["projected"], small["peak"] / small["projected"])
    yield row("peak memory / projection", measured, over, "<= 1", at_most=1.0)


JOBS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    f.__name__: f for f in (label, constant, merge, stitch, tiny, sleep, lock, empty, memory)
}


def main() -> None:
    """Run the jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--bench", default=os.environ.get("PATCHWORKS_BENCH", ""))
    parser.add_argument("--floor-python", default=sys.executable)
    parser.add_argument("--peer-python", default=os.environ.get("PATCHWORKS_PEER_PYTHON", ""))
    bench = Bench(parser.parse_args())
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print("\n| job | medians | ratio | met |\n|---|---|---|---|", flush=True)
    for name in bench.options.jobs.split(","):
        for cells in JOBS[name](bench):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
