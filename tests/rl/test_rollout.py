"""Rollouts by passes that are written out, against those of any policy."""

import pytest
import torch

from replicate.models import olmo2_lanes
from replicate.models.fresh import tiny_model
from replicate.rl import rollout
from replicate.rl.policies import SinglePolicy, StackedPolicy
from replicate.rl.rollout import log_probs_of, sample

V, LANES, P, L, G = 23, 2, 3, 5, 4


def policy_of(lanes):
    """A stack whose lanes differ, or one model."""
    model = tiny_model("olmo2", layers=2, vocab=V, generator=torch.Generator().manual_seed(0))
    if lanes == 1:
        return SinglePolicy(model)
    policy = StackedPolicy(model, lanes)
    with torch.no_grad():
        noise = torch.randn(
            policy.flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        policy.flat += 0.1 * noise
    return policy


def given(lanes, horizon):
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(V, (lanes, P, L), generator=generator)
    return prompts, torch.rand(lanes, P, G, horizon, generator=generator, dtype=torch.float64)


def by_any(policy, work):
    policy.written_out = False
    try:
        return work()
    finally:
        policy.written_out = True


@pytest.mark.parametrize("lanes", [1, LANES])
def test_both_ways_draw_the_same_tokens_with_the_same_gradients(lanes, monkeypatch):
    policy, (prompts, uniforms) = policy_of(lanes), given(lanes, 4)

    def both():
        found = sample(policy, prompts, uniforms, vocab=V)
        scored = log_probs_of(policy, prompts, found.tokens, vocab=V)
        grads = torch.autograd.grad((found.logp * uniforms + scored).sum(), policy.parameters())
        return found.tokens, found.logp, found.entropy, scored, torch.cat([g.flatten() for g in grads])

    expected = by_any(policy, both)
    monkeypatch.setattr(type(policy), "logits", lambda *_, **__: pytest.fail("the other way"))
    found = both()
    assert torch.equal(found[0], expected[0])
    # The library takes norms and softmax in float32.
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[1:], expected[1:], strict=True))
    assert torch.allclose(found[1], found[3], atol=1e-12)


def test_one_token_goes_through_the_policy(monkeypatch):
    """Its bits are older than the other passes."""
    monkeypatch.setattr(olmo2_lanes, "prompt_pass", lambda *_: pytest.fail("written out"))
    policy, (prompts, uniforms) = policy_of(LANES), given(LANES, 1)
    tokens = sample(policy, prompts, uniforms, vocab=V).tokens
    log_probs_of(policy, prompts, tokens, vocab=V)


@pytest.mark.parametrize("widest", [1, 2, 6, 100])
def test_a_large_group_stands_in_several_rows_of_any_policy(monkeypatch, widest):
    """However its completions are spread over rows they are the same, and so are their log-probabilities."""
    policy, (prompts, uniforms) = policy_of(1), given(1, 3)
    expected = sample(policy, prompts, uniforms, vocab=V)
    monkeypatch.setattr(rollout, "WIDEST", widest)
    found = by_any(policy, lambda: sample(policy, prompts, uniforms, vocab=V))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.allclose(found.logp, expected.logp, atol=1e-5)


@pytest.mark.parametrize("lanes", [1, LANES])
def test_weights_that_the_optimiser_moved_are_read(lanes):
    """Nothing of the weights is kept from one rollout to the next."""
    policy, (prompts, uniforms) = policy_of(lanes), given(lanes, 3)
    before = sample(policy, prompts, uniforms, vocab=V).logp
    with torch.no_grad():
        for weight in policy.parameters():
            weight *= 1.1
    assert not torch.allclose(sample(policy, prompts, uniforms, vocab=V).logp, before, atol=1e-6)
