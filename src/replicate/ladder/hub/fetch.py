"""A checkpoint whose files come from the hub when they are needed, by commit, and are checked against the lock."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from replicate.files import write_text
from replicate.ladder.checkpoints import Checkpoint
from replicate.ladder.hub.client import files, patiently, status_of
from replicate.ladder.hub.listing import said
from replicate.ladder.hub.lock import WEIGHTS, File, Locked

CHUNK = 32 * 2**20
"""Bytes a request; what a broken connection or a kill costs at most."""


@dataclass(frozen=True)
class HubCheckpoint(Checkpoint):
    """A checkpoint of a lock; ``where`` is the folder in which its files stand, or will."""

    repo: str = ""
    commit: str = ""
    files: tuple[File, ...] = ()

    def ready(self, *, weights: bool = True) -> None:
        """Fetches what is not there. ``ValueError`` names the file that cannot be had, or is not what was locked."""
        for file in self.files:
            if weights or not file.name.endswith(WEIGHTS):
                self._bring(file)

    def discard(self) -> None:
        """Removes the weights; configuration and tokenizer are small and stay."""
        for file in self.files:
            if file.name.endswith(WEIGHTS):
                self._mark(file).unlink(missing_ok=True)
                (self.where / file.name).unlink(missing_ok=True)

    def _mark(self, file: File) -> Path:
        """Says that the file was read once and is what was locked."""
        return self.where / ".checked" / f"{file.name}.{file.sha256[:16]}"

    def _is_here(self, file: File) -> bool:
        path = self.where / file.name
        return self._mark(file).is_file() and path.is_file() and path.stat().st_size == file.bytes

    def _bring(self, file: File) -> None:
        if self._is_here(file):
            return
        self.where.mkdir(parents=True, exist_ok=True)
        with FileLock(self.where / ".lock"):  # a worker and the thread that fetches ahead may ask at once
            if self._is_here(file):
                return
            part = self.where / f".{file.name}.part"
            try:
                found = self._download(file, part)
            except Exception as error:
                raise ValueError(f"{self._named(file)} cannot be fetched ({said(error)})") from error
            if found != file.sha256:
                part.unlink()
                got = f"has SHA-256 {found[:12]}..., the lock says {file.sha256[:12]}..."
                raise ValueError(f"{self._named(file)} {got}; if that is meant, `replicate hub lock` again")
            part.rename(self.where / file.name)
            self._mark(file).parent.mkdir(exist_ok=True)
            write_text(self._mark(file), "")

    def _named(self, file: File) -> str:
        return f"{self.repo}@{self.name}: {file.name}"

    def _download(self, file: File, part: Path) -> str:
        """Appends to ``part`` what it lacks; the SHA-256 of the whole."""
        digest = hashlib.sha256()
        with part.open("a+b") as handle:
            handle.seek(0)
            while block := handle.read(CHUNK):
                digest.update(block)
            done, hub = handle.tell(), files()
            while done < file.bytes:
                span = {"start": done, "end": min(done + CHUNK, file.bytes)}
                block = patiently(lambda span=span: self._range(hub, file, **span))
                handle.write(block)
                digest.update(block)
                done += len(block)
        return digest.hexdigest()

    def _range(self, hub, file: File, *, start: int, end: int) -> bytes:
        how = {"revision": self.commit, "cache_type": "none"}  # else more is asked for than is wanted
        try:
            block = hub.cat_file(f"{self.repo}/{file.name}", start=start, end=end, **how)
        except Exception as error:
            if status_of(error) != 416:  # no such range
                raise
            block = b""
        if not block:  # a file that ends before its size would be asked for for ever
            raise ValueError(f"it ends at byte {start}, the lock says {file.bytes}")
        return block


def checkpoint(locked: Locked, folder: Path) -> HubCheckpoint:
    """The checkpoint of a lock's entry, whose files are kept below ``folder`` by repository and commit."""
    where = folder / locked.repo.replace("/", "--") / locked.commit
    contents = tuple((file.name, file.sha256) for file in locked.files)
    says = (locked.branch, locked.stage, locked.ingredient, locked.step, locked.tokens)
    return HubCheckpoint(
        *says, where, contents, repo=locked.repo, commit=locked.commit, files=tuple(locked.files)
    )
