"""Compiled blocks compute what the others do, all blocks share a graph, and nothing is compiled unasked."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from replicate.models import compilation
from replicate.models.compilation import compile_blocks, uncompiled
from replicate.models.fresh import tiny_model
from replicate.rl.policies import SinglePolicy
from replicate.rl.rollout import sample

LAYERS, VOCAB = 4, 23


@pytest.fixture
def counter():
    """A backend that traces and runs what it is given, and counts graphs."""
    torch._dynamo.reset()
    compilation._made.cache_clear()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compilation._made.cache_clear()


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tiny_model(layers=LAYERS, vocab=VOCAB, attention="sdpa", generator=generator).float()


TOKENS = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(1))


WRITTEN_OUT = """
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from replicate.models.answer import answer_pass, pull_back
from replicate.models.compilation import compile_blocks, compiled
from replicate.models.fresh import tiny_model

torch.set_num_threads(1)
counter = CompileCounterWithBackend("aot_eager")
tokens = torch.randint(23, (3, 6), generator=torch.Generator().manual_seed(1))
costates = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
plain, fused = (tiny_model(layers=4, vocab=23, generator=torch.Generator().manual_seed(0)) for _ in range(2))
compile_blocks(fused, backend=counter)
expected, found = (pull_back(answer_pass(m.float(), tokens, layer=0), costates) for m in (plain, fused))
print(torch.equal(found, expected), counter.frame_count, compiled(torch.sin, plain) is torch.sin)
"""


def test_the_written_out_passes_agree_in_two_graphs_each():
    """One for a block in the middle and one for the last, whatever the depth; the same bits without fusion.

    In a process of its own: the tests' checks of shapes cannot be traced.
    """
    command = [sys.executable, "-c", WRITTEN_OUT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "4", "True"]


@pytest.mark.parametrize("horizon", [1, 3])
def test_rl_agrees_and_compiles_passes_without_a_cache_only(counter, horizon):
    """In one graph that all blocks share, from which gradients reach the float32 weights."""
    uniforms = torch.rand(1, 3, 4, horizon, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for compiling in (False, True):
        policy = SinglePolicy(model(), dtype=torch.bfloat16)
        if compiling:
            compile_blocks(policy.model, backend=counter)
        logp = sample(policy, TOKENS[None], uniforms, vocab=VOCAB).logp
        logp.sum().backward()
        found.append((logp.detach(), *(p.grad for p in policy.parameters())))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert counter.frame_count == (1 if horizon == 1 else 0)


def test_only_a_compiled_model_can_be_told_to_run_as_it_is_written(counter):
    fused = model()
    compile_blocks(fused, backend=counter)
    with uncompiled(model()), uncompiled(fused), torch.no_grad():
        fused(input_ids=TOKENS, use_cache=False)
    assert counter.frame_count == 0
    with torch.no_grad():
        fused(input_ids=TOKENS, use_cache=False)
    assert counter.frame_count == 1
