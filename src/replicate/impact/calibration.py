"""The law with the constant that a published study gives it, and what that study says of how far it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replicate.impact import evidence, law
from replicate.impact.scores import LAW, RIVALS
from replicate.statistics.over_ladders import OverLadders, over_ladders, paired

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "J_0 (1 - J_0)"


@dataclass(frozen=True)
class Calibration:
    """``law``, fitted to all ``budgets`` of the development ladders, and how it fared on the locked ones.

    ``rank`` and ``r2`` are of the rising line in the score that was fixed beforehand, mean over locked ladders, with
    the bounds that their lower ends had to exceed; ``ahead`` is its lead in rank over J_0 (1 - J_0), which needs no
    costates. ``skill`` has the marks of ``law`` itself by locked ladder and budget; ``ladders`` counts both kinds, and
    ``conditions`` are the study's own settings of RL.
    """

    law: law.Law
    budgets: tuple[int, ...]
    rank: OverLadders
    rank_bound: float
    r2: OverLadders
    r2_bound: float
    ahead: OverLadders
    skill: "pd.DataFrame"
    ladders: Mapping[str, int]
    conditions: Mapping[str, Any]

    def nearest(self, budget: int) -> int:
        """The budget of the study that is nearest to ``budget``, by ratio."""
        return min(self.budgets, key=lambda n: max(n / budget, budget / n))

    def record(self) -> dict[str, Any]:
        """What is kept of it beside a score."""
        return {
            "form": self.law.form,
            "c": self.law.c,
            "budgets": list(self.budgets),
            "ladders": dict(self.ladders),
            "conditions": dict(self.conditions),
            "rank on locked ladders": {**vars(self.rank), "bound": self.rank_bound},
            "R^2 on locked ladders": {**vars(self.r2), "bound": self.r2_bound},
            f"rank less that of {BASELINE}": vars(self.ahead),
            "law by locked ladder and budget": self.skill.to_dict("records"),
        }


def calibrate(
    frame: "pd.DataFrame", thresholds: Mapping[str, Any], conditions: Mapping[str, Any]
) -> Calibration:
    """The calibration by a study ``frame`` and the ``thresholds`` and the form that were fixed before it."""
    frame = evidence.scored(frame, RIVALS)
    development, locked = evidence.unseen(frame)
    budgets = sorted(int(name[5:]) for name in frame if name.startswith("gain_") and name[5:].isdigit())
    fitted = law.fit(law.long(development, budgets), form=thresholds["form"])
    marks = evidence.locked_skill(development, locked, [LAW, BASELINE])
    rank, r2 = (marks.pivot(index="ladder", columns="score", values=name) for name in ("spearman", "r2"))
    return Calibration(
        fitted,
        tuple(budgets),
        over_ladders(rank[LAW]),
        thresholds["law_rank"],
        over_ladders(r2[LAW]),
        thresholds["law_r2"],
        paired(rank[LAW], rank[BASELINE]),
        law.skill(fitted, law.long(locked, budgets)),
        {name: part.ladder.nunique() for name, part in (("development", development), ("locked", locked))},
        conditions,
    )
