"""A run in a process of its own, for a program with a window: ``python -m patchworks.job FILE``.

The file says, in JSON, what to do: ``{"image": path, "segmenter": name and parameters, "options":
keywords of tile_process, "labels": where they will be}``. On standard output there is then a line
of JSON for each thing to tell:

- ``{"step": "segment", "n_done": 3, "n_total": 16}``
- ``{"labels": path, "n_objects": 85}``, the end
- ``{"error": "InputError", "message": "...", "notes": [...]}``, the end

Closing its standard input stops the run as Ctrl-C does: so does the end of whoever started it. What
is done is kept, and the same job goes on from there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from patchworks.errors import PatchworksError
from patchworks.io.location import Location, open_group
from patchworks.io.ngff import PROVENANCE_KEY
from patchworks.segmenters import resolve_segmenter
from patchworks.tile_process import tile_process

GRACE_S = 5.0
"""Seconds that a run has for ending by itself after it was told to stop."""

STOPPED = 130


def main(path: str) -> int:
    """Carry out the job in a file; return 0, 1 after an error, or 130 when stopped."""
    say = _teller(_own_stdout())
    threading.Thread(target=_stop_at_end_of_input, name="patchworks-stop", daemon=True).start()
    try:
        say(run_job(json.loads(Path(path).read_text()), say))
    except KeyboardInterrupt:
        return STOPPED
    except PatchworksError as error:
        say(_described(error))
        return 1
    except Exception as error:  # noqa: BLE001 - the edge of the process: whoever started it is told
        traceback.print_exc()
        say(_described(error))
        return 1
    return 0


def run_job(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Carry out a job, and return what there is to be told at its end.

    Parameters
    ----------
    job : dict
        As this module's first lines say.
    say : callable
        Is given how far it is.
    """

    def progress(step: str, n_done: int, n_total: int) -> None:
        say({"step": step, "n_done": n_done, "n_total": n_total})

    segmenter = resolve_segmenter(job["segmenter"])
    tile_process(job["image"], segmenter, progress=progress, **job["options"])
    made = open_group(Location.parse(job["labels"])).attrs[PROVENANCE_KEY]
    return {"labels": job["labels"], "n_objects": made["n_objects"]}  # type: ignore[call-overload,index]


def _described(error: Exception) -> dict[str, Any]:
    name = type(error).__name__
    message = str(error) if isinstance(error, PatchworksError) else f"{name}: {error}"
    return {"error": name, "message": message, "notes": getattr(error, "__notes__", [])}


def _own_stdout() -> TextIO:
    """Return standard output for this module alone: what else is printed goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _teller(stream: TextIO) -> Callable[[dict[str, Any]], None]:
    lock = threading.Lock()

    def say(what: dict[str, Any]) -> None:
        with lock:
            stream.write(json.dumps(what) + "\n")
            stream.flush()

    return say


def _stop_at_end_of_input() -> None:
    """Interrupt the run when standard input ends, and end the process if it does not end then."""
    while sys.stdin.buffer.read(1):
        pass
    # To the process, not from this thread: a wait in the main thread has to be interrupted.
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    if os.name != "nt" and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)  # with the processes that it started
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
