"""A ladder as a stream: its rungs become available one after another, and work on them starts as they come.

Three things can stand behind one: rungs that are there already (:class:`There`), rungs that a worker makes
(:class:`replicate.ladder.sources.tiny.Training`), and rungs that are fetched in the background while others are in work
(:class:`Fetching`), of which only so many lie on disk at a time.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from replicate.checks import first_line
from replicate.ladder.checkpoints import Checkpoint, Ladder

Missed = tuple[Checkpoint, str]
"""A rung that will not come, and why in one line."""


@runtime_checkable
class Stream(Protocol):
    """What a source gives of a ladder: whoever works on it looks again and again, and says what is done with."""

    def expected(self) -> int:
        """How many rungs the ladder has, or will have."""

    def known(self) -> Ladder | None:
        """The whole ladder, once it can be said without making anything; its files need not be there."""

    def has_task(self) -> bool:
        """Whether rungs come only if somebody calls :meth:`fill`, here or in another process (it can be pickled)."""

    def fill(self, *, progress: bool = False) -> None:
        """Makes all rungs that are not there; returns when they are."""

    def begin(self, wanted: Callable[[Checkpoint], bool]) -> None:
        """Starts what runs in the background; rungs that are not ``wanted`` count as there without their files."""

    def look(self) -> tuple[list[Checkpoint], list[Missed]]:
        """The rungs that have come since the last look, in order, and those that never will."""

    def is_done(self) -> bool:
        """Whether nothing more will come by itself; it may, of a task, for as long as :meth:`fill` runs."""

    def release(self, checkpoint: Checkpoint) -> None:
        """Says that nobody here needs the files of a rung any more."""

    def close(self) -> None:
        """Stops what runs in the background."""


class There:
    """A ladder whose rungs are all there; what the other streams do not have to do is done here, by doing nothing."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder, self._seen = ladder, False

    def expected(self) -> int:
        """The number of rungs."""
        return len(self.ladder)

    def known(self) -> Ladder | None:
        """The ladder."""
        return self.ladder

    def has_task(self) -> bool:
        """No."""
        return False

    def fill(self, *, progress: bool = False) -> None:
        """There is nothing to make."""

    def begin(self, wanted: Callable[[Checkpoint], bool]) -> None:
        """There is nothing to start."""

    def look(self) -> tuple[list[Checkpoint], list[Missed]]:
        """All rungs at the first look, and those that the source refuses."""
        first, self._seen = not self._seen, True
        return (list(self.ladder), list(self.ladder.refused)) if first else ([], [])

    def is_done(self) -> bool:
        """After the first look."""
        return self._seen

    def release(self, checkpoint: Checkpoint) -> None:
        """What was there stays there."""

    def close(self) -> None:
        """There is nothing to stop."""


class Fetching(There):
    """Rungs whose files are brought here by a thread, in order, at most ``on_disk`` of them at a time.

    A rung counts from when it is begun until it is released; with ``keep`` its files stay then, and none counts. A rung
    that cannot be had is reported, and the next one is begun.
    """

    def __init__(self, ladder: Ladder, *, on_disk: int, keep: bool = False) -> None:
        super().__init__(ladder)
        self.keep = keep
        self._room = threading.Semaphore(len(ladder) if keep else on_disk)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._come: deque[Checkpoint] = deque()
        self._missed: deque[Missed] = deque(ladder.refused)
        self._held: set[str] = set()
        self._thread: threading.Thread | None = None

    def begin(self, wanted: Callable[[Checkpoint], bool]) -> None:
        """Starts the thread; rungs that nobody wants come at once."""
        chosen = [rung for rung in self.ladder if wanted(rung)]
        names = {rung.name for rung in chosen}
        self._come.extend(rung for rung in self.ladder if rung.name not in names)
        self._thread = threading.Thread(target=self._fetch, args=(chosen,), daemon=True)
        self._thread.start()

    def _fetch(self, rungs: Sequence[Checkpoint]) -> None:
        for rung in rungs:
            self._room.acquire()
            if self._stopped.is_set():
                return
            try:
                rung.ready()
            except Exception as error:  # whatever is wrong with one rung must not cost the others
                self._room.release()
                self._missed.append((rung, first_line(error)))
            else:
                with self._lock:
                    self._held.add(rung.name)
                self._come.append(rung)

    def look(self) -> tuple[list[Checkpoint], list[Missed]]:
        """What the thread has brought, or given up."""
        self._seen = self._thread is not None and not self._thread.is_alive()
        return _emptied(self._come), _emptied(self._missed)

    def is_done(self) -> bool:
        """Once the thread has ended and all it brought was looked at."""
        return self._seen and not self._come and not self._missed

    def release(self, checkpoint: Checkpoint) -> None:
        """Makes room for the next rung, and removes the files of this one unless they are to be kept."""
        with self._lock:
            if checkpoint.name not in self._held:
                return
            self._held.remove(checkpoint.name)
        if not self.keep:
            checkpoint.discard()
        self._room.release()

    def close(self) -> None:
        """Lets the thread end after the rung that it is at; the files of rungs in work stay for the next run."""
        self._stopped.set()
        self._room.release()


def _emptied(queue: deque) -> list:
    found = []
    while queue:
        found.append(queue.popleft())
    return found
