"""Expected updates over all groups: against samples, against closed forms, and the toy of lengths."""

from functools import partial

import pytest
import torch

from replicate.rl import grpo
from replicate.statistics.agreement import relative_error, worst_z_bound, z_test
from replicate.theory import enumerated

THETA = torch.tensor([-0.5, -0.8, -0.3], dtype=torch.float64)


def loss(logp, old, A, mask, **conventions):
    return grpo.surrogate_loss(logp, old, None, A, mask, **conventions)


def update(policy, theta, rewards, mask, group, *, baseline="mean", scale="none", **conventions):
    advantages = partial(grpo.group_advantages, baseline=baseline, scale=scale)
    options = {"group": group, "advantages": advantages, "loss": partial(loss, **conventions)}
    return enumerated.expected_update(policy, theta, rewards, mask, **options)


def test_all_groups_are_all_tuples():
    groups = enumerated.all_groups(3, 2)
    assert len({tuple(row.tolist()) for row in groups}) == 9
    assert enumerated.all_groups(4, 1).tolist() == [[0], [1], [2], [3]]


def test_the_policy_of_answers_and_stops_is_one():
    policy, mask, rewards = enumerated.answer_then_filler(4)
    p = policy(THETA).sum(1).exp()
    assert p.sum().item() == pytest.approx(1)
    assert (p @ rewards).item() == pytest.approx(torch.sigmoid(THETA[0]).item())
    assert mask.sum(1).tolist() == 2 * [2, 3, 4, 4]
    assert policy(THETA)[mask == 0].abs().max() == 0
    stop = torch.sigmoid(THETA[1])
    assert p[1].item() == pytest.approx((torch.sigmoid(THETA[0]) * (1 - stop) * stop).item())
    with pytest.raises(ValueError, match="longest: expected at least 2 tokens, got 1"):
        enumerated.answer_then_filler(1)


@pytest.mark.parametrize("length", ["sequence", "token", "constant"])
def test_enumeration_is_the_mean_of_samples(length):
    """4000 sampled groups of three, the trainer's loss differentiated group by group."""
    policy, mask, rewards = enumerated.answer_then_filler(3)
    exact = update(policy, THETA, rewards, mask, 3, scale="std", length=length, max_length=3)
    rng = torch.Generator().manual_seed(0)
    p = policy(THETA).sum(1).exp()
    groups = torch.multinomial(p.expand(4000, -1), 3, replacement=True, generator=rng)
    A, old = grpo.group_advantages(rewards[groups]), policy(THETA)

    def of_group(theta, members, A):
        return -loss(policy(theta)[members], old[members], A, mask[members], length=length, max_length=3)

    sampled = torch.func.vmap(torch.func.grad(of_group), (None, 0, 0))(THETA, groups, A)
    assert z_test(sampled, exact).worst < worst_z_bound(3)
    assert z_test(-sampled, exact).worst > 10


def test_leave_one_out_and_a_constant_length_give_grad_j():
    policy, mask, rewards = enumerated.answer_then_filler(3)
    rewards = rewards + 0.3 * mask.sum(1)  # so that J depends on lengths
    truth = enumerated.objective_gradient(policy, THETA, rewards)
    options = {"baseline": "leave_one_out", "length": "constant", "max_length": 3}
    assert relative_error(update(policy, THETA, rewards, mask, 2, **options), truth / 3) < 1e-12
    other = update(policy, THETA, rewards, mask, 2, **{**options, "length": "sequence"})
    assert relative_error(other, truth / 3) > 0.1


def test_the_gradient_of_one_token_is_the_policy_gradient_theorem():
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    pi = torch.softmax(logits, 0)
    exact = pi * (rewards - pi @ rewards)
    found = enumerated.objective_gradient(enumerated.one_token, logits, rewards)
    assert relative_error(found, exact) < 1e-12
