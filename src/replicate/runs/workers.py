"""Work in processes of its own: a process that dies takes the task it was at, and no other."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection, get_context, parent_process
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

# Spawned, not forked: torch's threads do not survive a fork.
_SPAWN = get_context("spawn")
_PATIENCE = 5.0
_MOMENT = 0.3


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, task: Sequence[Any]) -> None:
        with contextlib.suppress(OSError):  # it is dead already; taking its answer says so
            self.pipe.send(task)

    def take(self) -> tuple[Any, str | None]:
        """The answer, or the words for an exception or a death; after a death the process is gone."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return None, _death(self.process.exitcode)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@runtime_checkable
class Schedule(Protocol):
    """What there is to do, some of it only once something else is done or under way."""

    def take(self) -> tuple[Any, Sequence[Any]] | None:
        """The next task with a name for it; None if there is none at the moment."""

    def is_open(self) -> bool:
        """Whether ``take`` may still give something, now or later."""


class _Listed:
    """Tasks that are all known beforehand, named by their index."""

    def __init__(self, tasks: Sequence[Sequence[Any]]) -> None:
        self.waiting = list(enumerate(tasks))[::-1]

    def take(self) -> tuple[int, Sequence[Any]] | None:
        return self.waiting.pop() if self.waiting else None

    def is_open(self) -> bool:
        return bool(self.waiting)


def run_each(
    function: Callable[..., Any], tasks: Sequence[Sequence[Any]] | Schedule, *, workers: int
) -> Iterator[tuple[Any, Any, str | None]]:
    """``function(*task)`` for every task, in ``workers`` processes; yields index, value and error as they are ready.

    The error is None, or one line: of the exception, or of what the process died of. A process that died is replaced
    and its task is not tried again: what kills a process (memory, mostly) tends to do so twice. Processes end with the
    generator, and by themselves when this process does, whatever ends it. Of a :class:`Schedule` the tasks come with
    names of their own in place of an index, and it is asked for more as long as it is open.
    """
    schedule = _Listed(tasks) if isinstance(tasks, Sequence) else tasks
    busy: dict[_Worker, Any] = {}
    idle: list[_Worker] = []
    try:
        while True:
            while len(busy) < workers and (found := schedule.take()) is not None:
                worker = idle.pop() if idle else _Worker(function)
                busy[worker], task = found
                worker.give(task)
            if not busy and not schedule.is_open():
                return
            for worker in _answered(busy, look_again=len(busy) < workers and schedule.is_open()):
                name = busy[worker]
                value, error = worker.take()
                if worker.process.exitcode is None:
                    idle.append(worker)
                else:
                    worker.stop()
                del busy[worker]
                yield name, value, error
    finally:
        for worker in [*busy, *idle]:
            worker.stop()


def _answered(busy: Mapping[_Worker, Any], *, look_again: bool) -> list[_Worker]:
    """The workers that have an answer, once one of them has; with ``look_again`` none after a moment."""
    if not busy:
        time.sleep(_MOMENT)
        return []
    ready = connection.wait([worker.pipe for worker in busy], timeout=_MOMENT if look_again else None)
    return [worker for worker in busy if worker.pipe in ready]


def error_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters; the kind is said unless it is a plain wrong value."""
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"[:300]


def _serve(function: Callable[..., Any], pipe: connection.Connection) -> None:
    signal.signal(
        signal.SIGINT, lambda *_: None
    )  # Ctrl-C reaches the whole group; whoever started us ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(
        threading.RLock()
    )  # its own is a semaphore, which a process that is ended would leave behind
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(attempt(function, pipe.recv()))


def attempt(function: Callable[..., Any], task: Sequence[Any]) -> tuple[Any, str | None]:
    """``function(*task)`` and None, or None and what went wrong in one line; Ctrl-C is passed on."""
    try:
        return function(*task), None
    except Exception as error:
        return None, error_line(error)


def _end_with_parent() -> None:
    """Nobody wants the result any more: do not compute on, and let what runs below us (kernels) end, too."""
    parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)


def _death(status: int | None) -> str:
    """What a process died of, from its exit status."""
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    memory = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{memory}"
