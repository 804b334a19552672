"""The figures of notebook 16: revisions of a lock along pretraining, and what one checkpoint costs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def revisions(frame: pd.DataFrame, holes: Mapping[str, Sequence[int]]) -> "Figure":
    """A line a repository: revisions that are used, those that are refused, and wanted steps at which there is none.

    ``frame`` is that of :func:`replicate.runs.at_scale.revisions`; ``holes`` has the missing steps by repository.
    """
    figure, ax = panels(1, 1, width=9.0, height=2.6)
    names = list(dict.fromkeys([*frame.repository, *holes]))
    for height, name in enumerate(names):
        own = frame[frame.repository == name]
        used, refused = own[own.refused == ""], own[own.refused != ""]
        for steps, marker, colour, label, face in (
            (holes.get(name, ()), "o", GREY, "wanted, not there", "none"),
            (used.step, "o", BLUE, "used", BLUE),
            (refused.step, "X", VERMILION, "refused from metadata", VERMILION),
        ):
            again = {} if height else {"label": label}
            ax.scatter(
                steps, [height] * len(steps), marker=marker, s=46, ec=colour, fc=face, zorder=3, **again
            )
    ax.set_xscale("symlog", linthresh=1000)
    ax.set(
        xlabel="step of stage 1 (linear up to 1000, logarithmic from there)",
        yticks=range(len(names)),
        yticklabels=[name.replace("/", "/\n") for name in names],
        ylim=(-0.6, len(names) - 0.4),
        xlim=(-120, 3e6),
    )
    ax.set_xticks([0, 1e3, 1e4, 1e5, 1e6], ["0", "1k", "10k", "100k", "1M"])
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, 1.22), ncol=3, fontsize=8, frameon=False)
    return figure


def costs(hours: pd.DataFrame, memory: pd.DataFrame) -> "Figure":
    """Left: seconds of one checkpoint by ``part``, a bar each; right: ``gigabytes`` by ``part``, stacked by ``job``."""
    figure, (left, right) = panels(1, 2, width=9.0, height=2.8)
    left.barh(hours.part[::-1], hours.seconds[::-1], color=BLUE)
    left.set(xlabel="seconds a checkpoint", title="time of a checkpoint, at the stated rates")
    colours = (BLUE, ORANGE, VERMILION, SKY, BLACK)
    jobs = list(dict.fromkeys(memory.job))
    base = dict.fromkeys(jobs, 0.0)
    for colour, part in zip(colours, dict.fromkeys(memory.part), strict=False):
        own = memory[memory.part == part].set_index("job").gigabytes.reindex(jobs).fillna(0.0)
        right.barh(jobs[::-1], own[::-1], left=[base[j] for j in jobs[::-1]], color=colour, label=part)
        base = {job: base[job] + own[job] for job in jobs}
    right.set(xlabel="GB on the GPU, at least")
    right.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncol=3, frameon=False)
    return figure
