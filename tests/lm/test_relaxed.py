"""Relaxed rollouts: their costates, their rewards, and the estimators built from them."""

import pytest
import torch

from replicate.lm import enumeration, recurrence, relaxed, token_path
from replicate.models.fresh import tiny_model

V, T = 4, 3
EXACT = 1e-10
FAMILIES = ("olmo2", "llama", "gpt2")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(family: str = "olmo2", seed: int = 0):
    g = seeded(seed)
    model = tiny_model(family, vocab=V, generator=g)
    R = torch.randn(V**T, generator=g, dtype=torch.float64)
    s = recurrence.prompt_state(model, torch.randint(V, (1, 3), generator=g))
    return recurrence.transformer(model), s, R, relaxed.multilinear(R, vocab=V, horizon=T)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_costates_against_finite_differences(family, noisy):
    F, s, _, reward = fresh(family)
    how = {"horizon": T, "scale": torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)}
    if noisy:
        how |= {"noise": relaxed.gumbel(1, T, V, generator=seeded(1)), "tau": 0.7}
    lam = relaxed.relaxed_costates(F, s, reward, **how)[0]
    u = torch.randn(s.shape, generator=seeded(2), dtype=torch.float64)
    f = [relaxed.relaxed_value(F, s + h * u, reward, **how) for h in (2e-4, -2e-4, 4e-4, -4e-4)]
    slope = (8 * (f[0] - f[1]) - (f[2] - f[3])) / 24e-4
    assert abs((lam * u).sum() - slope).item() < 1e-8
    cut = relaxed.relaxed_costates(F, s, reward, cut=True, **how)[0]
    assert abs((cut * u).sum() - slope).item() > 1e-4  # without the token path it is another derivative


@pytest.mark.parametrize("family", FAMILIES)
def test_error_of_the_cut_costate_obeys_its_recursion(family):
    F, s, _, reward = fresh(family)
    full = relaxed.relaxed_costates(F, s, reward, horizon=T)
    cut = relaxed.relaxed_costates(F, s, reward, horizon=T, cut=True)
    states = relaxed.relaxed_rollout(F, s, horizon=T).states
    for t in range(T - 1):
        p = token_path.paths(F, states[t])
        later, lam = (cut[t + 1] - full[t + 1])[0], full[t + 1][0]
        back = p.attention.T @ later[p.kept :] - p.token.T @ lam[p.kept :]
        back[: p.kept] += later[: p.kept]
        assert ((cut[t] - full[t])[0] - back).abs().max() < EXACT
        assert (
            (cut[t] - full[t])[0] - (back + 2 * p.token.T @ lam[p.kept :])
        ).abs().max() > 1e-5  # sign flipped


def test_multilinear_rewards_on_hard_and_soft_tokens():
    R = torch.arange(V**T, dtype=torch.float64)
    every = enumeration.all_completions(V, T)
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    hard = torch.nn.functional.one_hot(every, V).double()
    assert (reward(hard) - R).abs().max() == 0
    soft = torch.randn(5, T, V, generator=seeded(), dtype=torch.float64).softmax(-1)
    brute = (torch.stack([soft[:, t][:, every[:, t]] for t in range(T)]).prod(0) * R).sum(1)
    assert (reward(soft) - brute).abs().max() < EXACT
    with pytest.raises(ValueError, match=r"returns: expected 4\^3 of them, got 5"):
        relaxed.multilinear(R[:5], vocab=V, horizon=T)


def test_a_certain_policy_relaxes_to_its_discrete_rollout():
    F, s, R, reward = fresh()
    scale = torch.full((T,), 1e5, dtype=torch.float64)
    run = relaxed.relaxed_rollout(F, s, horizon=T, scale=scale)
    tokens = run.soft.argmax(-1)
    index = (tokens[0] * V ** torch.arange(T - 1, -1, -1)).sum()
    assert abs(reward(run.soft) - R[index]) < EXACT
    assert run.entropy.max() < EXACT


def test_straight_through_feeds_one_token_and_differentiates_the_soft_one():
    logits = torch.randn(3, V, generator=seeded(), dtype=torch.float64).requires_grad_()
    hard = relaxed.soft_token(logits, 0.5, None, True)
    assert (hard.detach().sort(-1).values[:, :-1].abs() < 1e-15).all()
    w = torch.randn(3, V, generator=seeded(1), dtype=torch.float64)
    a = torch.autograd.grad((hard * w).sum(), logits, retain_graph=True)[0]
    b = torch.autograd.grad((relaxed.soft_token(logits, 0.5, None, False) * w).sum(), logits)[0]
    assert (a - b).abs().max() < EXACT


def test_gumbel_tokens_follow_the_policy():
    pi = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    n = 40_000
    soft = relaxed.soft_token(pi.log() + relaxed.gumbel(n, V, generator=seeded(3)), 0.1, None, True)
    counts = soft.sum(0)
    z = (counts - n * pi) / (n * pi * (1 - pi)).sqrt()
    assert z.abs().max() < 4
    wrong = relaxed.soft_token(
        pi.log() + torch.randn(n, V, generator=seeded(3), dtype=torch.float64), 0.1, None, True
    )
    assert ((wrong.sum(0) - n * pi) / (n * pi * (1 - pi)).sqrt()).abs().max() > 4  # Gaussian noise does not


def bumped(F, s, bump, *, scale=(1.0,) * T, tau=1.0, noise=None, straight_through=False, cut=False):
    """The soft tokens of a rollout with ``bump`` [1, T, V] added to each, in value and in what is fed back."""
    tokens = []
    for t in range(T):
        z = F.logits(s) * scale[t] + (0.0 if noise is None else noise[:, t])
        p = (z / tau).softmax(-1)
        if straight_through:
            p = torch.nn.functional.one_hot(p.argmax(-1), V) + p - p.detach()
        tokens.append(p + bump[:, t])
        s = F.advance(s, (p if cut else tokens[-1]) @ F.embeddings)
    return torch.stack(tokens, 1)


SLOPE_OPTIONS = {
    "none": {},
    "scale": {"scale": torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)},
    "tau": {"tau": 0.4},
    "noise": {"noise": relaxed.gumbel(1, T, V, generator=seeded(7)), "tau": 0.7},
}


@pytest.mark.parametrize("name", SLOPE_OPTIONS)
def test_token_slopes_against_finite_differences(name):
    """Every option is that of the rollout around which the slopes are taken."""
    F, s, _, reward = fresh()
    how = SLOPE_OPTIONS[name]
    slopes = relaxed.token_slopes(F, s, reward, horizon=T, **how)
    bump = torch.randn(1, T, V, generator=seeded(2), dtype=torch.float64)
    f = [reward(bumped(F, s, h * bump, **how)) for h in (1e-5, -1e-5, 2e-5, -2e-5)]
    slope = (8 * (f[0] - f[1]) - (f[2] - f[3])) / 12e-5
    assert abs(slope.item() - (slopes * bump[0]).sum().item()) < 1e-8
    if how:
        assert (slopes - relaxed.token_slopes(F, s, reward, horizon=T)).abs().max() > 1e-3


def test_token_slopes_of_a_cut_rollout_are_those_of_the_reward_alone():
    F, s, _, reward = fresh()
    slopes = relaxed.token_slopes(F, s, reward, horizon=T, cut=True)
    soft = relaxed.relaxed_rollout(F, s, horizon=T).soft.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(reward(soft).sum(), soft)
    assert (slopes - wanted[0]).abs().max() < EXACT
    assert (slopes - relaxed.token_slopes(F, s, reward, horizon=T)).abs().max() > 1e-3


def test_token_slopes_straight_through_go_through_the_soft_token():
    """A token that is fed as one-hot has the slope of that one; later tokens answer by their soft derivative."""
    F, s, _, reward = fresh()
    slopes = relaxed.token_slopes(F, s, reward, horizon=T, straight_through=True)
    bump = torch.zeros(1, T, V, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(reward(bumped(F, s, bump, straight_through=True)).sum(), bump)
    assert (slopes - wanted[0]).abs().max() < EXACT
    assert (slopes - relaxed.token_slopes(F, s, reward, horizon=T)).abs().max() > 1e-3


def test_token_slopes_refuse_what_a_rollout_does_not_know():
    F, s, _, reward = fresh()
    with pytest.raises(TypeError, match="temperature"):
        relaxed.token_slopes(F, s, reward, horizon=T, temperature=0.5)
    with pytest.raises(ValueError, match="tau: expected a positive temperature"):
        relaxed.token_slopes(F, s, reward, horizon=T, tau=0.0)


def test_linear_prediction_has_the_soft_reward_as_its_mean_and_the_slopes_as_differences():
    F, s, _, reward = fresh()
    found = relaxed.linear_prediction(F, s, reward, horizon=T)
    soft = relaxed.relaxed_rollout(F, s, horizon=T).soft.detach()
    assert ((soft[0] * found).sum(1) - reward(soft)).abs().max() < EXACT
    slopes = relaxed.token_slopes(F, s, reward, horizon=T)
    assert (found.diff(dim=1) - slopes.diff(dim=1)).abs().max() < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_control_variate_is_unbiased_for_any_slopes(family):
    F, s, R, reward = fresh(family)
    every = enumeration.all_completions(V, T)
    scale = torch.tensor([2.0, 1.0, 0.7], dtype=torch.float64)
    log_probs = recurrence.log_probs_of(F, every, scale=scale)
    P, g = enumeration.probabilities(log_probs, s[0], V**T), enumeration.value_gradient(log_probs, s[0], R)
    own = relaxed.token_slopes(F, s, reward, horizon=T, scale=scale)
    for slopes in (own, torch.randn(T, V, generator=seeded(4), dtype=torch.float64)):
        estimates = relaxed.combined_estimates(F, s[0], every, R, slopes, scale=scale)
        assert (P @ estimates - g).abs().max() < EXACT
    # planted: the slopes taken away from the reward are not given back
    half = relaxed.combined_estimates(F, s[0], every, R, torch.zeros(T, V, dtype=torch.float64), scale=scale)
    taken = own.gather(1, every.T).T
    lost = half - enumeration.scores(log_probs, s[0], taken)
    assert (P @ lost - g).abs().max() > 1e-4


def test_relaxed_costate_is_biased():
    F, s, R, reward = fresh()
    g = enumeration.value_gradient(recurrence.log_probs_of(F, enumeration.all_completions(V, T)), s[0], R)
    lam = relaxed.relaxed_costates(F, s, reward, horizon=T)[0][0]
    assert (lam - g).norm() / g.norm() > 1e-2
    last = relaxed.relaxed_costates(F, s, lambda soft: soft[:, 0] @ R[:V], horizon=1)[0][0]
    one = enumeration.value_gradient(
        recurrence.log_probs_of(F, enumeration.all_completions(V, 1)), s[0], R[:V]
    )
    assert (last - one).abs().max() < EXACT  # with one token there is nothing to relax


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon: expected at least 1, got 0"),
        ({"horizon": 2, "tau": 0.0}, "tau: expected a positive temperature, got 0.0"),
        (
            {"horizon": 2, "noise": torch.zeros(1, 1, V, dtype=torch.float64)},
            r"noise: expected shape \[1, 2, 4\]",
        ),
    ],
)
def test_bad_input_is_named(options, message):
    F, s, _, _ = fresh()
    with pytest.raises(ValueError, match=message):
        relaxed.relaxed_rollout(F, s, **options)


def test_soft_tokens_feel_temperature_and_noise():
    z = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    p = relaxed.soft_token(z, 0.5, noise, False)
    torch.testing.assert_close(p.log() - p.log()[:, :1], (z + noise - 2.0) / 0.5)
