"""Cost of a costate measurement, in plain forward passes over the same prompts without gradients.

- *final layer*: ``impact.components`` at the final state, which needs no backward pass at all.
- *one pull-back*: ``answer_pass`` from the embeddings on and ``pull_back`` of one cotangent per prompt: a
  forward pass that keeps what the adjoint needs and one backward pass through all activations; no gradient of a
  parameter. By the passes that are written out for OLMo-2, and by autograd.
- *all layers*: ``layer_costates``, Def. 2 at every layer and position; the last two layers are read at the answer only.

Bar: 2.3. A backward pass through activations costs what the forward pass does, so 2.0 would be the floor if nothing
could be left out; what nobody reads behind the last block's keys and values is left out. The plain forward pass is the
model's own, to the logits of the last position.
"""

import os

# Threads that spin while they wait starve each other on cores that others use as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from common import (
    alternate,
    arguments,
    conditions,
    label_prompts,
    ratios,
    report,
    seconds,
    spread,
    tiny_model,
)

from replicate.impact import components
from replicate.lm.costate import layer_costates
from replicate.models.answer import answer_pass, pull_back

PROMPTS = 256


def main() -> None:
    """Times them in alternation, prints the table, writes the file."""
    options = arguments(__doc__.splitlines()[0], "results/benchmarks/measurement.json")
    model, prompts = tiny_model(seed=options.seed), label_prompts(PROMPTS, seed=options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    cotangent = torch.randn(1, PROMPTS, model.config.hidden_size, generator=generator)

    def forward():
        with torch.no_grad():
            model(input_ids=prompts.tokens, logits_to_keep=1, use_cache=False)

    def final_layer():
        components(
            model,
            prompts.tokens,
            prompts.labels,
            layer=-1,
            generator=generator,
            vocab=prompts.vocab,
            batch=PROMPTS,
        )

    def one_pull_back(by_hand):
        pull_back(answer_pass(model, prompts.tokens, layer=0, by_hand=by_hand), cotangent)

    def all_layers():
        layer_costates(
            model, prompts.tokens, prompts.labels[:, None], torch.ones(PROMPTS), vocab=prompts.vocab
        )

    works = {
        "forward": forward,
        "final layer": final_layer,
        "one pull-back": lambda: one_pull_back(True),
        "all layers": all_layers,
        "autograd": lambda: one_pull_back(False),
    }
    repeats = 2 if options.quick else 5
    found = alternate(
        {name: lambda work=work: seconds(work, repeats) for name, work in works.items()},
        3 * options.rounds + 1,
    )
    found = {name: values[1:] for name, values in found.items()}  # the first round warms up
    table = (
        ("plain forward pass, no gradients", "forward", ""),
        ("impact.components at the final layer, 16 samples", "final layer", "2.3"),
        ("forward and one pull-back to the embeddings", "one pull-back", "2.3"),
        ("costates of all layers and positions (Def. 2)", "all layers", "2.3"),
        ("for comparison: one pull-back by autograd", "autograd", ""),
    )
    rows, numbers = [], {}
    for label, name, bar in table:
        time, ratio = spread(found[name]), spread(ratios(found[name], found["forward"]))
        quoted = "1" if name == "forward" else "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
        rows.append([label, f"{1000 * time['median']:.1f}", quoted, bar])
        numbers[name] = {"seconds": found[name], "time": time, "ratio": ratio}
    report(
        options.out,
        f"Cost of a costate measurement over {PROMPTS} prompts, in plain forward passes",
        ["work", "ms (median)", "forward passes: median (min to max)", "bar"],
        rows,
        {
            **conditions(options),
            "rounds": 3 * options.rounds,
            "prompts": PROMPTS,
            "repeats": repeats,
            "works": numbers,
        },
    )


if __name__ == "__main__":
    main()
