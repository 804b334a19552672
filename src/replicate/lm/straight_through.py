r"""Matched straight-through rollouts: the sampled token goes forward, the softmax Jacobian of the policy backward.

    forward   s_{t+1} = F(s_t, e(o_t)),  o_t ~ pi_t            backward   do_t/dz_t := diag(pi_t) - pi_t pi_t^T

The trajectory is the discrete policy's own, so that a costate of this relaxation and a score-function costate can be
compared on the same states, samples and rewards. The costate is no derivative of any function: it depends on the
completion, and what Theorem 1 compares is its mean over completions.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.lm import enumeration, recurrence
from replicate.lm.paths import Paths, head_jacobian, paths_at
from replicate.lm.recurrence import OneState, Recurrence, Scale
from replicate.lm.relaxed import SoftReward
from replicate.lm.theorem_one import TheoremOne, assembled


def matched_costates(
    model: Recurrence,
    state: OneState,
    completions: Int[Tensor, "N T"],
    reward: SoftReward,
    *,
    scale: Scale | None = None,
    cut: bool = False,
) -> list[Tensor]:
    """lambda_t [N, n_t], t = 1..T, of each completion; with ``cut`` the gradient stops where a token is fed back.

    ``reward`` reads tokens [N, T, vocab]: it sees one-hot ones and is differentiated there.
    """
    recurrence.check_completions(model, state.expand(len(completions), -1), completions)
    states = [state.detach().expand(len(completions), -1).clone().requires_grad_()]
    tokens: list[Tensor] = []
    with torch.enable_grad():
        for t, chosen in enumerate(completions.T):
            recurrence.differentiable(states[-1])
            p = recurrence.log_policies(model, states[-1], t, scale).exp()
            hard = torch.nn.functional.one_hot(chosen, p.shape[1]).to(p.dtype)
            tokens.append(hard + p - p.detach())
            if t + 1 < completions.shape[1]:
                fed = tokens[-1] @ model.embeddings
                states.append(model.advance(states[-1], fed.detach() if cut else fed))
        total = reward(torch.stack(tokens, 1)).sum()
        return list(torch.autograd.grad(total, states, materialize_grads=True))


def expected_costate(
    model: Recurrence,
    state: OneState,
    reward: SoftReward,
    *,
    horizon: int,
    scale: Float[Tensor, " T"] | None = None,
    cut: bool = False,
) -> Float[Tensor, " n"]:
    """E lambda_1 of matched straight-through rollouts, by running through all completions."""
    every = enumeration.all_completions(len(model.embeddings), horizon)
    log_probs = recurrence.log_probs_of(model, every, scale=scale)
    probs = enumeration.probabilities(log_probs, state[0], len(every))
    return probs @ matched_costates(model, state, every, reward, scale=scale, cut=cut)[0]


def matched_sides(
    model: Recurrence,
    state: OneState,
    completion: Int[Tensor, " T"],
    reward: SoftReward,
    *,
    scale: Float[Tensor, " T"] | None = None,
) -> TheoremOne:
    """Both sides of (23) along one completion; the entropies in the bound are the policy's."""
    full, cut = (
        matched_costates(model, state, completion[None], reward, scale=scale, cut=c) for c in (False, True)
    )
    with torch.no_grad():
        states = recurrence.unroll(model, state, completion[None], scale=scale).states
        logs = [recurrence.log_policies(model, s, t, scale)[0] for t, s in enumerate(states)]
    entropies = torch.stack([torch.special.entr(log.exp()).sum() for log in logs])
    return assembled(full, cut, matched_paths(model, state, completion, scale=scale), entropies)


def matched_paths(
    model: Recurrence,
    state: OneState,
    completion: Int[Tensor, " T"],
    *,
    scale: Float[Tensor, " T"] | None = None,
) -> list[Paths]:
    """J_t and K_t of (20) at s_1..s_{T-1} of a completion, each factor on its own."""
    with torch.no_grad():
        states = recurrence.unroll(model, state, completion[None], scale=scale).states
    found = []
    for t, s in enumerate(states[:-1]):
        with torch.no_grad():
            p = recurrence.log_policies(model, s, t, scale).exp()[0]
        head = head_jacobian(model, s) * (1.0 if scale is None else float(scale[t]))
        found.append(paths_at(model, s, model.embeddings[completion[t]][None], p, head, 1.0))
    return found
