"""The value of the pendulum without a sample and without a derivative: the Bellman equation solved on a grid.

V_t(s) = E[r(s, a) + gamma V_{t+1}(f(s, a))] over the action noise: a Gauss-Hermite sum, with V_{t+1} read off a
quintic spline through a grid of states. Nothing here differentiates the task; a gradient is a difference of values.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from replicate.theory.differences import finite_differences
from replicate.theory.rollout import State, check_gamma
from replicate.theory.toys import Pendulum


class ValueTable:
    """V_0, ..., V_T of a pendulum on a grid of (angle, angular velocity), and their slopes.

    The angle goes once round; ``fastest`` bounds the angular velocities (rad/s) at which values are asked for, and the
    grid reaches as far beyond as torque, gravity and noise can carry the pendulum in ``horizon`` steps.
    """

    def __init__(
        self,
        mdp: Pendulum,
        *,
        horizon: int,
        gamma: float | int,
        fastest: float = 3.0,
        angles: int = 96,
        spacing: float = 0.15,
        nodes: int = 16,
    ) -> None:
        """Solves backwards from V_T = 0. Raises ``ValueError`` for an empty horizon or a discount outside [0, 1]."""
        check_gamma(gamma)
        if horizon < 1:
            raise ValueError(f"horizon: expected at least 1, got {horizon}")
        self.mdp, self.horizon, self.gamma = mdp, horizon, gamma
        x, weight = np.polynomial.hermite_e.hermegauss(nodes)
        self.noise, self.weight = torch.from_numpy(x), torch.from_numpy(weight / weight.sum())
        self._angles = np.linspace(-math.pi, math.pi, angles, endpoint=False)
        self._grid = [np.empty(0)] * horizon
        self._splines: list[RectBivariateSpline | None] = [None] * (horizon + 1)
        self._solve(fastest, spacing)

    def _solve(self, fastest: float, spacing: float) -> None:
        # A step from s can change the velocity by this much at most, but for noise beyond the outermost node.
        torque = self.mdp.mean(_states(self._angles, np.linspace(-30, 30, 61)), self.mdp.theta).abs().max()
        push = self.mdp.gravity + torque + self.mdp.noise_std * self.noise.abs().max()
        step = self.mdp.dt * float(push)
        for t in reversed(range(self.horizon)):
            reach = fastest + step * t
            speeds = np.linspace(-reach, reach, 2 * math.ceil(reach / spacing) + 1)
            V = self.bellman(_states(self._angles, speeds), t).reshape(len(self._angles), -1).numpy()
            # The table once more on either side makes the spline periodic.
            around = np.concatenate([self._angles + turn * 2 * math.pi for turn in (-1, 0, 1)])
            self._splines[t] = RectBivariateSpline(around, speeds, np.tile(V, (3, 1)), kx=5, ky=5)

    def bellman(self, s: Float[Tensor, "batch 2"], t: int) -> Float[Tensor, " batch"]:
        """E[r + gamma V_{t+1}(f(s, a))] over the nodes of the noise, from the table of the step after."""
        s = s[:, None].expand(-1, len(self.noise), -1)
        a = self.mdp.policy(s, self.noise[:, None].expand(*s.shape[:2], 1), self.mdp.theta)
        following = self.value(self.mdp.transition(s, a, torch.zeros_like(s)), t + 1)
        return (self.mdp.reward(s, a) + self.gamma * following) @ self.weight

    def value(self, s: State, t: int) -> Float[Tensor, "*batch"]:
        """V_t(s), t in 0..horizon (``ValueError`` otherwise); zero at the horizon."""
        if not 0 <= t <= self.horizon:
            raise ValueError(f"t: expected a step in 0..{self.horizon}, got {t}")
        if t == self.horizon:
            return torch.zeros_like(s[..., 0])
        phi = torch.remainder(s[..., 0] + math.pi, 2 * math.pi) - math.pi
        return torch.from_numpy(self._splines[t].ev(phi.numpy(), s[..., 1].numpy()))

    def gradient(
        self, s: Float[Tensor, "batch 2"], t: int, *, step: float = 2e-2
    ) -> Float[Tensor, "batch 2"]:
        """dV_t/ds by extrapolated central differences of the table's values."""
        return finite_differences(lambda x: self.value(x, t), s, step=step)


def _states(angles: np.ndarray, speeds: np.ndarray) -> Float[Tensor, "points 2"]:
    return torch.cartesian_prod(torch.from_numpy(angles), torch.from_numpy(speeds))
