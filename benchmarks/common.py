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

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from replicate.ladder import corpus
from replicate.models.fresh import tiny_olmo2
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts
from replicate.rl.tasks.label_copying import label_copying

LAYERS, HIDDEN, HEADS, CONTEXT = 3, 64, 4, 48
LABELS, FILLER = 8, 16


def tiny_model(attention: str = "sdpa", *, seed: int = 0) -> PreTrainedModel:
    """The tiny ladder's architecture and vocabulary with fresh weights: 3 layers, 64 wide, 4 heads."""
    words = corpus.tokenizer()
    model = tiny_olmo2(
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        context=CONTEXT,
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


class UnsharedPasses(SinglePolicy):
    """A policy for one-token answers that makes the passes of a trainer which shares nothing within a group.

    Every prompt is repeated for its group. One pass over all of them without gradients, logits at the last position
    (sampling), then one with gradients over the sequences of prompt and answer, logits and their log-softmax at all
    positions (the loss), and its backward pass. The trainer receives the mean over the identical copies, so it learns
    what it always does. The answers fed in are drawn in the first pass; those rewarded are the trainer's own.

    A large model has no memory for all sequences at once. With ``chunk`` so many prompts' groups go through together:
    a pass without gradients whose activations are dropped, and when the backward pass comes, one more with them. Those
    are as many passes as above, with logits at the last two positions.
    """

    def __init__(self, model: PreTrainedModel, *, group: int, chunk: int | None = None, **how) -> None:
        super().__init__(model, **how)
        self.group, self.chunk = group, chunk

    def logits(self, tokens, *, keep, cache=None, behind=None):
        """See :class:`replicate.rl.policies.Policy`; only the trainer's differentiated pass is made anew."""
        if not torch.is_grad_enabled():
            return super().logits(tokens, keep=keep, cache=cache, behind=behind)
        if cache is not None or keep != 1:
            raise ValueError(f"keep, cache: expected one-token answers without a cache, got keep={keep}")
        if self.chunk:
            parts = tokens.split(self.chunk, dim=1)
            return torch.cat([checkpoint(self._repeated, part, use_reentrant=False) for part in parts], 1)
        rows, length = tokens.shape[1:]
        repeated = tokens.repeat_interleave(self.group, dim=1)
        with torch.no_grad():
            answer = super().logits(repeated, keep=1).softmax(-1)[0, :, 0].multinomial(1)
        everything = super().logits(torch.cat([repeated, answer[None]], 2), keep=length + 1).log_softmax(-1)
        return everything[:, :, length - 1 : length].unflatten(1, (rows, self.group)).mean(2)

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
