r"""Theorem 1 in tables: both sides of (23), right sides with a planted error, and bias against variance.

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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn

from replicate.lm import enumeration, gap, recurrence, relaxed
from replicate.lm.recurrence import Recurrence
from replicate.models.fresh import tiny_model
from replicate.rl.tasks.label_copying import entropy

ESTIMATES = ("score function", "relaxed", "Gumbel", "control variate", "weighted mean")


def fresh_start(
    family: str, *, vocab: int, generator: torch.Generator, **size
) -> tuple[Recurrence, Float[Tensor, "1 n"]]:
    """A model with fresh weights and its state s_1: a transformer after a random prompt of four tokens, or, for
    ``"gru"``, a gated recurrent unit after one token. ``size`` goes to :func:`replicate.models.fresh.tiny_model`."""
    if family == "gru":
        model = recurrence.gru(vocab=vocab, hidden=8, generator=generator)
        return model, model.read(torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
    small = tiny_model(family, vocab=vocab, generator=generator, **size)
    prompt = torch.randint(vocab, (1, 4), generator=generator)
    return recurrence.transformer(small), recurrence.prompt_state(small, prompt)


def discrete_gradients(
    model: Recurrence,
    state: Float[Tensor, "1 n"],
    returns: Float[Tensor, " N"],
    *,
    scales: Float[Tensor, "settings T"],
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


def sides_by_step(sides: gap.TheoremOne) -> list[dict[str, int | float]]:
    """One row a step t = 1..T-1: the error of the cut costate, both right sides of (23), and the signal |lambda_t|."""
    return [
        {
            "t": t + 1,
            "error": float(sides.gaps[t].norm()),
            "sharp": float(sides.sharp[t]),
            "entropy": float(sides.entropy_bound[t]),
            "signal": float(sides.signal[t]),
        }
        for t in range(len(sides.error) - 1)
    ]


def wrong_right_sides(sides: gap.TheoremOne) -> dict[str, Float[Tensor, " T"]]:
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
        "identity dropped": gap.right_side(newest, token, signal),
        "one factor short": own + later,
        "own step left out": sides.sharp - own,
    }


def paths_along(
    model: Recurrence,
    state: Float[Tensor, "1 n"],
    *,
    horizon: int,
    tau: float = 1.0,
    noise: Float[Tensor, "1 T vocab"] | None = None,
) -> list[gap.Paths]:
    """J_t and K_t of (20) at the states s_1..s_{T-1} of the relaxed rollout from ``state``."""
    with torch.no_grad():
        run = relaxed.relaxed_rollout(model, state, horizon=horizon, noise=noise, tau=tau)
    return gap.paths_along(model, run, noise=noise, tau=tau)


def policy_entropy_side(
    model: Recurrence,
    state: Float[Tensor, "1 n"],
    sides: gap.TheoremOne,
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
        gap.chain(step)["entropy"] * float(policy / torch.special.entr(step.soft).sum())
        for step, policy in zip(steps, sides.entropies, strict=False)
    ]
    return gap.right_side(sides.attention_norms, token, sides.signal.tolist())


def norms_at_embeddings(
    model: nn.Module, prompt: Int[Tensor, "1 length"], costates: Float[Tensor, "k n"]
) -> Float[Tensor, " k"]:
    """|(ds_1/de)^T x| of each costate x at the state after ``prompt``, e being the embeddings of its tokens.

    The state's own coordinates are a convention: dividing the final norm's weight by a hundred and multiplying the
    head by it changes no output and every ratio of norms there. At the embeddings such a choice has no say.
    """
    embedded = model.get_input_embeddings()(prompt).detach().requires_grad_()
    with torch.enable_grad():
        state = recurrence.read_prompt(model, embedded)
        (back,) = torch.autograd.grad(state, embedded, costates[:, None], is_grads_batched=True)
    return back.flatten(1).norm(dim=1)


def errors_over_scales(
    model: Recurrence,
    state: Float[Tensor, "1 n"],
    returns: Float[Tensor, " N"],
    *,
    scales: Float[Tensor, "settings T"],
    sent: bool = False,
) -> dict[str, list[float]]:
    """Distances from the relaxed costate lambda_1, one a setting of the factors on the logits of each step.

    ``error`` is that of the cut costate, ``relative`` the same over ``signal`` = |lambda_1|. With ``sent`` also the
    distance ``sent`` of the discrete value gradient and its ratio ``relative sent``, which takes an enumeration.
    """
    settings, horizon = scales.shape
    reward = relaxed.multilinear(returns, vocab=len(model.embeddings), horizon=horizon)
    batch, how = state.expand(settings, -1), {"horizon": horizon, "scale": scales.T[:, :, None]}
    lam = relaxed.relaxed_costates(model, batch, reward, **how)[0]
    cut = relaxed.relaxed_costates(model, batch, reward, cut=True, **how)[0]
    error, signal = (cut - lam).norm(dim=1), lam.norm(dim=1)
    found = {"error": error, "signal": signal, "relative": error / signal}
    if sent:
        apart = (discrete_gradients(model, state, returns, scales=scales) - lam).norm(dim=1)
        found |= {"sent": apart, "relative sent": apart / signal}
    return {name: x.tolist() for name, x in found.items()}


def scales_for_entropies(
    model: Recurrence, state: Float[Tensor, "1 n"], entropies: Float[Tensor, "settings T"]
) -> Float[Tensor, "settings T"]:
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
    low, high = torch.full_like(wished, -30.0), torch.full_like(wished, 30.0)  # powers of two
    for _ in range(60):
        middle = (low + high) / 2
        above = entropy((middle.exp2()[:, None] * logits).log_softmax(-1)) > wished
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    found = low.exp2()
    if (entropy((found[:, None] * logits).log_softmax(-1)) - wished).abs().max() > 1e-9:
        raise ValueError(
            "entropies: expected ones that some scale of the logits reaches, got one that none does"
        )
    return found


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
    state: Float[Tensor, "1 n"],
    returns: Float[Tensor, "settings N"],
    *,
    scales: Float[Tensor, "settings T"],
    tau: float,
    rollouts: int,
    generator: torch.Generator,
) -> list[Costs]:
    """Everything :class:`Costs` holds, for one model and state. A setting is a reward with factors on the logits.

    Exact by enumeration, but for the Gumbel line, which is estimated from ``rollouts`` samples at temperature
    ``tau``; the sampling error of its mean is taken off the squared bias, which is not let below zero. All settings
    go through the model in one batch. Raises ``ValueError`` for fewer than two rollouts.
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


def _probs_and_scores(
    model: Recurrence, state: Float[Tensor, "1 n"], scales: Float[Tensor, "settings T"]
) -> tuple[Float[Tensor, "settings N"], Float[Tensor, "settings N n"]]:
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
    state: Float[Tensor, "1 n"],
    rewards: list[relaxed.SoftReward],
    scales: Float[Tensor, "settings T"],
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
    state: Float[Tensor, "1 n"],
    returns: Float[Tensor, "settings N"],
    rewards: list[relaxed.SoftReward],
    scales: Float[Tensor, "settings T"],
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
    if better(2):
        return 2.0
    low, high = 2, 4
    while not better(high):
        if high >= limit:
            return math.inf
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if better(middle) else (middle, high)
    return float(high)


def geometric_mean(values, *, confidence: float = 0.95) -> dict[str, float]:
    """``mean``: the geometric mean of positive ``values``; ``low``, ``high``: Student's interval of the mean logarithm.

    Raises ``ValueError`` for fewer than two values or any that is not positive and finite.
    """
    values = np.asarray(values, dtype=float)
    if values.size < 2 or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"values: expected at least 2, positive and finite, got {values!r}")
    logs = np.log(values)
    half = stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    ends = np.exp(logs.mean() + half * np.array([0.0, -1.0, 1.0]))
    return dict(zip(("mean", "low", "high"), ends.tolist(), strict=True))


def quartile_text(values) -> str:
    """Median of whole numbers with the quartiles in brackets, as in ``"22 (4-50)"``; each is one of the values."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75), method="nearest")
    return f"{median:.0f} ({low:.0f}-{high:.0f})"
