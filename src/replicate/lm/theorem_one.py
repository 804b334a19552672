"""Theorem 1: both sides of (23) along a relaxed rollout, right sides with a planted error, and the role of entropy."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.bisection import bisect
from replicate.lm import enumeration, recurrence, relaxed
from replicate.lm.paths import Paths
from replicate.lm.recurrence import OneState, Recurrence, Scales
from replicate.lm.relaxed import SoftReward, relaxed_costates, relaxed_rollout
from replicate.lm.token_path import entropy_side, paths_along
from replicate.models.logits import entropy


@dataclass(frozen=True)
class TheoremOne:
    """Both sides of (23) at every step t = 1..T of one relaxed rollout, and what they are made of.

    ``error`` [T] is |lambda^_t - lambda_t| with lambda^ the costate whose token path is cut; ``sharp`` [T] the right
    side with each token path's own norm; ``entropy_bound`` [T] the right side with C_k H_k, C_k = the product of the
    factors' norms / (2 ln 2); ``signal`` [T] is |lambda_t|; ``entropies`` [T] in nats; ``attention_norms`` and
    ``token_norms`` [T-1]; ``gaps`` the vectors lambda^_t - lambda_t.
    """

    error: Float[Tensor, " T"]
    sharp: Float[Tensor, " T"]
    entropy_bound: Float[Tensor, " T"]
    signal: Float[Tensor, " T"]
    entropies: Float[Tensor, " T"]
    attention_norms: list[float]
    token_norms: list[float]
    gaps: list[Tensor]


def both_sides(
    recurrence: Recurrence,
    state: OneState,
    reward: SoftReward,
    *,
    horizon: int,
    scale: Float[Tensor, " T"] | None = None,
    noise: Float[Tensor, "1 T vocab"] | None = None,
    tau: float = 1.0,
) -> TheoremOne:
    """Both sides of (23), exact, along the relaxed rollout from ``state``.

    With Gumbel noise the entropy in the bound is the soft sample's own, not the policy's: a single Gumbel sample at low
    temperature is not controlled by the policy's entropy, only its mean is.
    """
    options = {"horizon": horizon, "scale": scale, "noise": noise, "tau": tau}
    full = relaxed_costates(recurrence, state, reward, **options)
    cut = relaxed_costates(recurrence, state, reward, cut=True, **options)
    with torch.no_grad():
        entropies = relaxed_rollout(recurrence, state, **options).entropy[0]
    return assembled(full, cut, paths_along(recurrence, state, **options), entropies)


def assembled(
    full: list[Tensor], cut: list[Tensor], steps: list[Paths], entropies: Float[Tensor, " T"]
) -> TheoremOne:
    """Both sides of (23) from the costates s_1..s_T with and without the token path, and the factors of each step."""
    attention = [step.attention_norm for step in steps]
    token = [step.token_norm for step in steps]
    gaps = [a - b for a, b in zip(cut, full, strict=True)]
    signal = [float(x.norm()) for x in full]
    return TheoremOne(
        error=torch.tensor([float(x.norm()) for x in gaps], dtype=torch.float64),
        sharp=right_side(attention, token, signal),
        entropy_bound=right_side(attention, [entropy_side(step) for step in steps], signal),
        signal=torch.tensor(signal, dtype=torch.float64),
        entropies=entropies,
        attention_norms=attention,
        token_norms=token,
        gaps=gaps,
    )


def right_side(attention: list[float], token: list[float], signal: list[float]) -> Float[Tensor, " T"]:
    """sum_{k>=t} (prod_{t<=j<k} |J_j|) x token_k x |lambda_{k+1}| of (23), for t = 1..T (0 at the last)."""
    bound = [0.0]
    for k in reversed(range(len(token))):
        bound.append(token[k] * signal[k + 1] + attention[k] * bound[-1])
    return torch.tensor(bound[::-1], dtype=torch.float64)


def discrete_gradients(
    model: Recurrence,
    state: OneState,
    returns: Float[Tensor, " N"],
    *,
    scales: Scales,
) -> Float[Tensor, "settings n"]:
    """g = dV/ds by enumeration, V(s) = sum_o P(o | s) R(o): what the score function sends in expectation (A4).

    One gradient a setting of the factors that the logits of each step are multiplied by, all in one batch.
    """
    every = enumeration.all_completions(len(model.embeddings), scales.shape[1])
    leaf = state.expand(len(scales), -1).clone().requires_grad_()
    factors = scales.repeat_interleave(len(every), 0).T[:, :, None]
    with torch.enable_grad():
        states, completions = leaf.repeat_interleave(len(every), 0), every.repeat(len(scales), 1)
        logp = recurrence.unroll(model, states, completions, scale=factors).logp.sum(1)
        values = logp.exp().unflatten(0, (len(scales), -1)) @ returns
        (grad,) = torch.autograd.grad(values.sum(), leaf)
    return grad


def wrong_right_sides(sides: TheoremOne) -> dict[str, Float[Tensor, " T"]]:
    """The sharp right side of (23) with one error each, for a check to reject.

    ``identity dropped``: the norm of J_t without the block that repeats the cache, which is sqrt(|J_t|^2 - 1) where
    everything that F reads is repeated, as in a transformer. ``one factor short``: the product starts at j = t + 1.
    ``own step left out``: the sum starts at k = t + 1.
    """
    jacobians, token, signal = sides.attention_norms, sides.token_norms, sides.signal.tolist()
    newest = [math.sqrt(max(0.0, a * a - 1.0)) for a in jacobians]
    own = sides.sharp.new_tensor([k * lam for k, lam in zip(token, signal[1:], strict=True)] + [0.0])
    later = torch.cat([sides.sharp[1:], sides.sharp.new_zeros(1)])
    return {
        "identity dropped": right_side(newest, token, signal),
        "one factor short": own + later,
        "own step left out": sides.sharp - own,
    }


def policy_entropy_side(
    model: Recurrence,
    state: OneState,
    sides: TheoremOne,
    *,
    noise: Float[Tensor, "1 T vocab"],
    tau: float,
) -> Float[Tensor, " T"]:
    """The right side of (23) for a Gumbel rollout with the policy's entropies where the soft sample's own belong.

    ``sides`` are those of the same rollout. Not a bound: a sample can be a coin where the policy is near-certain.
    """
    horizon = noise.shape[1]
    steps = paths_along(model, state, horizon=horizon, tau=tau, noise=noise)
    token = [
        entropy_side(step) * float(policy / torch.special.entr(step.soft).sum())
        for step, policy in zip(steps, sides.entropies, strict=False)
    ]
    return right_side(sides.attention_norms, token, sides.signal.tolist())


def errors_over_scales(
    model: Recurrence,
    state: OneState,
    returns: Float[Tensor, " N"],
    *,
    scales: Scales,
    view: Float[Tensor, "n m"] | None = None,
    sent: bool = False,
) -> dict[str, list[float]]:
    """Distances from the relaxed costate lambda_1, one a setting of the factors on the logits of each step.

    In the coordinates ``view`` (ds_1/de: at the prompt's embeddings), or in the state's own.

    ``error`` is that of the cut costate, ``relative`` the same over ``signal`` = |lambda_1|. With ``sent`` also the
    distance ``sent`` of the discrete value gradient and its ratio ``relative sent``, which takes an enumeration.
    """
    settings, horizon = scales.shape
    reward = relaxed.multilinear(returns, vocab=len(model.embeddings), horizon=horizon)
    batch, how = state.expand(settings, -1), {"horizon": horizon, "scale": scales.T[:, :, None]}
    lam = relaxed.relaxed_costates(model, batch, reward, **how)[0]
    cut = relaxed.relaxed_costates(model, batch, reward, cut=True, **how)[0]
    at = (lambda x: x) if view is None else (lambda x: x @ view)
    error, signal = at(cut - lam).norm(dim=1), at(lam).norm(dim=1)
    found = {"error": error, "signal": signal, "relative": error / signal}
    if sent:
        apart = at(discrete_gradients(model, state, returns, scales=scales) - lam).norm(dim=1)
        found |= {"sent": apart, "relative sent": apart / signal}
    return {name: x.tolist() for name, x in found.items()}


def scales_for_entropies(
    model: Recurrence, state: OneState, entropies: Float[Tensor, "settings T"]
) -> Scales:
    """The factors scale_t on the logits that give the policy the wished entropies, in nats, along a relaxed rollout.

    Step by step and by bisection: the entropy of softmax(scale z) falls in the scale. Raises ``ValueError`` for
    entropies outside 0 to log|V|, and for one that no scale reaches (a tie for the largest logit keeps it away from 0).
    """
    top = math.log(len(model.embeddings))
    if not ((entropies > 0) & (entropies < top)).all():
        raise ValueError(
            f"entropies: expected between 0 and {top:.3f}, got {entropies.min():g} to {entropies.max():g}"
        )
    states, scales = state.expand(len(entropies), -1), []
    with torch.no_grad():
        for t, wished in enumerate(entropies.T):
            logits = model.logits(states)
            scales.append(_scale_for(logits, wished))
            if t + 1 < entropies.shape[1]:
                soft = (scales[-1][:, None] * logits).softmax(-1)
                states = model.advance(states, soft @ model.embeddings)
    return torch.stack(scales, 1)


def _scale_for(
    logits: Float[Tensor, "settings vocab"], wished: Float[Tensor, " settings"]
) -> Float[Tensor, " settings"]:
    def reached(power: Tensor) -> Tensor:
        return entropy((power.exp2()[:, None] * logits).log_softmax(-1))

    ends = torch.full_like(wished, -30.0), torch.full_like(wished, 30.0)
    power, _ = bisect(lambda x: reached(x) > wished, *ends, steps=60)
    if (reached(power) - wished).abs().max() > 1e-9:
        raise ValueError(
            "entropies: expected ones that some scale of the logits reaches, got one that none does"
        )
    return power.exp2()
