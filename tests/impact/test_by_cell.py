"""Orderings cell by cell are scipy's, ladder by ladder; the rule for the rate looks at means over ladders alone."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from replicate.impact import by_cell
from replicate.statistics.over_ladders import over_ladders

SCORES = {"x": lambda frame: frame.x, "minus": lambda frame: -frame.x, "flat": lambda frame: 0 * frame.x}


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    keys = [(cell, ladder, step) for cell in "pq" for ladder in "abc" for step in range(7)]
    table = pd.DataFrame(keys, columns=["cell", "ladder", "step"])
    return table.assign(x=rng.integers(0, 5, len(table)), gain=rng.normal(size=len(table)))


def test_an_ordering_is_scipys_rank_correlation_of_each_ladder_in_whatever_order_rows_stand(frame):
    found = by_cell.ordering(frame.sample(frac=1, random_state=3), SCORES)
    assert len(found) == 2 * 3 * 3
    for _, row in found.iterrows():
        own = frame[(frame.cell == row.cell) & (frame.ladder == row.ladder)]
        expected = {"x": 1, "minus": -1, "flat": 0}[row.score] * stats.spearmanr(own.x, own.gain).statistic
        assert (row.spearman, row.rungs) == (pytest.approx(expected, abs=1e-12), 7)


def test_a_gain_that_is_constant_orders_nothing_and_a_hole_is_refused(frame):
    assert by_cell.ordering(frame.assign(gain=1.0), SCORES).spearman.tolist() == [0] * 18
    with pytest.raises(ValueError, match="gain: expected finite numbers"):
        by_cell.ordering(frame.assign(gain=np.nan), SCORES)
    with pytest.raises(ValueError, match="expected one row for each cell, ladder and step, got some twice"):
        by_cell.ordering(pd.concat([frame, frame[:1]]), SCORES)


def test_several_keys_part_the_rows(frame):
    table = pd.concat([frame.assign(budget=5), frame.assign(budget=10, gain=-frame.gain)])
    found = by_cell.ordering(table, SCORES, by=("cell", "budget")).set_index(
        ["cell", "budget", "ladder", "score"]
    )
    few, many = (found.xs(n, level="budget").spearman for n in (5, 10))
    assert few.to_numpy() == pytest.approx(-many.loc[few.index].to_numpy())


def test_means_over_ladders_carry_students_interval(frame):
    table = by_cell.ordering(frame, SCORES)
    row = by_cell.over(table).set_index(["cell", "score"]).loc["q", "x"]
    expected = over_ladders(table[(table.cell == "q") & (table.score == "x")].spearman)
    assert (row["mean"], row.low, row.high, row.n) == (expected.mean, expected.low, expected.high, 3)


def test_a_share_is_of_the_room_that_a_class_of_rungs_has():
    gains = pd.DataFrame(
        [("c", "a", 5, 0.0, 0.3), ("c", "a", 5, 0.2, 0.3), ("c", "a", 5, 0.5, 0.5), ("c", "b", 5, 0.9, 0.05)],
        columns=["cell", "ladder", "budget", "start", "gain"],
    )
    found = by_cell.shares(gains, edges=(0.0, 0.2, 1.0))
    assert found[["band", "ladder"]].to_numpy().tolist() == [
        ["0 to 0.2", "a"],
        ["0.2 to 1", "a"],
        ["0.2 to 1", "b"],
    ]
    assert found.share.tolist() == pytest.approx([0.6 / 1.8, 1.0, 0.5])


def _rates(means, noise=0.1):
    """Four ladders; at every rate their gains have this mean and a standard error of noise / sqrt(3)."""
    offsets = noise * np.array([-1, 1, -1, 1])
    return pd.DataFrame(
        [(rate, i, mean + o) for rate, mean in means.items() for i, o in enumerate(offsets)],
        columns=["rate", "ladder", "gain"],
    )


@pytest.mark.parametrize(
    ("means", "picked"),
    [
        ({1.0: 0.5, 2.0: 0.55, 4.0: 0.6}, 2.0),  # one error is 0.0577: 0.5 falls short, 0.55 does not
        ({1.0: 0.55, 2.0: 0.5, 4.0: 0.6}, 1.0),
        ({4.0: 0.1, 2.0: 0.2, 1.0: 0.6}, 1.0),
        ({1.0: 0.1, 2.0: 0.2, 4.0: 0.6}, 4.0),
    ],
)
def test_the_smallest_rate_within_one_standard_error_of_the_best_is_picked(means, picked):
    got, table = by_cell.smallest_as_good(_rates(means).sample(frac=1, random_state=0))
    assert got == picked
    assert table.index.is_monotonic_increasing
    assert table.error.to_numpy() == pytest.approx(0.1 / 3**0.5)


def test_the_error_is_that_of_the_best_rate_and_of_no_other():
    quiet, loud = _rates({1.0: 0.5}, noise=0.01), _rates({2.0: 0.6}, noise=0.2)
    assert by_cell.smallest_as_good(pd.concat([quiet, loud]))[0] == 1.0
    loud, quiet = _rates({1.0: 0.5}, noise=0.2), _rates({2.0: 0.6}, noise=0.01)
    assert by_cell.smallest_as_good(pd.concat([loud, quiet]))[0] == 2.0


def test_a_rate_that_a_ladder_lacks_is_refused():
    with pytest.raises(ValueError, match="gains: expected every rate on at least 2 ladders"):
        by_cell.smallest_as_good(_rates({1.0: 0.5, 2.0: 0.6})[1:])
