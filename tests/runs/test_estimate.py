"""Estimates of memory and work: from the configuration alone, against counted parameters and a measured peak."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from replicate.ladder import open_ladder
from replicate.runs import estimate
from replicate.runs.estimate import PLANS, Size

TINY = Size(
    parameters=10**5,
    ends=2 * 269 * 64,
    layers=2,
    hidden=64,
    inner=128,
    heads=4,
    rows=269,
    vocab=269,
    length=10,
)
MIDDLING = Size(
    parameters=190 * 10**6, ends=2 * 50304 * 768, layers=12, hidden=768, inner=3072, heads=12, rows=50304, vocab=717,
    length=10,
)  # fmt: skip
OLMO2_1B = Size(
    parameters=1_484_916_736, ends=2 * 100352 * 2048, layers=16, hidden=2048, inner=8192, heads=16, rows=100352,
    vocab=100278, length=10,
)  # fmt: skip


@pytest.mark.parametrize(("family", "ends"), [("olmo2", 2), ("llama", 2), ("gpt2", 1)])
def test_the_size_is_that_of_the_model_without_its_weights(tmp_path, snapshots_of, family, ends):
    folder = snapshots_of(tmp_path, family, steps=(3,), layers=2, hidden=32, heads=2)
    (checkpoint,) = open_ladder(folder)
    counted = sum(p.numel() for p in checkpoint.model().parameters())
    next(checkpoint.where.glob("*.safetensors")).unlink()
    size = estimate.size_of(checkpoint, vocab=269, length=10)
    assert size.parameters == counted
    assert (size.layers, size.hidden, size.heads, size.rows, size.ends) == (2, 32, 2, 269, ends * 269 * 32)
    (checkpoint.where / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"LADDER: .*{checkpoint.name} has no usable configuration"):
        estimate.size_of(checkpoint, vocab=269, length=10)


# What the cells do, at a width where the peak stands out, each preceded by a small run that loads what it needs.
MEASURED = """
import sys, torch
from replicate.lm import costate, logit_path, pathways, recurrence, token_path
from replicate.models.fresh import tiny_model

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)

def work(notebook, model, tokens):
    if notebook == "05":
        costate.layer_influence(model, tokens)
    elif notebook == "07":
        pathways.term_sizes(model, tokens[None])
        pathways.sublayer_ranks(model, tokens[:4])
    else:
        F, s = recurrence.transformer(model), recurrence.prompt_state(model, tokens[None])
        found = token_path.paths(F, s)
        found.attention_norm, found.token_norm
        token = found.soft[None], F.embeddings[:1]
        logit_path.logit_paths(F, s, *token)
        logit_path.from_prompt(model, F, tokens[None], *([x] for x in token), [1.0])

def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024

tokens = torch.randint(20, (10,), generator=g)
for notebook, hidden in (("05", 128), ("06", 320), ("07", 256)):
    work(notebook, tiny_model(hidden=16, vocab=20, generator=g), tokens)
    model = tiny_model(layers=3, hidden=hidden, heads=4, vocab=20, generator=g)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    work(notebook, model, tokens)
    print(notebook, hidden, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read off /proc")
def test_the_estimate_is_above_a_measured_peak_and_not_far_above():
    ran = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        notebook, hidden, measured = line.split()[0], *map(int, line.split()[1:])
        size = Size(
            parameters=0,
            ends=0,
            layers=3,
            hidden=hidden,
            inner=2 * hidden,
            heads=4,
            rows=20,
            vocab=20,
            length=10,
        )
        plan = replace(PLANS[notebook][0], prompts=1, group=1)
        work = estimate.memory(notebook, size, plan, rungs=1) - estimate.memory(
            notebook, replace(size, layers=1, hidden=2, inner=2), plan, rungs=1
        )
        assert measured < work < 6 * measured, line


@pytest.mark.parametrize("notebook", PLANS)
def test_the_tiny_ladder_is_measured_whole_and_larger_models_on_less(notebook):
    whole, *less = PLANS[notebook]
    assert estimate.plan_for(notebook, TINY, rungs=3, gigabytes=0.0) == whole
    cpu = replace(TINY, layers=3, parameters=3 * 10**5)
    assert estimate.plan_for(notebook, cpu, rungs=3, gigabytes=8.0) == whole
    assert estimate.plan_for(notebook, MIDDLING, rungs=3, gigabytes=24.0) in less
    costs = [
        (f(notebook, MIDDLING, plan, rungs=3))
        for f in (estimate.memory, estimate.minutes)
        for plan in PLANS[notebook]
    ]
    assert costs[:3] == sorted(costs[:3], reverse=True)
    assert costs[3:] == sorted(costs[3:], reverse=True)
    assert estimate.minutes(notebook, MIDDLING, less[-1], rungs=3) < 10


@pytest.mark.parametrize("notebook", PLANS)
def test_beyond_memory_a_model_is_refused_with_the_estimate_and_a_remedy(notebook):
    expected = rf"^LADDER: 3 rung\(s\) of 1485 M .* about \d\d\.\d GB in notebook {notebook}, expected at most 8\.0 GB"
    with pytest.raises(ValueError, match=expected + ".*name one step in RUNGS"):
        estimate.plan_for(notebook, OLMO2_1B, rungs=3, gigabytes=8.0)
    with pytest.raises(ValueError, match=r"1 rung\(s\)") as error:
        estimate.plan_for(notebook, OLMO2_1B, rungs=1, gigabytes=8.0)
    assert "RUNGS" not in str(error.value)
    assert "\n" not in str(error.value)
    assert estimate.plan_for(notebook, OLMO2_1B, rungs=1, gigabytes=1000.0) == PLANS[notebook][-1]


def test_the_limit_is_what_is_asked_for_or_most_of_the_machine():
    assert estimate.limit(2.5) == 2.5e9
    assert 0.2e9 < estimate.limit(0.0) < 1e13


@pytest.mark.parametrize(
    ("layers", "depth", "blocks"),
    [
        (None, 3, [1, 2, 3]),
        (4, 3, [1, 2, 3]),
        (2, 12, [1, 12]),
        (4, 12, [1, 5, 8, 12]),
        (1, 12, [12]),
        (1, 1, [1]),
    ],
)
def test_blocks_are_spread_over_the_depth_with_the_last_among_them(layers, depth, blocks):
    found = estimate.Plan(prompts=1, layers=layers).blocks(depth)
    assert found[-1] == depth
    assert found == blocks or (layers == 1 and set(found) <= {1, depth})
