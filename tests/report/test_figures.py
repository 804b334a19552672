"""Figures: three files each, reproducible bytes, and every ladder figure draws from a table of the right shape."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

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


def test_three_files_and_the_numbers_behind(frame, tmp_path):
    style.use_style()
    figure = nb11.components(frame)
    path = style.save(figure, "f", frame, tmp_path)
    assert path.stat().st_size > 10_000
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    assert pd.read_csv(tmp_path / "f.csv").V.tolist() == pytest.approx(frame.V.tolist())
    style.save(nb11.components(frame), "again", frame, tmp_path)
    assert (tmp_path / "f.pdf").read_bytes() == (tmp_path / "again.pdf").read_bytes()


def test_what_is_drawn_is_the_table(frame):
    """The dashed line is the least-squares map of the score, the solid one the measured gain."""
    frame = frame.assign(V=frame.gain + 0.1, H=1.0, S=-frame.gain)
    figure = nb11.prediction(frame)
    one_costate, average = (ax.lines[:2] for ax in figure.axes if len(ax.lines) > 2)
    measured, predicted = average
    assert measured.get_ydata().tolist() == pytest.approx(frame.gain.tolist())
    assert predicted.get_ydata().tolist() == pytest.approx(frame.gain.tolist())
    # A score that falls as the gain rises is given no weight, and is not turned round.
    assert one_costate[1].get_ydata().tolist() == pytest.approx([frame.gain.mean()] * len(frame))


def test_every_ladder_figure_draws(frame):
    gains = pd.concat([frame.assign(budget=b, seed=s) for b in (5, 10) for s in (0, 1)])
    table = pd.DataFrame(
        {"predictor": ["a"], "spearman": [0.1], "low": [-0.2], "high": [0.4], "partial": [0.0]}
    )
    readings = pd.DataFrame(
        [{"kind": k, "signal": s, "headroom": h, "spearman": 0.5} for k in "ab" for s in "cd" for h in "ef"]
    )
    drawn = [
        nb09.abilities(frame, labels=4, vocab=100),
        nb11.gains(frame, gains),
        nb11.predictor(frame),
        nb12.readiness(frame),
        nb12.forest(table, title="t"),
        nb12.multiverse(readings),
    ]
    assert all(figure.axes for figure in drawn)


def test_units_of_the_token_axis(frame):
    assert "millions" in ladders.tokens_axis(frame)[1]
    assert "billions" in ladders.tokens_axis(frame.assign(tokens=frame.tokens * 1000))[1]


def test_jitter_stays_within_its_spread_and_never_repeats():
    offsets = style.jitter(500, spread=0.2)
    assert abs(offsets).max() <= 0.2
    assert abs(offsets).max() > 0.19
    assert len(set(offsets.round(6))) == 500
