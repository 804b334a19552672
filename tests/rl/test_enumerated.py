"""Exact values and gradients of a model whose answers are all run through, by other routes."""

import itertools

import pytest
import torch

from replicate.models.precision import full_precision
from replicate.rl import enumerated
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import each_right
from replicate.rl.rollout import log_probs_of


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


@pytest.fixture(scope="module")
def asked():
    return enumerated.answers(vocab=3, horizon=3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def rewards(asked):
    return each_right(asked.tokens, asked.labels).double()


def test_probabilities_are_those_of_the_trainers_passes_and_add_up(asked):
    found = enumerated.probabilities(asked)
    assert found.sum(1).tolist() == pytest.approx([1, 1])
    assert found.max() > 0.15  # far from 1/27
    with torch.no_grad():
        trained = log_probs_of(SinglePolicy(asked.model), asked.prompts[None], asked.tokens[None], vocab=3)[0]
    assert torch.allclose(enumerated.log_probs(asked), trained, atol=1e-12)


def test_right_tokens_multiply_to_the_right_answers_probability(asked):
    chance, found = enumerated.probabilities(asked), enumerated.right_tokens(asked)
    for p in range(2):
        (at,) = (asked.tokens[p] == asked.labels[p]).all(1).nonzero()[:, 0].tolist()
        assert found[p].prod() == pytest.approx(chance[p, at].item())


def test_values_are_conditional_means(asked, rewards):
    """By a loop over prefixes; before the first token it is J, and without the condition it is not."""
    chance = enumerated.probabilities(asked)
    found = enumerated.values(asked, chance, rewards)
    for p, n, t in itertools.product(range(2), (0, 5, 13, 26), range(3)):
        same = [i for i in range(27) if asked.tokens[p, i, :t].tolist() == asked.tokens[p, n, :t].tolist()]
        weight = chance[p, same]
        expected = (weight @ rewards[p, same, t:].sum(1)) / weight.sum()
        assert found[p, n, t].item() == pytest.approx(expected.item(), abs=1e-12)
    assert (found[:, :, 2].std(1) > 1e-3).all()


def test_slopes_are_those_of_finite_differences(asked, rewards):
    """Of V along a random direction of the embeddings, and of J along one of the parameters."""
    R = rewards.sum(-1)
    embedded = asked.model.get_input_embeddings()(asked.prompts).detach()
    along = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ends = [
            (enumerated.log_probs(asked, embedded + h * along).sum(-1).exp() * R).sum() for h in (1e-6, -1e-6)
        ]
    slope = (enumerated.value_slopes(asked, R) * along).sum()
    assert slope.item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, rel=1e-6)

    weights = list(asked.model.parameters())
    along = torch.randn(sum(w.numel() for w in weights), generator=torch.Generator().manual_seed(2)).double()
    start, ends = torch.nn.utils.parameters_to_vector(weights).detach().clone(), []
    for h in (1e-6, -1e-6):
        torch.nn.utils.vector_to_parameters(start + h * along, weights)
        ends.append((enumerated.probabilities(asked) * R).sum(1).mean())
    torch.nn.utils.vector_to_parameters(start, weights)
    slope = enumerated.objective_slope(asked, rewards) @ along
    assert slope.item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, rel=1e-6)


def test_the_whole_reward_sends_the_gradient_and_a_token_late_it_does_not(asked, rewards):
    chance, exact = enumerated.probabilities(asked), enumerated.objective_slope(asked, rewards)
    whole = rewards.sum(-1, keepdim=True).expand_as(rewards)
    assert (enumerated.surrogate_slope(asked, chance, whole) - exact).norm() < 1e-12
    late = enumerated.surrogate_slope(asked, chance, rewards.roll(1, -1))
    assert (late - exact).norm() > 1e-2 * exact.norm()
