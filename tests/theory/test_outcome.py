"""Outcome-only tasks: nothing before the end, closed forms against sampled returns."""

import pytest
import torch

from replicate.statistics.agreement import relative_error
from replicate.theory.gaussian_forms import hermite
from replicate.theory.outcome import OutcomeLQG, OutcomeOnly
from replicate.theory.rollout import double_integrator, rollout, sampled_return
from replicate.theory.toys import Pendulum

CART = double_integrator(noise_std=0.6)
STARTS = torch.tensor([[1.5, -1.0], [0.2, 0.4]], dtype=torch.float64)


def test_the_closed_form_value_is_the_mean_return():
    task, (nodes, weights) = OutcomeLQG(CART), hermite(3, 3)
    for s in STARTS:
        R = sampled_return(task, s.expand(len(nodes), 2), nodes.unsqueeze(-1), gamma=0.9)
        assert (weights @ R).item() == pytest.approx(task.value(s, 0, horizon=3, gamma=0.9).item(), rel=1e-12)


def test_only_the_end_pays():
    noise = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    swing = Pendulum(generator=torch.Generator().manual_seed(1))
    for task in (OutcomeLQG(CART), OutcomeOnly(swing, scale=20)):
        path = rollout(task, STARTS, noise)
        assert path.rewards.abs().max() == 0
        assert (path.terminal < 0).all()
    same = rollout(swing, STARTS, noise)
    assert torch.equal(same.states, path.states)
    end = 20 * swing.reward(same.states[:, -1], torch.zeros(2, 1, dtype=torch.float64))
    assert torch.equal(path.terminal, end)


def test_both_ways_to_take_rewards_away_agree():
    noise = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (sampled_return(t, STARTS, noise, gamma=0.9) for t in (OutcomeLQG(CART), OutcomeOnly(CART)))
    assert relative_error(one, other) < 1e-12


def test_a_negative_horizon_is_refused():
    with pytest.raises(ValueError, match="horizon: expected a number >= 0, got -1"):
        OutcomeLQG(CART).cost_matrices(horizon=-1, gamma=1)
