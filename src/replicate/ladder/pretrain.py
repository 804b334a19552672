"""The ladder that is trained here: an OLMo-2 *architecture* from scratch, tiny by default, saved the way AI2 does it.

Training is a pure function of :class:`~replicate.settings.tiny_ladder.TinyLadder`: data come from a generator seeded by
(seed, step), so a run that was killed continues from its last checkpoint to the same weights, bit for bit on one
machine's CPU. A GPU adds up in an order of its own: there it continues to weights that differ in rounding.

In bfloat16 the weights and the optimiser's momenta stay in float32, and passes read copies.
"""

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm
from transformers.utils import logging

from replicate import identity
from replicate.files import replacing, require_writable, sync_folder, write_text
from replicate.ladder import corpus
from replicate.ladder.batches import Batches
from replicate.ladder.checkpoints import Ladder, open_folder, snapshot_name
from replicate.models.fresh import tiny_olmo2
from replicate.settings.tiny_ladder import TinyLadder
from replicate.threads import fixed_threads

# On a GPU the state to resume from takes longer to write than many steps to train: at most one in so many seconds.
_STATE_EVERY = 60.0
_TINY = 10**7


def key(spec: TinyLadder) -> str:
    """A hash of the parameters, the code that trains, the libraries and the kernels; the folder is named by it.

    So a ladder is never taken for one that other arithmetic would have made.
    """
    return hashlib.sha256(json.dumps(inputs(spec), sort_keys=True).encode()).hexdigest()[:12]


def inputs(spec: TinyLadder) -> dict[str, Any]:
    """All that decides the weights, as plain values; off the CPU the device's kind of card too."""
    card = {"accelerator": _card(spec.device)} if spec.device != "cpu" else {}
    return {"spec": spec.model_dump(), **identity.identity(__name__), **card}


def _card(device: str) -> str:
    on_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if on_cuda else torch.device(device).type


def folder_of(spec: TinyLadder, folder: str | os.PathLike) -> Path:
    """Where the ladder of ``spec`` stands, or would stand, under ``folder``."""
    return Path(folder) / key(spec)


def is_done(root: Path) -> bool:
    """Whether the ladder in ``root`` was trained to its end."""
    return (root / "LADDER").is_file()


def steps(spec: TinyLadder) -> range:
    """The steps at which the ladder has a checkpoint."""
    return range(0, spec.steps + 1, spec.every)


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
    root = folder_of(spec, folder)
    if not is_done(root):
        require_writable(root)
        with FileLock(root / ".lock"), fixed_threads():
            if not is_done(root):
                _train(spec, root, progress)
                _finish(spec, root, origin)
    return open_folder(root)


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
    ).to(spec.device)
    optimizer = _optimizer(model)
    start = _resume(model, optimizer, root, spec.device)
    data = Batches(spec)
    if start == 0:
        _save(spec, 0, model, optimizer, data, words, root)
    bar = tqdm(total=spec.steps, initial=start, desc="pretrain OLMo-2", unit="step", disable=not progress)
    with bar:
        for step in range(start, spec.steps):
            loss = _update(spec, step, _rate(spec, step), model, optimizer, data)
            if (step + 1) % spec.every == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                _save(spec, step + 1, model, optimizer, data, words, root)
            bar.update()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def _rate(spec: TinyLadder, step: int) -> float:
    return spec.learning_rate * min(1.0, (step + 1) / spec.warmup)


def _update(spec: TinyLadder, step: int, rate: float, model, optimizer, data: Batches) -> Tensor:
    """One update with the data of ``step``; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    tokens = data(step)
    logits = _logits(spec, model, tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _logits(spec: TinyLadder, model: nn.Module, tokens: Tensor) -> Tensor:
    """In float32, from passes in the precision of ``spec``."""
    kwargs = {"input_ids": tokens, "use_cache": False}
    dtype = getattr(torch, spec.dtype)
    if dtype == torch.float32:
        return model(**kwargs).logits
    copies = {name: weight.to(dtype) for name, weight in model.named_parameters()}
    return functional_call(model, copies, kwargs=kwargs).logits.float()


def _cooled(spec: TinyLadder, step: int, model, optimizer, data: Batches) -> nn.Module:
    """The model after ``cooldown`` updates more, on the data that come next, with a rate that falls to zero; the trunk,
    model and optimiser, stays as it is."""
    if spec.cooldown == 0:
        return model
    branch = copy.deepcopy(model)
    momenta = _optimizer(branch)
    momenta.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(spec.cooldown):
        rate = _rate(spec, step + i) * (1 - i / spec.cooldown)
        _update(spec, step + i, rate, branch, momenta, data)
    return branch


def _finish(spec: TinyLadder, root: Path, origin: Mapping[str, Any] | None) -> None:
    """Says what the folder holds; the done-mark comes last but for the state, which nobody needs any more."""
    said = {**inputs(spec), "origin": origin and dict(origin)}
    write_text(root / "parameters.json", json.dumps(said, indent=1, sort_keys=True) + "\n")
    parameters = sum(weight.numel() for weight in open_folder(root).checkpoints[0].model().parameters())
    write_text(root / "LADDER", f"{kind(spec, parameters)}\n")
    (root / "resume.pt").unlink(missing_ok=True)


def kind(spec: TinyLadder, parameters: int) -> str:
    """What captions call the ladder: a tiny one, or where a larger one was trained. Neither is AI2's OLMo-2."""
    cooled = ", every rung cooled down" if spec.cooldown else ""
    if spec.device == "cpu" and parameters < _TINY:
        return f"tiny OLMo-2 architecture trained here ({parameters / 1e6:.2f} M parameters{cooled})"
    size = f"{parameters / 1e6:.0f}" if parameters >= _TINY else f"{parameters / 1e6:.2f}"
    where = "a CPU" if spec.device == "cpu" else "one GPU"
    of = f"{size} M parameters, synthetic corpus{cooled}"
    return f"OLMo-2 architecture trained from scratch on {where}, {of}"


def tokens_at(spec: TinyLadder, step: int) -> int:
    """What the checkpoint at ``step`` of the trunk has read, the branch in which it was cooled down included."""
    return (step + spec.cooldown) * spec.batch * spec.context


def _save(spec: TinyLadder, step: int, model, optimizer, data, words, root: Path) -> None:
    final = root / snapshot_name(step, tokens_at(spec, step))
    # One that a run left which was killed right here is whole, and may be in use already.
    if not final.exists():
        part = root / f".{final.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        _cooled(spec, step, model, optimizer, data).save_pretrained(part)
        words.save_pretrained(part)
        sync_folder(part, contents=True)
        part.rename(final)
        sync_folder(root)
    # The state to resume from comes after the snapshot: a kill in between only repeats these steps.
    resume = root / "resume.pt"
    fresh = resume.is_file() and time.time() - resume.stat().st_mtime < _STATE_EVERY
    if fresh and spec.device != "cpu":
        return
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(resume) as handle:
        torch.save(state, handle)


def _resume(model, optimizer, root: Path, device: str) -> int:
    """Sets both to the state they were saved in, and returns its step; 0 where there is none, or a damaged one."""
    try:
        state = torch.load(root / "resume.pt", map_location=device, weights_only=True)
    except FileNotFoundError:
        return 0
    except Exception:  # torch has no one error for a file that is cut short
        return 0  # training is a function of the parameters: from the start it comes to the same
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
