"""Tasks of one step on which limit and mean change places, or do not: when the mean costate is the value gradient.

State and action are single numbers and there is no transition to speak of: the reward of the one step is all.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory.rollout import Action, DifferentiableMDP, Params, State


class _OneStep(DifferentiableMDP):
    state_dim, action_dim = 1, 1
    noise_std = 1.0
    theta = torch.zeros(1, dtype=torch.float64)

    def transition(self, s: State, a: Action, zeta: State) -> State:
        """The state stays."""
        return s + 0 * a


class Threshold(_OneStep):
    """a = s + noise_std xi with standard normal xi, r = Phi(a / width); at width 0 the jump r = 1[a > 0].

    V(s) = Phi(s / sqrt(noise_std^2 + width^2)). The jump is flat at almost every action, and every costate is zero.
    """

    def __init__(self, *, width: float | int, noise_std: float | int = 1.0) -> None:
        """Raises ``ValueError`` for a negative width."""
        if width < 0:
            raise ValueError(f"width: expected a number >= 0, got {width}")
        self.width, self.noise_std = float(width), float(noise_std)

    def mean(self, s: State, theta: Params) -> Action:
        """s, whatever theta."""
        return s + 0 * theta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """Phi(a / width), and a jump at width 0 (of which autograd says the slope is zero, as it is but at a = 0)."""
        if self.width == 0:
            return (1 + torch.sign(a[..., 0])) / 2
        return torch.special.ndtr(a[..., 0] / self.width)

    def slope(self, s: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """V'(s), a normal density."""
        scale = math.hypot(self.noise_std, self.width)
        return torch.exp(-((s / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))


class Undominated(_OneStep):
    """a = xi uniform on (0, 1], r = s^3 / (s^2 + a)^2: differentiable in s at every action, under no integrable bound.

    V(s) = s / (1 + s^2), so that V'(0) = 1; but dr/ds = 0 at s = 0 for every a > 0.
    """

    def mean(self, s: State, theta: Params) -> Action:
        """Nothing is added to the noise."""
        return 0 * s + 0 * theta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """s^3 / (s^2 + a)^2."""
        return s[..., 0] ** 3 / (s[..., 0] ** 2 + a[..., 0]) ** 2

    def slope(self, s: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """V'(s) = (1 - s^2) / (1 + s^2)^2."""
        return (1 - s**2) / (1 + s**2) ** 2


class HeavyTail(_OneStep):
    """a = xi standard Cauchy, r = cos(s a): bounded and smooth, and the costate -a sin(s a) has no mean.

    V(s) = exp(-|s|), with a slope at every s but 0.
    """

    def mean(self, s: State, theta: Params) -> Action:
        """Nothing is added to the noise."""
        return 0 * s + 0 * theta

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """cos(s a)."""
        return torch.cos(s[..., 0] * a[..., 0])

    def slope(self, s: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """V'(s) = -sign(s) exp(-|s|)."""
        return -torch.sign(s) * torch.exp(-s.abs())
