"""The tiny ladder: an OLMo-2 *architecture* trained from scratch here, saved the way AI2 saves OLMo-2.

Training is a pure function of :class:`~replicate.settings.tiny_ladder.TinyLadder`: data come from a generator seeded by
(seed, step), so a run that was killed continues from its last checkpoint to the same weights, bit for bit on one
machine.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch.nn import functional as F
from tqdm import tqdm
from transformers.utils import logging

from replicate import identity
from replicate.files import replacing, require_writable, sync_folder, write_text
from replicate.ladder import corpus
from replicate.ladder.checkpoints import Ladder, open_ladder, snapshot_name
from replicate.models.fresh import tiny_olmo2
from replicate.settings.tiny_ladder import TinyLadder
from replicate.threads import fixed_threads


def key(spec: TinyLadder) -> str:
    """A hash of the parameters, the code that trains, the libraries and the kernels; the folder is named by it.

    So a ladder is never taken for one that other arithmetic would have made.
    """
    return hashlib.sha256(json.dumps(inputs(spec), sort_keys=True).encode()).hexdigest()[:12]


def inputs(spec: TinyLadder) -> dict[str, Any]:
    """All that decides the weights, as plain values."""
    return {"spec": spec.model_dump(), **identity.identity(__name__)}


def train(
    spec: TinyLadder,
    folder: str | os.PathLike,
    *,
    progress: bool = True,
    origin: Mapping[str, Any] | None = None,
) -> Ladder:
    """Returns the ladder of ``spec`` under ``folder``, training what is not there yet.

    A finished ladder is opened and nothing else; an unfinished one goes on from its last checkpoint. Processes that
    ask for the same ladder at once wait for the first. ``origin`` says who trains, for the folder's
    ``parameters.json``.
    """
    root = Path(folder) / key(spec)
    if not (root / "LADDER").is_file():
        require_writable(root)
        with FileLock(root / ".lock"), fixed_threads():
            if not (root / "LADDER").is_file():
                _train(spec, root, progress)
                _finish(spec, root, origin)
    return open_ladder(root)


def _train(spec: TinyLadder, root: Path, progress: bool) -> None:
    logging.disable_progress_bar()  # one for every snapshot written would drown the bar below
    words = corpus.tokenizer()
    model = tiny_olmo2(
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        context=spec.context,
        vocab=len(words),
        generator=torch.Generator().manual_seed(spec.seed),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    start = _resume(model, optimizer, root)
    if start == 0:
        _save(spec, 0, model, optimizer, words, root)
    chain = corpus.prose_chain(spec.seed)
    bar = tqdm(
        total=spec.steps, initial=start, desc="pretrain tiny OLMo-2", unit="step", disable=not progress
    )
    with bar:
        for step in range(start, spec.steps):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * min(1.0, (step + 1) / spec.warmup)
            rng = np.random.default_rng((spec.seed, 2, step))
            data = corpus.batch(chain, spec, sequences=spec.batch, length=spec.context + 1, rng=rng)
            tokens = torch.from_numpy(data)
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % spec.every == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                _save(spec, step + 1, model, optimizer, words, root)
            bar.update()


def _finish(spec: TinyLadder, root: Path, origin: Mapping[str, Any] | None) -> None:
    """Says what the folder holds; the done-mark comes last but for the state, which nobody needs any more."""
    said = {**inputs(spec), "origin": origin and dict(origin)}
    write_text(root / "parameters.json", json.dumps(said, indent=1, sort_keys=True) + "\n")
    millions = sum(weight.numel() for weight in open_ladder(root).checkpoints[0].model().parameters()) / 1e6
    write_text(root / "LADDER", f"tiny OLMo-2 architecture trained here ({millions:.2f} M parameters)\n")
    (root / "resume.pt").unlink(missing_ok=True)


def _save(spec: TinyLadder, step: int, model, optimizer, words, root: Path) -> None:
    final = root / snapshot_name(step, step * spec.batch * spec.context)
    part = root / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    words.save_pretrained(part)
    sync_folder(part, contents=True)
    shutil.rmtree(final, ignore_errors=True)  # left by a run that was killed right here
    part.rename(final)
    sync_folder(root)
    # The state to resume from comes after the snapshot: a kill in between only repeats these steps.
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(root / "resume.pt") as handle:
        torch.save(state, handle)


def _resume(model, optimizer, root: Path) -> int:
    """Sets both to the state they were saved in, and returns its step; 0 where there is none, or a damaged one."""
    try:
        state = torch.load(root / "resume.pt", weights_only=True)
    except FileNotFoundError:
        return 0
    except Exception:  # torch has no one error for a file that is cut short
        return 0  # training is a function of the parameters: from the start it comes to the same
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
