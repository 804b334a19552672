"""Cross-position Jacobians of attention: closed form from position-wise Jacobians against a loop over outputs.

Both sides compute da_t/dx_j of every attention sublayer for all pairs of 32 positions, exactly and in float64, on one
thread. The naive side runs one forward pass a layer and then one backward pass per output coordinate and position. The
two take turns in one run, and the ratio quoted is that of their medians::

    OMP_NUM_THREADS=1 python benchmarks/jacobians.py

The second table does the same for the whole model, where multiplying the layers' Jacobians costs as much again, and
the third gives the cost of measuring empirical costates in forward passes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from replicate.lm import attention
from replicate.lm.costate import layer_costates
from replicate.lm.modes import full_precision
from replicate.lm.states import frozen
from replicate.lm.tiny import tiny_model
from replicate.lm.wiring import first_of, hidden_states

SHAPES = {
    "fresh tiny OLMo-2 (2 layers, hidden 16)": {"layers": 2, "hidden": 16, "heads": 2},
    "the ladder's OLMo-2 (3 layers, hidden 64)": {"layers": 3, "hidden": 64, "heads": 4},
}


def naive_layers(model, tokens) -> list[torch.Tensor]:
    """[t, out, j, in] of every sublayer, one backward pass per row."""
    found = []
    for layer, (x, others, named) in enumerate(
        attention._block_calls(model, tokens, module=attention._attention)
    ):
        with frozen(model), full_precision():
            leaf = x.clone().requires_grad_()
            out = first_of(attention._attention(model, layer)(leaf, *others, **named))
            found.append(_loop(out, leaf))
    return found


def naive_model(model, tokens) -> list[torch.Tensor]:
    """[t, out, j, in] through all blocks, one backward pass per row."""
    with frozen(model), full_precision():
        states, _ = hidden_states(model, tokens[None])
        return [_loop(states[-2], states[0])]


def _loop(out: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    length, width = out.shape[1:]
    rows = [
        torch.autograd.grad(out[0, t, i], leaf, retain_graph=True)[0][0]
        for t in range(length)
        for i in range(width)
    ]
    return torch.stack(rows).unflatten(0, (length, width))


def fast_layers(model, tokens) -> list[torch.Tensor]:
    """The same in closed form."""
    return [
        attention.layer_jacobians(block).permute(0, 2, 1, 3) for block in attention.anatomy(model, tokens)
    ]


def fast_model(model, tokens) -> list[torch.Tensor]:
    """The same by multiplying blocks."""
    return [attention.model_jacobians(model, tokens).permute(0, 2, 1, 3)]


def alternate(one: Callable, two: Callable, repeats: int) -> tuple[list[float], list[float]]:
    """Wall times of both, taken in turns after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, mine in zip((one, two), times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                mine.append(time.perf_counter() - start)
    return times


def report(name: str, slow: Callable, fast: Callable, repeats: int) -> float:
    """Checks that both agree, times them and prints a line; returns the ratio of medians."""
    worst = max((a - b).abs().max().item() for a, b in zip(slow(), fast(), strict=True))
    if worst > 1e-10:
        raise SystemExit(f"{name}: the two sides differ by {worst:.1e}")
    left, right = alternate(slow, fast, repeats)
    ratio = statistics.median(left) / statistics.median(right)
    print(f"{name:<45} {statistics.median(left):9.3f} s {statistics.median(right):9.4f} s {ratio:7.1f}x")
    return ratio


def measurement(repeats: int) -> float:
    """Wall time of all layers' costates over that of a forward pass, medians in turns, ladder's shape, float32."""
    model = tiny_model(
        "olmo2", layers=3, hidden=64, heads=4, vocab=288, generator=torch.Generator().manual_seed(0)
    )
    model = model.float()
    model.set_attn_implementation("sdpa")
    prompts = torch.randint(269, (256, 20), generator=torch.Generator().manual_seed(1))
    answers, advantages = prompts[:, :1], torch.ones(256)

    def forward():
        with torch.no_grad():
            model(input_ids=prompts, use_cache=False)

    def both():
        layer_costates(model, prompts, answers, advantages, vocab=269)

    left, right = alternate(forward, both, repeats)
    return statistics.median(right) / statistics.median(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.length} positions, float64, one thread, median of {args.repeats} in turns\n")
    print(f"{'':<45} {'loop':>11} {'vectorised':>11}   ratio")
    generator = torch.Generator().manual_seed(0)
    for title, slow, fast in (
        ("every attention sublayer", naive_layers, fast_layers),
        ("through the whole model", naive_model, fast_model),
    ):
        print(title)
        for name, shape in SHAPES.items():
            model = tiny_model("olmo2", vocab=20, generator=generator, **shape)
            tokens = torch.randint(20, (args.length,), generator=generator)
            report("  " + name, partial(slow, model, tokens), partial(fast, model, tokens), args.repeats)
    print(f"\ncostates of all layers and positions: {measurement(4 * args.repeats):.2f} forward passes")


if __name__ == "__main__":
    main()
