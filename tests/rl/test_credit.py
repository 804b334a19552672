"""Which rewards a token is credited with: against double sums, and against the gradient of J by enumeration."""

import dataclasses
import functools
import itertools

import pytest
import torch

from replicate.models.precision import full_precision
from replicate.rl import credit
from replicate.rl.batch import Actor, Asked
from replicate.rl.critic import Critic
from replicate.rl.grpo import group_advantages, surrogate_loss
from replicate.rl.methods import shift
from replicate.settings.grpo import GRPO
from short_answers import (
    COMPLETIONS,
    TOKENS,
    T,
    asked,
    exact_values,
    flat_gradient,
    log_probs,
    rewards,
    seeded,
    stacked,
)

EXACT = 1e-10
WEIGHTS = (0.0, 0.5, 0.95, 1.0)
PLAIN = {"baseline": "leave_one_out", "scale": "none"}


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


class Given(Critic):
    """A critic that says what it was told to say."""

    def __init__(self, values):
        self.given = values

    def values(self, prompts, tokens):
        return self.given


@functools.cache
def anyone():
    """A policy where it does not matter which."""
    return stacked()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def assigned(rewards, values=None, **config):
    """The credit of rewards [lanes, prompts, group, T] under the given conventions."""
    tokens = torch.zeros(rewards.shape, dtype=torch.long)
    prompts = torch.zeros(*rewards.shape[:2], 4, dtype=torch.long)
    about = Asked(prompts, prompts[..., 0], 3, rewards.shape[3], lambda tokens, labels: None)
    actor = Actor(anyone(), anyone(), None if values is None else Given(values))
    return credit.assign(actor, about, tokens, rewards, GRPO(**config))


def double_sum(rewards, values, weight):
    """A_t = sum_k weight^k (r_{t+k} + v_{t+k+1} - v_{t+k}), term by term."""
    found = torch.zeros_like(rewards)
    horizon = rewards.shape[-1]
    for t in range(horizon):
        for k in range(horizon - t):
            ahead = values[..., t + k + 1] if t + k + 1 < horizon else 0.0
            found[..., t] += weight**k * (rewards[..., t + k] + ahead - values[..., t + k])
    return found


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_gae_is_the_double_sum(weight, horizon):
    """Rewards are multiplied by ``reward_scale`` first; the targets are A + v; a decay that is 1% off is seen."""
    r, v = drawn(2, 3, 4, horizon), drawn(2, 3, 4, horizon, seed=1)
    found = assigned(r, v, credit="gae", gae_weight=weight, scale="none", reward_scale=2.0)
    expected = double_sum(2.0 * r, v, weight)
    assert torch.allclose(found.advantages, expected.flatten(1, 2), atol=1e-12)
    assert torch.allclose(found.lesson.targets, expected + v, atol=1e-12)
    assert torch.equal(found.lesson.values, v)
    if horizon > 2:
        other = double_sum(2.0 * r, v, weight - 0.01)
        assert (other - expected).abs().max() > 1e-3


def test_the_two_ends_of_gae():
    """Weight 1: what is still to come less the value. Weight 0: the surprise of one step."""
    r, v = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    to_come = torch.stack([r[..., t:].sum(-1) for t in range(5)], -1)
    assert torch.allclose(credit.gae(r, v, 1.0), to_come - v, atol=1e-12)
    step = r - v
    step[..., :-1] += v[..., 1:]
    assert torch.allclose(credit.gae(r, v, 0.0), step, atol=1e-12)
    assert torch.allclose(credit.gae(r, v, 0.0)[..., -1], (r - v)[..., -1], atol=1e-12)


def test_a_lanes_advantages_are_whitened_over_all_its_tokens():
    """By numpy's mean and standard deviation (ddof 1), lane by lane; the targets are those of before."""
    r, v = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    found = assigned(r, v, credit="gae", scale="std")
    raw = double_sum(r, v, GRPO().gae_weight)
    for lane, advantages in zip(raw.flatten(1, 2).numpy(), found.advantages.numpy(), strict=True):
        assert advantages == pytest.approx((lane - lane.mean()) / lane.std(ddof=1), abs=1e-7)
    assert torch.allclose(found.lesson.targets, raw + v, atol=1e-12)
    company = assigned(r[[1, 0, 1]], v[[1, 0, 1]], credit="gae", scale="std")
    assert torch.equal(company.advantages[0], found.advantages[1])


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_equal_advantages_are_zeros_after_whitening(value):
    """Rounding is not blown up to the size of an advantage."""
    equal = torch.full((2, 12, 1), value)
    assert credit.whitened(equal).abs().max() == 0


def test_outcome_gives_every_token_that_of_the_whole():
    """To the bit the advantages of GRPO in groups of whole completions."""
    r = drawn(2, 3, 4, 5)
    found = assigned(r, credit="outcome").advantages
    expected = group_advantages(r.sum(-1).flatten(0, 1)).view(2, 12)
    assert all(torch.equal(found[..., t], expected) for t in range(5))


@pytest.mark.parametrize("convention", [{}, PLAIN, {"scale": "none"}])
def test_to_go_compares_what_is_still_to_come_at_the_same_token(convention):
    """Token by token by hand; what came before counts for nothing, so the first token's is that of the outcome."""
    r = drawn(2, 3, 4, 5)
    found = assigned(r, credit="to_go", **convention).advantages.view(2, 3, 4, 5)
    for lane, prompt, t in itertools.product(range(2), range(3), range(5)):
        expected = group_advantages(r[lane, prompt, :, t:].sum(-1)[None], **convention)[0]
        assert torch.allclose(found[lane, prompt, :, t], expected, atol=1e-12)
    whole = assigned(r, credit="outcome", **convention).advantages.view(2, 3, 4, 5)
    assert torch.allclose(found[..., 0], whole[..., 0], atol=1e-12)
    assert not torch.allclose(found[..., 1], whole[..., 1], atol=1e-2)


def test_one_reward_at_the_end_is_still_to_come_at_every_token():
    """Then "to_go" is "outcome"; with a reward at another token it is not."""
    r = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    r[..., -1] = drawn(1, 3, 4)
    both = [assigned(r, credit=name).advantages for name in ("outcome", "to_go")]
    assert torch.allclose(*both, atol=1e-12)
    r[..., 2] = drawn(1, 3, 4, seed=1)
    both = [assigned(r, credit=name).advantages for name in ("outcome", "to_go")]
    assert not torch.allclose(*both, atol=1e-2)


def enumerated(policy):
    """Probabilities, exact values and grad J of a policy, the last by differentiating sum_o P(o) R(o) itself."""
    logp, r = log_probs(policy), rewards()[0, 0]
    probs = logp.sum(1).exp()
    gradient = flat_gradient((probs * r.sum(1)).sum(), policy)
    probs = probs.detach()
    assert probs.sum() == pytest.approx(1)
    assert probs.max() > 0.2  # far from 1/27
    return probs, exact_values(probs, r), gradient


def expected_gradient(policy, probs, values, weight):
    """E_pi of minus the surrogate's gradient for one completion under GAE, over all completions."""
    actor = Actor(policy, policy, Given(values[None, None]))
    config = GRPO(credit="gae", gae_weight=weight, scale="none")
    advantages = credit.assign(actor, asked(), TOKENS, rewards(), config).advantages[0]
    logp = log_probs(policy)
    mask = torch.ones(1, T, dtype=torch.bool)
    each = [
        surrogate_loss(
            logp[i : i + 1], logp[i : i + 1], None, advantages[i : i + 1], mask, length="constant", max_length=1
        )
        for i in range(len(logp))
    ]  # fmt: skip
    return flat_gradient(-(probs * torch.stack(each)).sum(), policy)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_with_the_exact_values_gae_is_unbiased_at_every_weight(weight):
    """And with values that are off only at weight 1, where a value is a baseline and nothing else."""
    policy = stacked()
    probs, values, gradient = enumerated(policy)
    assert relative(expected_gradient(policy, probs, values, weight), gradient) < EXACT
    before = COMPLETIONS.cumsum(1) - COMPLETIONS  # of o_<t alone, as a baseline must be
    off = expected_gradient(policy, probs, values + before, weight)
    assert (relative(off, gradient) < EXACT) == (weight == 1.0)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_value_that_knows_the_token_it_stands_before_is_biased(weight):
    """The control: v_{t+1} in the place of v_t."""
    policy = stacked()
    probs, values, gradient = enumerated(policy)
    shifted = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    assert relative(expected_gradient(policy, probs, shifted, weight), gradient) > 1e-2


def over_pairs(policy, probs, rewards, config):
    """E of the gradient of 1/2 sum_i sum_t A_it log pi(o_it) over all pairs of completions, drawn independently."""
    members = torch.cartesian_prod(torch.arange(len(probs)), torch.arange(len(probs)))
    actor = Actor(policy, policy)
    found = credit.assign(actor, asked(), None, rewards[0, 0][members][None], config).advantages[0]
    share = probs[members].prod(1).repeat_interleave(2)[:, None] * found / 2
    by_completion = torch.zeros(len(probs), T, dtype=torch.float64).index_add_(0, members.flatten(), share)
    return flat_gradient((by_completion * log_probs(policy)).sum(), policy)


@pytest.mark.parametrize("name", ["outcome", "to_go"])
def test_against_the_other_of_a_pair_the_gradient_is_unbiased(name):
    """Leave-one-out over all 27^2 pairs is grad J; the mean of the pair takes off 1/G, here half of it."""
    policy = stacked()
    probs, _, gradient = enumerated(policy)
    apart = over_pairs(policy, probs, rewards(), GRPO(credit=name, **PLAIN))
    assert relative(apart, gradient) < EXACT
    own = over_pairs(policy, probs, rewards(), GRPO(credit=name, baseline="mean", scale="none"))
    assert relative(2 * own, gradient) < EXACT


def test_credit_for_what_has_been_is_biased(monkeypatch):
    """The control: the sum of the rewards up to a token in the place of those from it on."""
    monkeypatch.setattr(credit, "to_go", lambda r: r.cumsum(-1))
    policy = stacked()
    probs, _, gradient = enumerated(policy)
    assert relative(over_pairs(policy, probs, rewards(), GRPO(credit="to_go", **PLAIN)), gradient) > 1e-2


def test_whitening_is_another_gradient_only_by_a_baseline_and_a_scale():
    """Weight 1, one batch: A / std - mean / std, so what is added is the same for every token."""
    r, v = drawn(1, 1, 6, 4), drawn(1, 1, 6, 4, seed=1)
    raw = assigned(r, v, credit="gae", scale="none").advantages
    white = assigned(r, v, credit="gae", scale="std").advantages
    rest = white - raw / raw.std()
    assert (rest - rest.mean()).abs().max() < 1e-6


def test_gae_without_a_critic_or_without_tokens_is_refused():
    with pytest.raises(ValueError, match="got no critic"):
        assigned(drawn(1, 2, 3, 2), credit="gae")
    with pytest.raises(ValueError, match="got no sampled tokens"):
        credit.assign(
            Actor(anyone(), anyone(), Given(None)), asked(), None, drawn(1, 1, 3, 2), GRPO(credit="gae")
        )


def test_a_method_of_continuous_actions_refuses_a_critic():
    one = dataclasses.replace(asked(), horizon=1)
    actor = Actor(anyone(), anyone(), Given(None))
    with pytest.raises(ValueError, match="no critic"):
        shift.draw(actor, one, GRPO(method="shift", credit="gae"), [seeded()])
