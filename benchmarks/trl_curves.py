"""Learning curves of TRL's trainers beside ours: GRPO and leave-one-out on answers of four tokens.

Both sides train the same tiny model from the same weights on sequence copying, 8 prompts x 8 completions an update,
sampled at temperature 1, each right token paid a quarter. What is written is the mean reward of each update's
completions, by seed. What makes TRL's objectives ours, its defaults being others:

- GRPO: ``loss_type="grpo"``, ``scale_rewards="group"``, ``beta=0``, ``mask_truncated_completions=False`` (an answer of
  as many tokens as are allowed counts as truncated), no bf16, no gradient checkpointing, a constant rate.
- RLOO: ``normalize_advantages=False``, ``beta=0``. Its loss sums over tokens where ours takes their mean: a factor of
  four, which AdamW does not see. So that a clip of the gradient does not see it either, neither side clips.

What stays different: TRL goes through the prompts in random order, ours draws them with replacement; TRL samples from
all rows of its head, padding included, and ends a completion at an end-of-text token, which is then paid as far as it
got. Seeds share no random number between the sides, so that curves can agree in distribution only.
"""

import argparse
import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from replicate.files import replacing
from replicate.ladder import pretrain
from replicate.rl import tasks
from replicate.rl.policies import StackedPolicy
from replicate.rl.prompts import Prompts
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO
from replicate.settings.task import Task
from replicate.settings.tiny_ladder import TinyLadder

T, PROMPTS, GROUP = 4, 8, 8
TASK = Task(task="sequence_copying", labels=16, filler=4, answer_tokens=T, ANSWER_REWARD="each")
LADDER = {
    "records": 0.3, "label_documents": 0.0, "sequence_documents": 0.5, "labels": 16, "context": 64,
    "learning_rate": 3.0e-3,
}  # fmt: skip
COMMON = {
    "per_device_train_batch_size": PROMPTS * GROUP,
    "num_generations": GROUP,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "max_completion_length": T,
    "temperature": 1.0,
    "beta": 0.0,
    "epsilon": 0.2,
    "mask_truncated_completions": False,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
}
TRAINERS = {
    "GRPO": (GRPOTrainer, GRPOConfig, {"loss_type": "grpo", "scale_rewards": "group"}, {}),
    "RLOO": (
        RLOOTrainer,
        RLOOConfig,
        {"normalize_advantages": False},
        {"baseline": "leave_one_out", "scale": "none"},
    ),
}
"""TRL's trainer, its settings, what they are set to, and our conventions."""


def theirs(name: str, folder: Path, pool: Prompts, *, seed: int, updates: int, rate: float) -> list[float]:
    """TRL's reward of each update."""
    trainer_of, config_of, own, _ = TRAINERS[name]
    rows = Dataset.from_dict({"prompt": list(pool.text), "label": pool.labels.tolist()})
    noted: list[float] = []

    def reward(completion_ids, label, **_):
        paid = [
            sum(o == y for o, y in zip(ids, right, strict=False)) / T
            for ids, right in zip(completion_ids, label, strict=True)
        ]
        noted.append(sum(paid) / len(paid))
        return paid

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        args = config_of(
            **COMMON, **own, output_dir=scratch, max_steps=updates, learning_rate=rate, seed=seed
        )
        trainer_of(
            model=AutoModelForCausalLM.from_pretrained(folder),
            reward_funcs=reward,
            args=args,
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(folder),
        ).train()
    return noted


def ours(
    name: str,
    folder: Path,
    pool: Prompts,
    held_out: Prompts,
    *,
    seeds: Sequence[int],
    updates: int,
    rate: float,
) -> list[list[float]]:
    """Our reward of each update, seed by seed."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    policy = StackedPolicy(model, len(seeds))
    conventions = TRAINERS[name][3]
    config = GRPO(prompts=PROMPTS, group_size=GROUP, learning_rate=rate, max_grad_norm=0.0, **conventions)
    reward = tasks.get(TASK.task).reward(TASK)
    how = {"seeds": seeds, "budgets": [updates], "horizon": T, "reward": reward}
    curves = train(policy, policy, pool, held_out, config, **how)
    return [[row["reward"] for row in curve.updates] for curve in curves]


def curves(folder: Path, *, seeds: Sequence[int], updates: int, rate: float) -> Iterator[dict]:
    """Rows ``trainer, whose, seed, update, reward``."""
    words, task = AutoTokenizer.from_pretrained(folder), tasks.get(TASK.task)
    pool, held_out = (
        task.draw(words, count, settings=TASK, rng=np.random.default_rng(count)) for count in (512, 8)
    )
    for name in TRAINERS:
        found = {
            "ours": ours(name, folder, pool, held_out, seeds=seeds, updates=updates, rate=rate),
            "TRL": [theirs(name, folder, pool, seed=s, updates=updates, rate=rate) for s in seeds],
        }
        for whose, by_seed in found.items():
            for seed, rewards in zip(seeds, by_seed, strict=True):
                for update, one in enumerate(rewards, start=1):
                    yield {
                        "trainer": name,
                        "whose": whose,
                        "seed": seed,
                        "update": update,
                        "reward": one,
                    }


def pretrained(scratch: Path, steps: int) -> Path:
    """The last checkpoint of ``steps`` updates of pretraining, two blocks of width 64, as the study's ladders have."""
    spec = TinyLadder(**LADDER, steps=steps, every=steps)
    return pretrain.train(spec, scratch, progress=False).checkpoints[-1].where


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/horizons/trl.parquet"))
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of a model and its tokenizer (default: pretrains one)"
    )
    parser.add_argument("--steps", type=int, default=800, help="updates of pretraining without --checkpoint")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rate", type=float, default=4.0e-4, help="learning rate of both sides")
    parser.add_argument("--quick", action="store_true", help="two seeds, two updates: does it run")
    options = parser.parse_args(given)
    if options.quick:
        options.steps, options.seeds, options.updates = 4, 2, 2
    return options


def main(given: Sequence[str] | None = None) -> None:
    """Runs both sides and writes the table."""
    options = parsed(given)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or pretrained(Path(scratch), options.steps)
        sizes = {"seeds": list(range(options.seeds)), "updates": options.updates, "rate": options.rate}
        table = pd.DataFrame(curves(folder, **sizes))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.out) as handle:
        table.to_parquet(handle, index=False)
    mean = (
        table.groupby(["trainer", "whose", "seed"]).reward.mean().groupby(level=[0, 1]).agg(["mean", "std"])
    )
    print(mean.round(4).to_string())


if __name__ == "__main__":
    main()
