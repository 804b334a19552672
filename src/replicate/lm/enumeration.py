r"""The exact value gradient by running through all completions, and the exact expectation of its estimates.

With rewards read off sampled tokens the value of a state is a finite sum over completions o = (o_1..o_T),

    V(s) = sum_o P(o | s) R(o),    dV/ds = sum_o P(o | s) sum_t gamma^{t-1} G_t dlog pi(o_t | s, o_<t)/ds     (A4)

so the score function, at fixed tokens, is an unbiased estimate for *any* state the policy is smooth in. Rewards of a
completion are [N, T], N = |V|^T; its return-to-go is G_t = sum_{k>=t} gamma^{k-t} r_k.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LIMIT = 2_000_000
"""The most completions, or groups of them, that are enumerated."""

LogProbs = Callable[[Tensor], Tensor]
"""log pi(o_t | s, o_<t) [N, T] of all completions from states [N, *state], one row of states per completion."""


def all_completions(vocab: int, horizon: int) -> Int[Tensor, "N T"]:
    """Every completion of ``horizon`` tokens, in lexicographic order."""
    _refuse_many("vocab, horizon", vocab, horizon)
    return torch.cartesian_prod(*[torch.arange(vocab)] * horizon).reshape(-1, horizon)


def returns_to_go(rewards: Float[Tensor, "N T"], *, gamma: float = 1.0) -> Float[Tensor, "N T"]:
    """G_t = sum_{k>=t} gamma^{k-t} r_k."""
    powers = gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype)
    return ((rewards * powers).flip(1).cumsum(1).flip(1)) / powers


def token_rewards(
    completions: Int[Tensor, "N T"], *, vocab: int, generator: torch.Generator
) -> Float[Tensor, "N T"]:
    """r_t(o_<=t): a standard normal drawn once for every prefix, so that a reward never looks ahead of its token.

    Raises ``ValueError`` for token ids outside 0 to ``vocab`` - 1 and for more prefixes than can be enumerated.
    """
    if completions.min() < 0 or completions.max() >= vocab:
        low, high = completions.min().item(), completions.max().item()
        raise ValueError(f"completions: expected token ids in 0 to {vocab - 1}, got {low} to {high}")
    horizon = completions.shape[1]
    _refuse_many("vocab, horizon", vocab, horizon)
    prefix, columns = torch.zeros_like(completions[:, 0]), []
    for t in range(horizon):
        prefix = prefix * vocab + completions[:, t]  # the prefix o_1..o_t as a number in base vocab
        table = torch.randn(vocab ** (t + 1), generator=generator, dtype=torch.float64)
        columns.append(table[prefix])
    return torch.stack(columns, dim=1)


def value(
    log_probs: LogProbs, state: Float[Tensor, "*state"], returns: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """V(s) = sum_o P(o | s) R(o)."""
    everywhere = state.expand(len(returns), *state.shape)
    return (log_probs(everywhere).sum(1).exp() * returns).sum()


def value_gradient(
    log_probs: LogProbs, state: Float[Tensor, "*state"], returns: Float[Tensor, " N"]
) -> Float[Tensor, "*state"]:
    """dV/ds by differentiating the sum itself: probabilities carry the gradient, no score function in sight."""
    leaf = state.detach().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(value(log_probs, leaf, returns), leaf)
    return grad


def scores(
    log_probs: LogProbs, state: Float[Tensor, "*state"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "N ..."]:
    """sum_t w_t dlog pi(o_t | s, o_<t)/ds of each completion: its empirical costate at s with weights w."""
    leaf = state.detach().expand(len(weights), *state.shape).clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad((weights * log_probs(leaf)).sum(), leaf)
    return grad


def probabilities(
    log_probs: LogProbs, state: Float[Tensor, "*state"], completions: int
) -> Float[Tensor, " N"]:
    """P(o | s) of each of the ``completions``."""
    with torch.no_grad():
        return log_probs(state.expand(completions, *state.shape)).sum(1).exp()


def expected_costate(
    log_probs: LogProbs, state: Float[Tensor, "*state"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "*state"]:
    """E[sum_t w_t dlog pi(o_t | s, o_<t)/ds] over all N completions, the right side of A4 for w_t = gamma^{t-1} G_t.

    No probability is differentiated here: this is what averaging empirical costates converges to.
    """
    return torch.tensordot(
        probabilities(log_probs, state, len(weights)), scores(log_probs, state, weights), 1
    )


def expected_advantages(
    probs: Float[Tensor, " N"],
    returns: Float[Tensor, " N"],
    *,
    group: int,
    advantages: Callable[[Float[Tensor, "groups group"]], Float[Tensor, "groups group"]],
) -> Float[Tensor, " N"]:
    """c_n with E[ 1/G sum_i A_i S_{o_i} ] = sum_n c_n S_n over groups of G completions drawn independently.

    Runs through all N^G groups, so it is exact for any rule that turns the returns of a group into advantages.
    """
    _refuse_many("returns, group", len(returns), group)
    members = all_completions(len(returns), group)
    weight = probs[members].prod(1, keepdim=True)
    share = weight * advantages(returns[members]) / group
    return torch.zeros_like(probs).index_add_(0, members.flatten(), share.flatten())


def std_factor(p: float, *, group: int, eps: float = 1e-4) -> float:
    """What dividing by the group's standard deviation makes of the gradient of a yes-or-no reward.

    With success probability p the expected estimate is this factor times dp/ds, namely E[A | R=1] - E[A | R=0]; a sum
    over the number k of successes in the group, sample standard deviation (ddof 1) plus ``eps``. Without the division
    and with the group's mean as the baseline it would be 1 - 1/G.
    """
    if group < 2:
        raise ValueError(f"group: a standard deviation needs at least 2, got {group}")
    total = 0.0
    for k in range(1, group):
        mean = k / group
        std = math.sqrt(group / (group - 1) * mean * (1 - mean))
        others = group - 1
        # k successes of which one is the sample itself, and k successes among the others
        with_success = math.comb(others, k - 1) * p ** (k - 1) * (1 - p) ** (others - k + 1)
        with_failure = math.comb(others, k) * p**k * (1 - p) ** (others - k)
        total += (with_success * (1 - mean) + with_failure * mean) / (std + eps)
    return total


def leave_one_out_mse(
    probs: Float[Tensor, " N"], returns: Float[Tensor, " N"], score: Float[Tensor, "N state"], *, group: int
) -> float:
    """Mean squared error of the group estimate 1/G sum_i (R_i - mean of the others) S_i of dV/ds.

    The estimate is a U-statistic with kernel h(x, y) = (R_x - R_y)(S_x - S_y)/2, so its variance is
    2 (2 (G-2) zeta_1 + zeta_2) / (G (G-1)), zeta_1 = Var E[h | x], zeta_2 = Var h, traces over the state.
    Raises ``ValueError`` for a group of one.
    """
    if group < 2:
        raise ValueError(f"group: leaving one out needs at least 2, got {group}")
    target = (probs * returns) @ score
    centred = returns - probs @ returns
    # E[h | x] = ((R_x - ER) S_x + E[R S]) / 2 since E[S] = 0; centred on the target E[R S]
    first = (centred[:, None] * score - target) / 2
    zeta_1 = (probs * first.square().sum(1)).sum()
    gram = score @ score.T
    spread = returns[:, None] - returns[None]
    distance = gram.diag()[:, None] + gram.diag()[None] - 2 * gram
    second_moment = (probs[:, None] * probs[None] * spread.square() * distance).sum() / 4
    zeta_2 = second_moment - target.square().sum()
    return float(2 * (2 * (group - 2) * zeta_1 + zeta_2) / (group * (group - 1)))


def mean_square_error(
    estimates: Float[Tensor, "N state"],
    probs: Float[Tensor, " N"],
    target: Float[Tensor, " state"],
    *,
    samples: int,
) -> tuple[float, float]:
    """Mean and variance of |e|^2, e the error of the average of n = ``samples`` independent completions' estimates.

    With the bias b, the centred estimate X and its covariance C,

        E |e|^2   = |b|^2 + tr C / n
        Var |e|^2 = 4 b'Cb / n + 4 E[(b'X) |X|^2] / n^2 + (E|X|^4 - (tr C)^2) / n^3 + 2 (n - 1) tr C^2 / n^3

    exactly, for every n. Raises ``ValueError`` for n < 1.
    """
    n = samples
    if n < 1:
        raise ValueError(f"samples: expected at least 1, got {n}")
    mean = probs @ estimates
    bias, centred = mean - target, estimates - mean
    square, along = centred.square().sum(1), centred @ bias
    trace = probs @ square
    # tr C^2 = E (X'Y)^2 over independent X and Y
    trace_2 = probs @ (centred @ centred.T).square() @ probs
    variance = (
        4 * (probs @ along.square()) / n
        + 4 * (probs @ (along * square)) / n**2
        + (probs @ square.square() - trace**2) / n**3
        + 2 * (n - 1) * trace_2 / n**3
    )
    return float(bias.square().sum() + trace / n), float(variance)


@dataclass(frozen=True)
class Averages:
    """Errors of averages of n samples each, for every n of ``sizes``: ``errors`` [runs] an array each, beside the exact
    mean and variance of their squares."""

    sizes: list[int]
    errors: list[np.ndarray]
    mean_square: list[float]
    variance: list[float]

    @property
    def z(self) -> list[float]:
        """The measured mean square of each size against its exact value, in standard errors."""
        cells = zip(self.errors, self.mean_square, self.variance, strict=True)
        return [float(((e**2).mean() - m) / (v / len(e)) ** 0.5) for e, m, v in cells]

    @property
    def rows(self) -> list[dict[str, float | int]]:
        """One row a run, for a table: ``n, run, error, predicted``, the last the exact root mean square."""
        cells = zip(self.sizes, self.errors, self.mean_square, strict=True)
        return [
            {"n": n, "run": run, "error": error, "predicted": m**0.5}
            for n, errors, m in cells
            for run, error in enumerate(errors)
        ]


def averages(
    samples: Float[Tensor, "samples state"],
    estimates: Float[Tensor, "N state"],
    probs: Float[Tensor, " N"],
    target: Float[Tensor, " state"],
    sizes: list[int],
) -> Averages:
    """Distances to ``target`` of averages of ``samples`` in disjoint blocks of each size, as many as there are.

    What they should be comes from ``estimates``, the same quantity of all N completions with their ``probs``
    (:func:`mean_square_error`). Raises ``ValueError`` for a size with fewer than two blocks.
    """
    if 2 * max(sizes) > len(samples):
        raise ValueError(
            f"sizes: expected at most {len(samples) // 2}, half of the samples, got {max(sizes)}"
        )
    blocks = [samples[: len(samples) // n * n].unflatten(0, (-1, n)).mean(1) for n in sizes]
    errors = [(block - target).norm(dim=1).numpy() for block in blocks]
    exact = [mean_square_error(estimates, probs, target, samples=n) for n in sizes]
    return Averages(sizes, errors, *(list(x) for x in zip(*exact, strict=True)))


def _refuse_many(names: str, base: int, power: int) -> None:
    if base < 1 or power < 1 or base**power > LIMIT:
        raise ValueError(f"{names}: expected at least 1 each and at most {LIMIT} cases, got {base}^{power}")
