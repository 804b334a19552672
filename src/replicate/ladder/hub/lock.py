"""The lock file: which checkpoints a hub ladder has, by commit and content, so that it is the same next year.

It keeps the SHA-256 of every file that decides what a checkpoint computes. So a rung's records are found without its
files, and are the same records as those of the same files in a local folder.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from replicate.files import write_text
from replicate.ladder.checkpoints import decides
from replicate.ladder.hub import rules
from replicate.ladder.hub.client import api, files, patiently
from replicate.ladder.hub.listing import Listing, Revision, listing, said

WEIGHTS, INDEX = ".safetensors", "model.safetensors.index.json"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class File(_Part):
    """A file of a checkpoint, its size in bytes, and its SHA-256."""

    name: str
    bytes: int
    sha256: str


class Locked(_Part):
    """One checkpoint: where it is, what its name says, its files; ``shards`` are those that its index speaks of.

    ``last`` says that no revision of its repository comes after it: it alone may be what ``main`` is.
    """

    repo: str
    branch: str
    commit: str
    stage: int
    ingredient: int
    step: int
    tokens: int | None
    last: bool
    files: list[File]
    shards: list[str]

    def weights(self) -> dict[str, str]:
        """The SHA-256 of its safetensors files, by name."""
        return {file.name: file.sha256 for file in self.files if file.name.endswith(WEIGHTS)}

    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)


class Lock(_Part):
    """A whole lock file; ``main`` has, by repository, the SHA-256 of the weights on its main branch."""

    format: int = 1
    repos: list[str]
    steps: list[str]
    holes: list[str]
    main: dict[str, list[str]]
    checkpoints: list[Locked]

    def save(self, path: Path) -> None:
        """Writes it in one step."""
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")


def load(path: Path, repos: Sequence[str]) -> Lock:
    """The lock in ``path``; ``ValueError`` if there is none, it is not one, or it is of other repositories."""
    try:
        lock = Lock.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no lock file {path}; make it with `replicate hub lock`") from None
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a lock file ({said(error)}); make it with `replicate hub lock`"
        ) from None
    if lock.repos != list(repos):
        raise ValueError(
            f"{path}: a lock of {', '.join(lock.repos)}; name another with HUB_LOCK, or lock again"
        )
    return lock


def make(repos: Sequence[str], steps: Sequence[str], *, progress: bool = False) -> Lock:
    """Chooses revisions by the rules ``steps`` (one, or one a repository) and takes down what is in them.

    Only metadata and small files are read. Where two repositories have one step the first named has it. ``ValueError``
    for a rule that cannot be read, a number of rules that fits nothing, or when nothing is chosen.
    """
    if len(steps) not in (1, len(repos)):
        raise ValueError(f"HUB_STEPS: expected one rule or {len(repos)}, one a repository, got {len(steps)}")
    parsed = [rules.parse(text) for text in (steps if len(steps) > 1 else list(steps) * len(repos))]
    found = listing(repos)
    chosen, holes = choose(found, parsed)
    if not chosen:
        raise ValueError(f"HUB_STEPS: no revision of {', '.join(repos)} is chosen by {', '.join(steps)}")
    last = {each.repo: each.revisions[-1].branch for each in found if each.revisions}
    bar = tqdm(chosen, desc="lock", unit="revision", disable=not progress)
    locked = [_lock(revision, last=last[revision.repo] == revision.branch) for revision in bar]
    main = {each.repo: _weights_of(each.repo, each.main) for each in found if each.main}
    return Lock(repos=list(repos), steps=list(steps), holes=holes, main=main, checkpoints=locked)


def choose(found: Sequence[Listing], parsed: Sequence[rules.Rule]) -> tuple[list[Revision], list[str]]:
    """The revisions that the rules take, in order, and what they miss, in words."""
    chosen: dict[tuple[int, int, int], Revision] = {}
    holes = []
    for each, rule in zip(found, parsed, strict=True):
        own = {
            r.said.step: r
            for r in each.revisions
            if (r.said.stage, r.said.ingredient) == (rule.stage, rule.ingredient)
        }
        steps, missed = rules.choose(rule, list(own))
        holes += [f"{each.repo}: nothing near step {step}" for step in missed]
        for step in steps:
            chosen.setdefault((rule.stage, rule.ingredient, step), own[step])
    return [chosen[key] for key in sorted(chosen)], holes


def _lock(revision: Revision, *, last: bool) -> Locked:
    where = f"{revision.repo}@{revision.branch}"
    try:
        found = list(_files(revision.repo, revision.commit))
        index = INDEX in {file.name for file in found}
        shards = _shards(_read(revision.repo, revision.commit, INDEX)) if index else []
    except Exception as error:
        raise ValueError(f"hub: {where} cannot be locked ({said(error)})") from error
    place = {"repo": revision.repo, "branch": revision.branch, "commit": revision.commit, "last": last}
    says = {name: getattr(revision.said, name) for name in ("stage", "ingredient", "step", "tokens")}
    return Locked(**place, **says, files=found, shards=shards)


def _files(repo: str, commit: str) -> Iterator[File]:
    """The files that decide; of large ones the hub knows the SHA-256, small ones are read."""
    for entry in sorted(_entries(repo, commit), key=lambda entry: entry.rfilename):
        name = entry.rfilename
        if not decides(name) or "/" in name:
            continue
        if entry.lfs:
            yield File(name=name, bytes=entry.lfs.size, sha256=entry.lfs.sha256)
        else:
            content = _read(repo, commit, name)
            yield File(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _weights_of(repo: str, commit: str) -> list[str]:
    return sorted(e.lfs.sha256 for e in _entries(repo, commit) if e.lfs and e.rfilename.endswith(WEIGHTS))


def _entries(repo: str, commit: str) -> Sequence[Any]:
    """What the hub's metadata say of each file."""
    info = patiently(lambda: api().model_info(repo, revision=commit, files_metadata=True))
    return info.siblings or ()


def _read(repo: str, commit: str, name: str) -> bytes:
    return patiently(lambda: files().cat_file(f"{repo}/{name}", revision=commit))


def _shards(index: bytes) -> list[str]:
    found: Any = json.loads(index)
    return sorted(set(found["weight_map"].values()))
