"""Two-level fractional designs: what is confounded with what, and what a factor does to a response.

A factor is coded -1 at its low level and +1 at its high one, a *term* is a product of factors, written ``a:b``. In a
regular fraction of 2^(k-p) runs some products are constant over all runs: the *words* of its defining relation. A term
cannot be told from its product with a word, the two are *confounded*. The length of the shortest word is the
resolution. From IV on no factor is confounded with another or with a product of two, but these are with one another.

The *effect* of a term is the mean response where it is +1 less that where it is -1: twice its coefficient in the
regression on coded columns. Its uncertainty has two readings. :func:`over_ladders_effects` takes one effect a ladder:
the ladder is the unit of evidence. :func:`mixed_effects` takes ladders, and rungs within them, as random levels of the
response, and all that is left as independent noise. An effect that differs from ladder to ladder is then taken for
better known than it is, so that the two are shown side by side.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from replicate.statistics.over_ladders import holm, over_ladders, require_rows

Term = tuple[str, ...]
Levels = Mapping[str, tuple[Any, Any]]
"""Of each factor its low and its high level."""


def fraction(basic: Sequence[str], generators: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The 2^len(basic) runs of all levels of ``basic``, with a column for each of ``generators``, the product of the
    factors it names; -1 and +1, a row a run. ``ValueError`` for a generator that names another factor."""
    runs = itertools.product((-1, 1), repeat=len(basic))
    design = pd.DataFrame([run[::-1] for run in runs], columns=list(basic))
    for name, of in generators.items():
        if not of or not set(of) <= set(basic):
            raise ValueError(f"generators: expected products of {list(basic)} for {name}, got {list(of)}")
        design[name] = design[list(of)].prod(axis=1)
    return design


def coded(table: pd.DataFrame, levels: Levels) -> pd.DataFrame:
    """The columns of ``levels`` as -1 (low) and +1 (high); ``ValueError`` for a value that is neither."""
    require_rows(table, *levels)
    columns = {}
    for name, (low, high) in levels.items():
        at_low, at_high = table[name] == low, table[name] == high
        if not (at_low ^ at_high).all():
            other = table[name][~(at_low ^ at_high)].unique().tolist()
            raise ValueError(f"{name}: expected {low!r} or {high!r}, got {other}")
        columns[name] = np.where(at_high, 1, -1)
    return pd.DataFrame(columns, index=table.index)


def words(design: pd.DataFrame) -> dict[Term, int]:
    """The defining relation: all products of factors that are constant over the runs, with their sign, shortest first.

    None for a full factorial. Found by trying all 2^k products, whichever way the design was made.
    """
    columns, names = design.to_numpy(), list(design)
    found = {}
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(range(len(names)), size):
            product = columns[:, chosen].prod(axis=1)
            if (product == product[0]).all():
                found[tuple(names[i] for i in chosen)] = int(product[0])
    return found


def resolution(design: pd.DataFrame) -> float:
    """The length of the shortest word; infinite for a full factorial."""
    return float(min(map(len, words(design)), default=np.inf))


def generators_of(design: pd.DataFrame) -> dict[str, tuple[int, Term]]:
    """Each factor that earlier ones decide, as a sign and the product of basic factors that it equals.

    Basic are, in the order of the columns, those which no product of basic ones before them equals.
    """
    relation, basic, found = words(design), set(), {}
    for name in design:
        word = next((w for w in relation if name in w and set(w) - {name} <= basic), None)
        if word is None:
            basic.add(name)
        else:
            found[name] = (relation[word], tuple(other for other in word if other != name))
    return found


def aliases(design: pd.DataFrame, *, order: int = 2) -> dict[Term, list[Term]]:
    """For each term of up to ``order`` factors the other such terms that it is confounded with."""
    names = list(design)
    relation = [frozenset(word) for word in words(design)]
    terms = [t for size in range(1, order + 1) for t in itertools.combinations(names, size)]
    others = {term: {frozenset(term) ^ word for word in relation} for term in terms}
    return {term: [other for other in terms if frozenset(other) in others[term]] for term in terms}


def ladder_effects(
    frame: pd.DataFrame,
    levels: Levels,
    response: str,
    *,
    terms: Sequence[Term] = (),
    ladder: str = "ladder",
    rung: str | None = "step",
) -> pd.DataFrame:
    """The effects of all factors, and of the products ``terms``, on ``response``: a row a ladder, a column a term.

    ``frame`` has a row a cell and rung (a cell and ladder with ``rung=None``). Least squares on the coded columns with
    a level for each rung, so that a run that is missing biases nothing; where none is, the contrasts of means.
    Raises ``ValueError`` for terms that a ladder's runs cannot tell apart.
    """
    design = _design(frame, levels, response, terms, (ladder,) if rung is None else (ladder, rung))
    columns = list(design)
    design = design.assign(**{response: frame[response].astype(float)})
    blocks = [frame[ladder]] if rung is None else [frame[ladder], frame[rung]]
    centred = design - design.groupby(blocks, observed=True).transform("mean")
    rows = {}
    for name, own in centred.groupby(frame[ladder], sort=False, observed=True):
        x, y = own[columns].to_numpy(), own[response].to_numpy()
        slopes, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
        if rank < len(columns):
            raise ValueError(f"frame: expected runs that tell {columns} apart, got some confounded on {name}")
        rows[name] = 2 * slopes
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis(ladder)


def over_ladders_effects(
    frame: pd.DataFrame, levels: Levels, response: str, *, level: float = 0.95, **how: Any
) -> pd.DataFrame:
    """:func:`ladder_effects` over ladders: ``term, mean, low, high, p, holm, positive, n``, a row a term.

    ``p`` is Student's, ``holm`` corrected for the number of terms.
    """
    by = ladder_effects(frame, levels, response, **how)
    found = {term: over_ladders(by[term], level=level) for term in by}
    table = pd.DataFrame([{"term": term, **vars(one)} for term, one in found.items()])
    return table.drop(columns="sign_p").assign(holm=holm(found).to_numpy())


def mixed_effects(
    frame: pd.DataFrame,
    levels: Levels,
    response: str,
    *,
    terms: Sequence[Term] = (),
    ladder: str = "ladder",
    rung: str | None = "step",
    level: float = 0.95,
) -> pd.DataFrame:
    """The effects in a linear mixed model (restricted maximum likelihood): ``term, mean, low, high, p, holm``.

    Random are the level of a ladder and, unless ``rung`` is None, that of each rung of it; effects are the same on all
    ladders. Intervals are normal. Raises ``ValueError`` if the fit does not converge.
    """
    from statsmodels.stats.multitest import multipletests

    design = _design(frame, levels, response, terms, (ladder,) if rung is None else (ladder, rung))
    # Effects are fitted in units of the response's spread, so that the optimiser's tolerances mean the same for all.
    scale = float(frame[response].std()) or 1.0
    y = frame[response].to_numpy(dtype=float) / scale
    x = np.column_stack([np.ones(len(design)), design / 2])
    fit = _fitted(y, x, frame[ladder].to_numpy(), None if rung is None else _rung_levels(frame, ladder, rung))
    ends = fit.conf_int(alpha=1 - level)[1 : x.shape[1]] * scale
    p = np.asarray(fit.pvalues)[1 : x.shape[1]]
    if not fit.converged or not np.isfinite(ends).all():
        raise ValueError(
            f"frame: expected a response {response!r} that a mixed model fits, got none that does"
        )
    table = pd.DataFrame({"term": list(design), "mean": np.asarray(fit.fe_params)[1:] * scale})
    return table.assign(low=ends[:, 0], high=ends[:, 1], p=p, holm=multipletests(p, method="holm")[1])


def _fitted(y: np.ndarray, x: np.ndarray, groups: np.ndarray, within: Any):
    """The mixed model's fit by the first optimiser that gets through: where a variance is 0, a line search can leave
    what can be inverted. ``ValueError`` if none does."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    # Given rungs alone, statsmodels would leave the ladder's own level out.
    model = MixedLM(y, x, groups=groups, exog_re=np.ones((len(y), 1)), exog_vc=within)
    for method in ("bfgs", "powell", "nm"):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a variance at 0 is a result, and moves no effect of a balanced design
            try:
                fit = model.fit(method=[method])
            except np.linalg.LinAlgError:
                continue
            if fit.converged and np.isfinite(fit.conf_int()[: x.shape[1]]).all():
                return fit
    raise ValueError("response: expected one that a mixed model fits, got none that does; is it constant?")


MIXED, OVER = "mixed model", "over ladders"


def effects(frame: pd.DataFrame, levels: Levels, response: str, **how: Any) -> pd.DataFrame:
    """Both readings below one another: ``response, reading, term, mean, low, high, p, holm``."""
    parts = {MIXED: mixed_effects, OVER: over_ladders_effects}
    tables = [of(frame, levels, response, **how).assign(reading=name) for name, of in parts.items()]
    columns = ["response", "reading", "term", "mean", "low", "high", "p", "holm"]
    return pd.concat(tables, ignore_index=True).assign(response=response)[columns]


def _design(
    frame: pd.DataFrame, levels: Levels, response: str, terms: Sequence[Term], blocks: Sequence[str]
) -> pd.DataFrame:
    require_rows(frame, *blocks, response, *levels, finite=(response,))
    columns = coded(frame, levels)
    products = {":".join(term): columns[list(term)].prod(axis=1) for term in terms}
    return columns.assign(**products)


def _rung_levels(frame: pd.DataFrame, ladder: str, rung: str):
    """The random levels of the rungs within each ladder, as statsmodels wants them; in its order of ladders."""
    from statsmodels.regression.mixed_linear_model import VCSpec

    names, matrices = [], []
    for _, own in frame.groupby(ladder, sort=True, observed=True):
        dummies = pd.get_dummies(own[rung]).astype(float)
        names.append([str(name) for name in dummies])
        matrices.append(dummies.to_numpy())
    return VCSpec(["rung"], [names], [matrices])
