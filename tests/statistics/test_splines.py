"""Natural splines against patsy, and what is left of two humps that have nothing else in common (B12)."""

import numpy as np
import patsy
import pytest
from scipy import stats

from replicate.statistics.splines import natural_spline, partial_over_spline, quantile_knots, spline_basis

KNOTS = [-1.0, 0.0, 0.5, 2.0]
X = np.linspace(-2, 3, 51)  # beyond the outer knots on both sides


def _humps(rng, n=61, noise=0.2):
    """Two quantities that rise and fall with a third, each in its own way, and share nothing else."""
    given = rng.uniform(size=n)
    x = np.exp(-0.5 * ((given - 0.35) / 0.15) ** 2) + noise * rng.normal(size=n)
    return x, 4 * given * (1 - given) + noise * rng.normal(size=n), given


def _partial_over_line(x, y, given):
    """The textbook's partial rank correlation."""
    (_, a, b), (_, _, c), _ = stats.spearmanr(np.column_stack([x, y, given])).statistic
    return (a - b * c) / np.sqrt((1 - b**2) * (1 - c**2))


def test_columns_are_those_of_patsy_less_the_first():
    reference = patsy.dmatrix("cr(x, knots=[0, 0.5], lower_bound=-1, upper_bound=2) - 1", {"x": X})
    np.testing.assert_allclose(natural_spline(X, knots=KNOTS), np.asarray(reference)[:, 1:], atol=1e-12)


def test_lines_are_in_the_span_and_nothing_bends_beyond_the_knots():
    design = np.column_stack([np.ones_like(X), natural_spline(X, knots=KNOTS)])
    weights, *_ = np.linalg.lstsq(design, 3 - 2 * X, rcond=None)
    np.testing.assert_allclose(design @ weights, 3 - 2 * X, atol=1e-12)
    for outside in (X[X <= -1], X[X >= 2]):
        np.testing.assert_allclose(np.diff(natural_spline(outside, knots=KNOTS), n=2, axis=0), 0, atol=1e-12)


def test_a_row_is_described_by_its_own_x_alone():
    """Else a basis would not be the same for the ladders fitted and the ladder left out."""
    basis = spline_basis(KNOTS)
    np.testing.assert_array_equal(basis(X)[10:20], basis(X[10:20]))


@pytest.mark.parametrize("knots", [[1.0], [0.0, 0.0, 1.0], [2.0, 1.0]])
def test_knots_that_do_not_increase_are_refused_at_once(knots):
    with pytest.raises(ValueError, match="knots: expected at least 2 increasing numbers"):
        spline_basis(knots)


def test_quantile_knots_end_at_the_extremes_and_merge_ties():
    assert quantile_knots(np.arange(7.0), 4) == [0.0, 2.0, 4.0, 6.0]
    assert quantile_knots([0.0] * 9 + [1.0], 4) == [0.0, 1.0]
    assert quantile_knots([2.0] * 5) == [2.0]
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        quantile_knots([0.0, np.nan])
    with pytest.raises(ValueError, match="count: expected at least 2 knots, got 1"):
        quantile_knots([0.0, 1.0], 1)


@pytest.mark.parametrize("ranks", [True, False])
def test_two_humps_have_nothing_in_common_once_the_spline_is_out(ranks):
    """Mean 0 and the spread of a correlation with K - 1 controls: at n = 61 and K = 5, 1 / sqrt(56)."""
    rng = np.random.default_rng(0)
    draws = np.array([partial_over_spline(*_humps(rng), knots=5, ranks=ranks) for _ in range(600)])
    spread = 1 / np.sqrt(61 - 5)
    assert abs(draws.mean()) < 4 * spread / np.sqrt(len(draws))
    assert draws.std() == pytest.approx(spread, rel=4 / np.sqrt(2 * len(draws)))


def test_what_a_straight_line_leaves_of_two_humps_is_no_relation():
    """The straw man: ranks of ``given`` regressed out linearly leave the humps where they were."""
    rng = np.random.default_rng(1)
    straw = np.array([_partial_over_line(*_humps(rng)) for _ in range(200)])
    assert straw.mean() > 0.35
    assert (straw > 2 / np.sqrt(61 - 2)).mean() > 0.9  # "significant" nearly always, and wrong


def test_a_true_relation_survives_the_spline():
    rng = np.random.default_rng(2)
    x, y, given = _humps(rng, n=4000)
    shared = 0.2 * rng.normal(size=4000)  # as much as each has of its own: a correlation of 1/2
    assert partial_over_spline(x + shared, y + shared, given, knots=8, ranks=False) == pytest.approx(
        0.5, abs=0.05
    )
    assert partial_over_spline(x + shared, y - shared, given, knots=8, ranks=False) == pytest.approx(
        -0.5, abs=0.05
    )


def test_what_the_partial_correlation_does_not_hang_on():
    x, y, given = _humps(np.random.default_rng(3))
    value, order = partial_over_spline(x, y, given), np.random.default_rng(4).permutation(61)
    assert partial_over_spline(y, x, given) == pytest.approx(value)
    assert partial_over_spline(x[order], y[order], given[order]) == pytest.approx(value)
    assert partial_over_spline(np.exp(x), y**3, 5 - 2 * given) == pytest.approx(value)
    assert partial_over_spline(x, y, given, knots=quantile_knots(given, 4)) == pytest.approx(value)
    assert partial_over_spline(np.exp(x), y, given, ranks=False) != pytest.approx(
        partial_over_spline(x, y, given, ranks=False)
    )


def test_what_the_spline_holds_exactly_leaves_nothing_and_a_constant_takes_nothing_out():
    x, y, given = _humps(np.random.default_rng(5))
    assert np.isnan(partial_over_spline(3 * given - 1, y, given, ranks=False))
    assert partial_over_spline(x, y, np.ones(61), ranks=False) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_rows_that_are_too_few_or_do_not_match_are_refused():
    x, y, given = _humps(np.random.default_rng(6), n=5)
    with pytest.raises(ValueError, match="x: expected at least 6 numbers for 4 knots, got 5"):
        partial_over_spline(x, y, given)
    with pytest.raises(ValueError, match="y, given: expected 5 numbers each, as x, got 4 and 5"):
        partial_over_spline(x, y[:4], given)
