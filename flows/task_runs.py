"""Task runs of a step: a few ahead on the workers, each seen to its end, or given another worker.

::

    calls ──submit──► Dask futures ──done──► result
                        ▲  │             └─► failed (after its retries): no more are begun
                        │  └─ no progress for too long: its worker is ended
                        └── once more ◄───── its worker died
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State

from flows.batches import MAX_FAILURES
from flows.lost import has_begun, report_left, report_lost, restart_worker_of
from flows.runners import ClusterRunner
from patchworks.errors import ClientError

Place = Literal["segment", "other"]

TICK_S = 2.0
"""Seconds between two looks at how far the work is."""

MAX_CRASHES = 2
"""How often a task run may lose its worker; Dask itself has tried several by then."""

NEEDS_MEMORY = (
    "most often a tile needs more memory than a worker has: give smaller tiles or more memory per "
    "worker, and call again"
)

HANGS = (
    "a tile that takes longer than that for good needs a higher tile_timeout_s; one on which the "
    "function hangs needs another function or other tiles"
)

NO_SCHEDULER = (
    "the Dask scheduler of this run is gone (killed, or its machine cannot be reached); what is "
    "done is kept: call again to go on"
)


def nothing_done() -> int:
    """Return that no part of a task run's work is known to be done."""
    return 0


def nothing() -> None:
    """Do nothing while waiting."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A task run to be made.

    Parameters
    ----------
    task, arguments, options
        The task, what it is given, and its Prefect options.
    limit_s : float, optional
        Seconds without progress after which its worker is ended.
    n_done : callable
        Says how much of its work is done: that this grows is progress.
    """

    task: Task[Any, Any]
    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    limit_s: float | None = None
    n_done: Callable[[], int] = nothing_done

    def __str__(self) -> str:
        shown = [str(getattr(v, "span", v)) for k, v in self.arguments.items() if k != "stage"]
        return " ".join([self.task.name, *shown])


@dataclass
class _AtWork:
    """A task run that was submitted and has not ended."""

    call: Call
    future: Any
    n_done: int = 0
    since_s: float = field(default_factory=time.monotonic)

    @property
    def is_late(self) -> bool:
        """Whether it was submitted, and last made progress, longer ago than its limit."""
        return self.call.limit_s is not None and time.monotonic() - self.since_s > self.call.limit_s

    def look(self) -> None:
        """Note whether it made progress."""
        n_done = self.call.n_done()
        if n_done != self.n_done:
            self.n_done, self.since_s = n_done, time.monotonic()


class TaskRuns:
    """Makes the task runs of a flow run's steps.

    Parameters
    ----------
    runner : ClusterRunner
        Where they run.
    options : dict
        Options of every task, such as its retries.
    """

    def __init__(self, runner: ClusterRunner, options: dict[str, Any]) -> None:
        self.runner = runner
        self.options = options
        self.n_submitted = 0

    def one(self, task: Task[Any, Any], arguments: dict[str, Any], **options: Any) -> Any:
        """Make one task run on any worker that does not segment, and return its result."""
        return self.each([Call(task=task, arguments=arguments, options=options)])[0]

    def one_or_none(self, call: Call) -> Any:
        """Make one task run that the others can do without: None if it fails."""
        try:
            return self.each([call])[0]
        except Exception as error:  # noqa: BLE001 - whatever a worker says, the run is not lost
            get_run_logger().warning("%s failed: %r", call, error)
        return None

    def each(
        self,
        calls: Sequence[Call],
        place: Place = "other",
        while_waiting: Callable[[], None] = nothing,
    ) -> list[Any]:
        """Make task runs and return their results, in order, or raise the first failure.

        After a few failures none is begun any more; those at work come to their end, and what they
        do is kept.

        Raises
        ------
        PatchworksError
            What a task raised after its retries.
        ClientError
            If a task run lost its workers again and again, or the scheduler is gone.
        """
        step = _Step(self, calls, place)
        try:
            for _ in step:
                while_waiting()
        except BaseException as error:
            step.leave(f"the run ended before it: {error!r}")
            raise
        if step.failures:
            failure, *others = step.failures
            if others:
                failure.add_note(f"{len(others)} more task runs failed, see the log")
            raise failure
        return [step.found[index] for index in range(len(calls))]


class _Step:
    """The task runs of one call to `each`."""

    def __init__(self, runs: TaskRuns, calls: Sequence[Call], place: Place) -> None:
        self.runs = runs
        self.calls = calls
        self.place: Place = place
        self.found: dict[int, Any] = {}
        self.failures: list[BaseException] = []
        self._crashes: dict[int, int] = {}
        self._at_work: dict[int, _AtWork] = {}
        self._ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[None]:
        """Work until all is done, coming back every `TICK_S` and after each end."""
        todo = iter(range(len(self.calls)))
        while True:
            slots = self.runs.runner.n_slots(self.place)
            ahead = slots + max(1, slots // 2)
            while len(self._at_work) < ahead and len(self.failures) < MAX_FAILURES:
                index = next(todo, None)
                if index is None:
                    break
                self._submit(index)
            if not self._at_work:
                return
            try:
                self._settle(*self._ended.get(timeout=TICK_S))
            except queue.Empty:
                self._look()
            yield

    def leave(self, why: str) -> None:
        """Tell the server of the task runs that nobody sees to their end any more."""
        report_left([at_work.future.task_run_id for at_work in self._at_work.values()], why)

    def _submit(self, index: int) -> None:
        call = self.calls[index]
        task = call.task.with_options(**(self.runs.options | call.options))
        with self.runs.runner.placed(self.place):
            future = task.submit(**call.arguments)
        self.runs.n_submitted += 1
        self._at_work[index] = _AtWork(call, future, call.n_done() if call.limit_s else 0)
        future.wrapped_future.add_done_callback(lambda _: self._ended.put((index, future)))

    def _settle(self, index: int, future: Any) -> None:
        if index not in self._at_work or self._at_work[index].future is not future:
            return  # it was given up before
        at_work = self._at_work.pop(index)
        call = at_work.call
        try:
            state: State[Any] = future.wrapped_future.result(timeout=60)
        except CancelledError as error:
            self._at_work[index] = at_work
            raise ClientError(NO_SCHEDULER) from error
        except Exception as error:  # noqa: BLE001 - whatever Dask says of a worker that died
            self._crashed(index, future, f"{type(error).__name__}: {error}")
            return
        if state.is_crashed():
            self._crashed(index, future, state.message or "crashed")
        elif state.is_completed():
            self.found[index] = state.result()
        else:
            found = state.result(raise_on_failure=False)
            is_error = isinstance(found, BaseException)
            self._fail(found if is_error else ClientError(f"{call} ended as {state.name}"))

    def _crashed(self, index: int, future: Any, why: str, advice: str = NEEDS_MEMORY) -> None:
        """Tell the server, which still believes it running, and give it another worker."""
        call = self.calls[index]
        report_lost(future.task_run_id, f"its worker died ({why})")
        self._crashes[index] = self._crashes.get(index, 0) + 1
        if self._crashes[index] < MAX_CRASHES:
            get_run_logger().warning("%s: its worker died (%s); once more", call, why)
            self._submit(index)
            return
        self._fail(ClientError(f"{call}: its worker died again and again ({why}); {advice}"))

    def _fail(self, failure: BaseException) -> None:
        self.failures.append(failure)
        get_run_logger().error("%s", failure)
        if len(self.failures) == MAX_FAILURES:
            n_left = len(self.calls) - len(self.found) - MAX_FAILURES - len(self._at_work)
            if n_left > 0:
                get_run_logger().error("%d task runs are not begun", n_left)

    def _look(self) -> None:
        """Look after task runs that do not end."""
        client = self.runs.runner.client
        if client.status == "closed":
            raise ClientError(NO_SCHEDULER)
        for index, at_work in list(self._at_work.items()):
            if not at_work.is_late:
                continue
            at_work.look()
            limit_s = at_work.call.limit_s or 0.0
            if at_work.is_late and has_begun(at_work.future.task_run_id, limit_s):
                del self._at_work[index]
                restart_worker_of(client, at_work.future.wrapped_future)
                why = f"no progress for {limit_s:g} s, and was ended"
                self._crashed(index, at_work.future, why, HANGS)
