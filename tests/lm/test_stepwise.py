"""A4 at every step: mean costates from scores against differences of the value, prefix by prefix."""

import pytest
import torch

from replicate.lm import enumeration, recurrence, stepwise
from replicate.models.fresh import tiny_model

V, T, GAMMA = 3, 3, 0.7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rewards():
    every = enumeration.all_completions(V, T)
    r = enumeration.token_rewards(every, vocab=V, generator=seeded(1))
    return every, r, enumeration.returns_to_go(r, gamma=GAMMA)


@pytest.mark.parametrize("family", ["olmo2", "llama", "gpt2"])
def test_mean_costates_are_value_gradients_after_every_prefix(family, rewards):
    every, r, G = rewards
    g = seeded()
    model, prompt = tiny_model(family, vocab=V, generator=g), torch.randint(V, (1, 3), generator=g)
    options = {"gamma": GAMMA, "vocab": V, "generator": g}
    for log_probs, s in stepwise.continuous_states(model, prompt, every).values():
        found = stepwise.at_state(log_probs, s, G, **options)
        assert [len(x) for x in found.g] == [1, 3, 9]
        assert found.worst < 1e-7
        assert [float(p.sum()) for p in found.probabilities] == pytest.approx([1, 1, 1])
        exact = enumeration.value_gradient(log_probs, s, G[:, 0])
        torch.testing.assert_close(found.g[0][0], exact, rtol=1e-9, atol=1e-11)
        assert found.strengths[0] == pytest.approx(float(exact.square().sum()))
        assert stepwise.at_state(log_probs, s, r, **options).worst > 1e-3  # planted: own rewards as returns


def test_values_average_to_each_other(rewards):
    every, r, G = rewards
    F = recurrence.gru(vocab=V, hidden=4, generator=seeded())
    logp = recurrence.log_probs_of(F, every)(torch.zeros(27, 4).double())
    values = stepwise.values_along(logp, G, vocab=V)
    chances = stepwise.prefix_probabilities(logp, vocab=V)
    own = (logp.sum(1).exp() * r[:, 0]).sum()
    assert float(values[0][0]) == pytest.approx(float(own + GAMMA * chances[1] @ values[1]))


def test_the_final_states_costate_is_unbiased_with_returns_and_not_with_own_rewards(rewards):
    every, r, G = rewards
    g = seeded()
    model = tiny_model("olmo2", vocab=V, generator=g)
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, torch.tensor([[0, 1]]))
    found = stepwise.at_final(F, s, every, G, weights=G, vocab=V, generator=g)
    assert [tuple(x.shape) for x in found.g] == [(1, 16), (3, 16), (9, 16)]
    assert found.worst < 1e-7
    assert stepwise.at_final(F, s, every, G, weights=r, vocab=V, generator=g).worst > 1e-3
