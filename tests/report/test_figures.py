"""Figures: three files each, reproducible bytes, and every ladder figure draws from a table of the right shape."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from replicate.impact.readiness import CALIBRATED, SCALE_FREE
from replicate.report.figures import ladders, nb09, nb11, nb12, style

mpl.use("Agg")


@pytest.fixture
def frame():
    n, rng = 25, np.random.default_rng(0)
    columns = (
        "V",
        "delta",
        "kappa",
        "H",
        "entropy",
        "S",
        "gain",
        "post",
        "J0",
        "reward",
        "label_mass",
        "top",
    )
    table = pd.DataFrame({name: rng.random(n) for name in columns})
    return table.assign(stage=1, step=np.arange(n) * 10, tokens=np.arange(n) * 10**6, gain_se=0.01)


@pytest.fixture
def study(frame):
    """Three ladders, the second one cooled, with what notebook 11 draws of a study."""
    parts = [
        frame.assign(ladder=name, cooled=name == "b", labels=4, empirical=frame.delta + i, gain_5=frame.gain)
        for i, name in enumerate("abc")
    ]
    return pd.concat(parts, ignore_index=True).assign(gain_other=0.0)


def test_three_files_and_the_numbers_behind(frame, tmp_path):
    style.use_style()
    figure = nb09.abilities(frame, labels=4, vocab=100)
    path = style.save(figure, "f", frame, tmp_path)
    assert path.stat().st_size > 10_000
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    assert pd.read_csv(tmp_path / "f.csv").V.tolist() == pytest.approx(frame.V.tolist())
    style.save(nb09.abilities(frame, labels=4, vocab=100), "again", frame, tmp_path)
    assert (tmp_path / "f.pdf").read_bytes() == (tmp_path / "again.pdf").read_bytes()


def test_a_band_is_the_mean_over_ladders_with_its_interval():
    """Two ladders at 0 and 2: mean 1, half-width t(1 degree of freedom) = 12.7 standard errors of 1; alone, nothing."""
    table = pd.DataFrame({"ladder": list("abaab"), "x": [1, 1, 2, 3, 3], "y": [0.0, 2.0, 5.0, 1.0, 100.0]})
    found = nb11.band(table, "x", "y")
    assert found.index.tolist() == [1, 3]
    assert found.loc[1].tolist() == pytest.approx([1, 1 - 12.7062, 1 + 12.7062], abs=1e-3)
    assert nb11.band(table[table.x == 3], "x", "y", logarithm=True)["mean"].tolist() == pytest.approx([10])


def test_components_of_a_study_are_geometric_means_over_its_ladders(study):
    left, right = nb11.components(study).axes
    drawn = {line.get_label(): line.get_ydata() for line in [*left.lines, *right.lines]}
    expected = np.exp(np.log(study.V).groupby(study.step).mean())
    assert drawn["$\\mathcal{V}$"].tolist() == pytest.approx(expected.tolist())
    assert drawn["$H$"].tolist() == pytest.approx(study.groupby("step").H.mean().tolist())
    assert drawn["entropy / first"][0] == pytest.approx(1)


def test_averaging_has_a_panel_per_reading_and_a_line_per_ladder():
    table = pd.DataFrame(
        [(p, name, name == "b", n, (n - 5) / 10) for p in "pq" for name in "abc" for n in (1, 10)],
        columns=["panel", "ladder", "cooled", "n", "spearman"],
    )
    axes = nb11.averaging(table, {"group": 8}).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["p", "q"]
    ladders_, mean = axes[0].lines[:3], axes[0].lines[3]
    assert mean.get_ydata().tolist() == pytest.approx([-0.4, 0.5])
    colours = [line.get_color() for line in ladders_]
    assert colours[0] == colours[2] != colours[1]


def test_figure_1_shows_prediction_against_measurement_and_the_mean_r2(study):
    table = pd.concat(
        [study.assign(score=name, predicted=study.gain + shift) for shift, name in enumerate("st")]
    )
    skill = pd.DataFrame(
        {"score": list("sssttt"), "r2": [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], "cooled": [False, True, False] * 2}
    )
    left, middle, *_, right = [ax for ax in nb11.prediction(table, skill).axes if ax.get_title(loc="left")]
    for ax, shift in ((left, 0), (middle, 1)):
        predicted, measured = ax.collections[0].get_offsets().T
        assert (predicted - measured).tolist() == pytest.approx([shift] * len(study))
    means = [container.lines[0].get_ydata()[0] for container in right.containers]
    assert means == pytest.approx([0.2, 0.8])


def test_figure_4_has_a_panel_per_ladder_with_the_gain_as_z_score(study):
    axes = nb11.predictor(study, {"V": "v"}).axes
    titles = [ax.get_title(loc="left") for ax in axes if ax.get_visible()]
    assert titles == ["a: 4 labels, constant rate", "b: 4 labels, cooled", "c: 4 labels, constant rate"]
    gain, score = (line.get_ydata() for line in axes[0].lines)
    assert (gain.mean(), gain.std()) == pytest.approx((0, 1))
    assert np.corrcoef(score, study[study.ladder == "a"].V)[0, 1] == pytest.approx(1)


def test_every_ladder_figure_draws(frame, study):
    gains = pd.concat([frame.assign(budget=b, seed=s) for b in (5, 10) for s in (0, 1)])
    drawn = [
        nb09.abilities(frame, labels=4, vocab=100),
        nb11.gains(frame, gains),
        nb11.hump(study),
        nb11.updates(frame, pd.concat([gains.assign(update=u, null_groups=0.5) for u in (1, 2)])),
    ]
    assert all(figure.axes for figure in drawn)


def test_units_of_the_token_axis(frame):
    assert "millions" in ladders.tokens_axis(frame)[1]
    assert "billions" in ladders.tokens_axis(frame.assign(tokens=frame.tokens * 1000))[1]
    x, label = ladders.tokens_axis(frame.assign(tokens=None))
    assert (x.tolist(), label) == (frame.step.tolist(), "pretraining steps")


def test_jitter_stays_within_its_spread_and_never_repeats():
    offsets = style.jitter(500, spread=0.2)
    assert abs(offsets).max() <= 0.2
    assert abs(offsets).max() > 0.19
    assert len(set(offsets.round(6))) == 500


def test_figure_5_draws_residuals_beside_what_leaves_them():
    rng = np.random.default_rng(0)
    rows = {
        "J0": rng.random(20),
        "post": rng.random(20),
        "calibrated": rng.random(20),
        "scale_free": rng.random(20),
    }
    table = pd.concat([pd.DataFrame(rows).assign(score=name) for name in ("none", "V H")])
    figure = nb12.readiness(table)
    assert len(figure.axes) == 6
    residuals = figure.axes[3].collections[0].get_offsets()
    assert residuals[:, 0].tolist() == pytest.approx(rows["J0"].tolist())
    assert residuals[:, 1].tolist() == pytest.approx((rows["post"] - rows["calibrated"]).tolist())


def test_a_row_a_score_with_its_ladders_and_their_mean():
    values = {"a": [0.1, 0.3, 0.5], "b": [-0.9, -0.7, -0.2], "chance": [0.5, 0.6, 0.7]}
    rows = [
        {"score": name, "spearman": x, "partial": np.nan if name == "b" else x, "r2": x, "regret": x}
        for name, found in values.items()
        for x in found
    ]
    judged = pd.DataFrame(rows)
    first, partial, r2 = nb12.forest(judged, ["b", "a"]).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["b", "a"]
    dots, mean = first.lines[0], first.lines[1]
    assert dots.get_xdata().tolist() == pytest.approx(values["b"])
    assert mean.get_xdata().tolist() == pytest.approx([-0.6])
    assert len(partial.lines) == 3  # dots and mean of a alone, and the line at zero
    assert min(r2.lines[0].get_xdata()) == pytest.approx(-0.55)  # drawn at the edge
    (regrets,) = nb12.regrets(judged, ["b", "a"]).axes
    assert regrets.lines[-2].get_xdata()[0] == pytest.approx(0.6)  # chance
    table = pd.concat([judged.assign(form=form, over_J0=judged.r2) for form in (CALIBRATED, SCALE_FREE)])
    assert len(nb12.rises(table).axes) == 2


@pytest.fixture
def curve():
    levels = itertools.product(
        ("categorical", "shift"), ("grpo",), (1, np.inf), ("cosine",), (-1, 2), ("std",)
    )
    table = pd.DataFrame(levels, columns=["policy", "advantage", "n", "form", "layer", "headroom"])
    mean = np.linspace(-0.8, 0.8, len(table))
    return table.assign(mean=mean, low=mean - 0.1, high=mean + 0.1)


def test_the_specification_curve_marks_every_choice_of_every_reading(curve):
    choices = {name: tuple(curve[name].unique()) for name in curve.columns[:6]}
    marked = {"x": tuple(curve.iloc[1][:6]), "y": tuple(curve.iloc[6][:6])}
    kinds = pd.concat([curve.iloc[[0, 2]].assign(headroom=kind) for kind in ("std", "kl")])
    top, below = nb12.specification_curve(curve, marked, choices, kinds).axes[:2]
    drawn = sorted(x for line in below.lines for x in line.get_xdata())
    assert drawn == sorted(list(range(8)) * 6)
    shift = below.lines[1].get_xdata().tolist()
    assert shift == np.flatnonzero(curve.policy == "shift").tolist()
    rings = [line.get_xdata()[0] for line in top.lines if line.get_marker() == "o"]
    assert rings == [1, 6]


def test_a_reading_that_is_not_in_the_curve_is_not_marked(curve):
    with pytest.raises(ValueError, match="reading: expected one row of the curve, got 0"):
        nb12.place_of(curve, ("gumbel", "grpo", 1, "cosine", -1, "std"))
