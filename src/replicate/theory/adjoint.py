"""Costates and value gradients: equations (5) to (9) with derivatives that PyTorch takes.

The costate is lambda_t = dG_t/ds_t along one noise realisation (5). Here it comes from the backward recursion (6) and
from autograd through the unrolled rollout; the parameter gradient (7) from the costates, from forward sensitivities and
from backpropagation through time. These routes share the derivatives of f, r and pi, which are torch.func's, and differ
in how the chain rule is put together. Routes without any derivative code are in :mod:`replicate.theory.differences`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from replicate.theory.rollout import (
    Actions,
    DifferentiableMDP,
    Starts,
    States,
    check_gamma,
    check_rollout_arguments,
    return_from,
    returns_to_go,
    rollout,
    sampled_return,
)


class Partials(NamedTuple):
    """All partial derivatives along a batch of trajectories, in the paper's letters; leading axes [batch, horizon]."""

    f_s: Float[Tensor, "batch horizon state state"]
    f_a: Float[Tensor, "batch horizon state action"]
    r_s: States
    r_a: Actions
    pi_s: Float[Tensor, "batch horizon action state"]
    terminal: Starts

    @property
    def Df(self) -> Float[Tensor, "batch horizon state state"]:
        """D_s f = f_s + f_a pi_s, the total state derivative of the transition."""
        return self.f_s + self.f_a @ self.pi_s

    @property
    def Dr(self) -> States:
        """D_s r = r_s + pi_s^T r_a, the total state derivative of the reward."""
        return self.r_s + _apply(self.pi_s.mT, self.r_a)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def partials(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    transition_noise: States | None = None,
) -> Partials:
    """The partial derivatives of f, r, pi and the terminal reward along the rollout from ``s0`` with this noise."""
    path = rollout(mdp, s0, noise, transition_noise=transition_noise)
    s, a = path.states[:, :-1], path.actions
    zeta = torch.zeros_like(s) if transition_noise is None else transition_noise
    along = lambda f: vmap(vmap(f))  # noqa: E731  (over the batch and over time)
    f_s, f_a = along(jacrev(mdp.transition, (0, 1)))(s, a, zeta)
    r_s, r_a = along(grad(mdp.reward, (0, 1)))(s, a)
    pi_s = along(jacrev(lambda s, xi: mdp.policy(s, xi, mdp.theta)))(s, noise)
    terminal = vmap(grad(mdp.terminal_reward))(path.states[:, -1])
    return Partials(f_s, f_a, r_s, r_a, pi_s, terminal)


def policy_jacobians(
    mdp: DifferentiableMDP,
    states: States,
    noise: Actions,
) -> Float[Tensor, "batch horizon action params"]:
    """dpi/dtheta at each state and noise."""
    return vmap(vmap(jacrev(mdp.policy, 2), (0, 0, None)), (0, 0, None))(states, noise, mdp.theta)


def adjoint_recursion(
    Dr: States,
    Df: Float[Tensor, "batch horizon state state"],
    terminal: Starts,
    *,
    gamma: float | int,
) -> Float[Tensor, "batch horizon+1 state"]:
    """lambda_t = D_s r_t + gamma (D_s f_t)^T lambda_{t+1}, from lambda_T = ``terminal`` backwards: equation (6)."""
    check_gamma(gamma)
    costate = [terminal]
    for t in reversed(range(Dr.shape[1])):
        costate.append(Dr[:, t] + gamma * _apply(Df[:, t].mT, costate[-1]))  # (6)
    return torch.stack(costate[::-1], 1)


def costates(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
) -> Float[Tensor, "batch horizon+1 state"]:
    """lambda_t for t = 0..T by the recursion (6); the last row is the terminal reward's gradient (or zero).

    Units: reward per unit of state. No transition noise means zeros. Raises ``ValueError`` for a discount outside
    [0, 1] or shapes that do not fit the task.
    """
    check_gamma(gamma)
    d = partials(mdp, s0, noise, transition_noise=transition_noise)
    return adjoint_recursion(d.Dr, d.Df, d.terminal, gamma=gamma)


def costates_by_autograd(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
) -> Float[Tensor, "batch horizon+1 state"]:
    """Definition (5) taken literally: the rollout is started anew at each s_t and G_t differentiated by autograd."""
    states = rollout(mdp, s0, noise, transition_noise=transition_noise).states
    rows = []
    for t, s in enumerate(states.unbind(1)):
        G_t = return_from(mdp, t, noise, transition_noise, gamma)
        # Trajectories of a batch do not meet, so the gradient of the sum holds each one's own gradient.
        rows.append(grad(lambda s, G_t=G_t: G_t(s).sum())(s))  # (5)
    return torch.stack(rows, 1)


def policy_gradient(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
) -> Float[Tensor, "batch params"]:
    """The bracket of (7) per trajectory: sum_t gamma^t pi_theta^T (r_a + gamma f_a^T lambda_{t+1})."""
    check_gamma(gamma)
    d = partials(mdp, s0, noise, transition_noise=transition_noise)
    costate = adjoint_recursion(d.Dr, d.Df, d.terminal, gamma=gamma)
    signal = action_signals(d, costate[:, 1:], gamma=gamma)
    discounts = gamma ** torch.arange(noise.shape[1], dtype=s0.dtype)
    states = rollout(mdp, s0, noise, transition_noise=transition_noise).states[:, :-1]
    pi_theta = policy_jacobians(mdp, states, noise)
    return torch.einsum("t,btap,bta->bp", discounts, pi_theta, signal)  # (7)


def action_signals(d: Partials, following: States, *, gamma: float | int) -> Actions:
    """r_a + gamma f_a^T lambda_{t+1}, i.e. dG_t/da_t; ``following`` holds lambda_1 to lambda_T."""
    return d.r_a + gamma * _apply(d.f_a.mT, following)


def policy_gradient_by_sensitivities(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
) -> Float[Tensor, "batch params"]:
    """dG_0/dtheta forwards: X_t = ds_t/dtheta is carried along with the rollout (forward mode, no costate).

    X_0 = 0, X_{t+1} = D_s f X_t + D_theta f, and dG_0/dtheta = sum_t gamma^t (D_s r X_t + D_theta r) + gamma^T
    (dr_T/ds) X_T; the total derivatives come from one forward-mode Jacobian of the closed loop each step.
    """

    def closed_loop(s: Tensor, theta: Tensor, xi: Tensor, zeta: Tensor) -> tuple[Tensor, Tensor]:
        a = mdp.policy(s, xi, theta)
        return mdp.transition(s, a, zeta), mdp.reward(s, a)

    check_gamma(gamma)
    check_rollout_arguments(mdp, s0, noise, transition_noise)
    derivative = vmap(jacfwd(closed_loop, (0, 1)), (0, None, 0, 0))
    s, X = s0, s0.new_zeros(*s0.shape, len(mdp.theta))
    total = s0.new_zeros(len(s0), len(mdp.theta))
    for t in range(noise.shape[1]):
        zeta = torch.zeros_like(s0) if transition_noise is None else transition_noise[:, t]
        (s_s, s_theta), (r_s, r_theta) = derivative(s, mdp.theta, noise[:, t], zeta)
        total = total + gamma**t * (_apply(X.mT, r_s) + r_theta)
        s, X = closed_loop(s, mdp.theta, noise[:, t], zeta)[0], s_s @ X + s_theta
    return total + gamma ** noise.shape[1] * _apply(X.mT, vmap(jacfwd(mdp.terminal_reward))(s))


def policy_gradient_by_autograd(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
) -> Float[Tensor, "batch params"]:
    """dG_0/dtheta of each trajectory by backpropagation through time, i.e. autograd on the unrolled graph."""

    def one(theta: Tensor, s: Tensor, xi: Tensor, zeta: Tensor) -> Tensor:
        zeta = None if transition_noise is None else zeta[None]
        return sampled_return(mdp, s[None], xi[None], gamma=gamma, theta=theta, transition_noise=zeta)[0]

    check_rollout_arguments(mdp, s0, noise, transition_noise)
    zeta = torch.zeros_like(noise) if transition_noise is None else transition_noise
    return vmap(grad(one), (None, 0, 0, 0))(mdp.theta, s0, noise, zeta)


def score_costates(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    baseline: Float[Tensor, "batch horizon"] | None = None,
    reward_path: bool = True,
) -> Float[Tensor, "batch horizon+1 state"]:
    """Costates of the score-function surrogate: actions held at their sampled values, credit through log pi.

    lambda^_t = r_s + (G_t - b_t) dlog pi(a_t given s_t)/ds_t + gamma f_s^T lambda^_{t+1}: differentiating
    V_t(s) = E[r + gamma V_{t+1}(f(s, a))] with a ~ pi(. given s) shows that its mean given s_t is g_t(s_t), for any
    additive noise. A policy-gradient surrogate treats rewards as constants, i.e. drops r_s (and the terminal gradient):
    ``reward_path=False``. ``baseline`` may depend on s_t only.
    """
    path = rollout(mdp, s0, noise)
    s, a = path.states[:, :-1], path.actions
    d = partials(mdp, s0, noise)
    dlogp = vmap(vmap(grad(mdp.log_prob), (0, 0, None)), (0, 0, None))(s, a, mdp.theta)
    weight = returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, :-1]
    weight = weight if baseline is None else weight - baseline
    source = weight.unsqueeze(-1) * dlogp + (d.r_s if reward_path else 0)
    terminal = d.terminal if reward_path else torch.zeros_like(d.terminal)
    return adjoint_recursion(source, d.f_s, terminal, gamma=gamma)


class StateSlopes(NamedTuple):
    """Matrices M_t of a regression lambda_t = M_t s_t + noise, and the standard error of each entry."""

    slope: Float[Tensor, "horizon state state"]
    standard_error: Float[Tensor, "horizon state state"]


def state_slopes(states: States, costate: Float[Tensor, "batch steps state"]) -> StateSlopes:
    """Least-squares slope of the costate in the state at each step, over a batch of independent trajectories.

    On a linear-quadratic task (9) reads E[lambda_t given s_t] = -2 P_t s_t, so that M_t estimates -2 P_t; there is no
    intercept. Row i of M_t belongs to entry i of the costate, column j to entry j of the state; units are reward per
    unit of the one and of the other. The standard errors take the noise to be of the same size in every state, as it is
    there. Raises ``ValueError`` for shapes that differ or a batch without degrees of freedom.
    """
    if states.shape != costate.shape:
        raise ValueError(
            f"costate: expected the shape of states, {list(states.shape)}, got {list(costate.shape)}"
        )
    batch, _, dim = states.shape
    if batch <= dim:
        raise ValueError(f"states: expected a batch of more than {dim}, got {batch}")
    s, lam = states.transpose(0, 1), costate.transpose(0, 1)  # [horizon, batch, state]
    slope = torch.linalg.lstsq(s, lam).solution.mT
    variance = (lam - s @ slope.mT).square().sum(1) / (batch - dim)  # of the noise, [horizon, state]
    gram = torch.linalg.inv(s.mT @ s).diagonal(dim1=1, dim2=2)
    return StateSlopes(slope, (variance[:, :, None] * gram[:, None, :]).sqrt())
