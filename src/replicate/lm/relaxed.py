r"""Relaxed rollouts, in which a soft token takes the place of a sampled one, and their costates by BPTT.

    p_t = softmax((scale_t z_t + noise_t) / tau),    e_t = sum_v p_t(v) e(v),    s_{t+1} = F(s_t, e_t)

Without noise and with tau = 1 the soft token is the policy itself (a deterministic rollout); with standard Gumbel noise
it is a Gumbel-softmax sample. ``straight_through`` feeds the most likely token of p_t and differentiates p_t. The
reward reads soft tokens: any smooth function of p_1..p_T, usually :func:`multilinear`.

The costate of a relaxed rollout is the total derivative lambda_t = dR/ds_t. ``cut=True`` stops the gradient where
a soft token is fed back and nowhere else: what is left is the attention path of (20), the costate that Theorem 1's
proof compares with lambda_t. It is *not* what a sampled rollout sends back; that is the score function (A4).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from replicate.lm.enumeration import scores
from replicate.lm.recurrence import (
    OneState,
    Recurrence,
    Scale,
    State,
    differentiable,
    read_prompt,
    transformer,
    unroll,
)
from replicate.models.logits import entropy

SoftReward = Callable[[Tensor], Tensor]
"""Rewards [batch] of soft tokens [batch, T, vocab]."""


@dataclass(frozen=True)
class Relaxed:
    """A relaxed rollout: states s_1..s_T with their graph, soft tokens p_t (``tokens`` one by one, each before what is
    fed back of it, ``soft`` together), the entropy in nats of the *policy* softmax(scale_t z_t) at each step, and the
    embeddings fed after each step but the last."""

    states: list[Tensor]
    tokens: list[Tensor]
    soft: Float[Tensor, "batch T vocab"]
    entropy: Float[Tensor, "batch T"]
    fed: list[Tensor]


def relaxed_rollout(
    recurrence: Recurrence,
    state: State,
    *,
    horizon: int,
    scale: Scale | None = None,
    tau: float = 1.0,
    noise: Float[Tensor, "batch T vocab"] | None = None,
    straight_through: bool = False,
    cut: bool = False,
) -> Relaxed:
    """Runs ``horizon`` soft tokens from ``state``; see the module's text for the options.

    ``scale`` multiplies the logits of step t, by one number or by one number for each state of the batch.
    Raises ``ValueError`` for a horizon or a temperature that is not positive and noise of the wrong shape.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1, got {horizon}")
    if not tau > 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    shape = (len(state), horizon, len(recurrence.embeddings))
    if noise is not None and noise.shape != shape:
        raise ValueError(f"noise: expected shape {list(shape)}, got {list(noise.shape)}")
    states, tokens, spread, fed = [state], [], [], []
    for t in range(horizon):
        differentiable(states[-1])
        logits = recurrence.logits(states[-1]) * (1.0 if scale is None else scale[t])
        spread.append(entropy(logits.detach().log_softmax(-1)))
        tokens.append(soft_token(logits, tau, None if noise is None else noise[:, t], straight_through))
        if t + 1 < horizon:
            embedded = tokens[-1] @ recurrence.embeddings  # the path through the token in (20)
            fed.append(embedded.detach() if cut else embedded)
            states.append(recurrence.advance(states[-1], fed[-1]))
    return Relaxed(states, tokens, torch.stack(tokens, 1), torch.stack(spread, 1), fed)


def soft_token(
    logits: Float[Tensor, "batch vocab"],
    tau: float,
    noise: Float[Tensor, "batch vocab"] | None,
    straight_through: bool,
) -> Float[Tensor, "batch vocab"]:
    """p = softmax((z + noise) / tau); straight through: one-hot in value, p in derivative."""
    shifted = logits if noise is None else logits + noise
    p = (shifted / tau).softmax(-1)
    if not straight_through:
        return p
    hard = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
    return hard + p - p.detach()


def relaxed_costates(recurrence: Recurrence, state: State, reward: SoftReward, **options) -> list[Tensor]:
    """lambda_t = dR/ds_t for t = 1..T by back-propagation through time; options of :func:`relaxed_rollout`."""
    with torch.enable_grad():
        run = relaxed_rollout(recurrence, state.detach().requires_grad_(), **options)
        return list(torch.autograd.grad(reward(run.soft).sum(), run.states, materialize_grads=True))


def around_token(
    model: PreTrainedModel,
    embedded: Float[Tensor, "batch length dim"],
    labels: Int[Tensor, " batch"],
    *,
    vocab: int,
    cut: bool = False,
) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch positions"], Float[Tensor, " batch"]]:
    """Costates of pi_2(y) behind one soft token: at Def. 2's h_1, at the prompt's embeddings (flattened), and H_1.

    ``labels`` are the y; with ``cut`` the soft token is fed back without its gradient, as in :func:`relaxed_rollout`.
    """
    recurrence, leaf = transformer(model, vocab=vocab), embedded.detach().clone().requires_grad_()
    with torch.enable_grad():
        state = read_prompt(model, leaf)
        run = relaxed_rollout(recurrence, state, horizon=2, cut=cut)
        reward = run.soft[:, 1].gather(1, labels[:, None]).sum()
        at_prompt, at_state = torch.autograd.grad(reward, [leaf, state])
    return at_state[:, recurrence.kept(at_state.shape[1]) :], at_prompt.flatten(1), run.entropy[:, 0]


def relaxed_value(
    recurrence: Recurrence, state: State, reward: SoftReward, **options
) -> Float[Tensor, " batch"]:
    """The reward of the relaxed rollout from ``state``, without graph."""
    with torch.no_grad():
        return reward(relaxed_rollout(recurrence, state, **options).soft)


def gumbel(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in float64."""
    uniform = torch.rand(*shape, dtype=torch.float64, generator=generator)
    return -(-uniform.clamp_min(1e-300).log()).log()


def multilinear(returns: Float[Tensor, " N"], *, vocab: int, horizon: int) -> SoftReward:
    """The reward of soft tokens that equals R(o) on hard ones: sum_o prod_t p_t(o_t) R(o), o in lexicographic order."""
    if len(returns) != vocab**horizon:
        raise ValueError(f"returns: expected {vocab}^{horizon} of them, got {len(returns)}")

    def reward(soft: Tensor) -> Tensor:
        left = returns.expand(len(soft), -1)
        for t in range(horizon):
            left = torch.einsum("bv,bvr->br", soft[:, t], left.unflatten(1, (vocab, -1)))
        return left.squeeze(1)

    return reward


def token_slopes(
    recurrence: Recurrence, state: OneState, reward: SoftReward, **options
) -> Float[Tensor, "T vocab"]:
    """u_t(v) = dR/dp_t(v) in total, through the reward and through what is fed back: what token v is worth at step t
    to first order around the rollout from one state; options of :func:`relaxed_rollout`."""
    with torch.enable_grad():
        run = relaxed_rollout(recurrence, state.detach().requires_grad_(), **options)
        grads = torch.autograd.grad(reward(run.soft).sum(), run.tokens, materialize_grads=True)
    return torch.cat(grads)


def linear_prediction(
    recurrence: Recurrence,
    state: State,
    reward: SoftReward,
    *,
    horizon: int,
    scale: Scale | None = None,
) -> Float[Tensor, "T vocab"]:
    """The reward that the deterministic soft rollout predicts, to first order, for token v at step t alone:

        R(p_1..p_T) + u_t(v) - sum_w p_t(w) u_t(w),    u of :func:`token_slopes`

    Its mean over the soft token p_t is the soft reward itself. It serves :func:`combined_estimates` as slopes.
    """
    slopes = token_slopes(recurrence, state, reward, horizon=horizon, scale=scale)
    with torch.no_grad():
        soft = relaxed_rollout(recurrence, state, horizon=horizon, scale=scale).soft
        return slopes - (soft[0] * slopes).sum(1, keepdim=True) + reward(soft)


def combined_estimates(
    recurrence: Recurrence,
    state: Float[Tensor, " state"],
    completions: Int[Tensor, "N T"],
    returns: Float[Tensor, " N"],
    slopes: Float[Tensor, "*N T vocab"],
    *,
    scale: Scale | None = None,
) -> Float[Tensor, "N state"]:
    """Score function with the relaxed rollout as its control variate: one *unbiased* estimate of dV/ds a completion.

    sum_t [ (R - u_t(o_t)) dlog pi(o_t)/ds + sum_v u_t(v) dpi(v | s, o_<t)/ds ]

    For any slopes u that do not depend on the sample the two terms with u cancel in expectation; with the slopes of the
    relaxed rollout (:func:`token_slopes`) the second is its gradient at the sampled prefix and the first what is left
    to learn from sampling. ``slopes`` may differ between completions, and so may ``scale``.
    """
    taken = slopes.expand(len(completions), -1, -1).gather(2, completions[:, :, None]).squeeze(2)
    sampled = scores(
        lambda s: unroll(recurrence, s, completions, scale=scale).logp, state, returns[:, None] - taken
    )
    leaf = state.detach().expand(len(completions), -1).clone().requires_grad_()
    with torch.enable_grad():
        states = unroll(recurrence, leaf, completions, scale=scale).states
        policies = [
            (recurrence.logits(s) * (1.0 if scale is None else scale[t])).softmax(-1)
            for t, s in enumerate(states)
        ]
        (expected,) = torch.autograd.grad((torch.stack(policies, 1) * slopes).sum(), leaf)
    return sampled + expected
