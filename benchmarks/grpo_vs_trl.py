"""GRPO updates per second: ours against TRL's GRPOTrainer, alternated in one run.

Both sides do the same work per update: 16 label-copying prompts of 22 tokens, 8 sampled completions each of 1, 8 or 64
tokens, the same reward (the share of tokens that are the label), GRPO advantages, clipped surrogate without KL,
gradient norm clipped at 1, AdamW, float32 weights of the tiny model. Dropout and logging are off, nothing is saved.
What differs is how:

- TRL runs every completion's full sequence (128 of them) twice: in ``generate``, without gradients, and for
  the loss, with them, where on a CPU its output head scores all positions. It samples from all of its rows.
- Ours runs each prompt once, with gradients, for its whole group, and samples from that pass.
- *Equal compute* takes that away: our trainer with TRL's passes (see ``common.unshared_sample``).

Ours is timed over the whole of ``train``, its evaluations included; TRL from the end of its first step on, so
that its set-up is left out. Rates are per seed: an update of five stacked seeds counts as five. TRL ends a
completion at its end-of-text token, which fresh weights draw once in 288; ours has no such token.

Ours computes on one thread, as all jobs of the package do, whatever ``--threads`` says; *all threads* are the same
contenders without that, shown where there are several. TRL has all threads, and so has equal compute.

On a machine that does other work the wall's clock spreads widely; on one thread the time that a process has computed
does not, and on an idle machine it is the same. So ratios stand by both. Fewer rounds are made with 64 tokens.

Memory is the growth of the resident set from before the first update to the peak, in a process of its own.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that spin while they wait starve each other on cores that others use as well: a tiny model's update
# was seen to take 30 times as long. Asleep they do not.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from common import (
    CONTEXT,
    alternate,
    arguments,
    conditions,
    label_prompts,
    ratios,
    report,
    spread,
    tiny_model,
    unshared,
)
from datasets import Dataset
from grpo_parts import parts
from transformers import TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from replicate.ladder import corpus
from replicate.rl import trainer
from replicate.rl.batch import Actor
from replicate.rl.policies import SinglePolicy, StackedPolicy
from replicate.rl.prompts import Prompts
from replicate.settings.grpo import GRPO
from replicate.streams import generator
from replicate.threads import fixed_threads

PROMPTS, GROUP, SEEDS = 16, 8, 5
BARS = {1: (8, 11), 8: (4, 5), 64: (2, 2)}  # tokens of an answer: one seed, five stacked
# Updates of TRL, of one seed, of five, of equal compute: a few seconds each.
UPDATES = {1: (15, 60, 20, 15), 8: (8, 30, 10, 8), 64: (2, 8, 4, 3)}
WORDS = {1: "one-token", 8: "eight-token", 64: "64-token"}


class Rate(float):
    """Updates per second by the clock on the wall; ``cpu`` per second that the process computed."""

    def __new__(cls, updates: int, start: tuple[float, float], end: tuple[float, float]) -> "Rate":
        """From two readings of :func:`clocks`."""
        made = super().__new__(cls, updates / (end[0] - start[0]))
        made.cpu = updates / (end[1] - start[1])
        return made


def clocks() -> tuple[float, float]:
    """The clock on the wall, and the time that this process has computed."""
    return time.perf_counter(), time.process_time()


def share_right(tokens, labels):
    """The share of a completion's tokens that are the label."""
    return (tokens == labels[:, None, None]).float().mean(-1)


def ours(make: Callable, pool: Prompts, held_out: Prompts, *, horizon: int, updates: int, seeds: list[int]):
    """A timer of our trainer: per-seed updates per second over the whole of ``train``."""
    config = GRPO(prompts=PROMPTS, group_size=GROUP, learning_rate=1e-3)

    def run() -> Rate:
        policy = make()
        start = clocks()
        trainer.train(
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
        return Rate(updates * len(seeds), start, clocks())

    return run


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the trainer after each optimiser step."""
        self.ends.append(clocks())


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
            # Our fresh models come without a cache, and so would its generation: every step over the whole sequence.
            "generation_kwargs": {"use_cache": True},
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
        return Rate(updates, clock.ends[0], clock.ends[-1])

    return run


def alone(work: Callable[[], float]) -> Callable[[], float]:
    """``work`` on one thread."""

    def run() -> float:
        with fixed_threads():
            return work()

    return run


def policy_of(lanes: int, horizon: int, seed: int):
    """One model for one seed, a stack for several, with positions enough for such answers."""
    context = max(CONTEXT, 32 + horizon)
    if lanes == 1:
        return SinglePolicy(tiny_model(seed=seed, context=context))
    return StackedPolicy(tiny_model("eager", seed=seed, context=context), lanes)


def contenders(options, folder: str) -> dict[str, Callable[[], float]]:
    """Timers by name, all of an answer length together."""
    pool, held_out = label_prompts(512, seed=options.seed), label_prompts(8, seed=options.seed + 1)
    found = {}
    for horizon, counts in UPDATES.items():
        trl_steps, one, five, equal = (max(1, round(c * (0.2 if options.quick else 1.0))) for c in counts)

        def rate(lanes, updates, horizon=horizon):
            def make():
                return policy_of(lanes, horizon, options.seed)

            return ours(make, pool, held_out, horizon=horizon, updates=updates, seeds=list(range(lanes)))

        def fresh(seed, horizon=horizon):
            return tiny_model(seed=seed, context=max(CONTEXT, 32 + horizon))

        theirs = {"seed": options.seed, "folder": folder, "model": fresh}
        found[f"TRL, {horizon}"] = trl(pool, horizon=horizon, updates=trl_steps, **theirs)
        found[f"one seed, {horizon}"] = alone(rate(1, one))
        found[f"five seeds, {horizon}"] = alone(rate(SEEDS, five))
        found[f"equal compute, {horizon}"] = unshared(rate(1, equal))
        if options.threads > 1:
            found[f"one seed, all threads, {horizon}"] = rate(1, one)
            found[f"five seeds, all threads, {horizon}"] = rate(SEEDS, five)
    return found


def memory(name: str, options) -> float:
    """MiB by which a process of its own grows that runs two updates of this contender or a few more."""
    command = [sys.executable, __file__, "--quick", "--threads", str(options.threads), "--grow", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def grow(name: str, options) -> float:
    """In that process: the peak of the resident set, less what was resident before, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        work = contenders(options, folder)[name]
        before = _resident("VmRSS")
        work()
        return round(_resident("VmHWM") - before, 1)


def _resident(which: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024


def profiles(options) -> dict[str, dict[str, float]]:
    """The parts of an update of ours, on one thread, by answer length and number of seeds."""
    pool, found = label_prompts(512, seed=options.seed), {}
    for horizon in UPDATES:
        for lanes in (1, SEEDS):
            policy = policy_of(lanes, horizon, options.seed)
            actor = Actor(policy, policy)
            draws = [generator(seed) for seed in range(lanes)]
            optimizer = trainer.optimizer_of(policy.parameters(), GRPO())

            def updates(count, prompts, group, *, know=(actor, optimizer, draws, horizon)):
                actor, optimizer, draws, horizon = know
                config = GRPO(prompts=prompts, group_size=group, learning_rate=1e-3)
                start = time.process_time()
                for _ in range(count):
                    asked = trainer.ask(pool, config, draws, horizon=horizon, reward=share_right)
                    trainer._update(actor, optimizer, asked, config, draws)
                return time.process_time() - start

            with fixed_threads():
                found[f"{'one seed' if lanes == 1 else 'five seeds'}, {horizon}"] = parts(
                    updates, repeats=2 if horizon > 8 else 5
                )
    return found


def table(found: dict[str, list[float]], grown: dict[str, str]) -> tuple[list[list[str]], dict[str, dict]]:
    """Rows for people, and the numbers behind them."""
    rows, numbers = [], {}
    for name, rates in found.items():
        who, _, horizon = name.rpartition(", ")
        against = f"TRL, {horizon}"
        rate, ratio = spread(rates), spread(ratios(rates, found[against]))
        by_cpu = spread(ratios([r.cpu for r in rates], [r.cpu for r in found[against]]))
        quoted, cpu = ("1" if name == against else _quoted(r) for r in (ratio, by_cpu))
        says = {
            "TRL": "TRL's GRPOTrainer",
            "one seed": "ours, one seed",
            "five seeds": "ours, five seeds stacked",
        }
        bar = dict(zip(("one seed", "five seeds"), BARS[int(horizon)], strict=True)).get(who, "")
        label = f"{WORDS[int(horizon)]} answers, {says.get(who, f'ours, {who}')}"
        rows.append([label, f"{rate['median']:.2f}", quoted, cpu, grown.get(name, ""), str(bar)])
        numbers[name] = {"updates_per_second": rates, "rate": rate, "against": against, "ratio": ratio}
        numbers[name] |= {"per_cpu_second": [r.cpu for r in rates], "ratio_by_cpu": by_cpu}
    return rows, numbers


def _quoted(ratio: dict[str, float]) -> str:
    return "{median:.1f} ({min:.1f} to {max:.1f})".format(**ratio)


def main() -> None:
    """Runs all contenders in alternation, prints the table, writes the file."""
    options = arguments(
        __doc__.splitlines()[0],
        "results/benchmarks/grpo_vs_trl.json",
        grow={"help": "only this contender, two updates: print by how many MiB the process grows"},
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.disable_progress_bar()
    if options.grow:
        print(json.dumps(grow(options.grow, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = contenders(options, folder)
        long = {name: work.pop(name) for name in list(work) if name.endswith(", 64")}
        found = alternate(work, options.rounds + 1)
        found = {name: values[1:] for name, values in found.items()}  # the first round warms up
        found |= alternate(long, max(1, options.rounds // 2))
    once = options.threads == 1  # what does not hang on threads
    grown = {name: f"{memory(name, options):.0f}" for name in found} if once else {}
    rows, numbers = table(found, grown)
    report(
        options.out,
        "GRPO updates per second and seed, against TRL",
        [
            "work",
            "updates/s (median)",
            "times TRL: median (min to max)",
            "by CPU time",
            "grows by, MiB",
            "bar",
        ],
        rows,
        {
            **conditions(options),
            **{"prompts": PROMPTS, "group": GROUP, "seeds": SEEDS, "contenders": numbers},
            "grown_mib": grown,
            "parts": profiles(options) if once else {},
        },
    )


if __name__ == "__main__":
    main()
