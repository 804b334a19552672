"""Quadratic forms of standard normal noise, and the exact noise of a gradient estimator that is made of them.

On a linear task with quadratic rewards the return, the scores, the advantages of a quadratic critic and the BPTT
gradient are quadratic forms c + b^T x + x^T M x of the noise x of a rollout. Their joint cumulants are traces, so mean
and variance of every unbiased member of the policy-gradient family have closed forms at any horizon: no rollout is
sampled.
"""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap


class Forms(NamedTuple):
    """A batch of forms c + b^T x + x^T M x of x ~ N(0, I), M symmetric."""

    c: Float[Tensor, "*batch"]
    b: Float[Tensor, "*batch n"]
    M: Float[Tensor, "*batch n n"]

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """c + tr M."""
        return self.c + torch.einsum("...ii->...", self.M)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """|b|^2 + 2 tr M^2."""
        return self.b.square().sum(-1) + 2 * self.M.square().sum((-1, -2))

    def sum(self, dim: int) -> "Forms":
        """The form that is the sum along batch axis ``dim`` (counted from the front)."""
        return Forms(self.c.sum(dim), self.b.sum(dim), self.M.sum(dim))


def forms_of(function: Callable[[Tensor], Tensor], n: int) -> Forms:
    """The forms that ``function`` of x [n] is, a tensor of any shape, read from its values at n (n + 3) / 2 + 1 points.

    Raises ``ValueError`` where it is no quadratic function, which a further point shows.
    """
    unit, (i, j) = torch.eye(n, dtype=torch.float64), torch.triu_indices(n, n, 1)
    further = torch.linspace(-0.7, 1.3, n, dtype=torch.float64)
    points = torch.cat(
        [torch.zeros(1, n, dtype=torch.float64), unit, -unit, unit[i] + unit[j], further[None]]
    )
    values = vmap(function)(points).movedim(0, -1)
    c, ahead, behind, both, last = values.split([1, n, n, len(i), 1], -1)
    M = torch.diag_embed((ahead + behind) / 2 - c)
    M[..., i, j] = M[..., j, i] = (both - ahead[..., i] - ahead[..., j] + c) / 2
    forms = Forms(c.squeeze(-1), (ahead - behind) / 2, M)
    read = forms.c + forms.b @ further + torch.einsum("...ij,i,j->...", M, further, further)
    gap = (last.squeeze(-1) - read).abs().max().item()
    if not gap <= 1e-8 * (1 + values.abs().max().item()):
        raise ValueError(f"function: expected a quadratic one, got {gap:.2g} beside its quadratic part")
    return forms


def cumulant(*forms: Forms) -> Float[Tensor, ""]:
    """The joint cumulant of k >= 2 single forms of the same noise; of two it is their covariance.

    From log E exp(sum_i t_i f_i) = -1/2 log det(I - 2 sum_i t_i M_i) + 1/2 b^T (I - 2 sum_i t_i M_i)^-1 b + t^T c.
    """
    first, rest = forms[0], forms[1:]
    total = torch.zeros_like(first.c)
    for order in permutations(rest):
        product = first.M
        for form in order[:-1]:
            product = product @ form.M
        total = total + 2 ** (len(forms) - 1) * (product * order[-1].M).sum()
    for order in permutations(forms):
        pulled = order[0].b
        for form in order[1:-1]:
            pulled = form.M @ pulled
        total = total + 2 ** (len(forms) - 3) * (pulled @ order[-1].b)
    return total


def weighted_scores(
    weights: Forms, scores: Forms
) -> tuple[Float[Tensor, " params"], Float[Tensor, " params"]]:
    """Exact mean and variance of sum_t w_t S_t, with weights w_t [steps] and scores S_t [steps, params].

    Scores have mean zero, whatever precedes them; ``ValueError`` where these have not.
    """
    if scores.mean.abs().max() > 1e-8 * (1 + scores.variance.max()):
        raise ValueError(f"scores: expected forms of mean zero, got {scores.mean.abs().max().item():.2g}")
    mean = _over_pairs(cumulant, weights, scores).diagonal(dim1=0, dim2=1).sum(-1)  # [params]
    columns = [Forms(*(part[:, k] for part in scores)) for k in range(scores.c.shape[1])]
    second = torch.stack([_second_moment(weights, column) for column in columns])
    return mean, second - mean.square()


def _over_pairs(function: Callable[..., Tensor], one: Forms, other: Forms) -> Tensor:
    """[steps, steps', ...] of a function of two forms; further batch axes belong to ``other``."""
    for _ in range(other.c.ndim - 1):
        function = vmap(function, (None, 0))
    return vmap(vmap(function, (None, 0)), (0, None))(one, other)


def _second_moment(weights: Forms, scores: Forms) -> Float[Tensor, ""]:
    """E (sum_t w_t S_t)^2 from the cumulants of w_t, S_t, w_t', S_t' up to the fourth."""
    a = weights.mean

    def fourth(w: Forms, s: Forms) -> Tensor:
        return vmap(lambda v, r: cumulant(w, s, v, r))(weights, scores)

    def third(s: Forms, a_: Tensor) -> Tensor:
        # a S_t against the centred w_t' and S_t'; the mirror term is its transpose.
        return a_ * vmap(lambda v, r: cumulant(s, v, r))(weights, scores)

    ws, ww, ss = (
        _over_pairs(cumulant, *pair) for pair in ((weights, scores), (weights, weights), (scores, scores))
    )
    paired = torch.outer(ws.diagonal(), ws.diagonal()) + ww * ss + ws * ws.T + torch.outer(a, a) * ss
    return (vmap(fourth)(weights, scores) + 2 * vmap(third)(scores, a) + paired).sum()


def group_variance(
    weights: Forms, scores: Forms, *, group: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Variance of the leave-one-out estimate of a group, summed over parameters: (with an oracle baseline, excess).

    The estimate is mean_i sum_t (w_ti - mean_{j != i} w_tj) S_ti, a U-statistic of order two. Its variance is, with
    w centred at its own mean (the oracle), Var(sum_t w_t S_t) / N, plus what the unknown mean costs,
    sum_{t,t'} [Cov(w_t, w_t') E S_t.S_t' + E[w_t S_t'].E[w_t' S_t]] / (N (N - 1)).
    Raises ``ValueError`` for a group below two.
    """
    if group < 2:
        raise ValueError(f"group: expected at least 2 members to leave one out, got {group}")
    centred = weights._replace(c=weights.c - weights.mean)
    oracle = weighted_scores(centred, scores)[1].sum()
    ww = _over_pairs(cumulant, weights, weights)
    excess = torch.zeros_like(oracle)
    for k in range(scores.c.shape[1]):
        column = Forms(*(part[:, k] for part in scores))
        ws, ss = _over_pairs(cumulant, weights, column), _over_pairs(cumulant, column, column)
        excess = excess + (ww * ss + ws * ws.T).sum()
    return oracle / group, excess / (group * (group - 1))


def hermite(order: int, dim: int) -> tuple[Float[Tensor, "nodes dim"], Float[Tensor, " nodes"]]:
    """Nodes and weights that integrate polynomials of degree below 2 x order in each of ``dim`` normals exactly."""
    import numpy as np

    x, w = np.polynomial.hermite_e.hermegauss(order)
    w = w / w.sum()
    index = torch.cartesian_prod(*[torch.arange(order)] * dim).reshape(-1, dim)
    nodes, weights = torch.as_tensor(x)[index], torch.as_tensor(w)[index]
    return nodes, weights.prod(-1)
