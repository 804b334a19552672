"""What a practitioner should do: stop pretraining on which rung and start RL there, with a budget of tokens in all.

Everything is about one ladder: the rows of one ladder in a study frame, with its RL curves in ``J0_held_out`` and
``post_n``. Conventions, on which the numbers depend:

- **What is charged.** The rung's own pretraining, ``tokens``; every RL update, :attr:`Costs.update`; every rung that a
  policy looks at, :attr:`Costs.measure`, and where it pilots, the pilot's updates, too. Not charged: the pretraining
  *behind* the chosen rung. The ladder is there already, as published checkpoints are, and so a policy may compare any
  two of its rungs and go back to the earlier one.
- **What is looked at.** The rungs that the budget reaches after paying for looking at all of them.
- **Between budgets** a curve is linear in log(1 + n); beyond the largest budget that was run it is *not* extrapolated:
  its last reward is taken, flagged ``capped``. So the game is: at most that many updates, and tokens left over buy
  nothing. More updates could have done better or worse.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replicate.impact.choice import choose_checkpoint
from replicate.impact.law import Law, predict
from replicate.impact.scores import PILOT, RIVALS
from replicate.statistics.series import Series

if TYPE_CHECKING:
    import pandas as pd

Scores = Mapping[str, Callable[["pd.DataFrame"], Series]]
Forecast = Callable[["pd.DataFrame", np.ndarray], Series]
Curve = Mapping[int, float]
"""Reward by number of updates, 0 among them."""

ORACLE, CHANCE, LAST, PRETRAIN = "best rung", "chance", "last rung", "just pretrain on"


@dataclass(frozen=True)
class Costs:
    """Prices in tokens: of one RL ``update`` (:func:`update_tokens`), of measuring one rung, and how many updates a
    pilot takes."""

    update: int
    measure: int
    pilot_updates: int = 5

    def __post_init__(self) -> None:
        if not (self.update > 0 and self.measure >= 0 and self.pilot_updates >= 0):
            raise ValueError(f"costs: expected update > 0, measure >= 0 and pilot_updates >= 0, got {self}")

    def look(self, policy: str) -> int:
        """What a policy pays for each rung that it compares: a pilot its updates, and the reading of its reward."""
        return self.measure + (self.pilot_updates * self.update if policy == PILOT else 0)


def update_tokens(
    *, prompts: int, group_size: int, length: int, answer: int = 1, shared: bool = False
) -> int:
    """The tokens that one update is charged: ``group_size`` answers to each of ``prompts``, every sequence in full.

    The convention: a token costs the same in pretraining, where it is passed forward and backward once, and in RL,
    where sampling passes it forward once more. With ``shared`` a prompt is charged once for its group.
    """
    return prompts * (length + group_size * answer) if shared else prompts * group_size * (length + answer)


class Reached(NamedTuple):
    """A reward on a curve; ``capped`` if it was asked beyond the largest budget that was run."""

    reward: float
    capped: bool


def curve_of(rung: "pd.Series") -> dict[int, float]:
    """The RL curve of one row of a study frame: ``J0_held_out`` and every ``post_n``; a missing budget is left out."""
    budgets = sorted(int(name[5:]) for name in rung.index if name.startswith("post_") and name[5:].isdigit())
    curve = {0: float(rung["J0_held_out"])} | {n: float(rung[f"post_{n}"]) for n in budgets}
    return {n: reward for n, reward in curve.items() if not math.isnan(reward)}


def reward_at(curve: Curve, updates: Real) -> Reached:
    """The reward after ``updates``: linear in log(1 + n) between the budgets that were run, the last of them beyond.

    ``ValueError`` for a curve without its start or with NaN, and for a negative number of updates.
    """
    n, rewards = _points(curve)
    if not updates >= 0:
        raise ValueError(f"updates: expected a number of at least 0, got {updates}")
    return Reached(float(np.interp(np.log1p(updates), np.log1p(n), rewards)), bool(updates > n[-1]))


def updates_to(curve: Curve, target: float = 0.9) -> float:
    """The first n at which the interpolated curve reaches ``target``; infinite if not within the budgets run."""
    n, rewards = _points(curve)
    above = np.flatnonzero(rewards >= target)
    if len(above) == 0:
        return math.inf
    i = above[0]
    if i == 0:
        return 0.0
    share = (target - rewards[i - 1]) / (rewards[i] - rewards[i - 1])
    return float(np.expm1((1 - share) * np.log1p(n[i - 1]) + share * np.log1p(n[i])))


def _points(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    n = np.array(sorted(curve), dtype=float)
    rewards = np.array([curve[key] for key in sorted(curve)], dtype=float)
    if len(n) == 0 or n[0] != 0 or np.isnan(rewards).any():
        raise ValueError(
            f"curve: expected rewards by number of updates from 0 on, without NaN, got {dict(curve)}"
        )
    return n, rewards


def _one_ladder(frame: "pd.DataFrame") -> "pd.DataFrame":
    if len(frame) == 0 or ("ladder" in frame and frame["ladder"].nunique() != 1):
        raise ValueError(f"frame: expected the rungs of one ladder, got {len(frame)} rows of none or several")
    return frame.sort_values("tokens", ignore_index=True)


def tokens_to(frame: "pd.DataFrame", costs: Costs, target: float = 0.9) -> "pd.DataFrame":
    """``total``: the tokens, pretraining and RL, after which each rung reaches ``target``; updates are whole.

    Columns ``step, tokens, updates, total``, the last two infinite where the budgets run do not get there. Nothing is
    charged for finding the rung.
    """
    frame = _one_ladder(frame)
    exact = np.array([updates_to(curve_of(rung), target) for _, rung in frame.iterrows()])
    updates = np.ceil(np.maximum(exact - 1e-9, 0.0))  # log and exp of a whole number can end just above it
    table = frame[["step", "tokens"]].assign(updates=updates)
    return table.assign(total=table["tokens"] + updates * costs.update)


def outcome_at(
    frame: "pd.DataFrame", total_tokens: Real, costs: Costs, *, spent: int = 0, done: int = 0
) -> "pd.DataFrame":
    """Where each rung within ``total_tokens`` ends if all that is left after it goes into RL.

    Columns: the frame's own, and ``updates``, ``outcome`` (the reward after them), ``capped``. ``spent`` tokens went
    before into looking at rungs, ``done`` updates on each rung are paid for by them. ``ValueError`` if no rung is
    within reach.
    """
    frame = _one_ladder(frame)
    frame = frame[frame["tokens"] + spent <= total_tokens]
    if len(frame) == 0:
        raise ValueError(f"total_tokens: expected enough for a rung and the looking, got {total_tokens}")
    updates = (total_tokens - spent - frame["tokens"].to_numpy()) // costs.update + done
    ends = [reward_at(curve_of(rung), n) for (_, rung), n in zip(frame.iterrows(), updates, strict=True)]
    return frame.assign(
        updates=updates, outcome=[end.reward for end in ends], capped=[end.capped for end in ends]
    )


def affordable(frame: "pd.DataFrame", total_tokens: Real, look: int) -> "pd.DataFrame":
    """The rungs that a policy looks at, at ``look`` tokens each: the first m, such that the m-th is within
    ``total_tokens`` after paying for m looks, and m is as large as that allows. Empty if not even the first is."""
    frame = _one_ladder(frame)
    return frame[frame["tokens"] + look * np.arange(1, len(frame) + 1) <= total_tokens]


def policies(
    frame: "pd.DataFrame",
    total_tokens: Real,
    costs: Costs,
    scores: Scores = RIVALS,
    forecasts: Mapping[str, Forecast] | None = None,
) -> "pd.DataFrame":
    """The reward of every policy at equal total tokens: one ladder, one row a policy.

    - each of ``scores``: its argmax over the rungs it looks at, ties to the earlier. The pilot (:data:`PILOT`) pays its
      updates on every such rung and goes on from them on the one it chooses;
    - each of ``forecasts``, ``(frame, updates) -> reward``, as :func:`forecast_by` makes them: the argmax of the reward
      forecast after the updates that will be done on each rung. A score alone knows neither that a later rung leaves
      fewer updates nor that it starts higher;
    - ``last rung``: the latest that still affords the pilot's number of updates; ``just pretrain on``: the latest rung,
      no RL; ``chance``: the mean over rungs. These look at nothing and pay nothing for it;
    - ``best rung``: the oracle, who pays nothing either.

    Columns: ``policy, step, updates, reward, regret`` (the oracle's reward minus this one), ``capped``, ``looks`` and
    ``spent`` (rungs looked at and the tokens for that). A policy that cannot afford a single look, and ``last rung``
    where none affords the updates, have NaN. A regret below zero is possible where RL overshoots: whoever paid for
    looking does fewer updates than the oracle on the same rung.
    """
    import pandas as pd

    rungs = outcome_at(frame, total_tokens, costs)
    best = rungs.loc[rungs["outcome"].idxmax()]
    rows = [_row(ORACLE, best)]
    for name, of in scores.items():
        rows.append(_by_looking(name, frame, total_tokens, costs, lambda seen, of=of: of(seen)))
    for name, of in (forecasts or {}).items():
        rows.append(_by_looking(name, frame, total_tokens, costs, lambda seen, of=of: of(seen, _done(seen))))
    able = rungs[rungs["updates"] >= costs.pilot_updates]
    rows.append(_row(LAST, able.iloc[-1]) if len(able) else _nothing(LAST))
    latest = rungs.iloc[-1]
    rows.append(
        _row(PRETRAIN, latest) | {"updates": 0, "reward": float(latest["J0_held_out"]), "capped": False}
    )
    rows.append(_chance(rungs))
    table = pd.DataFrame(rows)
    table.insert(4, "regret", best["outcome"] - table["reward"])
    return table


def forecast_by(law: Law) -> Forecast:
    """The reward forecast by a fitted law: J_0 and the gain that it predicts."""
    return lambda frame, updates: frame["J0"] + predict(law, frame.assign(n=updates))


def _done(ends: "pd.DataFrame") -> np.ndarray:
    """The updates that are done on each rung: those that it affords, and never more than were run."""
    most = [max(curve_of(rung)) for _, rung in ends.iterrows()]
    return np.minimum(ends["updates"].to_numpy(float), most)


def _by_looking(
    name: str, frame: "pd.DataFrame", total: Real, costs: Costs, score: Callable[["pd.DataFrame"], Series]
) -> dict[str, object]:
    look = costs.look(name)
    seen = affordable(frame, total, look)
    if len(seen) == 0:
        return _nothing(name)
    spent = look * len(seen)
    done = costs.pilot_updates if name == PILOT else 0
    ends = outcome_at(seen, total, costs, spent=spent, done=done)
    return _row(name, ends.iloc[choose_checkpoint(np.asarray(score(ends), float))], len(seen), spent)


def _row(policy: str, rung: "pd.Series", looks: int = 0, spent: int = 0) -> dict[str, object]:
    return {
        "policy": policy,
        "step": int(rung["step"]),
        "updates": float(rung["updates"]),
        "reward": float(rung["outcome"]),
        "capped": bool(rung["capped"]),
        "looks": looks,
        "spent": spent,
    }


def _nothing(policy: str) -> dict[str, object]:
    missing = dict.fromkeys(("step", "updates", "reward"), math.nan)
    return {"policy": policy, **missing, "capped": False, "looks": 0, "spent": 0}


def _chance(rungs: "pd.DataFrame") -> dict[str, object]:
    """``capped`` if any of the rungs is."""
    means = {"updates": float(rungs["updates"].mean()), "reward": float(rungs["outcome"].mean())}
    return _nothing(CHANCE) | means | {"capped": bool(rungs["capped"].any())}


def policies_to(
    frame: "pd.DataFrame", costs: Costs, scores: Scores = RIVALS, target: float = 0.9
) -> "pd.DataFrame":
    """The updates and the tokens in all by which every policy has a reward of ``target``, one ladder, one row a policy.

    Each of ``scores`` looks at every rung of the ladder and pays for that; the pilot's own updates on its choice count.
    ``last rung`` pays no looking; ``just pretrain on`` waits for the first rung that is there without RL; ``best rung``
    is the oracle of least total. Columns ``policy, step, updates, total, excess`` (total over the oracle's, minus 1).
    Infinite: not within the budgets run. NaN: no rung, or no oracle.
    """
    import pandas as pd

    frame, table = _one_ladder(frame), tokens_to(frame, costs, target)
    there = table[table["updates"] == 0]
    found = {
        ORACLE: table.loc[table["total"].idxmin()],
        LAST: table.iloc[-1],
        PRETRAIN: there.iloc[0] if len(there) else pd.Series({"updates": 0.0, "total": math.inf}),
    }
    for name, of in scores.items():
        rung = table.iloc[choose_checkpoint(np.asarray(of(frame), float))]
        done = min(costs.pilot_updates, rung["updates"]) if name == PILOT else 0
        paid = costs.look(name) * len(frame) - done * costs.update
        found[name] = pd.Series({**rung, "total": rung["total"] + paid})
    rows = [{"policy": name, **rung} for name, rung in found.items()]
    best = table["total"].min()
    compared = pd.DataFrame(rows, columns=["policy", "step", "updates", "total"])
    return compared.assign(excess=compared["total"] / best - 1 if math.isfinite(best) else math.nan)


def fixed_budget(frame: "pd.DataFrame", n: int, scores: Scores = RIVALS) -> "pd.DataFrame":
    """(31) at a fixed RL budget of ``n`` updates: what a policy loses in gain and in post-RL reward, as shares of the
    best rung's; nothing is charged, neither pretraining nor looking.

    One row for each of ``scores``, for the last rung and for chance: ``policy, step, gain, post, gain_regret,
    post_regret``. A share is NaN where the best is not above zero. ``ValueError`` for a budget that was not run.
    """
    import pandas as pd

    frame = _one_ladder(frame)
    if not {f"gain_{n}", f"post_{n}"} <= set(frame):
        raise ValueError(f"n: expected a budget with the columns gain_n and post_n, got {n}")
    ends = frame[["step"]].assign(gain=frame[f"gain_{n}"], post=frame[f"post_{n}"])
    chosen = {name: choose_checkpoint(np.asarray(of(frame), float)) for name, of in scores.items()}
    rows = [{"policy": name, **ends.iloc[i]} for name, i in (chosen | {LAST: len(ends) - 1}).items()]
    rows.append({"policy": CHANCE, **ends.mean(), "step": math.nan})
    table = pd.DataFrame(rows)
    for name in ("gain", "post"):
        best = ends[name].max()
        table[f"{name}_regret"] = (best - table[name]) / best if best > 0 else math.nan
    return table
