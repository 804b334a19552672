"""GRPO updates per second: ours against TRL's GRPOTrainer, alternated in one run.

Both sides do the same work per update: 16 label-copying prompts of 22 tokens, 8 sampled completions each, the
same reward (the share of tokens that are the label), GRPO advantages, clipped surrogate without KL, gradient
norm clipped at 1, AdamW, float32 weights of the tiny model. Dropout and logging are off, nothing is saved.
What differs is how:

- TRL runs every completion's full sequence (128 of them) twice: in ``generate``, without gradients, and for
  the loss, with them, where on a CPU its output head scores all positions. It samples from all of its rows.
- Ours runs each prompt once, with gradients, for its whole group, and samples from that pass.
- *Equal compute* takes that away: our trainer with a policy that makes TRL's passes (see ``common.UnsharedPasses``).

Ours is timed over the whole of ``train``, its evaluations included; TRL from the end of its first step on, so
that its set-up is left out. Rates are per seed: an update of five stacked seeds counts as five. TRL ends a
completion at its end-of-text token, which fresh weights draw once in 288; ours has no such token.
"""

import contextlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that spin while they wait starve each other on cores that others use as well: a tiny model's update
# was seen to take 30 times as long. Asleep they do not.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from common import (
    UnsharedPasses,
    alternate,
    arguments,
    conditions,
    label_prompts,
    ratios,
    report,
    spread,
    tiny_model,
)
from datasets import Dataset
from transformers import TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from replicate.ladder import corpus
from replicate.rl.policies import SinglePolicy, StackedPolicy
from replicate.rl.prompts import Prompts
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO

PROMPTS, GROUP, LONG = 16, 8, 8
SEEDS = 5


def share_right(tokens, labels):
    """The share of a completion's tokens that are the label."""
    return (tokens == labels[:, None, None]).float().mean(-1)


def ours(make: Callable, pool: Prompts, held_out: Prompts, *, horizon: int, updates: int, seeds: list[int]):
    """A timer of our trainer: per-seed updates per second over the whole of ``train``."""
    config = GRPO(prompts=PROMPTS, group_size=GROUP, learning_rate=1e-3)

    def run() -> float:
        policy = make()
        start = time.perf_counter()
        train(
            policy,
            policy,
            pool,
            held_out,
            config,
            seeds=seeds,
            budgets=[updates],
            horizon=horizon,
            reward=share_right,
        )
        return updates * len(seeds) / (time.perf_counter() - start)

    return run


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the trainer after each optimiser step."""
        self.ends.append(time.perf_counter())


def trl(
    pool: Prompts,
    *,
    horizon: int,
    updates: int,
    seed: int,
    folder: str,
    model: Callable = tiny_model,
    **changes,
):
    """A timer of TRL's trainer: updates per second from its second step to its last.

    ``model`` makes the model from a seed; ``changes`` are those of its settings for another one than the tiny model.
    """
    rows = Dataset.from_dict({"prompt": list(pool.text), "label": pool.labels.tolist()})

    def reward(completion_ids, label, **_):
        return [sum(t == y for t in ids) / len(ids) for ids, y in zip(completion_ids, label, strict=True)]

    def run() -> float:
        settings = {
            "output_dir": folder,
            "max_steps": updates + 1,
            "per_device_train_batch_size": PROMPTS * GROUP,
            "num_generations": GROUP,
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 1,
            "num_iterations": 1,
            "max_completion_length": horizon,
            "loss_type": "grpo",
            "scale_rewards": "group",
            "beta": 0.0,
            "epsilon": 0.2,
            "mask_truncated_completions": False,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "report_to": "none",
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": seed,
        }
        args = GRPOConfig(**settings | changes)
        clock = Clock()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = GRPOTrainer(
                model=model(seed=seed),
                reward_funcs=reward,
                args=args,
                train_dataset=rows,
                processing_class=corpus.tokenizer(),
                callbacks=[clock],
            )
            trainer.train()
        assert len(clock.ends) == updates + 1
        return updates / (clock.ends[-1] - clock.ends[0])

    return run


def main() -> None:
    """Runs all contenders in alternation, prints the table, writes the file."""
    options = arguments(__doc__.splitlines()[0], "results/benchmarks/grpo_vs_trl.json")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.disable_progress_bar()
    pool, held_out = label_prompts(512, seed=options.seed), label_prompts(8, seed=options.seed + 1)
    scale = 0.2 if options.quick else 1.0

    def steps(full: int) -> int:
        return max(2, round(full * scale))

    def single():
        return SinglePolicy(tiny_model(seed=options.seed))

    def stacked():
        return StackedPolicy(tiny_model("eager", seed=options.seed), SEEDS)

    def trl_passes():
        return UnsharedPasses(tiny_model(seed=options.seed), group=GROUP)

    five, one = list(range(SEEDS)), [0]
    with tempfile.TemporaryDirectory() as folder:
        theirs = {"seed": options.seed, "folder": folder}
        found = alternate(
            {
                "TRL, 1 token": trl(pool, horizon=1, updates=steps(15), **theirs),
                "one seed": ours(single, pool, held_out, horizon=1, updates=steps(60), seeds=one),
                "five seeds": ours(stacked, pool, held_out, horizon=1, updates=steps(20), seeds=five),
                "equal compute": ours(trl_passes, pool, held_out, horizon=1, updates=steps(15), seeds=one),
                "TRL, 8 tokens": trl(pool, horizon=LONG, updates=steps(8), **theirs),
                "one seed, 8": ours(single, pool, held_out, horizon=LONG, updates=steps(12), seeds=one),
                "five seeds, 8": ours(stacked, pool, held_out, horizon=LONG, updates=steps(5), seeds=five),
            },
            options.rounds + 1,
        )
    found = {name: values[1:] for name, values in found.items()}  # the first round warms up
    table = (
        ("one-token answers, TRL's GRPOTrainer", "TRL, 1 token", "TRL, 1 token", ""),
        ("one-token answers, ours, one seed", "one seed", "TRL, 1 token", ""),
        ("one-token answers, ours, five seeds stacked", "five seeds", "TRL, 1 token", "6"),
        ("one-token answers, ours, equal compute, one seed", "equal compute", "TRL, 1 token", ""),
        ("eight-token answers, TRL's GRPOTrainer", "TRL, 8 tokens", "TRL, 8 tokens", ""),
        ("eight-token answers, ours, one seed", "one seed, 8", "TRL, 8 tokens", ""),
        ("eight-token answers, ours, five seeds stacked", "five seeds, 8", "TRL, 8 tokens", "3"),
    )
    rows, numbers = [], {}
    for label, name, against, bar in table:
        rate, ratio = spread(found[name]), spread(ratios(found[name], found[against]))
        quoted = "1" if name == against else "{median:.1f} ({min:.1f} to {max:.1f})".format(**ratio)
        rows.append([label, f"{rate['median']:.1f}", quoted, bar])
        numbers[name] = {"updates_per_second": found[name], "rate": rate, "against": against, "ratio": ratio}
    report(
        options.out,
        "GRPO updates per second and seed, against TRL",
        ["work", "updates/s (median)", "times TRL: median (min to max)", "bar"],
        rows,
        {**conditions(options), "prompts": PROMPTS, "group": GROUP, "seeds": SEEDS, "contenders": numbers},
    )


if __name__ == "__main__":
    main()
