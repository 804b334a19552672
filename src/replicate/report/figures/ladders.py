"""What the figures of a ladder share: the axis of pretraining tokens, and the diagonal."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tokens_axis(frame: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Horizontal positions and their label: pretraining tokens in thousands, millions or billions."""
    for size, unit in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if frame.tokens.max() >= size:
            return frame.tokens.to_numpy() / size, f"pretraining tokens ({unit})"
    return frame.tokens.to_numpy(), "pretraining tokens"


def diagonal(ax: "Axes", x, y) -> None:
    """The line on which y = x, over the range of both."""
    low, high = min(np.min(x), np.min(y)), max(np.max(x), np.max(y))
    ax.plot([low, high], [low, high], color=BLACK, lw=0.8, ls=":", zorder=0)
