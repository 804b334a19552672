"""Definition 1 of the paper: differentiable rollouts, equation (4), and the linear-quadratic toy with closed forms.

All randomness is drawn outside and passed in: action noise xi [batch, horizon, action] and, where a task has it,
transition noise zeta [batch, horizon, state]. With both held fixed a return is a deterministic function of theta and of
the first state. Everything is float64; rewards are dimensionless, and a time step has no unit unless a task says so.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Params = Float[Tensor, " params"]
State = Float[Tensor, "*batch state"]
Action = Float[Tensor, "*batch action"]
Starts = Float[Tensor, "batch state"]
"""One state a trajectory."""

States = Float[Tensor, "batch horizon state"]
"""One a step, and so are :data:`Actions`; noise has these shapes too."""

Actions = Float[Tensor, "batch horizon action"]


class DifferentiableMDP(ABC):
    """A task together with its policy: a = pi(s, xi; theta), s' = f(s, a, zeta), r = r(s, a), all differentiable.

    The policy is a shift policy, a = mu_theta(s) + noise_std xi with standard normal xi, unless :meth:`policy` is
    overridden. Methods take any leading batch shape, none included, so that ``torch.func`` can transform them.
    """

    state_dim: int
    action_dim: int
    noise_std: float
    transition_std: float = 0.0
    theta: Params

    @abstractmethod
    def mean(self, s: State, theta: Params) -> Action:
        """mu_theta(s)."""

    @abstractmethod
    def transition(self, s: State, a: Action, zeta: State) -> State:
        """f(s, a, zeta); zeta is standard normal and is scaled inside by ``transition_std``."""

    @abstractmethod
    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """r(s, a)."""

    def terminal_reward(self, s: State) -> Float[Tensor, "*batch"]:
        """The reward of ending in s; none by default."""
        return torch.zeros_like(s[..., 0])

    def policy(self, s: State, xi: Action, theta: Params) -> Action:
        """pi(s, xi; theta), the shift policy of Lemma 1."""
        return self.mean(s, theta) + self.noise_std * xi

    def with_theta(self, theta: Params) -> "DifferentiableMDP":
        """The same task under the policy with parameters ``theta``."""
        other = copy.copy(self)
        other.theta = theta
        return other

    def log_prob(self, s: State, a: Action, theta: Params) -> Float[Tensor, "*batch"]:
        """log pi_theta(a given s) of the shift policy, in nats. Raises ``ValueError`` without noise."""
        if self.noise_std <= 0:
            raise ValueError(f"noise_std: expected a positive number for a density, got {self.noise_std}")
        law = torch.distributions.Normal(self.mean(s, theta), self.noise_std)
        return law.log_prob(a).sum(-1)


class Rollout(NamedTuple):
    """One batch of trajectories s_0, a_0, r_0, ..., s_T; ``terminal`` is the reward of ending in s_T."""

    states: Float[Tensor, "batch horizon+1 state"]
    actions: Actions
    rewards: Float[Tensor, "batch horizon"]
    terminal: Float[Tensor, " batch"]


def rollout(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    theta: Params | None = None,
    transition_noise: States | None = None,
) -> Rollout:
    """Unrolls (4) from ``s0`` with the given noise; differentiable in ``s0`` and ``theta`` (default ``mdp.theta``).

    No transition noise means zeros. Raises ``ValueError`` for shapes that do not fit the task or an empty horizon.
    """
    check_rollout_arguments(mdp, s0, noise, transition_noise)
    theta = mdp.theta if theta is None else theta
    horizon = noise.shape[1]
    still = torch.zeros_like(s0)
    states, actions, rewards = [s0], [], []
    for t in range(horizon):
        s = states[-1]
        a = mdp.policy(s, noise[:, t], theta)  # (4)
        zeta = still if transition_noise is None else transition_noise[:, t]
        rewards.append(mdp.reward(s, a))
        states.append(mdp.transition(s, a, zeta))
        actions.append(a)
    return Rollout(
        torch.stack(states, 1),
        torch.stack(actions, 1),
        torch.stack(rewards, 1),
        mdp.terminal_reward(states[-1]),
    )


def returns_to_go(
    rewards: Float[Tensor, "batch horizon"], terminal: Float[Tensor, " batch"], *, gamma: float | int
) -> Float[Tensor, "batch horizon+1"]:
    """G_t = sum_{k>=t} gamma^(k-t) r_k for t = 0..T, the terminal reward being the last one (G_T)."""
    check_gamma(gamma)
    G = [terminal]
    for r in reversed(rewards.unbind(1)):
        G.append(r + gamma * G[-1])
    return torch.stack(G[::-1], 1)


def sampled_return(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    theta: Params | None = None,
    transition_noise: States | None = None,
) -> Float[Tensor, " batch"]:
    """G_0 of each trajectory; its mean over the noise is J(theta)."""
    path = rollout(mdp, s0, noise, theta=theta, transition_noise=transition_noise)
    return returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, 0]


def return_from(
    mdp: DifferentiableMDP, t: int, noise: Actions, transition_noise: States | None, gamma: float | int
) -> Callable[[Starts], Float[Tensor, " batch"]]:
    """G_t as a function of s_t, the noise from step t on being held fixed."""
    if t == noise.shape[1]:
        return mdp.terminal_reward
    zeta = None if transition_noise is None else transition_noise[:, t:]
    return lambda s: sampled_return(mdp, s, noise[:, t:], gamma=gamma, transition_noise=zeta)


def draw_noise(
    mdp: DifferentiableMDP, batch: int, horizon: int, *, generator: torch.Generator
) -> tuple[Actions, States]:
    """Standard normal action noise and transition noise; neither law knows theta."""
    xi = torch.randn(batch, horizon, mdp.action_dim, generator=generator, dtype=torch.float64)
    zeta = torch.randn(batch, horizon, mdp.state_dim, generator=generator, dtype=torch.float64)
    return xi, zeta


def check_gamma(gamma: float | int) -> None:
    """Raises ``ValueError`` unless 0 <= gamma <= 1."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a discount in [0, 1], got {gamma}")


def check_rollout_arguments(
    mdp: DifferentiableMDP, s0: Tensor, noise: Tensor, transition_noise: Tensor | None
) -> None:
    """Raises ``ValueError`` naming the first of the arguments whose shape does not fit ``mdp`` and the others."""
    batch = len(s0)
    if s0.ndim != 2 or s0.shape[1] != mdp.state_dim:
        raise ValueError(f"s0: expected shape [batch, {mdp.state_dim}], got {list(s0.shape)}")
    if noise.ndim != 3 or noise.shape[0] != batch or noise.shape[2] != mdp.action_dim:
        raise ValueError(
            f"noise: expected shape [{batch}, horizon, {mdp.action_dim}], got {list(noise.shape)}"
        )
    if noise.shape[1] == 0:
        raise ValueError("noise: expected a horizon of at least 1, got 0")
    wanted = [batch, noise.shape[1], mdp.state_dim]
    if transition_noise is not None and list(transition_noise.shape) != wanted:
        raise ValueError(f"transition_noise: expected shape {wanted}, got {list(transition_noise.shape)}")


class LQG(DifferentiableMDP):
    """s' = A s + B a + transition_std zeta, a = K s + noise_std xi, r = -(s^T Q s + a^T R a), no terminal reward.

    Shapes: A [state, state], B [state, action], Q [state, state], R [action, action], K [action, state]. Q
    and R need not be symmetric; only their symmetric parts matter. theta is K row by row. V_t(s) = -s^T P_t s
    - c_t in closed form.
    """

    def __init__(
        self,
        A: Float[Tensor, "state state"],
        B: Float[Tensor, "state action"],
        Q: Float[Tensor, "state state"],
        R: Float[Tensor, "action action"],
        K: Float[Tensor, "action state"],
        *,
        noise_std: float | int,
        transition_std: float | int = 0.0,
    ) -> None:
        """Raises ``ValueError`` for shapes that do not fit each other or a negative standard deviation."""
        state, action = B.shape
        shapes = {"A": (state, state), "Q": (state, state), "R": (action, action), "K": (action, state)}
        for (name, wanted), matrix in zip(shapes.items(), (A, Q, R, K), strict=True):
            if tuple(matrix.shape) != wanted:
                raise ValueError(f"{name}: expected shape {list(wanted)}, got {list(matrix.shape)}")
        for name, std in (("noise_std", noise_std), ("transition_std", transition_std)):
            if std < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {std}")
        self.A, self.B, self.Q, self.R = A, B, Q, R
        self.state_dim, self.action_dim = state, action
        self.noise_std, self.transition_std = float(noise_std), float(transition_std)
        self.theta = K.reshape(-1)

    @property
    def K(self) -> Float[Tensor, "action state"]:
        """The gain, read from theta."""
        return self.theta.view(self.action_dim, self.state_dim)

    def mean(self, s: State, theta: Params) -> Action:
        """K s, with K read from theta."""
        return s @ theta.view(self.action_dim, self.state_dim).T

    def transition(self, s: State, a: Action, zeta: State) -> State:
        """A s + B a + transition_std zeta."""
        return s @ self.A.T + a @ self.B.T + self.transition_std * zeta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """-(s^T Q s + a^T R a)."""
        return -((s @ self.Q) * s).sum(-1) - ((a @ self.R) * a).sum(-1)

    def cost_matrices(
        self, *, horizon: int, gamma: float | int, theta: Params | None = None
    ) -> Float[Tensor, "{horizon}+1 state state"]:
        """The symmetric P_t, t = 0..horizon: P_T = 0, P_t = Q + K^T R K + gamma (A + B K)^T P_{t+1} (A + B K)."""
        check_gamma(gamma)
        if horizon < 0:
            raise ValueError(f"horizon: expected a number >= 0, got {horizon}")
        K = (self.theta if theta is None else theta).view(self.action_dim, self.state_dim)
        M = self.A + self.B @ K
        S = _symmetric(self.Q) + K.T @ _symmetric(self.R) @ K
        P = [torch.zeros_like(S)]
        for _ in range(horizon):
            P.append(S + gamma * M.T @ P[-1] @ M)
        return torch.stack(P[::-1])

    def value(
        self,
        s: State,
        t: int,
        *,
        horizon: int,
        gamma: float | int,
        theta: Params | None = None,
    ) -> Float[Tensor, "*batch"]:
        """V_t(s) = -s^T P_t s - c_t; c_t is what the noise costs. Differentiable in s and in theta."""
        self._check_time(t, horizon)
        P = self.cost_matrices(horizon=horizon, gamma=gamma, theta=theta)
        c = P.new_zeros(())
        for k in reversed(range(t, horizon)):
            action_cost = torch.trace(self.R) + gamma * torch.trace(self.B.T @ P[k + 1] @ self.B)
            c = self.noise_std**2 * action_cost + gamma * (self.transition_std**2 * torch.trace(P[k + 1]) + c)
        return -((s @ P[t]) * s).sum(-1) - c

    def value_gradient(self, s: State, t: int, *, horizon: int, gamma: float | int) -> State:
        """g_t(s) = dV_t/ds = -2 P_t s in closed form, t in 0..horizon (``ValueError`` otherwise)."""
        self._check_time(t, horizon)
        return -2 * s @ self.cost_matrices(horizon=horizon, gamma=gamma)[t]

    def costates(self, path: Rollout, *, gamma: float | int) -> Float[Tensor, "batch steps state"]:
        """lambda_t = -2 sum_{k>=t} gamma^(k-t) (M^(k-t))^T (Q s_k + K^T R a_k), t = 0..T; M = A + B K, Q, R symmetric.

        Equation (5) worked out by hand along ``path``: powers of one matrix, no recursion and no derivative code.
        """
        check_gamma(gamma)
        M, Q, R = self.A + self.B @ self.K, _symmetric(self.Q), _symmetric(self.R)
        slopes = -2 * (path.states[:, :-1] @ Q + path.actions @ R @ self.K)  # D_s r, [batch, horizon, state]
        power = [gamma**k * torch.linalg.matrix_power(M, k) for k in range(slopes.shape[1])]
        rows = [
            sum(slopes[:, k] @ power[k - t] for k in range(t, len(power))) + torch.zeros_like(slopes[:, 0])
            for t in range(len(power) + 1)
        ]
        return torch.stack(rows, 1)

    def _check_time(self, t: int, horizon: int) -> None:
        if not 0 <= t <= horizon:
            raise ValueError(f"t: expected a step in 0..{horizon}, got {t}")


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def objective_gradient(
    mdp: LQG, s0: Starts, *, horizon: int, gamma: float | int
) -> Float[Tensor, "batch params"]:
    """The exact dV_0(s0)/dtheta of each starting state, from the closed-form value: no sampling."""
    return torch.func.vmap(
        torch.func.grad(lambda theta, s: mdp.value(s, 0, horizon=horizon, gamma=gamma, theta=theta)),
        (None, 0),
    )(mdp.theta, s0)


def double_integrator(
    *, dt: float = 0.2, noise_std: float | int = 0.3, transition_std: float | int = 0.0
) -> LQG:
    """A cart on a rail: state (position in m, velocity in m/s), action a force per mass in m/s^2, step ``dt`` in s.

    The gain K is stabilising and far from optimal, so that there is something left to learn.
    """
    as64 = lambda rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    return LQG(
        A=as64([[1.0, dt], [0.0, 1.0]]),
        B=as64([[0.5 * dt**2], [dt]]),
        Q=as64([[1.0, 0.0], [0.0, 0.1]]) * dt,
        R=as64([[0.1]]) * dt,
        K=as64([[-0.3, -0.5]]),
        noise_std=noise_std,
        transition_std=transition_std,
    )
