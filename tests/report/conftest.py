"""Figures that a test draws have the suite's style, and are closed with it."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from replicate.report.figures import style


@pytest.fixture(autouse=True)
def _styled_and_closed_figures():
    """Titles stand elsewhere without the style; which tests this process has run before must not matter."""
    with matplotlib.rc_context():
        style.use_style()
        yield
    plt.close("all")
