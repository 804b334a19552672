r"""How the score's order hangs on how many costates are averaged before their distance is taken (audit B8).

Delta of *one* sampled empirical costate is mostly its variance. What a backward pass hands on is a mean of many, and of
a mean of n independent ones, V_n, Delta_n and kappa_n are known from one and from infinitely many
(:func:`~replicate.impact.scores.averaged`):

    X_n = X_mean + (X - X_mean) / n.

So V - Delta has one sign or another by the choice of n, and the score (V_n - Delta_n) H another order of the rungs.
:func:`surrogate_gap` gets Delta_n another way: it draws n tokens and lets autograd differentiate the surrogate (13).
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.impact.headrooms import PRIMARY_HEADROOM, column_of
from replicate.impact.measured import advantages
from replicate.impact.scores import FORMS, averaged
from replicate.models.answer import answer_pass
from replicate.models.logits import log_policy
from replicate.statistics.over_ladders import by_ladder
from replicate.statistics.series import spearman

if TYPE_CHECKING:
    import pandas as pd


def counts(largest: int = 1024, *, each: int = 4) -> list[float]:
    """Numbers of costates from 1 to ``largest`` in equal steps of the logarithm, ``each`` of them to a factor of 2.

    Whole numbers are not asked for: the formula knows no difference.
    """
    return np.geomspace(1, largest, round(each * math.log2(largest)) + 1).tolist()


def averaged_score(parts: "pd.DataFrame", n: Real, *, form: str = "difference") -> "pd.Series":
    """The score of each row of ``parts`` with ``n`` costates averaged: a form of the usable signal times H (29).

    ``parts`` are components as :func:`~replicate.impact.scores.averaged` takes them, with the headroom beside them; the
    default ``form`` is the paper's, V_n - Delta_n. Raises ``ValueError`` for an n below 1, ``KeyError`` for an unknown
    form.
    """
    return FORMS[form](averaged(parts, n)) * parts[column_of(PRIMARY_HEADROOM)]


def rank_by_average(
    parts: "pd.DataFrame",
    response: "pd.DataFrame",
    numbers: Sequence[Real],
    *,
    form: str = "difference",
    target: str = "gain",
) -> "pd.DataFrame":
    """Spearman's correlation of :func:`averaged_score` with ``target``, per ladder and n: ``ladder, n, spearman``.

    ``parts`` is one reading of a study and ``response`` its frame, rows matched by ladder and step. A score that is
    constant orders nothing and counts as 0. Raises ``ValueError`` if a row of one has none in the other, or if a score
    or a target is not finite.
    """
    import pandas as pd

    rung = ["ladder", "step"]
    both = response[[*rung, target]].merge(parts, on=rung, how="inner", validate="one_to_one")
    if not len(both) == len(parts) == len(response):
        sizes = f"{len(parts)} and {len(response)} rows, {len(both)} in common"
        raise ValueError(f"parts, response: expected the same rungs, got {sizes}")
    found = {n: _rank(both.assign(score=averaged_score(both, n, form=form)), target) for n in numbers}
    return pd.concat(found, names=["n"]).rename("spearman").reset_index()[["ladder", "n", "spearman"]]


def _rank(scored: "pd.DataFrame", target: str) -> "pd.Series":
    """Spearman's correlation per ladder, 0 for a constant score."""
    if not np.isfinite(scored[["score", target]].to_numpy(dtype=float)).all():
        raise ValueError(f"score, {target}: expected finite numbers, got some missing or infinite")
    return by_ladder(scored, lambda rows: spearman(rows.score, rows[target])).fillna(0.0)


def turning_points(table: "pd.DataFrame") -> "pd.Series":
    """Per ladder of a :func:`rank_by_average` table the n from which on the correlation is above 0.

    Between two n of the table a straight line in log n is drawn. The smallest n of the table if it is above 0 on all of
    them, infinity if it is not at the largest.
    """
    return by_ladder(table, _turning_point)


def _turning_point(rows: "pd.DataFrame") -> float:
    rows = rows.sort_values("n")
    n, value = rows.n.to_numpy(dtype=float), rows.spearman.to_numpy(dtype=float)
    below = np.flatnonzero(value <= 0)
    if len(below) == 0:
        return float(n[0])
    last = below[-1]
    if last == len(n) - 1:
        return math.inf
    share = -value[last] / (value[last + 1] - value[last])
    return float(n[last] * (n[last + 1] / n[last]) ** share)


def surrogate_gap(
    model: nn.Module,
    prompts: Int[Tensor, "prompts length"],
    labels: Int[Tensor, " prompts"],
    n: int,
    *,
    group_size: int,
    advantage: str = "leave_one_out",
    replicates: int = 32,
    vocab: int | None = None,
    generator: torch.Generator,
) -> Float[Tensor, " replicates"]:
    """Delta_n at the final state by simulation, averaged over prompts; one number for each independent replicate.

    ``n`` groups of ``group_size`` tokens are drawn for every prompt and one token of each is kept: a group's own
    advantages tie its samples together, and the formula is for independent ones. The empirical costate is what autograd
    makes of the surrogate sum_i A_i log pi(a_i | h) / n at the state h, the pathwise one its gradient of pi_y: no
    formula for a costate is used. Raises ``ValueError`` for n or replicates below 1.
    """
    for name, value in (("n", n), ("replicates", replicates)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    answer = answer_pass(model, prompts)
    rows = vocab or answer.head.shape[0]
    h = answer.final.expand(replicates, *answer.final.shape).clone().requires_grad_()
    log_probs = log_policy(h @ answer.head.T, vocab=rows)
    tokens = torch.multinomial(
        log_probs[0].detach().exp(), replicates * n * group_size, replacement=True, generator=generator
    ).view(len(labels), replicates * n, group_size)
    rewards = (tokens == labels[:, None, None]).to(log_probs.dtype)
    weights = advantages(rewards.flatten(0, 1), kind=advantage).view_as(rewards)[..., 0]
    kept, weights = (x.view(len(labels), replicates, n).transpose(0, 1) for x in (tokens[..., 0], weights))
    (empirical,) = torch.autograd.grad(
        (weights * log_probs.gather(-1, kept)).sum() / n, h, retain_graph=True
    )  # (13), (14)
    chosen = log_probs.gather(-1, labels.expand(replicates, -1)[..., None]).exp()
    (pathwise,) = torch.autograd.grad(chosen.sum(), h)
    return (empirical - pathwise).square().sum(-1).mean(1)
