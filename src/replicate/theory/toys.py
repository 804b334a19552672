"""Nonlinear toy tasks: a random tanh network, a pendulum, and a one-dimensional map that is chaotic at high gain."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory.networks import mlp, mlp_init
from replicate.theory.rollout import Action, DifferentiableMDP, Params, State


class TanhNetwork(DifferentiableMDP):
    """s' = tanh(W s + U a) + transition_std zeta with a neural policy; every derivative in (6) is a dense matrix.

    r = -|s|^2/2 - |a|^2/10 + sin(s_1 a_1): it couples state and action, so that r_s, r_a, pi_s and f_a all matter. The
    terminal reward is cos(w . s); w = 0 gives it a zero gradient.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        generator: torch.Generator,
        hidden: int = 4,
        noise_std: float | int = 0.3,
        transition_std: float | int = 0.1,
        terminal: bool = True,
    ) -> None:
        """Draws W, U, w and the policy's theta from ``generator``. Raises ``ValueError`` for a dimension below 1."""
        for name, dim in (("state_dim", state_dim), ("action_dim", action_dim), ("hidden", hidden)):
            if dim < 1:
                raise ValueError(f"{name}: expected at least 1, got {dim}")
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.state_dim, self.action_dim, self.hidden = state_dim, action_dim, hidden
        self.noise_std, self.transition_std = float(noise_std), float(transition_std)
        self.W = 1.2 * draw(state_dim, state_dim) / state_dim**0.5
        self.U = draw(state_dim, action_dim) / action_dim**0.5
        self.w = draw(state_dim) * float(terminal)
        self.theta = mlp_init(state_dim, hidden, action_dim, generator=generator)

    def mean(self, s: State, theta: Params) -> Action:
        """A one-hidden-layer tanh network of s."""
        return mlp(s, theta, hidden=self.hidden, outputs=self.action_dim)

    def transition(self, s: State, a: Action, zeta: State) -> State:
        """tanh(W s + U a) + transition_std zeta."""
        return torch.tanh(s @ self.W.T + a @ self.U.T) + self.transition_std * zeta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """-|s|^2/2 - |a|^2/10 + sin(s_1 a_1)."""
        return -(s**2).sum(-1) / 2 - (a**2).sum(-1) / 10 + torch.sin(s[..., 0] * a[..., 0])

    def terminal_reward(self, s: State) -> Float[Tensor, "*batch"]:
        """cos(w . s)."""
        return torch.cos(s @ self.w)


class Pendulum(DifferentiableMDP):
    """A damped pendulum under torque noise: state (angle from upright in rad, angular velocity in rad/s), step dt in s.

    Gravity tips it over: d(omega)/dt = g sin(phi) - damping omega + a. The reward, per step, is dt (cos(phi)
    - 1 - omega^2/20 - a^2/200): zero when it stands still upright, smooth everywhere. The policy is a small
    network of (sin phi, cos phi, omega), so that it does not see how often the pendulum has gone round.
    """

    state_dim, action_dim = 2, 1

    def __init__(
        self,
        *,
        generator: torch.Generator,
        dt: float = 0.1,
        gravity: float = 4.0,
        damping: float = 0.3,
        hidden: int = 8,
        noise_std: float | int = 1.0,
        policy_scale: float | int = 0.3,
    ) -> None:
        """Draws the policy's first parameters from ``generator``, ``policy_scale`` times the usual size."""
        self.dt, self.gravity, self.damping, self.hidden = dt, gravity, damping, hidden
        self.noise_std = float(noise_std)
        self.theta = mlp_init(3, hidden, 1, generator=generator, scale=policy_scale)

    def mean(self, s: State, theta: Params) -> Action:
        """The network's torque, 6 units a unit of its output, so that it can lift the pendulum."""
        phi, omega = s[..., 0], s[..., 1]
        seen = torch.stack([torch.sin(phi), torch.cos(phi), omega / 4], -1)
        return 6 * mlp(seen, theta, hidden=self.hidden, outputs=1)

    def transition(self, s: State, a: Action, zeta: State) -> State:
        """One semi-implicit Euler step: the velocity first, then the angle with the new velocity."""
        phi, omega = s[..., 0], s[..., 1]
        omega = omega + self.dt * (self.gravity * torch.sin(phi) - self.damping * omega + a[..., 0])
        return torch.stack([phi + self.dt * omega, omega], -1) + self.transition_std * zeta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """dt (cos(phi) - 1 - omega^2/20 - a^2/200)."""
        return self.dt * (torch.cos(s[..., 0]) - 1 - s[..., 1] ** 2 / 20 - (a**2).sum(-1) / 200)


class SineMap(DifferentiableMDP):
    """s' = gain sin(s) + a, a = theta + noise_std xi, r = cos(s): one state, one parameter, bounded reward.

    Each step multiplies state sensitivities by gain cos(s). Below gain 1 they die out; with s spread over the circle
    their mean square grows by gain^2/2 a step, which overtakes every polynomial once gain > sqrt(2).
    """

    state_dim, action_dim = 1, 1

    def __init__(self, gain: float | int, *, theta: float = 0.3, noise_std: float | int = 1.0) -> None:
        self.gain, self.noise_std = float(gain), float(noise_std)
        self.theta = torch.tensor([theta], dtype=torch.float64)

    def mean(self, s: State, theta: Params) -> Action:
        """theta, whatever the state."""
        return theta + 0 * s

    def transition(self, s: State, a: Action, zeta: State) -> State:
        """gain sin(s) + a."""
        return self.gain * torch.sin(s) + a + self.transition_std * zeta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """cos(s): the first action pays from the second step on."""
        return torch.cos(s[..., 0])

    @property
    def growth_rate(self) -> float:
        """log(gain^2 / 2): the growth per step of the mean squared sensitivity when s is uniform on the circle."""
        return math.log(self.gain**2 / 2)
