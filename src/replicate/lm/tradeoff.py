r"""Bias against variance: what estimating a value gradient costs, by estimate and by group size.

The value gradient g = dV/ds of the discrete policy can be estimated from G completions in several ways. Their mean
squared errors are

    score function    variance of a U-statistic (leave-one-out baseline), unbiased
    relaxed           |lambda - g|^2, no variance: lambda is the costate of the deterministic soft rollout
    Gumbel            squared bias + variance / G: G Gumbel-softmax rollouts
    control variate   variance / G, unbiased: the score function with the relaxed rollout's prediction taken away
    weighted mean     b s / (b + s): score function (s) and relaxed costate (b), weighted by inverse squared error

All but the Gumbel line are exact, by running through all completions.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm import enumeration, recurrence, relaxed
from replicate.lm.recurrence import OneState, Recurrence, Scales
from replicate.lm.theorem_one import discrete_gradients

PerCompletion = Float[Tensor, "settings N"]

ESTIMATES = ("score function", "relaxed", "Gumbel", "control variate", "weighted mean")


@dataclass(frozen=True)
class Costs:
    """What estimating one value gradient costs, in units of its own squared norm |g|^2.

    ``score`` holds the errors of the score function from groups of two and of three; ``relaxed`` is the squared bias
    of the relaxed costate; ``gumbel`` its squared bias and the variance of one Gumbel rollout; ``combined`` the
    variance of one completion's control-variate estimate.
    """

    score: tuple[float, float]
    relaxed: float
    gumbel: tuple[float, float]
    combined: float

    def score_function(self, group: int) -> float:
        """Error of the leave-one-out score function from ``group`` completions.

        The variance of a U-statistic of pairs, 2 (2 (G-2) zeta_1 + zeta_2) / (G (G-1)), is known for every G from
        two of its values: zeta_2 from G = 2, zeta_1 from G = 3.
        """
        two, three = self.score
        return 2 * ((group - 2) * (3 * three - two) + two) / (group * (group - 1))

    def errors(self, group: int) -> dict[str, float]:
        """Mean squared error / |g|^2 of each of :data:`ESTIMATES` from ``group`` completions or rollouts."""
        sampled = self.score_function(group)
        found = (
            sampled,
            self.relaxed,
            self.gumbel[0] + self.gumbel[1] / group,
            self.combined / group,
            self.relaxed * sampled / (self.relaxed + sampled),
        )
        return dict(zip(ESTIMATES, found, strict=True))

    def crossings(self) -> dict[str, float]:
        """The smallest groups from which an unbiased estimate is at least as good as a biased one, or as zero."""
        return {
            "score function / relaxed": crossing(lambda G: self.score_function(G) <= self.relaxed),
            "control variate / relaxed": crossing(lambda G: self.combined / G <= self.relaxed),
            "score function / Gumbel": crossing(
                lambda G: self.score_function(G) <= self.gumbel[0] + self.gumbel[1] / G
            ),
            "score function / zero": crossing(lambda G: self.score_function(G) <= 1.0),
        }


def estimation_costs(
    model: Recurrence,
    state: OneState,
    returns: PerCompletion,
    *,
    scales: Scales,
    tau: float,
    rollouts: int,
    view: Float[Tensor, "n m"] | None = None,
    generator: torch.Generator,
) -> list[Costs]:
    """Everything :class:`Costs` holds, for one model and state. A setting is a reward with factors on the logits.

    Exact by enumeration, but for the Gumbel line, which is estimated from ``rollouts`` samples at temperature
    ``tau``; the sampling error of its mean is taken off the squared bias, which is not let below zero. All settings
    go through the model in one batch. Errors are measured in the coordinates ``view`` (ds_1/de: at the prompt's
    embeddings), or in the state's own. Raises ``ValueError`` for fewer than two rollouts.
    """
    if rollouts < 2:
        raise ValueError(f"rollouts: a variance needs at least 2, got {rollouts}")
    (settings, horizon), vocab = scales.shape, len(model.embeddings)
    rewards = [relaxed.multilinear(R, vocab=vocab, horizon=horizon) for R in returns]
    probs, score = _probs_and_scores(model, state, scales)
    g = torch.einsum("bn,bn,bns->bs", probs, returns, score)
    lam = _costates(model, state, rewards, scales, 1)[:, 0]
    both = _combined(model, state, returns, rewards, scales)
    noise = relaxed.gumbel(settings * rollouts, horizon, vocab, generator=generator)
    soft = _costates(model, state, rewards, scales, rollouts, noise=noise, tau=tau)
    if view is not None:
        score, g, lam, both, soft = (x @ view for x in (score, g, lam, both, soft))
    found = []
    for P, R, S, target, unbiased, rolled, biased in zip(
        probs, returns, score, g, both, soft, lam, strict=True
    ):
        unit, spread = float(target.square().sum()), float(rolled.var(0).sum())
        pairs, threes = (enumeration.leave_one_out_mse(P, R, S, group=G) for G in (2, 3))
        shift = max(0.0, float((rolled.mean(0) - target).square().sum()) - spread / rollouts)
        found.append(
            Costs(
                score=(pairs / unit, threes / unit),
                relaxed=float((biased - target).square().sum()) / unit,
                gumbel=(shift / unit, spread / unit),
                combined=float(P @ (unbiased - target).square().sum(1)) / unit,
            )
        )
    return found


def gumbel_by_temperature(
    model: Recurrence,
    state: OneState,
    returns: Float[Tensor, " N"],
    *,
    scale: Float[Tensor, " T"],
    noise: Float[Tensor, "rollouts T vocab"],
    taus: Sequence[float],
    view: Float[Tensor, "n m"],
) -> list[tuple[float, float]]:
    """Squared bias and variance / |g|^2 of one Gumbel rollout's costate, a pair a temperature.

    The bias is estimated without bias, by what the rollouts' mean misses less its sampling error, so that it can come
    out below zero. The same noise serves all temperatures.
    """
    rollouts, horizon, vocab = noise.shape
    reward = relaxed.multilinear(returns, vocab=vocab, horizon=horizon)
    g = discrete_gradients(model, state, returns, scales=scale[None])[0] @ view
    unit, found = float(g.square().sum()), []
    for tau in taus:
        how = {"horizon": horizon, "scale": scale, "noise": noise, "tau": tau}
        costates = relaxed.relaxed_costates(model, state.expand(rollouts, -1), reward, **how)[0] @ view
        variance = float(costates.var(0).sum())
        missed = float((costates.mean(0) - g).square().sum())
        found.append(((missed - variance / rollouts) / unit, variance / unit))
    return found


def _probs_and_scores(
    model: Recurrence, state: OneState, scales: Scales
) -> tuple[PerCompletion, Float[Tensor, "settings N n"]]:
    """P(o | s) and sum_t dlog pi(o_t)/ds of every completion, under each setting of the scales."""
    every = enumeration.all_completions(len(model.embeddings), scales.shape[1])
    leaf = state.expand(len(scales) * len(every), -1).clone().requires_grad_()
    factors = scales.repeat_interleave(len(every), 0).T[:, :, None]
    with torch.enable_grad():
        logp = recurrence.unroll(model, leaf, every.repeat(len(scales), 1), scale=factors).logp.sum(1)
        (score,) = torch.autograd.grad(logp.sum(), leaf)
    probs = logp.detach().exp().unflatten(0, (len(scales), -1))
    return probs, score.unflatten(0, (len(scales), -1))


def _costates(
    model: Recurrence,
    state: OneState,
    rewards: list[relaxed.SoftReward],
    scales: Scales,
    rollouts: int,
    **how,
) -> Float[Tensor, "settings rollouts n"]:
    """lambda_1 of ``rollouts`` relaxed rollouts in each setting, which has a reward and scales of its own."""

    def reward(soft: Tensor) -> Tensor:
        return torch.cat([f(mine) for f, mine in zip(rewards, soft.split(rollouts), strict=True)])

    batch = state.expand(len(scales) * rollouts, -1)
    factors = scales.repeat_interleave(rollouts, 0).T[:, :, None]
    found = relaxed.relaxed_costates(model, batch, reward, horizon=scales.shape[1], scale=factors, **how)
    return found[0].unflatten(0, (len(scales), rollouts))


def _combined(
    model: Recurrence,
    state: OneState,
    returns: PerCompletion,
    rewards: list[relaxed.SoftReward],
    scales: Scales,
) -> Float[Tensor, "settings N n"]:
    """The control-variate estimate of every completion in each setting."""
    (settings, horizon), N = scales.shape, returns.shape[1]
    every = enumeration.all_completions(len(model.embeddings), horizon)
    prediction = torch.stack(
        [
            relaxed.linear_prediction(model, state, reward, horizon=horizon, scale=scale)
            for reward, scale in zip(rewards, scales, strict=True)
        ]
    )
    found = relaxed.combined_estimates(
        model,
        state[0],
        every.repeat(settings, 1),
        returns.flatten(),
        prediction.repeat_interleave(N, 0),
        scale=scales.repeat_interleave(N, 0).T[:, :, None],
    )
    return found.unflatten(0, (settings, N))


def crossing(better: Callable[[int], bool], *, limit: int = 2**20) -> float:
    """The smallest group size G from 2 to ``limit`` at which ``better(G)`` holds, infinity if at none.

    By bisection: ``better`` has to stay true once it is. So it does for a leave-one-out score function against any
    a + b / G with a, b >= 0, whose difference times G falls in G.
    """
    groups = range(2, limit + 1)
    first = bisect_left(groups, True, key=better)
    return float(groups[first]) if first < len(groups) else math.inf
