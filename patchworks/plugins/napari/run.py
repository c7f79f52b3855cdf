"""A run beside napari: in a process of its own, so that the window never waits for it.

A function that holds the interpreter's lock would make the window stutter, one that takes all
memory would take napari along, and none can be stopped in a thread: a process can.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODULE = "patchworks.job"

KILL_S = 3.0
"""Seconds after which a run that was told to stop is ended with all of its processes."""

State = Literal["starting", "running", "stopping", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class HowFar:
    """How far a run is: state, step, and parts of the step that are done; and what it ended with.

    Parameters
    ----------
    state : str
        What goes on.
    step : str
        The step, such as ``"segment"``.
    n_done, n_total : int
        Parts of the step; 0 of 0 while that is not known.
    message : str
        Of a run that failed: why.
    n_objects : int
        Of a run that is done.
    """

    state: State
    step: str = ""
    n_done: int = 0
    n_total: int = 0
    message: str = ""
    n_objects: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")


class Run:
    """A run that goes on in another process; ask `how_far` from time to time.

    Parameters
    ----------
    segmenter : dict
        ``{"name": ..., parameters}``.
    options : dict
        Keywords of `patchworks.tile_process`.
    labels : str
        Where the label image will be.
    image : callable
        Returns the image's path, having written it there if need be. Called in a thread, with a
        function that tells whether the run was stopped.
    """

    def __init__(
        self,
        image: Callable[[Callable[[], bool]], str],
        segmenter: dict[str, Any],
        options: dict[str, Any],
        labels: str,
    ) -> None:
        self.labels = labels
        self._image = image
        self._job = {"segmenter": segmenter, "options": options, "labels": labels}
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = threading.Event()
        self._changing = threading.Lock()
        self.how_far = HowFar("starting", "start")
        self._thread = threading.Thread(target=self._go, name="patchworks-run", daemon=True)

    def start(self) -> None:
        """Start it, and return at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop it, and return at once: tiles that are done are kept."""
        with self._changing:
            self._is_stopped.set()
            if not self.how_far.is_over:
                self.how_far = HowFar("stopping", "stop")
            process = self._process
        if process is None:
            return
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        killer = threading.Timer(KILL_S, _kill, [process])
        killer.daemon = True
        killer.start()

    def wait(self, timeout_s: float | None = None) -> HowFar:
        """Wait until it is over, or so long; return how far it is."""
        self._thread.join(timeout_s)
        return self.how_far

    def _go(self) -> None:
        try:
            found = self._carried_out()
        except Exception as error:  # noqa: BLE001 - the end of a thread: it is told in the window
            found = HowFar("failed", message=f"{type(error).__name__}: {error}")
        with self._changing:
            stopped = self._is_stopped.is_set() and found.state != "done"
            self.how_far = HowFar("stopped") if stopped else found

    def _carried_out(self) -> HowFar:
        self._tell(HowFar("starting", "copy the layer"))
        self._job["image"] = self._image(self._is_stopped.is_set)
        self._tell(HowFar("starting", "start"))
        with tempfile.TemporaryDirectory(prefix="patchworks-job-") as folder:
            job, log = Path(folder) / "job.json", Path(folder) / "log.txt"
            job.write_text(json.dumps(self._job))
            with log.open("wb") as errors, self._changing:
                if self._is_stopped.is_set():
                    return HowFar("stopped")
                self._process = _process_of(job, errors)
            with self._process as process:
                found = self._listen(process)
            if found is not None:
                return found
            return HowFar("failed", message=_why(process.returncode, log))

    def _listen(self, process: subprocess.Popen[bytes]) -> HowFar | None:
        """Take what the process tells; return its end, or None if it ended without a word."""
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "step" in said:
                self._tell(HowFar("running", said["step"], said["n_done"], said["n_total"]))
            elif "error" in said:
                return HowFar("failed", message="\n".join([said["message"], *said["notes"]]))
            else:
                return HowFar("done", n_objects=said["n_objects"])
        return None

    def _tell(self, found: HowFar) -> None:
        with self._changing:
            if not self._is_stopped.is_set():
                self.how_far = found


def _process_of(job: Path, errors: Any) -> subprocess.Popen[bytes]:
    """Start the process; it ends when its standard input does, as when this one dies."""
    paths = [path for path in sys.path if path]
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, str(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=os.name != "nt",  # so that it can be ended with its own processes
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those that it started."""
    if process.poll() is not None:
        return
    with suppress(OSError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _why(code: int, log: Path) -> str:
    """Return what is known of a process that ended without a word."""
    lines = log.read_text(errors="replace").strip().splitlines()[-3:]
    said = "; ".join([line.strip() for line in lines]) or "it left no message"
    return (
        f"the process of the run ended with code {code} (a code of -9 is most often for want of "
        f"memory: take smaller tiles). The tiles that are done are kept. Its last words: {said}"
    )
