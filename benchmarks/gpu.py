"""One GPU: measurement and GRPO at OLMo-2-1B's exact shape with random weights, and the ladder of params/gpu.yaml.

Speed does not depend on what the weights are. Each piece writes a small JSON record at once, with the machine that made
it and the peak of a large matrix product measured there and then; a piece whose record is there is not run again. The
pieces come in order of value, and one that does not fit into what is left of ``--seconds`` waits for the next call::

    python benchmarks/gpu.py --seconds 540
    python benchmarks/gpu.py --shape tiny --device cpu --out build/gpu

======================  ===========================================================================================
piece                   what it measures
======================  ===========================================================================================
``measure``             a forward pass, ``impact.components`` at the final state, one pull-back to the embeddings
``grpo-1, -8, -64``     updates of our trainer with answers of so many tokens
``...-compiled``        ``measure`` and ``grpo-1`` with compiled blocks (COMPILE), whose compilation is not in the times
``ladder``              params/gpu.yaml: the ladder is trained, all jobs run, tables written beside the records
``checkpoint``          what one checkpoint of a ladder costs: opened from safetensors in float32, then measured
``trl``                 TRL's ``GRPOTrainer`` on the same work, and ours made to run its passes (equal compute)
======================  ===========================================================================================

Shares of the peak count model FLOPs, memory is set beside its floor; both by the formulas of
:mod:`replicate.models.costs`.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if (
    __name__ == "__main__"
):  # read when torch and the hub's client are imported; whoever imports this decides otherwise
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


import torch
from common import UnsharedPasses
from transformers import Olmo2Config, Olmo2ForCausalLM

from replicate.files import write_text
from replicate.impact import components
from replicate.ladder import corpus
from replicate.ladder.checkpoints import Checkpoint
from replicate.models import costs
from replicate.models.answer import answer_pass, pull_back
from replicate.models.compilation import compile_blocks
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts
from replicate.rl.trainer import train
from replicate.runs import provenance
from replicate.settings.grpo import GRPO

GROUP = 8
BARS = {"measure": 0.5, "grpo": 0.4, "trl": 3.0}
MEASURED = ("forward", "final state", "pull-back")


@dataclass(frozen=True)
class Work:
    """How much each piece does at a shape. ``prompts`` of an update by answer length: with 64 tokens fewer fit.

    ``expected`` is a guess of each piece's seconds on an H100, by which a piece is put off.
    """

    length: int
    measured: int
    prompts: dict[int, int]
    rounds: int
    updates: int
    product: int
    expected: dict[str, float]

    @property
    def pieces(self) -> list[str]:
        """All pieces, in order of value."""
        grpo = [f"grpo-{horizon}" for horizon in self.prompts]
        compiled = ["measure-compiled", "grpo-1-compiled"]
        return ["measure", *grpo[:1], *compiled, "ladder", *grpo[1:], "checkpoint", "trl"]


WORK = {
    "1b": Work(512, 32, {1: 16, 8: 16, 64: 8}, 5, 8, 8192,
               {"measure-compiled": 80, "grpo-1-compiled": 80, "ladder": 200, "trl": 90, "checkpoint": 60,
                "grpo-64": 40}),
    "tiny": Work(24, 8, {1: 4, 8: 4, 64: 2}, 2, 2, 256, {}),
}  # fmt: skip


def random_olmo2(shape: costs.Shape, *, device: str, dtype: torch.dtype, seed: int) -> Olmo2ForCausalLM:
    """OLMo-2 of a shape with N(0, 0.02) weights, made on ``device``."""
    config = Olmo2Config(
        vocab_size=shape.rows,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.device(device):
        model = Olmo2ForCausalLM(config).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 0.02, generator=generator)
    return model.eval()


def random_prompts(count: int, length: int, *, device: str, seed: int) -> Prompts:
    """Prompts of random words of the synthetic corpus, so that a tokenizer reads them too; the label is the first."""
    special, words = len(corpus.SPECIAL), corpus.VOCABULARY
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(special, len(words), (count, length), generator=generator)
    text = tuple(" ".join(words[i] for i in row) for row in tokens.tolist())
    return Prompts(text, tokens, tokens[:, 0], tokens[:8, 0].unique(), len(words)).to(device)


def first_is_label(tokens, labels):
    """A reward for answers of any length: whether the first token is the label."""
    return (tokens[..., 0] == labels[:, None]).float()


class Bench:
    """One call: its shape and machine, what is there, how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.shape, self.work = costs.SHAPES[options.shape], WORK[options.shape]
        self.on_gpu = torch.device(options.device).type == "cuda"
        self.dtype = torch.bfloat16
        self.end = time.monotonic() + options.seconds
        self.peak = self._peak()

    def left(self) -> float:
        """Seconds left of the budget."""
        return self.end - time.monotonic()

    def model(self, dtype: torch.dtype, *, seed: int = 0, compiled: bool = False) -> Olmo2ForCausalLM:
        """A fresh model of the shape; on a CPU its compiled blocks are traced and run as they are."""
        model = random_olmo2(self.shape, device=self.device, dtype=dtype, seed=seed)
        if compiled:
            compile_blocks(model, backend="inductor" if self.on_gpu else "aot_eager")
        return model

    def prompts(self, count: int, *, seed: int) -> Prompts:
        """Prompts of the work's length."""
        return random_prompts(count, self.work.length, device=self.device, seed=seed)

    def seconds(self, work: Callable[[], object]) -> list[float]:
        """Seconds of each round of ``work``, the device's queue emptied before and after; a first one warms up."""
        found = []
        for _ in range(self.work.rounds + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - start)
        return found[1:]

    def wait(self) -> None:
        """Returns when the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def tidy(self) -> None:
        """Gives back the memory of models that nobody uses any more."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def memory(self, found: dict[str, Any], floor: dict[str, int]) -> Iterator[None]:
        """Notes the most memory that is held inside, beside its floor; None on a CPU."""
        self.tidy()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        yield
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else None
        least = sum(floor.values())
        found["memory"] = {
            "peak_gib": peak and round(peak / 2**30, 3),
            "floor_gib": round(least / 2**30, 6),
            "floor": floor,
            "over_floor": peak and round(peak / least, 3),
        }

    def rate(self, times: list[float], tokens: int, flops: int) -> dict[str, Any]:
        """Median seconds, tokens a second and the share of the peak."""
        median = statistics.median(times)
        return {
            "seconds": [round(t, 6) for t in times],
            "tokens_per_second": round(tokens / median, 1),
            "model_tflop": round(flops / 1e12, 6),
            # Of a CPU the peak in bfloat16 says nothing: many have no such unit.
            "share_of_peak": round(flops / median / self.peak, 4) if self.on_gpu else None,
        }

    def _peak(self) -> float:
        """Operations a second of a large square product of random bfloat16 matrices."""
        n = self.work.product
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        for _ in range(3):
            a @ b
        self.wait()
        start, repeats = time.perf_counter(), 20
        for _ in range(repeats):
            a @ b
        self.wait()
        return 2 * n**3 * repeats / (time.perf_counter() - start)


def measure(bench: Bench, *, compiled: bool = False) -> dict[str, Any]:
    """A forward pass, the components at the final state, one pull-back to the embeddings."""
    shape, work = bench.shape, bench.work
    model, prompts = bench.model(bench.dtype, compiled=compiled), bench.prompts(work.measured, seed=1)
    count, generator = len(prompts), torch.Generator(device=bench.device).manual_seed(0)
    cotangent = torch.randn(1, count, shape.hidden, device=bench.device, dtype=bench.dtype)
    how = {"layer": -1, "vocab": prompts.vocab, "batch": count, "generator": generator, "group_size": GROUP}

    @torch.no_grad()
    def forward():
        model(input_ids=prompts.tokens, logits_to_keep=1, use_cache=False)

    works = {
        "forward": (forward, costs.forward(shape, count, work.length, count), False),
        "final state": (
            lambda: components(model, prompts.tokens, prompts.labels, **how),
            costs.measurement(shape, count, work.length),
            False,
        ),
        "pull-back": (
            lambda: pull_back(answer_pass(model, prompts.tokens, layer=0), cotangent),
            costs.measurement(shape, count, work.length, pulled=True),
            True,
        ),
    }
    found: dict[str, Any] = {"prompts": count, "length": work.length, "bar": BARS["measure"]}
    for name, (run, flops, pulled) in works.items():
        found[name] = {}
        with bench.memory(found[name], costs.measurement_floor(shape, count, work.length, pulled=pulled)):
            found[name] |= bench.rate(bench.seconds(run), count * work.length, flops)
    return found


class Stamps:
    """A reward that notes when it is asked for: once an update, whose metrics wait for the device.

    A judge, who asks without gradients, does not count.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, tokens, labels):
        """:func:`first_is_label`."""
        if torch.is_grad_enabled():
            self.times.append(time.perf_counter())
        return first_is_label(tokens, labels)

    def updates(self) -> list[float]:
        """Seconds from one update's reward to the next one's, without the first two updates."""
        return [b - a for a, b in zip(self.times[2:], self.times[3:], strict=False)]


def updates(bench: Bench, policy, horizon: int) -> list[float]:
    """Seconds of each update of our trainer."""
    stamps, count = Stamps(), bench.work.updates + 3
    config = GRPO(prompts=bench.work.prompts[horizon], group_size=GROUP, learning_rate=1e-6)
    pool, held_out = bench.prompts(128, seed=2), bench.prompts(8, seed=3)
    how = {"seeds": [0], "budgets": [count], "horizon": horizon, "reward": stamps}
    train(policy, policy, pool, held_out, config, **how)
    return stamps.updates()


def grpo(bench: Bench, horizon: int, *, compiled: bool = False) -> dict[str, Any]:
    """Our trainer with answers of ``horizon`` tokens: float32 weights, bfloat16 passes."""
    prompts, length = bench.work.prompts[horizon], bench.work.length
    given = (bench.shape, prompts, length, GROUP, horizon)
    found = {
        "prompts": prompts,
        "group": GROUP,
        "length": length,
        "answer_tokens": horizon,
        "bar": BARS["grpo"],
    }
    policy = SinglePolicy(bench.model(torch.float32, compiled=compiled), dtype=bench.dtype)
    with bench.memory(found, costs.rl_floor(*given)):
        times = updates(bench, policy, horizon)
    read = prompts * length + prompts * GROUP * (horizon - 1)
    return {
        **found,
        **bench.rate(times, read, costs.grpo(*given)),
        "updates_per_second": round(1 / statistics.median(times), 3),
    }


def checkpoint(bench: Bench) -> dict[str, Any]:
    """Saves a checkpoint as AI2 does, in float32, then opens and measures it as a job would.

    It was just written: what is read comes from the page cache where there is memory for it.
    """
    prompts, seconds = bench.prompts(4 * bench.work.measured, seed=1), {}
    with tempfile.TemporaryDirectory(dir=bench.options.scratch) as folder:
        where = Path(folder) / "stage1-step1000-tokens3B"
        bench.model(torch.float32).save_pretrained(where, max_shard_size="5GB")
        size = sum(path.stat().st_size for path in where.glob("*.safetensors"))
        rung = Checkpoint(where.name, 1, 0, 1000, 3 * 10**9, where)
        with _timed(bench, seconds, "hash"):
            rung.sha  # noqa: B018 - computed here
        with _timed(bench, seconds, "open"):
            model = rung.model(dtype=bench.dtype, device=bench.device)
        with _timed(bench, seconds, "measure"):
            generator = torch.Generator(device=bench.device).manual_seed(0)
            how = {"vocab": prompts.vocab, "batch": bench.work.measured, "generator": generator}
            components(model, prompts.tokens, prompts.labels, group_size=GROUP, **how)
    return {"bytes": size, "prompts": len(prompts), "length": bench.work.length, "seconds": seconds}


@contextlib.contextmanager
def _timed(bench: Bench, seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    bench.wait()
    seconds[name] = round(time.perf_counter() - start, 4)


def against_trl(bench: Bench) -> dict[str, Any]:
    """TRL's trainer and ours on one-token and eight-token answers, and ours at TRL's passes with one token.

    Both keep float32 weights and compute in bfloat16. TRL's backward passes go 16 sequences at a time, which is what
    fits beside 1.5 billion parameters; ours at equal compute likewise.
    """
    if find_spec("trl") is None:
        return {"skipped": "trl is not installed"}
    from grpo_vs_trl import trl

    found: dict[str, Any] = {"bar": BARS["trl"], "group": GROUP, "length": bench.work.length}
    for horizon in (1, 8):
        prompts = bench.work.prompts[horizon]
        rows = min(16, prompts * GROUP)
        changes = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": prompts * GROUP // rows,
            "steps_per_generation": prompts * GROUP // rows,
            "learning_rate": 1e-6,
            "bf16": True,
            "use_cpu": not bench.on_gpu,
        }
        with tempfile.TemporaryDirectory() as folder:
            run = trl(
                bench.prompts(128, seed=2),
                horizon=horizon,
                updates=3,
                seed=0,
                folder=folder,
                model=lambda seed: bench.model(torch.float32, seed=seed),
                **changes,
            )
            theirs = run()
        bench.tidy()
        ours = updates(bench, SinglePolicy(bench.model(torch.float32), dtype=bench.dtype), horizon)
        rate = 1 / statistics.median(ours)
        bench.tidy()
        found[str(horizon)] = {"trl": theirs, "ours": rate, "ratio": rate / theirs, "prompts": prompts}
    chunk = max(1, 16 // GROUP)
    policy = UnsharedPasses(bench.model(torch.float32), group=GROUP, chunk=chunk, dtype=bench.dtype)
    rate = 1 / statistics.median(updates(bench, policy, 1))
    found["1"] |= {"equal_compute": rate, "equal_compute_ratio": rate / found["1"]["trl"]}
    return found


def ladder(bench: Bench) -> dict[str, Any]:
    """``replicate sweep`` in a process of its own, ended when the budget is; then the tables of what is done.

    The record says whether jobs are left; then the piece is taken up again by the next call.
    """
    options = bench.options
    over = [word for item in options.override for word in ("-p", item)]
    command = [sys.executable, "-m", "replicate", "sweep", "-f", options.params, *over]
    command += ["--workers", str(options.workers)]
    start = time.perf_counter()
    unfinished = _ended(command, bench.left())
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "unfinished": unfinished,
        **_tables(options, unfinished),
    }


def _ended(command: list[str], seconds: float) -> bool:
    """Whether the command had to be ended after so many seconds. Its status is not asked: failed jobs are listed."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        return True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return False


def _tables(options: argparse.Namespace, unfinished: bool) -> dict[str, Any]:
    from replicate.runs import jobs, paths, tables
    from replicate.runs import params as schemas
    from replicate.runs.main_job import describe

    params = schemas.load(options.params, schemas.overrides(options.override))
    if not jobs.is_there(params):
        how = TimeoutError if unfinished else RuntimeError
        raise how("the ladder is not trained to its end")
    opened = jobs.ladder(params)
    found = tables.load(params, opened)
    for name in ("checkpoints", "components", "gains", "forecast"):
        write_text(options.out / f"ladder-{name}.csv", getattr(found, name).to_csv(index=False))
    failures = paths.resolve(params.RUN_DIR) / "failures.json"
    return {
        "kind": opened.kind,
        "rungs": len(opened),
        "failed": json.loads(failures.read_text()) if failures.is_file() else [],
        "provenance": describe(params, opened, provenance.Clock()),
    }


def run_piece(bench: Bench, name: str) -> dict[str, Any]:
    """The numbers of a piece."""
    plain, compiled = name.removesuffix("-compiled"), name.endswith("-compiled")
    if plain == "measure":
        return measure(bench, compiled=compiled)
    if plain.startswith("grpo-"):
        return grpo(bench, int(plain.removeprefix("grpo-")), compiled=compiled)
    return {"checkpoint": checkpoint, "trl": against_trl, "ladder": ladder}[name](bench)


def done(path: Path, shape: str, device: str) -> bool:
    """Whether there is a record of this shape and kind of device. One that says it is not all is tried again."""
    try:
        record = json.loads(path.read_text())
        whole = not any(record["numbers"].get(name) for name in ("skipped", "unfinished", "failed"))
        return whole and (record["shape"], record["device"]) == (shape, device)
    except (OSError, ValueError, KeyError):
        return False


def run_all(bench: Bench) -> tuple[list[str], list[str]]:
    """Runs what is not there; the pieces that are left for another call, and those that failed."""
    options, later, failed = bench.options, [], []
    for name in options.only or bench.work.pieces:
        path = options.out / f"{name}.json"
        if done(path, options.shape, options.device):
            print(f"{name}: there already")
            continue
        if bench.left() < bench.work.expected.get(name, 20.0 if bench.on_gpu else 0.0):
            later.append(name)
            continue
        start = time.perf_counter()
        try:
            numbers = run_piece(bench, name)
        except TimeoutError as error:
            print(f"{name}: {error}", file=sys.stderr)
            later.append(name)
            continue
        except Exception:  # one piece without memory must not cost the others
            traceback.print_exc()
            failed.append(name)
            continue
        finally:
            bench.tidy()
        record = {
            "piece": name,
            "shape": options.shape,
            "device": options.device,
            "model": bench.shape.describe() if name != "ladder" else None,
            "precision": "float32 weights in RL, bfloat16 passes, float32 log-probabilities",
            "peak_tflops": round(bench.peak / 1e12, 4),
            "numbers": numbers,
            "origin": provenance.origin(options.device, time.perf_counter() - start),
        }
        write_text(path, json.dumps(record, indent=1) + "\n")
        print(f"{name}: {summary(name, numbers)}")
    return later, failed


def summary(name: str, numbers: dict[str, Any]) -> str:
    """A line for people."""
    if "skipped" in numbers:
        return f"skipped, {numbers['skipped']}"
    if name.startswith("measure"):
        return ", ".join(f"{part} {_share(numbers[part], numbers['bar'])}" for part in MEASURED)
    if name.startswith("grpo-"):
        return f"{numbers['updates_per_second']:.2f} updates/s, {_share(numbers, numbers['bar'])}"
    if name == "trl":
        one, eight = numbers["1"], numbers["8"]
        equal = f"equal compute {one['equal_compute_ratio']:.1f}"
        return f"times TRL: {one['ratio']:.1f} with 1 token ({equal}), {eight['ratio']:.1f} with 8"
    if name == "checkpoint":
        return ", ".join(f"{what} {spent:.2f} s" for what, spent in numbers["seconds"].items())
    left = ", jobs are left: call again" if numbers["unfinished"] else ""
    failed = f", {len(numbers['failed'])} failed" if numbers["failed"] else ""
    return f"{numbers['kind']}: {numbers['rungs']} rungs in {numbers['seconds']:.0f} s{failed}{left}"


def _share(numbers: dict[str, Any], bar: float) -> str:
    """The share of the peak beside its bar, or on a CPU the rate alone."""
    rate = f"{numbers['tokens_per_second']:,.0f} tokens/s"
    share = numbers["share_of_peak"]
    return rate if share is None else f"{rate}, {share:.0%} of the peak (bar {bar:.0%})"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=costs.SHAPES, default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=540.0, help="budget of this call")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the records")
    parser.add_argument("--only", nargs="*", help="only these pieces")
    parser.add_argument("--scratch", type=Path, help="where a checkpoint is written for a moment")
    parser.add_argument("--params", default="params/gpu.yaml", help="parameters of the ladder")
    parser.add_argument("-p", dest="override", action="append", default=[], help="KEY=VALUE of the ladder")
    parser.add_argument("--workers", type=int, default=4, help="processes of the ladder's sweep")
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - set(WORK[options.shape].pieces):
        parser.error(
            f"--only: expected some of {', '.join(WORK[options.shape].pieces)}, got {sorted(unknown)}"
        )
    return options


def main() -> None:
    """Runs what is left, within the budget; status 1 if a piece failed."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    later, failed = run_all(Bench(options))
    if later:
        print(f"left for another call: {', '.join(later)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
