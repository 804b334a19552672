"""Cross-position Jacobians of attention: the closed form against a loop over outputs, both exact and in float64.

- *every attention sublayer*: da_t/dx_j of all sublayers for all pairs of positions. The loop runs one forward pass a
  layer and then one backward pass per output coordinate and position; the closed form needs position-wise Jacobians
  alone (``attention.layer_jacobians``).
- *whole model*: dh_t/dh_j from the embeddings to the last block. The loop does the same through all blocks; the closed
  form carries tangents from block to block (``attention.model_jacobians``).

Bar: at least 10 times as fast as the loop at 32 positions. Both sides are compared before they are timed.
"""

import os

# Threads that spin while they wait starve each other on cores that others use as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from functools import partial

import torch
from common import alternate, arguments, conditions, ratios, report, seconds, spread

from replicate.lm import attention
from replicate.models.fresh import tiny_model
from replicate.models.hooks import first_of, frozen, hidden_states
from replicate.models.precision import full_precision

LENGTH = 32
SHAPES = {
    "tiny model (2 layers, hidden 16, 2 heads)": {"layers": 2, "hidden": 16, "heads": 2},
    "ladder's shape (3 layers, hidden 64, 4 heads)": {"layers": 3, "hidden": 64, "heads": 4},
}


def naive_layers(model, tokens) -> list[torch.Tensor]:
    """[t, out, j, in] of every sublayer, one backward pass per row."""
    found = []
    calls = attention._block_calls(model, tokens, module=attention._attention)
    for layer, (x, others, named) in enumerate(calls):
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
    blocks = list(attention.anatomy(model, tokens))
    return [attention.layer_jacobians(block).permute(0, 2, 1, 3) for block in blocks]


def fast_model(model, tokens) -> list[torch.Tensor]:
    """The same by carrying tangents through the blocks."""
    return [attention.model_jacobians(model, tokens).permute(0, 2, 1, 3)]


def main() -> None:
    """Compares and times both ways at every shape, prints the table, writes the file."""
    options = arguments(__doc__.splitlines()[0], "results/benchmarks/jacobians.json")
    rows, numbers = [], {}
    for name, shape in SHAPES.items():
        generator = torch.Generator().manual_seed(options.seed)
        model = tiny_model("olmo2", vocab=20, generator=generator, **shape)
        tokens = torch.randint(20, (LENGTH,), generator=generator)
        for what, slow, fast in (
            ("every attention sublayer", naive_layers, fast_layers),
            ("whole model", naive_model, fast_model),
        ):
            both = {"loop": partial(slow, model, tokens), "closed form": partial(fast, model, tokens)}
            pairs = zip(both["loop"](), both["closed form"](), strict=True)
            worst = max((a - b).abs().max().item() for a, b in pairs)
            if worst > 1e-10:
                raise SystemExit(f"{name}, {what}: the two sides differ by {worst:.1e}")
            found = alternate(
                {way: lambda work=work: seconds(work) for way, work in both.items()}, options.rounds
            )
            ratio = spread(ratios(found["loop"], found["closed form"]))
            times = [f"{1000 * spread(found[way])['median']:.0f}" for way in both]
            quoted = "{median:.1f} ({min:.1f} to {max:.1f})".format(**ratio)
            rows.append([f"{what}, {name}", *times, quoted, "10"])
            numbers[f"{what}, {name}"] = {"seconds": found, "ratio": ratio, "difference": worst}
    columns = [
        "work",
        "loop, ms (median)",
        "closed form, ms (median)",
        "times as fast: median (min to max)",
        "bar",
    ]
    raw = {**conditions(options), "model": SHAPES, "positions": LENGTH, "dtype": "float64", "works": numbers}
    title = f"Cross-position Jacobians at {LENGTH} positions, float64, against a loop over outputs"
    report(options.out, title, columns, rows, raw)


if __name__ == "__main__":
    main()
