"""Figure style, and saving a figure with the numbers behind it.

Every figure leaves three files: PNG, PDF and the CSV from which it can be drawn again.
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replicate.files import replacing, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("replicate.mplstyle")

# Okabe and Ito's colour-blind safe palette, by name, so that one quantity keeps one colour across the suite.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
GREY = "0.55"


def use_style() -> None:
    """Applies the suite's style to matplotlib and seaborn for the rest of the process."""
    import matplotlib.pyplot as plt
    import pandas as pd
    import seaborn as sns

    sns.set_palette([BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK])
    plt.style.use(STYLE)
    # seaborn 0.13 passes pandas a keyword that pandas 3 ignores and says so on stderr, which strict nbval compares.
    if hasattr(pd.errors, "Pandas4Warning"):
        warnings.filterwarnings("ignore", message=".*copy keyword.*", category=pd.errors.Pandas4Warning)


def panels(rows: int, columns: int, *, width: float, height: float, widths=None, heights=None, **options):
    """A figure of ``width`` x ``height`` inches and its axes, as ``pyplot.subplots`` gives them.

    ``widths`` and ``heights`` are the relative sizes of columns and rows; ``options`` are passed on.
    """
    import matplotlib.pyplot as plt

    size = {"figsize": (width, height), "width_ratios": widths, "height_ratios": heights}
    return plt.subplots(rows, columns, **size, **options)


def jitter(count: int, *, spread: float) -> np.ndarray:
    """``count`` offsets between -spread and spread that tell coinciding dots apart, without random numbers."""
    # Multiples of the golden ratio, modulo 1, never bunch.
    return spread * (2 * (0.618034 * np.arange(count) % 1) - 1)


def save(figure: "Figure", name: str, data: "pd.DataFrame", folder: str | os.PathLike) -> Path:
    """Writes ``name`` as PNG, PDF and CSV (its data, seven digits) into ``folder``; returns the PNG's path."""
    folder = Path(folder)
    write_text(folder / f"{name}.csv", data.to_csv(index=False, float_format="%.7g"))
    # What would make two equal figures differ is left out.
    for kind, said in {"pdf": ("CreationDate", "Producer", "Creator"), "png": ("Software",)}.items():
        with replacing(folder / f"{name}.{kind}") as handle:
            figure.savefig(handle, format=kind, metadata=dict.fromkeys(said))
    return folder / f"{name}.png"
