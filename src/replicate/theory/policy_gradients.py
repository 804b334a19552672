"""The policy-gradient family on toy tasks: REINFORCE, RLOO, GRPO, Dr. GRPO, PPO with and without a critic.

Conventions, each a keyword: what is subtracted from a return (``baseline``), what it is divided by (``scale``), the
clip range, the KL weight. Trajectories have a fixed length here, so the length normalisation of (1) is the constant
1/T; where gradients are compared with grad J it is left out, and the docstrings say so.

Shapes: `prompts` (starting states), `group` completions (trajectories) of each, N in the formulas, `horizon` T steps,
`params` policy parameters.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, vmap

from replicate.statistics.agreement import z_test
from replicate.theory.rollout import DifferentiableMDP, draw_noise, returns_to_go, rollout, sampled_return


class Groups(NamedTuple):
    """Trajectories in groups that share a starting state, with the score of every action."""

    s0: Float[Tensor, "prompts state"]
    noise: Float[Tensor, "prompts group horizon action"]
    states: Float[Tensor, "prompts group horizon+1 state"]
    rewards: Float[Tensor, "prompts group horizon"]
    returns_to_go: Float[Tensor, "prompts group horizon+1"]
    scores: Float[Tensor, "prompts group horizon params"]

    @property
    def returns(self) -> Float[Tensor, "prompts group"]:
        """R_i = G_0, the whole discounted return of each completion."""
        return self.returns_to_go[..., 0]


def sample_groups(
    mdp: DifferentiableMDP,
    s0: Float[Tensor, "prompts state"],
    *,
    group: int,
    horizon: int,
    gamma: float | int,
    generator: torch.Generator,
) -> Groups:
    """Rolls out ``group`` completions from each starting state at the current theta, with fresh noise."""
    prompts = len(s0)
    xi, zeta = draw_noise(mdp, prompts * group, horizon, generator=generator)
    path = rollout(mdp, s0.repeat_interleave(group, 0), xi, transition_noise=zeta)
    G = returns_to_go(path.rewards, path.terminal, gamma=gamma)
    scores = token_scores(mdp, path.states[:, :-1], path.actions)
    split = lambda x: x.unflatten(0, (prompts, group))  # noqa: E731
    return Groups(s0, split(xi), split(path.states), split(path.rewards), split(G), split(scores))


def token_scores(
    mdp: DifferentiableMDP,
    states: Float[Tensor, "batch horizon state"],
    actions: Float[Tensor, "batch horizon action"],
) -> Float[Tensor, "batch horizon params"]:
    """dlog pi_theta(a_t given s_t)/dtheta at the current theta, with states and actions held fixed.

    For the shift policy with Gaussian noise it is (dmu/dtheta)^T (a - mu) / noise_std^2.
    """
    s, a = states.flatten(0, 1), actions.flatten(0, 1)
    dmu = vmap(jacrev(mdp.mean, 1), (0, None))(s, mdp.theta)
    pull = (a - mdp.mean(s, mdp.theta)) / mdp.noise_std**2
    return torch.einsum("nap,na->np", dmu, pull).unflatten(0, states.shape[:2])


def leave_one_out(values: Float[Tensor, "*batch group"]) -> Float[Tensor, "*batch group"]:
    """The mean of the *other* members of the group. Raises ``ValueError`` for a group of one."""
    group = values.shape[-1]
    if group < 2:
        raise ValueError(f"group: expected at least 2 members to leave one out, got {group}")
    return (values.sum(-1, keepdim=True) - values) / (group - 1)


def leave_one_out_std(values: Float[Tensor, "*batch group"]) -> Float[Tensor, "*batch group"]:
    """The sample standard deviation of the *other* members. Raises ``ValueError`` for a group of fewer than three."""
    N = values.shape[-1]
    if N < 3:
        raise ValueError(f"group: expected at least 3 members for the std of the others, got {N}")
    square = (values - values.mean(-1, keepdim=True)).square()
    # Leaving member i out takes N/(N-1) times its own squared distance from the common mean out of the sum.
    return ((square.sum(-1, keepdim=True) - square * N / (N - 1)).clamp(min=0) / (N - 2)).sqrt()


def group_advantages(
    returns: Float[Tensor, "prompts group"],
    *,
    baseline: str = "mean",
    scale: str = "std",
    eps: float = 1e-4,
) -> Float[Tensor, "prompts group"]:
    """A_i = (R_i - baseline) / scale within each group, as in (1).

    ``baseline``: "mean" (of the group, sample i included), "leave_one_out", or "none". ``scale``: "std" (sample
    standard deviation, ddof 1, plus ``eps``) or "none". A group of equal returns gives zeros unless the baseline is
    "none". Raises ``ValueError`` for other words, or for a group of one where a baseline or a std needs two.
    """
    if baseline not in ("mean", "leave_one_out", "none"):
        raise ValueError(f"baseline: expected mean, leave_one_out or none, got {baseline!r}")
    if scale not in ("std", "none"):
        raise ValueError(f"scale: expected std or none, got {scale!r}")
    if returns.shape[-1] < 2 and (baseline == "leave_one_out" or scale == "std"):
        raise ValueError(f"returns: expected groups of at least 2, got {returns.shape[-1]}")
    if baseline == "mean":
        advantages = returns - returns.mean(-1, keepdim=True)
    elif baseline == "leave_one_out":
        advantages = returns - leave_one_out(returns)
    else:
        advantages = returns
    return advantages / (returns.std(-1, keepdim=True) + eps) if scale == "std" else advantages


def advantage_slopes(
    returns: Float[Tensor, "prompts group"], *, eps: float = 1e-4
) -> Float[Tensor, "prompts group"]:
    """dA_i/dR_i of GRPO's own advantage, its group's mean and std moving with R_i; the other returns stand still.

    With m the mean and s the sample std it is (1 - 1/N) / (s + eps) - (R_i - m)^2 / ((N - 1) s (s + eps)^2). Infinite
    or NaN where a group's returns are all equal: the std has a corner there.
    """
    N = returns.shape[-1]
    s = returns.std(-1, keepdim=True)
    centred = returns - returns.mean(-1, keepdim=True)
    return (1 - 1 / N) / (s + eps) - centred.square() / ((N - 1) * s * (s + eps).square())


def group_gradients(
    groups: Groups, weights: Float[Tensor, "prompts group horizon"]
) -> Float[Tensor, "prompts params"]:
    """One gradient estimate per group: mean over the group of sum_t w_t dlog pi_t/dtheta.

    At theta_old, where every ratio is 1, this is T times the gradient of the surrogate (1) without its KL term.
    """
    return torch.einsum("pgt,pgtk->pk", weights, groups.scores) / weights.shape[1]


def outcome_weights(
    groups: Groups, *, baseline: str = "none", scale: str = "none"
) -> Float[Tensor, "prompts group horizon"]:
    """The same advantage at every step of a completion: REINFORCE, RLOO, Dr. GRPO and GRPO by the two keywords."""
    A = group_advantages(groups.returns, baseline=baseline, scale=scale)
    return A.unsqueeze(-1).expand_as(groups.rewards)


def reward_to_go_weights(groups: Groups, *, gamma: float | int) -> Float[Tensor, "prompts group horizon"]:
    """gamma^t (G_t - its mean over the *other* completions at step t): PPO's actor without a critic."""
    G = groups.returns_to_go[..., :-1]
    discounts = gamma ** torch.arange(G.shape[-1], dtype=G.dtype)
    return discounts * (G - leave_one_out(G.mT).mT)


def critic_weights(
    groups: Groups,
    values: Float[Tensor, "prompts group times"],
    *,
    gamma: float | int,
    lam: float | int,
) -> Float[Tensor, "prompts group horizon"]:
    """gamma^t times the generalised advantage of a critic: PPO's actor.

    ``lam`` = 1 is the return minus the critic, unbiased whatever the critic; below 1 it is biased unless the critic is
    exact. ``values`` are V_t(s_t) at the T+1 times of a trajectory; the last column stands for the terminal reward;
    without one it is zero.
    """
    delta = groups.rewards + gamma * values[..., 1:] - values[..., :-1]
    advantage, columns = torch.zeros_like(delta[..., 0]), []
    for t in reversed(range(delta.shape[-1])):
        advantage = delta[..., t] + gamma * lam * advantage
        columns.append(gamma**t * advantage)
    return torch.stack(columns[::-1], -1)


def critic_features(
    states: Float[Tensor, "*batch state"], *, degree: int
) -> Float[Tensor, "*batch features"]:
    """1, s and, for ``degree`` 2, all products s_i s_j with i <= j. An LQG value function is linear in the latter."""
    if degree not in (1, 2):
        raise ValueError(f"degree: expected 1 or 2, got {degree}")
    features = [torch.ones_like(states[..., :1]), states]
    if degree == 2:
        i, j = torch.triu_indices(states.shape[-1], states.shape[-1])
        features.append(states[..., i] * states[..., j])
    return torch.cat(features, -1)


def fit_critic(groups: Groups, *, degree: int) -> Float[Tensor, "horizon features"]:
    """Least-squares weights of V_t on :func:`critic_features`, a row a step, from observed returns-to-go."""
    X = critic_features(groups.states[..., :-1, :].flatten(0, 1).transpose(0, 1), degree=degree)
    y = groups.returns_to_go[..., :-1].flatten(0, 1).T.unsqueeze(-1)
    # At t = 0 few distinct states are seen; the minimum-norm solution copes with a rank-deficient design.
    return (torch.linalg.pinv(X, rtol=1e-10) @ y).squeeze(-1)


def critic_values(
    critic: Float[Tensor, "horizon features"], groups: Groups, *, degree: int
) -> Float[Tensor, "prompts group times"]:
    """The fitted V_t(s_t) at t = 0..T, with a zero column for t = T."""
    X = critic_features(groups.states[..., :-1, :], degree=degree)
    V = torch.einsum("pgtf,tf->pgt", X, critic)
    return torch.cat([V, torch.zeros_like(V[..., :1])], -1)


def clipped_surrogate(
    logp: Float[Tensor, "*batch horizon"],
    logp_old: Float[Tensor, "*batch horizon"],
    advantages: Float[Tensor, "*batch"],
    *,
    clip: float = 0.2,
    kl_coef: float | int = 0.0,
    logp_ref: Float[Tensor, "*batch horizon"] | None = None,
) -> Float[Tensor, "*batch"]:
    """(1) for each completion, to *maximise*: mean over t of min(rho A, clip(rho) A) - kl_coef k3.

    rho = exp(logp - logp_old) and k3 = x - 1 - log x with x = pi_ref / pi. Raises ``ValueError`` when ``kl_coef`` asks
    for a reference that is not there, or for a clip range outside (0, 1).
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip: expected a number in (0, 1), got {clip}")
    if kl_coef and logp_ref is None:
        raise ValueError(f"logp_ref: expected a tensor with kl_coef = {kl_coef}, got None")
    A = advantages.unsqueeze(-1)
    rho = torch.exp(logp - logp_old)
    objective = torch.minimum(rho * A, rho.clamp(1 - clip, 1 + clip) * A)  # (1)
    if kl_coef:
        log_x = logp_ref - logp
        objective = objective - kl_coef * (log_x.exp() - 1 - log_x)
    return objective.mean(-1)


def clip_is_active(
    rho: Float[Tensor, "*batch horizon"], advantages: Float[Tensor, "*batch"], *, clip: float = 0.2
) -> Tensor:
    """Where (1) has no gradient: rho above 1 + clip with A > 0, or below 1 - clip with A < 0. Boolean, as rho."""
    A = advantages.unsqueeze(-1)
    return ((A > 0) & (rho > 1 + clip)) | ((A < 0) & (rho < 1 - clip))


def surrogate_gradients(
    mdp: DifferentiableMDP,
    states: Float[Tensor, "batch horizon state"],
    actions: Float[Tensor, "batch horizon action"],
    advantages: Float[Tensor, " batch"],
    *,
    theta: Float[Tensor, " params"],
    clip: float = 0.2,
    kl_coef: float | int = 0.0,
    theta_ref: Float[Tensor, " params"] | None = None,
) -> Float[Tensor, "batch params"]:
    """Gradient of (1) at ``theta`` by autograd, per completion; the data were sampled at ``mdp.theta``."""
    reference = mdp.theta if theta_ref is None else theta_ref

    def objective(theta: Tensor, s: Tensor, a: Tensor, A: Tensor) -> Tensor:
        old, ref = mdp.log_prob(s, a, mdp.theta), mdp.log_prob(s, a, reference)
        return clipped_surrogate(mdp.log_prob(s, a, theta), old, A, clip=clip, kl_coef=kl_coef, logp_ref=ref)

    return vmap(grad(objective), (None, 0, 0, 0))(theta, states, actions, advantages)


def update_statistics(
    updates: Float[Tensor, "updates params"], truth: Float[Tensor, " params"]
) -> dict[str, float]:
    """What independent updates look like beside the true gradient: bias, noise and direction.

    "along" is the mean's projection on ``truth`` in units of it (1 if unbiased), "angle" that between mean and truth in
    degrees, "noise" the standard deviation of one update over the mean's norm, "cosine" that of one update with
    ``truth``, on average; "z" is the worst abs z-score against ``truth``.
    """
    along, cosine = updates @ truth / (truth @ truth), torch.cosine_similarity(updates, truth[None])
    mean, root = updates.mean(0), len(updates) ** 0.5
    return {
        "along": along.mean().item(),
        "along s.e.": along.std().item() / root,
        "z": z_test(updates, truth).worst,
        "angle": torch.rad2deg(torch.cosine_similarity(mean, truth, dim=0).clamp(-1, 1).arccos()).item(),
        "noise": (updates.var(0).sum().sqrt() / mean.norm()).item(),
        "cosine": cosine.mean().item(),
        "cosine s.e.": cosine.std().item() / root,
    }


def read_stop_gradient(
    mdp: DifferentiableMDP,
    s0: Float[Tensor, "batch state"],
    noise: Float[Tensor, "batch horizon action"],
    *,
    gamma: float | int,
    reading: str,
    baseline: float | int = 0.0,
) -> Float[Tensor, "batch params"]:
    """Gradient at theta_old of w rho per trajectory, rho = pi_theta/pi_old of its actions, for a reading of w.

    "constant": w is one number, the same for all actions, so that the mean is zero. "stopped": w = G_0 of the sampled
    actions, a number with no derivative in theta: the score function. "live": w = G_0(theta) along the differentiable
    rollout, whose own derivative then adds the pathwise gradient to the score function's. The last two subtract a
    constant ``baseline`` from w. Raises ``ValueError`` for other words.
    """
    if reading not in ("constant", "stopped", "live"):
        raise ValueError(f"reading: expected constant, stopped or live, got {reading!r}")
    old = rollout(mdp, s0, noise)
    states, actions = old.states[:, :-1], old.actions
    weights = returns_to_go(old.rewards, old.terminal, gamma=gamma)[:, 0]
    logp_old = mdp.log_prob(states, actions, mdp.theta).sum(-1)

    def objective(
        theta: Tensor, s: Tensor, xi: Tensor, s_t: Tensor, a_t: Tensor, w: Tensor, old: Tensor
    ) -> Tensor:
        rho = torch.exp(mdp.log_prob(s_t, a_t, theta).sum() - old)
        if reading == "live":
            w = sampled_return(mdp, s[None], xi[None], gamma=gamma, theta=theta)[0]
        return (1.0 if reading == "constant" else w - baseline) * rho

    by_trajectory = vmap(grad(objective), (None, 0, 0, 0, 0, 0, 0))
    return by_trajectory(mdp.theta, s0, noise, states, actions, weights, logp_old)
