"""Figures of notebook 03: a jump is drawn where it is, between the limits of the density on its two sides."""

import numpy as np
import pandas as pd
import pytest

from replicate.report.figures import nb03
from replicate.theory import noise_laws


@pytest.mark.parametrize("name", noise_laws.jumping(1.0))
def test_a_jump_stands_between_the_limits_of_the_density(name):
    law = noise_laws.jumping(0.6)[name]
    table = nb03.density_curves({name: law}, 2.0)
    jumps = table[table["height"].notna()]
    assert list(zip(jumps["x"], jumps["height"], strict=True)) == list(law.jumps)
    for place, height, above in jumps[["x", "height", "density"]].itertuples(index=False):
        sides = [
            float(law.density(np.asarray(x))) * (law.low < x < law.high) for x in (place - 1e-9, place + 1e-9)
        ]
        assert (above - height, above) == pytest.approx(sides, abs=1e-7)
    assert np.nanmax(table["density"]) == pytest.approx(
        max(law.density(np.linspace(0, 1e-9, 2)[1:])), rel=1e-6
    )


def test_labels_that_would_overlap_are_pushed_apart():
    placed = nb03._apart(pd.Series({"a": 1.0, "b": 1.1, "c": 3.0}), gap=0.6)
    assert placed["b"] - placed["a"] == pytest.approx(0.6)
    assert placed["c"] == 3.0
