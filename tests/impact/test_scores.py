"""Forms of the signal: what averaging does to them, what leaves them alone; readings that are one reading."""

import math

import numpy as np
import pandas as pd
import pytest

from replicate.impact.scores import FORMS, PREDICTORS, RIVALS, averaged, duplicates

EXACT = 1e-12
RUNGS, STATE = 6, 5
TRUST = np.linspace(0.2, 1.2, RUNGS)[:, None, None]  # E lambda^ = TRUST g


def _moments(pathwise, empirical):
    """V, delta, kappa, empirical from costates [rungs, draws, state], by their definitions."""
    return {
        "V": (pathwise**2).sum(-1).mean(1),
        "delta": ((empirical - pathwise) ** 2).sum(-1).mean(1),
        "kappa": (empirical * pathwise).sum(-1).mean(1),
        "empirical": (empirical**2).sum(-1).mean(1),
    }


def _costates(draws, seed=0):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(RUNGS, 1, STATE)) * np.geomspace(0.1, 2, RUNGS)[:, None, None]
    noise = rng.normal(size=(2, RUNGS, draws, STATE))
    loud = np.array([1.5, 0.1, 2.0, 0.2, 0.1, 2.5])[:, None, None]  # as rungs differ in what sampling adds
    return g + 0.5 * noise[0], TRUST * g + 0.3 * noise[0] + loud * noise[1], g


def _parts(draws, seed=0):
    pathwise, empirical, g = _costates(draws, seed)
    means = {f"{k}_mean": v for k, v in _moments(g, TRUST * g).items() if k != "empirical"}
    return pd.DataFrame({**_moments(pathwise, empirical), **means}), pathwise, empirical, g


@pytest.mark.parametrize("n", [2, 8])
def test_averaging_is_what_means_of_n_costates_have(n):
    """Against means that are taken: 200,000 draws leave a relative error of less than 2 %."""
    parts, pathwise, empirical, _ = _parts(200_000)
    blocks = [x.reshape(RUNGS, -1, n, STATE).mean(2) for x in (pathwise, empirical)]
    found = averaged(parts, n)
    for name, values in _moments(*blocks).items():
        np.testing.assert_allclose(found[name], values, rtol=0.02, atol=0.02 * values.max(), err_msg=name)
    assert (parts.delta > 1.2 * found.delta).all()


def test_averaging_of_one_and_of_all():
    parts, *_, g = _parts(50)
    pd.testing.assert_frame_equal(averaged(parts, 1), parts[["V", "delta", "kappa", "empirical"]])
    limit = averaged(parts, math.inf)
    for name, values in _moments(g, TRUST * g).items():
        np.testing.assert_allclose(limit[name], values, rtol=EXACT, err_msg=name)
    pd.testing.assert_frame_equal(averaged(parts, 1e15), limit)
    for bad in (0.5, 0, -1, math.nan):
        with pytest.raises(ValueError, match="n: expected"):
            averaged(parts, bad)


# Powers of a factor on the empirical costate (advantages), on both (state), and on both as a reward's unit.
POWERS = {
    "difference": (None, 2),
    "scale-fitted": (0, 2),
    "normalised": (0, 1),
    "relative": (None, 0),
    "cosine": (0, 0),
    "V": (0, 2),
    "kappa": (1, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_which_rescaling_leaves_a_form_alone(form):
    _, pathwise, empirical, _ = _parts(50)
    of, (advantages, state) = FORMS[form], POWERS[form]
    plain = of(pd.DataFrame(_moments(pathwise, empirical)))
    scaled = of(pd.DataFrame(_moments(3 * pathwise, 3 * empirical)))
    np.testing.assert_allclose(scaled, 3.0**state * plain, rtol=1e-10)
    doubled = of(pd.DataFrame(_moments(pathwise, 2 * empirical)))
    if advantages is None:
        assert not np.array_equal(np.argsort(doubled), np.argsort(plain))  # a score should not do that
    else:
        np.testing.assert_allclose(doubled, 2.0**advantages * plain, rtol=1e-10)


def test_forms_are_what_they_are_called():
    frame = pd.DataFrame({"V": [4.0], "delta": [9.0], "kappa": [2.0], "empirical": [9.0]})
    found = {name: of(frame)[0] for name, of in FORMS.items()}
    assert found == pytest.approx(
        {
            "difference": -5.0,
            "scale-fitted": 4 / 9,
            "normalised": 2 / 3,
            "relative": -1.25,
            "cosine": 1 / 3,
            "V": 4.0,
            "kappa": 2.0,
        }
    )


def test_scale_fitted_is_what_the_best_length_saves():
    _, pathwise, empirical, _ = _parts(50)
    frame = pd.DataFrame(_moments(pathwise, empirical))
    lengths = np.linspace(0, 3, 3001)
    errors = [_moments(pathwise, c * empirical)["delta"] for c in lengths]
    np.testing.assert_allclose(FORMS["scale-fitted"](frame), frame.V - np.min(errors, axis=0), atol=1e-5)
    turned = pd.DataFrame(_moments(pathwise, -empirical)).assign(kappa=lambda f: -abs(f.kappa))
    assert (FORMS["scale-fitted"](turned) == 0).all()


def test_no_signal_is_a_score_of_zero():
    zeros = pd.DataFrame(0.0, index=[0], columns=["V", "delta", "kappa", "empirical"])
    assert {name: of(zeros)[0] for name, of in FORMS.items()} == dict.fromkeys(FORMS, 0.0)
    below = zeros.assign(V=-1e-9, delta=-2e-9, kappa=1e-9, empirical=-1e-9)  # unbiased estimates do that
    assert all(np.isfinite(of(below)).all() for of in FORMS.values())
    assert FORMS["relative"](zeros.assign(delta=1.0))[0] == -math.inf


def test_duplicates_are_found_once_and_up_to_round_off():
    rng = np.random.default_rng(1)
    x = rng.normal(size=61)
    noise = 1 + 1e-12 * rng.normal(size=61)
    columns = {
        "x": x,
        "exp": np.exp(x),
        "clipped": np.maximum(x, 0),
        "negative": -x,
        "clipped, noisy": np.maximum(2 * x, 0) * noise,
        "cubed": x**3,
        "level": np.full(61, 3.0),
        "level, noisy": 3 * noise,
        "other": rng.normal(size=61),
    }
    assert duplicates(columns) == {
        "exp": "x",
        "clipped, noisy": "clipped",
        "cubed": "x",
        "level, noisy": "level",
    }
    swapped = x.copy()
    i, j = np.argsort(x)[[30, 31]]
    swapped[[i, j]] = x[[j, i]]
    assert duplicates({"x": x, "swapped": swapped}) == {}
    assert duplicates({"a": [-math.inf, 0.0, 1.0], "b": [-3.0, 0.0, 1.0], "c": [0.0, 0.0, 1.0]}) == {"b": "a"}
    tied = {"coarse": [0.0, 0.0, 1.0], "fine": [0.0, 0.5, 1.0]}
    assert duplicates(tied) == {}
    assert duplicates(dict(reversed(tied.items()))) == {}
    for bad in ({"x": [math.nan, 1.0]}, {"x": [1.0], "y": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="columns"):
            duplicates(bad)


def test_forms_that_differ_by_algebra_alone_are_duplicates():
    """With exact advantages and no sampling Delta is 0: most of the forms are V then."""
    _, _, _, g = _parts(2)
    limit = pd.DataFrame(_moments(g, g))
    found = duplicates({name: of(limit) for name, of in FORMS.items()})
    assert {"scale-fitted", "normalised", "V", "kappa"} <= set(found)
    assert {found[name] for name in ("scale-fitted", "normalised", "V", "kappa")} == {"difference"}


def test_rivals_are_numbers_at_every_rung():
    columns = ["S", "V", "H", "J0", "entropy", "gradient_norm_squared", "law", "top", "pilot"]
    frame = pd.DataFrame(np.random.default_rng(0).uniform(size=(5, len(columns))), columns=columns)
    found = {name: of(frame) for name, of in RIVALS.items()}
    assert all(np.isfinite(values).all() and len(values) == 5 for values in found.values())
    assert set(PREDICTORS) < set(found)
    np.testing.assert_array_equal(found["greedy minus sampled accuracy"], frame.top - frame.J0)
    np.testing.assert_array_equal(found["law"], frame.law)
    np.testing.assert_array_equal(found["pilot of 5 updates"], frame.pilot)
    assert duplicates(found) == {}
