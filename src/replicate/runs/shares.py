"""Who works on what where several processes share a run: shards are agreed beforehand, claims as one goes.

Both are of whole rungs: whoever has one does all that is missing there, and removes files that were fetched for it
without taking them from anybody else.
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from replicate.ladder.checkpoints import Checkpoint


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` parts of a ladder, from 1: every ``count``-th rung in the order of steps."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads ``"2/8"``. ``ValueError`` with one line for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise ValueError(f"--shard: expected I/N with I from 1 to N, as in 2/8, got {text[:60]!r}")
        return cls(index, count)

    def names(self, rungs: Iterable[Checkpoint]) -> set[str]:
        """The names of this shard's rungs; those of all ``count`` shards are all rungs, each of them once."""
        return {rung.name for place, rung in enumerate(rungs) if place % self.count == self.index - 1}

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


@dataclass
class Claims:
    """The rungs that this process has taken among those that share ``folder``; a claim ends with its process.

    A claim is a lock on a file of the operating system: it needs a file system that knows them, on every node.
    """

    folder: Path
    _held: dict[str, FileLock] = field(default_factory=dict)

    def take(self, rung: Checkpoint) -> bool:
        """Takes ``rung`` unless another claim, of any process, is on a checkpoint of the same content."""
        lock = FileLock(self.folder / f"{rung.sha[:20]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._held[rung.name] = lock
        return True

    def give_back(self, rung: Checkpoint) -> None:
        """Ends the claim on ``rung``."""
        self._held.pop(rung.name).release()

    def close(self) -> None:
        """Ends all claims."""
        for lock in self._held.values():
            with contextlib.suppress(OSError):
                lock.release()
        self._held.clear()
