"""What a lock tells before anything is fetched: duplicates, missing shards, bytes, and whether the disk has room."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from replicate.ladder.hub.lock import Lock, Locked


def refusals(lock: Lock) -> dict[tuple[str, str], str]:
    """Why a checkpoint is not to be used, by (repository, branch), from metadata alone.

    Weights that are, byte for byte, those of another chosen checkpoint, or of ``main``, are a wrong upload of one of
    the two, and nobody here can tell which: both are refused. The last revision may be what ``main`` is.
    """
    found = {}
    owners: dict[str, list[Locked]] = {}
    for one in lock.checkpoints:
        for sha in set(one.weights().values()):
            owners.setdefault(sha, []).append(one)
    for one in lock.checkpoints:
        if reason := _missing(one) or _twin(one, owners) or _is_main(one, lock.main):
            found[one.repo, one.branch] = reason
    return found


def _missing(one: Locked) -> str | None:
    there = set(one.weights())
    if not there:
        return "no safetensors file in this revision"
    absent = [name for name in one.shards if name not in there]
    return f"its index names {absent[0]}, which is not there" if absent else None


def _twin(one: Locked, owners: Mapping[str, list[Locked]]) -> str | None:
    for name, sha in one.weights().items():
        for other in owners[sha]:
            if other is not one:
                return f"{name} is byte-identical to that of {other.branch}: one of the two is a wrong upload"
    return None


def _is_main(one: Locked, main: Mapping[str, list[str]]) -> str | None:
    same = set(one.weights().values()) & set(main.get(one.repo, ()))
    return "its weights are those of main, which is another revision" if same and not one.last else None


@dataclass(frozen=True)
class Plan:
    """What a lock costs: checkpoints to fetch, bytes of all and of the largest, and what the disk has free."""

    checkpoints: int
    bytes: int
    largest: int
    free: int
    on_disk: int

    def needed(self) -> int:
        """Bytes on disk at a time."""
        return min(self.bytes, self.on_disk * self.largest)

    def complaint(self) -> str | None:
        """That the disk is too small, with the remedy."""
        if self.needed() <= self.free:
            return None
        need = f"{self.on_disk} checkpoints need {self.needed() / 1e9:.1f} GB and {self.free / 1e9:.1f} GB are free"
        return f"disk: {need}; lower HUB_ON_DISK or name a larger LADDER_DIR"

    def line(self, *, rate: float, seconds: float | None) -> str:
        """For people: gigabytes, hours at ``rate`` (MB/s) and, where known, at ``seconds`` of work a checkpoint."""
        fetch = self.bytes / rate / 1e6
        size = f"{self.checkpoints} checkpoints, {self.bytes / 1e9:.3g} GB, {self.needed() / 1e9:.3g} GB at a time"
        hours = f"{fetch / 3600:.2f} hours to fetch at {rate:g} MB/s"
        if seconds is None:
            return f"{size}; {hours}"
        # The next one is fetched while the present one is in work: the slower of the two decides.
        whole = max(fetch, seconds * self.checkpoints) / 3600
        return f"{size}; {hours}, {whole:.2f} hours in all at {seconds:g} s of work a checkpoint"


def plan(lock: Lock, folder: Path, *, on_disk: int) -> Plan:
    """The costs of fetching what is not refused into ``folder``."""
    refused = refusals(lock)
    sizes = [one.size() for one in lock.checkpoints if (one.repo, one.branch) not in refused]
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    return Plan(len(sizes), sum(sizes), max(sizes, default=0), free, on_disk)
