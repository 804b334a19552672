"""Summaries with their uncertainty: over prompts, of positive numbers, of whole numbers."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from replicate.statistics import summaries

EXACT = 1e-10


def test_geometric_mean_covers_as_often_as_it_says():
    assert summaries.geometric_mean([1.0, 100.0])["mean"] == pytest.approx(10.0)
    rng, inside = np.random.default_rng(7), 0
    for _ in range(1000):
        band = summaries.geometric_mean(np.exp(rng.normal(1.0, 2.0, 6)))
        inside += band["low"] < math.e < band["high"]
    assert abs(inside - 950) < 4 * (1000 * 0.95 * 0.05) ** 0.5  # z-values in place of t would cover 890
    for bad in ([1.0], [1.0, 0.0], [1.0, math.inf]):
        with pytest.raises(ValueError, match="values: expected at least 2, positive and finite"):
            summaries.geometric_mean(bad)


def test_quartiles_as_text_keep_whole_numbers_and_infinity():
    assert summaries.quartile_text([2.0, 4.0, 22.0, 50.0, 90.0]) == "22 (4-50)"
    assert summaries.quartile_text([2.0, 2.0, math.inf, math.inf, math.inf]) == "inf (2-inf)"


def _frame(rng: np.random.Generator) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([["b", "a"], range(5), range(2), range(4)])
    frame = pd.DataFrame(list(index), columns=["stage", "prompt", "head", "t"])
    return frame.assign(x=rng.normal(size=len(frame)), y=rng.normal(size=len(frame)))


def test_means_are_over_prompts_in_the_order_of_the_frame():
    frame = _frame(np.random.default_rng(0))
    table = summaries.over_prompts(frame, lambda rows: rows["x"].max())
    assert list(table.index) == ["b", "a"]
    largest = frame[frame["stage"] == "a"].groupby("prompt")["x"].max()
    row = table.loc["a"]
    assert abs(row["mean"] - largest.mean()) < EXACT
    assert abs(row["se"] - largest.std(ddof=1) / np.sqrt(5)) < EXACT
    assert row["prompts"] == 5
    assert abs(row["high"] - row["mean"] - 3 * row["se"]) < EXACT
    assert abs(row["mean"] - row["low"] - 3 * row["se"]) < EXACT
    with pytest.raises(ValueError, match="expected at least 2 prompts for each stage, got 1"):
        summaries.over_prompts(frame[frame["prompt"] == 0], lambda rows: rows["x"].max())


def test_rank_correlation_is_spearman_within_prompts():
    frame = _frame(np.random.default_rng(1))
    frame["y"] = frame["x"] ** 3 + 100.0 * frame["prompt"]  # monotone within a prompt
    table = summaries.rank_correlation(frame, "x", "y")
    assert (table["mean"] - 1).abs().max() < EXACT
    frame["y"] = np.random.default_rng(2).normal(size=len(frame))
    one = frame[(frame["stage"] == "b") & (frame["prompt"] == 3)]
    two = frame[(frame["stage"] == "b") & frame["prompt"].isin([3, 4])]
    other = frame[(frame["stage"] == "b") & (frame["prompt"] == 4)]
    expected = np.mean([stats.spearmanr(p["x"], p["y"]).statistic for p in (one, other)])
    assert abs(summaries.rank_correlation(two, "x", "y")["mean"].item() - expected) < EXACT


def test_group_means_are_taken_off_first():
    """Two heads that differ in both columns and are unrelated within: the correlation over heads goes away."""
    frame = _frame(np.random.default_rng(3))
    for column in ("x", "y"):
        frame[column] += 50.0 * frame["head"]
    raw = summaries.rank_correlation(frame, "x", "y")["mean"]
    within = summaries.rank_correlation(frame, "x", "y", within=["head"])["mean"]
    assert raw.min() > 0.6
    assert within.abs().max() < 0.4
    assert "x" in frame
    assert frame.loc[frame["head"] == 1, "x"].mean() > 40  # the caller's table is left alone


def test_the_interval_of_a_median_is_order_statistics():
    """Of 24 the 7th and the 18th: P(fewer than 7 of 24 fair coins) = 0.011, fewer than 8 0.032."""
    values = np.arange(1.0, 25.0)[::-1]
    assert summaries.median_interval(values) == (12.5, 7.0, 18.0)
    assert summaries.median_interval([5, 1, 2, 3, 4, 6]) == (3.5, 1.0, 6.0)
    with pytest.raises(ValueError, match="values: expected at least 6, got 5"):
        summaries.median_interval([1, 2, 3, 4, 5])
