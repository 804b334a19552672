"""What the benchmarks share: the tiny model and its task, alternating timers, the file a result goes to."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from replicate.ladder import corpus
from replicate.models.fresh import tiny_olmo2
from replicate.models.logits import log_policy
from replicate.rl.methods import surrogate
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts
from replicate.rl.rollout import Rollout, _draw
from replicate.rl.tasks.label_copying import label_copying

LAYERS, HIDDEN, HEADS, CONTEXT = 3, 64, 4, 48
LABELS, FILLER = 8, 16


def tiny_model(attention: str = "sdpa", *, seed: int = 0, context: int = CONTEXT) -> PreTrainedModel:
    """The tiny ladder's architecture and vocabulary with fresh weights: 3 layers, 64 wide, 4 heads.

    ``context`` is what positions there are; the weights do not depend on it.
    """
    words = corpus.tokenizer()
    model = tiny_olmo2(
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        context=context,
        vocab=len(words),
        generator=torch.Generator().manual_seed(seed),
    )
    model.set_attn_implementation(attention)
    return model.eval()


def label_prompts(count: int, *, seed: int) -> Prompts:
    """Label-copying prompts with 8 labels and 16 filler words: 22 tokens each."""
    rng = np.random.default_rng(seed)
    return label_copying(corpus.tokenizer(), count, labels=LABELS, filler=FILLER, rng=rng)


def alternate(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs every contender once a round, every other round backwards; what each returned, by round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds):
        names = list(contenders)
        for name in names if i % 2 == 0 else reversed(names):
            found[name].append(contenders[name]())
            print(f"round {i + 1}/{rounds}  {name}: {found[name][-1]:.4g}", file=sys.stderr)
    return found


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Wall-clock seconds of one ``work()``, averaged over ``repeats``."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round, so that a slow spell of the machine hits both sides."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


@torch.no_grad()
def _generated(model: PreTrainedModel, sequences: Tensor, uniforms: Tensor, vocab: int) -> list[Rollout]:
    """Each sequence's completion, one for each row of ``uniforms``, token by token with a cache of its own."""
    drawn, cache, new = [], None, sequences
    for now in uniforms.unbind(1):
        out = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        drawn.append(_draw(log_policy(out.logits[None], vocab=vocab), now[None, :, None]))
        new = drawn[-1].tokens[0, :, 0]
    return drawn


def unshared_sample(policy: SinglePolicy, prompts: Tensor, uniforms: Tensor, *, vocab: int) -> Rollout:
    """:func:`replicate.rl.rollout.sample` with the passes of a trainer that shares nothing within a group.

    Every prompt is repeated for its group. The completions are generated without gradients, each with a cache of its
    own, logits at the last position; then comes one pass with gradients over the whole sequences, logits and their
    log-softmax at all positions. What it gives is what the trainer's own passes give.
    """
    group, horizon = uniforms.shape[2:]
    sequences = prompts[0].repeat_interleave(group, 0)
    drawn = _generated(policy.model, sequences, uniforms.flatten(0, 2), vocab)
    tokens, spread = (
        torch.cat([getattr(step, name) for step in drawn], -1) for name in ("tokens", "entropy")
    )
    tokens, spread = (x.view(uniforms.shape) for x in (tokens, spread))
    everything = torch.cat([sequences, tokens.flatten(0, 2)], 1)
    log_probs = log_policy(policy.model(input_ids=everything, use_cache=False).logits, vocab=vocab)
    logp = log_probs[:, -horizon - 1 : -1].gather(-1, tokens.flatten(0, 2)[..., None])
    return Rollout(tokens, logp.view(uniforms.shape), spread)


def unshared(work: Callable[[], float]) -> Callable[[], float]:
    """``work``, with :func:`unshared_sample` in the place of the trainer's passes."""

    def run() -> float:
        with mock.patch.object(surrogate, "sample", unshared_sample):
            return work()

    return run


class UnsharedPasses(SinglePolicy):
    """A policy for one-token answers of a model too large for all sequences at once, which shares nothing in a group.

    Every prompt is repeated for its group, and ``chunk`` prompts' groups go through together: a pass without gradients
    whose activations are dropped, logits at the last two positions, and when the backward pass comes, one more with
    them. The trainer receives the mean over the identical copies, so it learns what it always does.
    """

    written_out = False

    def __init__(self, model: PreTrainedModel, *, group: int, chunk: int, **how) -> None:
        super().__init__(model, **how)
        self.group, self.chunk = group, chunk

    def logits(self, tokens, *, keep, cache=None, behind=None):
        """See :class:`replicate.rl.policies.Policy`; only the trainer's differentiated pass is made anew."""
        if not torch.is_grad_enabled():
            return super().logits(tokens, keep=keep, cache=cache, behind=behind)
        if cache is not None or keep != 1:
            raise ValueError(f"keep, cache: expected one-token answers without a cache, got keep={keep}")
        parts = tokens.split(self.chunk, dim=1)
        return torch.cat([checkpoint(self._repeated, part, use_reentrant=False) for part in parts], 1)

    def _repeated(self, tokens):
        repeated = tokens.repeat_interleave(self.group, dim=1)
        with_answer = torch.cat([repeated, repeated[:, :, :1]], 2)
        last = super().logits(with_answer, keep=2)[:, :, :1]
        return last.unflatten(1, (tokens.shape[1], self.group)).mean(2)


def arguments(description: str, default_out: str, **more: dict) -> argparse.Namespace:
    """--out, --quick, --rounds, --threads, --seed and what ``more`` names; sets the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(default_out), help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="few short rounds: does it run, not how fast")
    parser.add_argument("--rounds", type=int, default=None, help="alternating rounds (default 9, quick 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    for name, how in more.items():
        parser.add_argument(f"--{name}", **how)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    torch.set_num_threads(options.threads)
    return options


def conditions(options: argparse.Namespace) -> dict[str, object]:
    """What a reader needs to judge the numbers; nothing that names a machine."""
    return {
        "rounds": options.rounds,
        "quick": options.quick,
        "seed": options.seed,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl") if find_spec(name)},
        "model": {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "dtype": "float32"},
        "prompt_tokens": label_prompts(1, seed=0).tokens.shape[1],
    }


def report(out: Path, title: str, columns: list[str], rows: list[list[str]], raw: dict[str, object]) -> None:
    """Prints the table and writes it, with the numbers behind it; ``raw`` says how many threads were used."""
    title = f"{title} ({raw['threads']} thread{'s' if raw['threads'] > 1 else ''}, {raw['rounds']} rounds)"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(
        json.dumps({"title": title, "columns": columns, "rows": rows, "raw": raw}, indent=1) + "\n"
    )
    part.replace(out)
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    print(title)
    for row in [columns, ["-" * w for w in widths], *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
