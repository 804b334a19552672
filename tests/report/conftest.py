"""Figures that a test draws are closed with it."""

import matplotlib
import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def _as_matplotlib_comes():
    """The suite's style moves titles; whether an earlier test of this process has applied it must not matter."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.use("agg")
        yield
