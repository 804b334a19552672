"""Tasks that pay once, at the end: the outcome-only case of section 2, r_t = 0 before T and one terminal reward."""

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory.rollout import LQG, Action, DifferentiableMDP, Params, State, check_gamma


class OutcomeOnly(DifferentiableMDP):
    """``task`` with its rewards taken away and one put at the end: ``scale`` times its reward of s_T with no action."""

    def __init__(self, task: DifferentiableMDP, *, scale: float | int = 1.0) -> None:
        self.task, self.scale, self.theta = task, float(scale), task.theta
        self.state_dim, self.action_dim = task.state_dim, task.action_dim
        self.noise_std, self.transition_std = task.noise_std, task.transition_std

    def mean(self, s: State, theta: Params) -> Action:
        """The policy of the task."""
        return self.task.mean(s, theta)

    def transition(self, s: State, a: Action, zeta: State) -> State:
        """The transition of the task."""
        return self.task.transition(s, a, zeta)

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """Nothing before the end."""
        return torch.zeros_like(s[..., 0])

    def terminal_reward(self, s: State) -> Float[Tensor, "*batch"]:
        """scale x r(s_T, 0) of the task."""
        return self.scale * self.task.reward(s, s.new_zeros(*s.shape[:-1], self.action_dim))


class OutcomeLQG(LQG):
    """An :class:`LQG` that pays -s_T^T Q s_T at the end and nothing before, with its closed forms."""

    def __init__(self, task: LQG) -> None:
        nothing = torch.zeros_like(task.R)
        noise = {"noise_std": task.noise_std, "transition_std": task.transition_std}
        super().__init__(task.A, task.B, task.Q, nothing, task.K, **noise)

    def reward(self, s: State, a: Action) -> Float[Tensor, "*batch"]:
        """Nothing before the end."""
        return torch.zeros_like(s[..., 0])

    def terminal_reward(self, s: State) -> Float[Tensor, "*batch"]:
        """-s^T Q s."""
        return -((s @ self.Q) * s).sum(-1)

    def cost_matrices(
        self, *, horizon: int, gamma: float | int, theta: Params | None = None
    ) -> Float[Tensor, "{horizon}+1 state state"]:
        """The symmetric P_t: P_T = Q and P_t = gamma (A + B K)^T P_{t+1} (A + B K)."""
        check_gamma(gamma)
        if horizon < 0:
            raise ValueError(f"horizon: expected a number >= 0, got {horizon}")
        M = self.A + self.B @ (self.theta if theta is None else theta).view(self.action_dim, self.state_dim)
        P = [(self.Q + self.Q.T) / 2]
        for _ in range(horizon):
            P.append(gamma * M.T @ P[-1] @ M)
        return torch.stack(P[::-1])
