"""What the figures of ladders share: the axis of pretraining tokens, the diagonal, the names of scores."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tokens_axis(frame: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Horizontal positions and their label: pretraining tokens in thousands, millions or billions, or, where they are
    not known, steps."""
    if frame.tokens.isna().any():
        return frame.step.to_numpy(), "pretraining steps"
    for size, unit in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if frame.tokens.max() >= size:
            return frame.tokens.to_numpy() / size, f"pretraining tokens ({unit})"
    return frame.tokens.to_numpy(), "pretraining tokens"


def diagonal(ax: "Axes", x, y) -> None:
    """The line on which y = x, over the range of both."""
    low, high = min(np.min(x), np.min(y)), max(np.max(x), np.max(y))
    ax.plot([low, high], [low, high], color=BLACK, lw=0.8, ls=":", zorder=0)


_TYPESET = {
    "law": "law: $\\kappa/\\sqrt{E|\\hat\\lambda|^2}$",
    "S = (V - Delta) H, one costate": "$(\\mathcal{V} - \\Delta)\\,\\mathcal{H}$, one costate",
    "V": "$\\mathcal{V}$",
    "V H": "$\\mathcal{V}\\,\\mathcal{H}$",
    "J_0": "$J_0$",
    "J_0 (1 - J_0)": "$J_0 (1 - J_0)$",
    "1 - J_0": "$1 - J_0$",
    "kappa, GRPO's advantages": "$\\kappa$, GRPO's advantages",
    "spline in J_0": "spline in $J_0$",
    "headroom H": "headroom $\\mathcal{H}$",
    "|grad_theta J|^2": "$|\\nabla_\\theta J|^2$",
}


def typeset(score: str) -> str:
    """A score's name as figures write it."""
    return _TYPESET.get(score, score)
