"""Variance components on planted designs."""

import numpy as np
import pandas as pd
import pytest

from replicate.statistics.variance import variance_shares


def _shuffled(frame, seed=0):
    return frame.sample(frac=1, random_state=seed)


def _nested(rng, shape=(12, 20, 3), sds=(0.5, 1.0, 0.3), course=None):
    ladder, step, seed = (a.ravel() for a in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    y = sds[0] * rng.normal(size=shape[0])[ladder] + sds[1] * rng.normal(size=shape[:2])[ladder, step]
    y = y + sds[2] * rng.normal(size=len(y)) + (0 if course is None else course[step])
    return pd.DataFrame({"ladder": ladder, "step": step, "seed": seed, "y": y})


DESIGNS = {
    "balanced": ((12, 20, 3), lambda rows, rng: rows["seed"] >= 0),
    "with holes": ((12, 20, 3), lambda rows, rng: rng.uniform(size=len(rows)) > 0.3),
    "lopsided": ((60, 3, 9), lambda rows, rng: (rows["step"] == 0) | (rows["seed"] == 0)),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_variance_shares_recover_planted_components(design):
    """Ladders of 0.5, rungs of 1, seeds of 0.3; also where one rung of a ladder has nine seeds and the others one."""
    rng, found = np.random.default_rng(7), []
    shape, kept = DESIGNS[design]
    for _ in range(60):
        frame = _nested(rng, shape)
        found.append(list(variance_shares(frame[kept(frame, rng)], "y").values()))
    found = np.array(found)
    assert found.sum(1) == pytest.approx(1)
    truth, error = np.array([0.25, 1.0, 0.09]) / 1.34, found.std(0) / np.sqrt(len(found))
    # A share is a ratio: its mean over draws is off by about its variance, added to the 4 standard errors.
    assert (np.abs(found.mean(0) - truth) < 4 * error + found.var(0)).all()


def test_components_agree_with_the_textbook_for_a_balanced_design():
    frame = _nested(np.random.default_rng(8), shape=(4, 5, 3), sds=(2.0, 1.0, 0.5))
    cube = frame["y"].to_numpy().reshape(4, 5, 3)
    noise = cube.var(2, ddof=1).mean()
    of_rungs = cube.mean(2).var(1, ddof=1).mean() - noise / 3
    of_means = cube.mean((1, 2)).var(ddof=1)
    for fixed, of_ladders in (
        (False, of_means - cube.mean(2).var(1, ddof=1).mean() / 5),
        (True, of_means - noise / 15),
    ):
        expected = np.array([of_ladders, of_rungs, noise]) / (of_ladders + of_rungs + noise)
        assert list(variance_shares(frame, "y", fixed_rungs=fixed).values()) == pytest.approx(expected)


def test_a_course_that_all_ladders_share_needs_fixed_rungs():
    """Ladders differ by 0.15 about a course of variance 0.5; rungs taken as draws hide a good part of it."""
    rng, course = np.random.default_rng(9), np.sin(np.arange(60) / 6)
    found = {fixed: [] for fixed in (False, True)}
    for _ in range(25):
        frame = _nested(rng, shape=(12, 60, 2), sds=(0.15, 0.0, 0.1), course=course)
        for fixed, shares in found.items():
            shares.append(variance_shares(frame, "y", fixed_rungs=fixed)["ladder"])
    truth = 0.15**2 / (0.15**2 + course.var(ddof=1) + 0.1**2)
    error = np.std(found[True]) / 5
    assert abs(np.mean(found[True]) - truth) < 4 * error
    assert np.mean(found[False]) < truth - 1.5 * error


def test_one_source_takes_all_and_negative_components_are_none():
    frame = _nested(np.random.default_rng(10), sds=(0.0, 0.0, 1.0))
    shares = variance_shares(frame, "y")
    assert min(shares.values()) >= 0
    assert shares["seed"] > 0.9
    assert variance_shares(frame.assign(y=frame["ladder"] * 1.0), "y")["ladder"] == pytest.approx(1)
    assert np.isnan(list(variance_shares(frame.assign(y=1.0), "y").values())).all()


def test_what_variance_shares_do_not_hang_on():
    frame = _nested(np.random.default_rng(11), shape=(4, 5, 3))
    shares = variance_shares(frame, "y")
    other = _shuffled(frame).assign(y=lambda rows: 5 - 2 * rows["y"], ladder=lambda rows: -rows["ladder"])
    assert variance_shares(other, "y") == pytest.approx(shares)
    renamed = frame.rename(columns={"ladder": "run", "step": "rung", "seed": "rl_seed"})
    assert variance_shares(renamed, "y", ladder="run", rung="rung", seed="rl_seed") == pytest.approx(shares)


def test_variance_shares_refuse_designs_that_cannot_tell():
    frame = _nested(np.random.default_rng(12), shape=(3, 4, 2))
    with pytest.raises(
        ValueError, match="frame: expected more rows than rungs than ladders than 1, got 12, 12, 3"
    ):
        variance_shares(frame[frame["seed"] == 0], "y")
    with pytest.raises(ValueError, match="frame: expected one row for each ladder, step and seed"):
        variance_shares(pd.concat([frame, frame]), "y")
