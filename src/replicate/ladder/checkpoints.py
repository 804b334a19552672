"""A ladder: the checkpoints of one pretraining run, in order, whatever place they come from.

``open_folder`` reads a local folder of ordinary Hugging Face snapshots. They may be named the way AI2 names its
branches, ``stage1-step{S}-tokens{T}B`` (a tiny ladder counts its tokens in thousands and writes ``K`` for ``B``), as a
trainer's ``checkpoint-{S}``, or ``step{S}``; then how many tokens they have seen is not known. A single snapshot is a
ladder of one rung. Nothing downstream knows where a checkpoint came from.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from replicate.checks import first_line

NAME = re.compile(
    r"^stage(?P<stage>[12])(-ingredient(?P<ingredient>\d))?-step(?P<step>\d+)-tokens(?P<tokens>\d+)(?P<unit>[BMK])$"
)
PLAIN = re.compile(r"^(?:checkpoint|(?:global_?)?step|iter)[-_]?(?P<step>\d+)$")
UNITS = {"B": 10**9, "M": 10**6, "K": 10**3}


def decides(name: str) -> bool:
    """Whether a file of this name decides what the model computes."""
    return name.endswith((".json", ".safetensors", ".txt", ".model"))


def snapshot_name(step: int, tokens: int, *, unit: str = "K") -> str:
    """The folder name of a stage-1 snapshot; tokens are rounded *up* to whole units, as AI2 does."""
    return f"stage1-step{step}-tokens{-(-tokens // UNITS[unit])}{unit}"


@dataclass(frozen=True)
class Checkpoint:
    """One rung of a ladder: its name, its stage, step and tokens (None: not known), and the local snapshot folder.

    ``contents`` has the SHA-256 of each file that decides what the model computes, by name, where that is known without
    the files; they need not be there then. None: it is read off them.
    """

    name: str
    stage: int
    ingredient: int
    step: int
    tokens: int | None
    where: Path
    contents: tuple[tuple[str, str], ...] | None = None

    @cached_property
    def sha(self) -> str:
        """SHA-256 over names and contents of the files that decide what the model computes."""
        digest = hashlib.sha256()
        for name, content in sorted(self.contents if self.contents is not None else self._read()):
            digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()

    def _read(self) -> Iterator[tuple[str, str]]:
        for path in self.where.iterdir():
            if decides(path.name):
                with path.open("rb") as handle:
                    yield path.name, hashlib.file_digest(handle, "sha256").hexdigest()

    def ready(self, *, weights: bool = True) -> None:
        """Brings the files here if they are elsewhere (all of them, or all but the weights); ``ValueError`` if it
        cannot. Those of a local snapshot are here."""

    def discard(self) -> None:
        """Removes files that :meth:`ready` can bring again; a local snapshot has none."""

    def config(self) -> dict[str, Any]:
        """What the snapshot's ``config.json`` says; ``ValueError`` or ``OSError`` if it cannot be read."""
        self.ready(weights=False)
        return json.loads((self.where / "config.json").read_text())

    def tokenizer(self):
        """The checkpoint's tokenizer; ``ValueError`` names the folder if there is none."""
        self.ready(weights=False)
        try:
            return AutoTokenizer.from_pretrained(self.where)
        except Exception as error:
            raise ValueError(f"{self.where}: no usable tokenizer ({first_line(error)})") from error

    def model(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        attention: str = "sdpa",
    ) -> PreTrainedModel:
        """The causal LM in evaluation mode; ``ValueError`` names the file that is missing or damaged."""
        self.ready()
        weights = sorted(self.where.glob("*.safetensors"))
        if not weights:
            raise ValueError(f"{self.where}: no safetensors file in this snapshot")
        self._check_weights(weights)
        logging.disable_progress_bar()  # a bar per checkpoint would drown the sweep's own
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.where, dtype=dtype, attn_implementation=attention, use_safetensors=True
            )
        except Exception as error:
            raise ValueError(f"{self.where}: cannot be opened ({first_line(error)})") from error
        return model.to(device).eval()

    @staticmethod
    def _check_weights(weights: list[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        for path in weights:
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: damaged safetensors file ({first_line(error)})") from error


@dataclass(frozen=True)
class Ladder:
    """Checkpoints in step order. ``spec`` is what it was opened from; ``kind`` says it in words for captions.

    ``refused`` are checkpoints that the source has and that are not to be used, each with the reason in one line.
    """

    spec: str
    kind: str
    checkpoints: tuple[Checkpoint, ...]
    refused: tuple[tuple[Checkpoint, str], ...] = ()

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)

    def at(self, step: int) -> Checkpoint:
        """The checkpoint at ``step``; ``ValueError`` lists the steps there are."""
        for checkpoint in self.checkpoints:
            if checkpoint.step == step:
                return checkpoint
        raise ValueError(
            f"step: {self.spec} has no step {step} (it has {[c.step for c in self.checkpoints]})"
        )


def open_folder(folder: str | Path, *, spec: str | None = None) -> Ladder:
    """Opens a folder of snapshots, or one snapshot; iterating gives checkpoints in step order.

    ``spec`` is the name that it was asked for by, where that is another. A folder in it that is not a snapshot by its
    name is passed over. Raises ``ValueError`` for a folder that does not exist or holds no snapshot, and for two
    snapshots of one stage and step. That a snapshot is damaged shows when it is opened, so that one bad file does not
    hide the others.
    """
    root, spec = Path(folder), str(spec or folder)
    if not root.is_dir():
        raise ValueError(f"ladder {spec}: no such folder")
    found = [_of_folder(path) for path in root.iterdir() if path.is_dir() and parse(path.name)]
    if not found and (root / "config.json").is_file():
        found = [_of_folder(root)]
    if not found:
        raise ValueError(
            f"ladder {spec}: no snapshot folder named stage1-step...-tokens..., checkpoint-... or step... in it"
        )
    return Ladder(spec, _kind(root), in_order(found, spec))


def in_order(found: Iterable[Checkpoint], spec: str) -> tuple[Checkpoint, ...]:
    """Checkpoints by stage and step; ``ValueError`` for two of one step."""
    found = sorted(found, key=_order)
    for one, two in itertools.pairwise(found):
        if _order(one) == _order(two):
            raise ValueError(f"ladder {spec}: two snapshots at step {one.step}: {one.name} and {two.name}")
    return tuple(found)


@dataclass(frozen=True)
class Parsed:
    """What a snapshot's name says; ``tokens`` None where it says nothing of them."""

    stage: int
    ingredient: int
    step: int
    tokens: int | None


def parse(name: str) -> Parsed | None:
    """What the name of a snapshot, or of a branch on the hub, says; None for another name."""
    if match := NAME.match(name):
        tokens = int(match["tokens"]) * UNITS[match["unit"]]
        return Parsed(int(match["stage"]), int(match["ingredient"] or 0), int(match["step"]), tokens)
    match = PLAIN.match(name)
    return Parsed(1, 0, int(match["step"]), None) if match else None


def _of_folder(path: Path) -> Checkpoint:
    """A snapshot whose name says nothing, alone as it is, stands at step 0."""
    said = parse(path.name) or Parsed(1, 0, 0, None)
    return Checkpoint(path.name, said.stage, said.ingredient, said.step, said.tokens, path)


def _order(checkpoint: Checkpoint) -> tuple[int, int, int]:
    return checkpoint.stage, checkpoint.ingredient, checkpoint.step


def _kind(root: Path) -> str:
    note = root / "LADDER"
    return note.read_text().strip() if note.is_file() else f"local checkpoints ({root.name})"
