"""What the backward pass of a policy-gradient surrogate brings to the states: autograd through the graph, no recursion.

The surrogate sum_t w_t log pi(a_t given s_t) holds actions and weights fixed. Which state signal it sends back depends
on what else is in the graph; the readings are the keywords of :func:`surrogate_signals`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory.rollout import Actions, DifferentiableMDP, Starts, States, check_gamma, rollout


def surrogate_signals(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    weights: Float[Tensor, "batch steps"],
    *,
    gamma: float | int = 1,
    dynamics: bool = True,
    rewards: bool = False,
) -> States:
    """dL/ds_t for L = sum_t w_t log pi(a_t given s_t) along the rollout from ``s0`` with this noise, by autograd.

    Actions are data: numbers that were sampled. With ``dynamics`` the states are a function of s_t through
    s_{t+1} = f(s_t, a_t); without it they are data too, and each reaches its own log pi alone. With ``rewards`` the sum
    sum_t gamma^t r(s_t, a_t) (and the terminal reward) is added to L, so that a reward's own dependence on its state
    counts; without it rewards are numbers inside ``weights``. Raises ``ValueError`` for weights of another shape.
    """
    check_gamma(gamma)
    if weights.shape != noise.shape[:2]:
        raise ValueError(f"weights: expected shape {list(noise.shape[:2])}, got {list(weights.shape)}")
    path = rollout(mdp, s0, noise)
    # A zero added to each state: the gradient in it is the signal that arrives there.
    probes = torch.zeros_like(path.states).requires_grad_()
    s, total = s0 + probes[:, 0], s0.new_zeros(len(s0))
    for t in range(noise.shape[1]):
        a = path.actions[:, t]
        total = total + weights[:, t] * mdp.log_prob(s, a, mdp.theta)
        if rewards:
            total = total + gamma**t * mdp.reward(s, a)
        following = mdp.transition(s, a, torch.zeros_like(s)) if dynamics else path.states[:, t + 1]
        s = following + probes[:, t + 1]
    if rewards:
        total = total + gamma ** noise.shape[1] * mdp.terminal_reward(s)
    return torch.autograd.grad(total.sum(), probes)[0][:, :-1]
