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
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from replicate.ladder import corpus
from replicate.ladder.pretrain import tiny_olmo2
from replicate.lm.task import Prompts, label_copying

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


def arguments(description: str, default_out: str) -> argparse.Namespace:
    """--out, --quick, --rounds, --threads, --seed; sets the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(default_out), help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="few short rounds: does it run, not how fast")
    parser.add_argument("--rounds", type=int, default=None, help="alternating rounds (default 9, quick 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
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
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
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
