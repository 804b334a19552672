"""The second half of a study: its ladders once more, with J_0 held by intervention on every so many rungs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from replicate.ladder import interventions
from replicate.runs import jobs, paths
from replicate.runs.study import Entry, Study
from replicate.settings.section import MOST, Says, Section


class Intervention(Section):
    """What is done to every ladder: ``kind`` (:mod:`replicate.ladder.interventions`), the ``reward`` at which J_0 is
    held, on every ``every``-th rung, with RL evaluated after ``budgets`` updates."""

    kind: str
    reward: float = Field(gt=0, lt=1)
    every: int = Field(1, ge=1, le=MOST)
    budgets: list[int]

    def complaints(self, says: Says):
        """A kind that there is not."""
        if self.kind not in interventions.KINDS:
            yield f"{says('kind')} must be one of {', '.join(interventions.KINDS)}, got {self.kind!r}"

    def named(self, ladder: str) -> str:
        """What a ladder is called after it."""
        return f"{ladder}, {self.kind} {self.reward:g}"


def of(study: Study) -> list[Intervention]:
    """The interventions of a study file; ``ValueError`` names the one at fault."""
    return [_read(study.path, item) for item in study.interventions]


def _read(path: Path, item: Any) -> Intervention:
    if not isinstance(item, Mapping):
        raise ValueError(
            f"{path}: INTERVENTIONS: expected mappings with KIND, REWARD, EVERY, BUDGETS, got {item!r}"
        )
    try:
        return Intervention(**{str(name).lower(): value for name, value in item.items()})
    except ValueError as error:
        raise ValueError(f"{path}: INTERVENTIONS: {error}") from None


def entries(study: Study, parents: Sequence[Entry]) -> list[Entry]:
    """The ladders that come of intervening on ``parents``, made if they are not there; rungs that cannot be brought to
    the wanted reward are left out."""
    found = []
    for intervention in of(study):
        for parent in parents:
            ladder = jobs.ladder(parent.params)
            own = f"{ladder.checkpoints[0].where.parent.name}-{intervention.kind}-{intervention.reward:g}"
            folder = Path(parent.params.LADDER_DIR) / f"{own}-{intervention.every}"
            prompts = jobs.measured(parent.params, ladder.checkpoints[0])
            how = {"kind": intervention.kind, "reward": intervention.reward, "every": intervention.every}
            interventions.make(ladder, paths.resolve(folder), prompts.to("cpu"), **how)
            changed = {"LADDER": str(folder), "BUDGETS": intervention.budgets}
            params = parent.params.model_copy(update=changed)
            found.append(Entry(intervention.named(parent.name), parent.role, params))
    return found
