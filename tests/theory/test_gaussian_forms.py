"""Cumulants of quadratic forms against Gauss-Hermite quadrature, which shares no formula with them."""

import pytest
import torch
from torch.func import vmap

from replicate.statistics.agreement import relative_error
from replicate.theory.gaussian_forms import (
    Forms,
    cumulant,
    forms_of,
    group_variance,
    hermite,
    weighted_scores,
)

NODES, WEIGHTS = hermite(6, 3)  # exact up to degree 11 in each of three normals


def functions(x):
    return torch.stack([x[0] * x[1] + x[2], x[0] ** 2 - 1 + x[1], x[2] * x[1] + 0.3 * x[0] ** 2 + 2])


FORMS = forms_of(functions, 3)
VALUES = vmap(functions)(NODES)
CENTRED = VALUES - WEIGHTS @ VALUES


def single(k):
    return Forms(*(part[k] for part in FORMS))


def expected(*which):
    return WEIGHTS @ CENTRED[:, list(which)].prod(1)


def test_forms_are_read_from_values():
    x = torch.tensor([0.4, -2.0, 1.1], dtype=torch.float64)
    read = FORMS.c + FORMS.b @ x + torch.einsum("kij,i,j->k", FORMS.M, x, x)
    assert relative_error(read, functions(x)) < 1e-12
    assert relative_error(FORMS.mean, WEIGHTS @ VALUES) < 1e-12
    assert relative_error(FORMS.variance, WEIGHTS @ CENTRED.square()) < 1e-12


def test_what_is_not_quadratic_is_refused():
    with pytest.raises(ValueError, match="function: expected a quadratic one, got"):
        forms_of(lambda x: x[0] ** 3 + x[1:].sum(), 3)


@pytest.mark.parametrize("which", [(0, 1), (1, 1), (0, 1, 2), (1, 1, 2)])
def test_second_and_third_cumulants_are_central_moments(which):
    assert cumulant(*map(single, which)).item() == pytest.approx(expected(*which).item(), abs=1e-12)


@pytest.mark.parametrize("which", [(0, 1, 2, 1), (2, 2, 2, 2), (0, 0, 1, 2)])
def test_the_fourth_is_the_moment_less_its_pairings(which):
    a, b, c, d = which
    pairs = (
        expected(a, b) * expected(c, d) + expected(a, c) * expected(b, d) + expected(a, d) * expected(b, c)
    )
    assert cumulant(*map(single, which)).item() == pytest.approx((expected(*which) - pairs).item(), abs=1e-11)


def steps(x):
    """Two weights of any mean, and two steps' scores of mean zero for two parameters."""
    w = torch.stack([functions(x)[0] - 3, functions(x)[2]])
    s = torch.stack([torch.stack([x[0], x[0] * x[1]]), torch.stack([x[1] * x[2], x[2] + x[0] * x[2]])])
    return w, s


W, S = forms_of(lambda x: steps(x)[0], 3), forms_of(lambda x: steps(x)[1], 3)


def test_mean_and_variance_of_weighted_scores():
    w, s = vmap(steps)(NODES)
    estimate = torch.einsum("qt,qtk->qk", w, s)
    mean, variance = weighted_scores(W, S)
    assert relative_error(mean, WEIGHTS @ estimate) < 1e-12
    assert relative_error(variance, WEIGHTS @ (estimate - WEIGHTS @ estimate).square()) < 1e-12


def test_scores_with_a_mean_are_refused():
    with pytest.raises(ValueError, match="scores: expected forms of mean zero, got 1"):
        weighted_scores(W, S._replace(c=S.c + 1))


def test_the_variance_of_a_group_of_two_by_quadrature_over_both_members():
    """The kernel of the U-statistic itself, integrated over two independent members."""
    w, s = vmap(steps)(NODES)
    apart = (w[:, None] - w[None]).unsqueeze(-1) * (s[:, None] - s[None])
    kernel = apart.sum(2) / 2  # [q, q, params]
    joint = torch.outer(WEIGHTS, WEIGHTS)
    mean = torch.einsum("pq,pqk->k", joint, kernel)
    variance = torch.einsum("pq,pqk->", joint, (kernel - mean).square())
    assert sum(group_variance(W, S, group=2)).item() == pytest.approx(variance.item(), rel=1e-11)
    assert relative_error(mean, weighted_scores(W, S)[0]) < 1e-11


def test_jointly_normal_return_and_score_cost_one_over_n_minus_one():
    def line(x):
        return x[:1] + 5

    def score(x):
        return (0.6 * x[0] + 0.8 * x[1]).view(1, 1)

    oracle, excess = group_variance(forms_of(line, 2), forms_of(score, 2), group=5)
    assert (excess / oracle).item() == pytest.approx(1 / 4)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group: expected at least 2 members to leave one out, got 1"):
        group_variance(W, S, group=1)


def test_hermite_integrates_polynomials_exactly():
    x, w = hermite(3, 2)
    assert w.sum().item() == pytest.approx(1)
    assert (w @ (x[:, 0] ** 4 * x[:, 1] ** 2)).item() == pytest.approx(3)
    assert (w @ x[:, 0] ** 6).item() != pytest.approx(15)
