"""A close look at a few rungs of a ladder, as notebooks 05 to 08 take it, on the tiny ladder or on anyone's.

What such a notebook claims is written with the tiny ladder in view, whose first rung has fresh weights and whose last
has learnt the task. On another ladder a claim may have nothing to speak of: no rung before the climb, no climb, a model
of another make. Its row then says *not testable here* and why, and carries the ladder's kind as its source.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from replicate.ladder import landmarks
from replicate.ladder.checkpoints import Ladder
from replicate.ladder.landmarks import Landmark
from replicate.lm import costate
from replicate.lm.shapes import shape_of
from replicate.models import olmo2
from replicate.models.fresh import rescaled
from replicate.report.rows import Verdict, number
from replicate.rl.prompts import Prompts, evaluate
from replicate.runs import estimate, jobs
from replicate.runs.estimate import Plan
from replicate.runs.params import LanguageParameters, whole

if TYPE_CHECKING:
    from replicate.runs.notebook import NotebookRun

_PROMPTS, _FILLER = 48, 4

_NAMES = {"before": "first rung", "climbing": "climbing rung", "after": "last rung"}
_FAMILIES = {"olmo2": "an OLMo-2", "llama": "a Llama", "gpt2": "a GPT-2"}
_COUNTS = {1: "one", 2: "two", 3: "three"}

Value = float | Callable[[], float]


@dataclass(frozen=True)
class Look:
    """The ladder, its prompts and rungs, how much is measured of them, and how claims about them are judged."""

    run: "NotebookRun"
    ladder: Ladder
    prompts: Prompts
    rungs: list[Landmark]
    plan: Plan

    @property
    def foreign(self) -> bool:
        """Whether it is another ladder than the tiny one trained here."""
        return self.run.params.LADDER != "tiny"

    @property
    def focus(self) -> Landmark:
        """The rung half-way up the climb, else the last."""
        return landmarks.focus(self.rungs)

    @property
    def by_name(self) -> dict[str, Landmark]:
        """The rungs by what captions call them."""
        return {_NAMES[rung.stage]: rung for rung in self.rungs}

    @property
    def trained(self) -> list[str]:
        """The stages of the rungs that have been trained."""
        return [rung.stage for rung in self.rungs if rung.stage != "before"]

    @property
    def blocks(self) -> list[int]:
        """The numbers of the blocks that are looked at, 1 the first."""
        return self.plan.blocks(self.focus.model.config.num_hidden_layers)

    @property
    def focus_name(self) -> str:
        """What captions call the rung that is looked at most closely."""
        return _NAMES[self.focus.stage]

    @property
    def asked(self) -> Prompts:
        """As many of the prompts as the plan allows."""
        return self.prompts.select(torch.arange(self.plan.prompts))

    @property
    def undecided(self) -> int:
        """The number of the prompt whose answer the rung in focus is least sure of: its group has both rewards."""
        with torch.no_grad():
            correct = evaluate(self.focus.model, self.asked).correct
        return int((correct - 0.5).abs().argmin())

    @property
    def family(self) -> str:
        """The models' architecture in words, with its article."""
        kind = self.focus.model.config.model_type
        return _FAMILIES.get(kind, f"a {kind}")

    @property
    def make(self) -> str:
        """The same without its article."""
        return self.family.partition(" ")[2]

    @property
    def count(self) -> str:
        """How many rungs, in words."""
        return self.counted(self.rungs)

    def counted(self, rungs: Sequence, what: str = "rung") -> str:
        """How many of ``what`` there are, in words."""
        return f"{_COUNTS[len(rungs)]} {what}{'s' * (len(rungs) > 1)}"

    def generator(self, shared: torch.Generator) -> torch.Generator:
        """``shared``, the notebook's; for another ladder one of its own, so that how much is drawn for it does not
        change what the fresh models are."""
        return torch.Generator().manual_seed(self.run.params.SEED) if self.foreign else shared

    def with_spread(self, rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
        """``rewards``; but where another ladder's are all alike, and so send nothing back, every second one is called
        right instead: what a costate is does not depend on which completions the rewards favour."""
        if self.foreign and (rewards == rewards[0]).all():
            print(
                "All completions have one reward; for sections 1 to 3 every second one is taken to be right."
            )
            return (torch.arange(len(rewards)) % 2).to(rewards.dtype)
        return rewards

    def influence(self, layers: Sequence[int]) -> Float[Tensor, "layers length layers length"]:
        """|dh_k^{l'}/dh_t^l| on the first prompt, exact or, for a large model, from the plan's probes."""
        model, tokens, probes = self.focus.model, self.prompts.tokens[0], self.plan.probes
        if probes is None:
            return costate.layer_influence(model, tokens, layers=layers)
        generator = torch.Generator().manual_seed(self.run.params.SEED)
        return costate.probed_influence(model, tokens, layers=layers, probes=probes, generator=generator)

    @property
    def rank_rtol(self) -> float:
        """What counts as zero beside the largest singular value of a sublayer's Jacobian: a trained head that looks
        away leaves values of 1e-11, and round-off is the width times 2e-16."""
        return max(1e-13, 4 * self.focus.model.config.hidden_size * torch.finfo(torch.float64).eps)

    @property
    def held_back(self) -> str | None:
        """Why a sublayer's Jacobian cannot have full rank, if its heads or key-value heads are too narrow."""
        shape = shape_of(self.focus.model)
        if shape.input_bound == shape.hidden:
            return None
        return f"keys, values and heads hold its rank to {shape.input_bound} of {shape.hidden}"

    @property
    def no_formulas(self) -> str | None:
        """Why there are no two routes to a costate, if the backward pass is not written out for the model."""
        written = olmo2.supports(self.focus.model)
        return None if written else f"the backward pass is not written out for {self.family}"

    @property
    def not_learnt(self) -> str | None:
        """Why nothing can be said of what training does, if nothing was learnt."""
        last, chance = self.rungs[-1].reward, 1 / len(self.prompts.label_set)
        return None if last > chance else f"the last rung has not learnt the task: J = {last:.2f}"

    @property
    def not_fresh(self) -> str | None:
        """Why nothing can be said of fresh weights, if the first rung has been trained."""
        step = self.rungs[0].checkpoint.step
        return None if step == 0 else f"the first rung has been trained, for {step} steps"

    def not_uniform(self, entropy: float) -> str | None:
        """Why nothing can be said of a uniform policy, if the first rung has an ``entropy`` (nats) far below log V."""
        share = entropy / math.log(self.prompts.vocab)
        return None if share > 0.8 else f"the first rung is not nearly uniform: {share:.2f} of log V"

    def check(self, claim: str, **row: Any) -> None:
        """:meth:`~replicate.report.verdicts.Verdicts.check` on this ladder, see :meth:`judge`."""
        self.judge(self.run.verdicts.check, claim, **row)

    def empties(self, claim: str, **row: Any) -> None:
        """:meth:`~replicate.report.verdicts.Verdicts.empties` on this ladder."""
        self.judge(self.run.verdicts.empties, claim, **row)

    def control(self, claim: str, **row: Any) -> None:
        """:meth:`~replicate.report.verdicts.Verdicts.control` on this ladder; no row where it cannot be asked."""
        self.judge(self.run.verdicts.control, claim, **row)

    def verdict(self, key: str, value: Value, **row: Any) -> None:
        """:class:`~replicate.report.ledger.asked.Asked` on this ladder, see :meth:`judge`."""
        question = self.run.verdict.question(key)
        reasons = self._reasons(row.pop("needs", ()), row.pop("unless", ()))
        source = row.pop("source", None) or self.ladder.kind
        if not reasons:
            value = float(value() if callable(value) else value)
            if math.isfinite(value) or not self.foreign:
                self.run.verdict(key, value, source=source, **row)
                return
            reasons = [f"too little to measure it on: {question.quantity}"]
        self.run.verdict(key, None, because="; ".join(reasons), source=source, **row)

    def _reasons(self, needs: Sequence[str], unless: Sequence[str | None]) -> list[str]:
        stages = {rung.stage for rung in self.rungs}
        reasons = [f"the ladder has no {_NAMES[stage]}" for stage in needs if stage not in stages]
        return reasons or [reason for reason in unless if reason and self.foreign]

    def judge(
        self,
        how: Callable[..., None],
        claim: str,
        *,
        value: Value,
        needs: Sequence[str] = (),
        unless: Sequence[str | None] = (),
        source: str | None = None,
        **row: Any,
    ) -> None:
        """A row whose source is the ladder's kind.

        ``needs`` names the stages that ``value``, then a function, is computed from; ``unless`` are the reasons that
        another ladder than the tiny one may have for not testing the claim (None: does not apply). A number that comes
        out as none there (a spread of one prompt) is such a reason, too.
        """
        source = source or self.ladder.kind
        reasons = self._reasons(needs, unless)
        if not reasons:
            value = float(value() if callable(value) else value)
            if math.isfinite(value) or not self.foreign:
                how(claim, value=value, source=source, **row)
                return
            reasons = [f"too little to measure it on: {row['quantity']}"]
        if how != self.run.verdicts.control:
            of = row.get("kind", "paper")
            because = "; ".join(reasons)
            self.run.verdicts.untestable(claim, kind=of, where=row["where"], because=because, source=source)


def look(run: "NotebookRun", *, rng: np.random.Generator, rescale: float = 1.0) -> Look:
    """Opens the ladder that the parameters name and its landmarks, once their size is known to fit.

    ``rescale`` divides the weight of each rung's final norm and multiplies its head, which leaves all outputs alone.
    For another ladder than the tiny one a line says what is measured and what it will cost. Raises ``ValueError`` with
    one line for a ladder that is too large, for a step that it does not have, and for a tokenizer that cannot say the
    task's prompts.
    """
    params, number_ = run.params, run.name.partition("_")[0]
    ladder = ladder_of(params)
    prompts = landmarks.prompts_for(ladder, _PROMPTS, filler=_FILLER, rng=rng)
    chosen = landmarks.named(ladder, params.RUNGS) or list(ladder)
    rungs = min(3, len(chosen))
    size = estimate.size_of(chosen[-1], vocab=prompts.vocab, length=prompts.tokens.shape[1])
    plan = estimate.plan_for(number_, size, rungs=rungs, gigabytes=params.MAX_MEMORY_GB)
    if params.LADDER != "tiny":
        print(f"{ladder.kind}: {estimate.said(number_, size, plan, rungs=rungs)}")
    found = landmarks.landmarks(ladder, prompts, params.RUNGS)
    for rung in found if rescale != 1 else ():
        rescaled(rung.model, by=rescale)
    return Look(run, ladder, prompts, found, plan)


def ladder_of(params: LanguageParameters) -> Ladder:
    """The small regime's tiny ladder, trained once and then reused, or the ladder that ``LADDER`` names."""
    return jobs.ladder(whole(params), progress=False)


def forgive(rows: list[Verdict], kind: str) -> list[Verdict]:
    """The rows with those on the ladder ``kind`` put right whose control rejects nothing there.

    A control that another ladder does not meet says that the check above it has no teeth *there*: both become not
    testable, where on the tiny ladder the notebook would fail.
    """
    out: list[Verdict] = []
    for row in rows:
        if row.kind != "control" or row.passed or not row.source.startswith(kind):
            out.append(row)
            continue
        found = f"{row.quantity}: {number(row)}, asked {row.criterion}"
        blank = {"value": None, "criterion": "-", "passed": True}
        above = max((i for i, r in enumerate(out) if r.kind != "control"), default=None)
        if above is not None:
            because = (
                f"its control rejects nothing on this ladder ({out[above].quantity}: {number(out[above])})"
            )
            out[above] = replace(out[above], quantity=because, verdict="not testable here", **blank)
        out.append(replace(row, quantity=f"rejects nothing here; {found}", **blank))
    return out
