"""Natural cubic splines with knots that the caller fixes, so that two samples are described in one basis (B12).

A natural spline is a piecewise cubic with two continuous derivatives that goes on as a straight line beyond its outer
knots. With K knots such functions, constants among them, have K dimensions.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.interpolate import CubicSpline

from replicate.statistics.series import Series, pearson

Basis = Callable[[Series], Float[np.ndarray, "n columns"]]
"""From n numbers to the n rows of a design matrix that has no constant."""


def natural_spline(x: Series, *, knots: Series) -> Float[np.ndarray, "n columns"]:
    """Natural cubic splines at ``x``, one column fewer than there are ``knots``; a constant completes the space.

    Column k is the spline that is 1 at knot k + 1 and 0 at the other knots. All K of these cardinal splines sum to 1,
    so a regression with a constant must leave one out: the first. Two knots give a straight line. Raises
    ``ValueError`` for fewer than two knots or knots that do not increase.
    """
    x, knots = np.asarray(x, dtype=float), np.asarray(knots, dtype=float)
    if knots.ndim != 1 or len(knots) < 2 or not (np.diff(knots) > 0).all():
        raise ValueError(f"knots: expected at least 2 increasing numbers, got {knots.tolist()}")
    cardinal = CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    inside = np.clip(x, knots[0], knots[-1])
    return (cardinal(inside) + (x - inside)[:, None] * cardinal(inside, 1))[:, 1:]


def spline_basis(knots: Series) -> Basis:
    """:func:`natural_spline` with these ``knots``, as the ``basis`` of ``over_ladders.left_out_ladder``."""
    natural_spline([], knots=knots)  # so that bad knots are refused here and not at the first use
    return partial(natural_spline, knots=tuple(float(knot) for knot in knots))


def quantile_knots(values: Series, count: int = 4) -> list[float]:
    """``count`` knots at evenly spaced quantiles of ``values``, the outer two at their ends; equal ones are merged.

    Fewer than ``count`` come back where many values are equal, and a single one if all are. Raises ``ValueError`` for
    fewer than two knots asked for or values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if count < 2:
        raise ValueError(f"count: expected at least 2 knots, got {count}")
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"values: expected finite numbers, got {values!r}")
    return np.unique(np.quantile(values, np.linspace(0, 1, count))).tolist()


def partial_over_spline(
    x: Series, y: Series, given: Series, *, knots: int | Sequence[float] = 4, ranks: bool = True
) -> float:
    """Correlation of x and y (of their ranks, with ``ranks``) with a natural spline in ``given`` regressed out of both.

    ``knots`` counts knots at quantiles of ``given``, or lists the knots; a straight line would let a hump pass. Without
    a true relation and with independent rows the standard deviation is about 1 / sqrt(n - K) for K knots. NaN where
    nothing is left of x or y. Raises ``ValueError`` for lengths that differ or fewer than K + 2 rows.
    """
    x, y, given = (np.asarray(v, dtype=float) for v in (x, y, given))
    if not len(x) == len(y) == len(given):
        raise ValueError(f"y, given: expected {len(x)} numbers each, as x, got {len(y)} and {len(given)}")
    places = quantile_knots(given, knots) if isinstance(knots, int) else list(knots)
    if len(x) < len(places) + 2:
        raise ValueError(
            f"x: expected at least {len(places) + 2} numbers for {len(places)} knots, got {len(x)}"
        )
    constant = np.ones((len(given), 1))
    spline = natural_spline(given, knots=places) if len(places) > 1 else constant[:, :0]
    design = np.hstack([constant, spline])
    left_x, left_y = (_left_over(stats.rankdata(v) if ranks else v, design) for v in (x, y))
    return pearson(left_x, left_y)


def _left_over(y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, " n"]:
    weights, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ weights
    # What round-off leaves of a y that the spline holds exactly would correlate with anything.
    nothing = np.linalg.norm(residual) <= 1e-10 * np.linalg.norm(y)
    return np.zeros_like(residual) if nothing else residual
