"""Measurement and GRPO at OLMo-2-1B's exact shape with random weights: throughput and peak memory on one GPU.

- *measurement*: a plain forward pass without gradients, ``components`` at the final state, and one pull-back to
  the embeddings by the written-out passes and by autograd, in prompts a second and in plain forward passes. Bar: 2.3.
- *GRPO*: updates per second of our trainer, which runs each prompt once for its whole group, and of the same trainer
  made to run every completion's full sequence twice, without and with gradients, as a trainer that shares nothing does.
  Bar: 3 times.

Speed does not depend on what the weights are. ``--shape tiny`` runs the same on a CPU in seconds, to see that it runs::

    python benchmarks/at_scale.py --device cuda --dtype bfloat16 --out results/benchmarks/at_scale.json
"""

import torch
from common import UnsharedPasses, alternate, arguments, conditions, ratios, report, seconds, spread
from transformers import Olmo2Config, Olmo2ForCausalLM

from replicate.impact import components
from replicate.models.answer import answer_pass, pull_back
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO

# hidden, intermediate, layers, heads, embedding rows, token ids in use
SHAPES = {"1b": (2048, 8192, 16, 16, 100352, 100278), "tiny": (64, 256, 3, 4, 288, 269)}


def random_olmo2(shape: str, *, device: str, dtype: torch.dtype, seed: int) -> Olmo2ForCausalLM:
    """OLMo-2 of a named shape with N(0, 0.02) weights, made on ``device``."""
    hidden, intermediate, layers, heads, rows, _ = SHAPES[shape]
    config = Olmo2Config(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
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


def random_prompts(count: int, length: int, *, vocab: int, device: str, seed: int) -> Prompts:
    """Prompts of random token ids; the label is the first of them."""
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens = torch.randint(vocab, (count, length), generator=generator, device=device)
    names = tuple(f"{seed}-{i}" for i in range(count))
    return Prompts(names, tokens, tokens[:, 0], tokens[:8, 0].unique(), vocab)


class Bench:
    """Times work on ``device``, the queue emptied before and after, and notes the most memory that it held."""

    def __init__(self, device: str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.peaks: dict[str, float] = {}

    def timer(self, name: str, work, repeats: int = 1):
        """A function that runs ``work`` and returns its seconds; its peak memory in GiB is kept under ``name``."""

        def timed() -> float:
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            spent = seconds(lambda: (work(), self._wait()), repeats)
            if self.on_gpu:
                self.peaks[name] = torch.cuda.max_memory_allocated() / 2**30
            return spent

        return timed

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def measurement(bench: Bench, model, prompts: Prompts, rounds: int) -> dict[str, list[float]]:
    """Seconds of a plain forward pass and of three measurements, by round; the first round warms up."""
    d, device = model.config.hidden_size, prompts.tokens.device
    generator = torch.Generator(device=device).manual_seed(0)
    cotangent = torch.randn(1, len(prompts), d, device=device).to(model.dtype)
    final = {"layer": -1, "vocab": prompts.vocab, "batch": len(prompts), "generator": generator}

    def forward():
        with torch.no_grad():
            model(input_ids=prompts.tokens, logits_to_keep=1, use_cache=False)

    works = {
        "forward": forward,
        "final state": lambda: components(model, prompts.tokens, prompts.labels, **final),
        "by hand": lambda: pull_back(answer_pass(model, prompts.tokens, layer=0, by_hand=True), cotangent),
        "autograd": lambda: pull_back(answer_pass(model, prompts.tokens, layer=0, by_hand=False), cotangent),
    }
    found = alternate({name: bench.timer(name, work) for name, work in works.items()}, rounds + 1)
    return {name: values[1:] for name, values in found.items()}


def grpo(bench: Bench, model, pool: Prompts, held_out: Prompts, options) -> dict[str, list[float]]:
    """Seconds an update of our trainer and of the one that shares nothing, by round."""
    config = GRPO(prompts=options.prompts, group_size=8, learning_rate=1e-6)

    def run(policy):
        train(policy, policy, pool, held_out, config, seeds=[0], budgets=[options.updates])

    works = {
        "shared": lambda: run(SinglePolicy(model)),
        "unshared": lambda: run(UnsharedPasses(model, group=8)),
    }
    found = alternate({name: bench.timer(name, work) for name, work in works.items()}, options.rounds + 1)
    return {name: [s / options.updates for s in values[1:]] for name, values in found.items()}


def main() -> None:
    """Runs everything at one shape, prints the table, writes the file."""
    options = arguments(
        __doc__.splitlines()[0],
        "results/benchmarks/at_scale.json",
        shape={"choices": SHAPES, "default": "1b"},
        device={"default": "cuda"},
        dtype={"choices": ("bfloat16", "float32"), "default": "bfloat16"},
        prompts={"type": int, "default": 16},
        length={"type": int, "default": 32},
        measured={"type": int, "default": 256},
        updates={"type": int, "default": 5},
    )
    bench, vocab = Bench(options.device), SHAPES[options.shape][-1]
    where = {"device": options.device, "seed": options.seed}
    model = random_olmo2(options.shape, dtype=getattr(torch, options.dtype), **where)
    make = {"vocab": vocab, "device": options.device}
    prompts = random_prompts(options.measured, options.length, seed=1, **make)
    times = measurement(bench, model, prompts, options.rounds)
    pool, held_out = (random_prompts(n, options.length, seed=s, **make) for n, s in ((512, 2), (8, 3)))
    times |= grpo(bench, model, pool, held_out, options)
    table = (
        ("plain forward pass, no gradients", "forward", "forward", ""),
        ("impact.components at the final state, 16 samples", "final state", "forward", "2.3"),
        ("forward and one pull-back to the embeddings", "by hand", "forward", "2.3"),
        ("the same by autograd", "autograd", "forward", ""),
        ("GRPO update, each completion run by itself, twice", "unshared", "unshared", ""),
        ("GRPO update, ours", "shared", "unshared", "1/3"),
    )
    rows, numbers = [], {}
    for label, name, against, bar in table:
        time, ratio = spread(times[name]), spread(ratios(times[name], times[against]))
        quoted = "1" if name == against else "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
        memory = f"{bench.peaks[name]:.1f}" if name in bench.peaks else "-"
        rows.append([label, f"{1000 * time['median']:.1f}", quoted, bar, memory])
        numbers[name] = {"seconds": times[name], "ratio": ratio, "peak_gib": bench.peaks.get(name)}
    shape = dict(
        zip(
            ("hidden", "intermediate", "layers", "heads", "rows", "vocab"), SHAPES[options.shape], strict=True
        )
    )
    raw = conditions(options) | {"model": shape | {"dtype": options.dtype}, "works": numbers}
    raw |= {
        "prompt_tokens": options.length,
        "measured": options.measured,
        "prompts": options.prompts,
        "group": 8,
    }
    raw["gpu"] = torch.cuda.get_device_name() if bench.on_gpu else None
    report(
        options.out,
        f"OLMo-2 at the shape {options.shape}, random weights, {options.dtype}, "
        f"{options.measured} prompts of {options.length} tokens measured, {options.prompts} x 8 completions an update",
        ["work", "ms (median)", "ratio: median (min to max)", "bar", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
