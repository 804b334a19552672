"""What a study found, as tables: read from its small records, wherever these were made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.impact.headrooms import PRIMARY_HEADROOM, column_of

RUNG = ["ladder", "step"]
"""The columns that name a rung of a study."""

MEAN_BUDGETS = (5, 10, 20, 40)
"""The budgets over which ``gain`` is a mean."""


@dataclass(frozen=True)
class StudyTables:
    """``checkpoints``, ``components``, ``gains``, ``forecast`` as in :class:`~replicate.runs.tables.Tables`, with the
    column ``ladder`` in front; ``said`` is the study's own description of its ladders."""

    checkpoints: pd.DataFrame
    components: pd.DataFrame
    gains: pd.DataFrame
    forecast: pd.DataFrame
    said: dict[str, Any]

    def ladders(self) -> pd.DataFrame:
        """One row a ladder: its ``role``, ``labels``, ``filler``, whether it is ``cooled``, its ``seed``."""
        rows = [
            {
                "ladder": name,
                "role": of["role"],
                "labels": of["parameters"]["LABELS"],
                "filler": of["parameters"]["FILLER"],
                "cooled": of["parameters"]["TINY_COOLDOWN"] > 0,
                "seed": of["parameters"]["SEED"],
            }
            for name, of in self.said["ladders"].items()
        ]
        return pd.DataFrame(rows)

    def kinds(self) -> pd.DataFrame:
        """For ladders that were intervened on: ``of`` which ladder each is, the ``kind``, and the ``reward`` at which
        J_0 is held, read off their names."""
        rows = []
        for name in self.said["ladders"]:
            parent, _, said = name.partition(", ")
            kind, _, reward = said.partition(" ")
            rows.append({"ladder": name, "of": parent, "kind": kind, "reward": float(reward)})
        return pd.DataFrame(rows)

    def opened(self) -> dict[str, Any]:
        """When the locked ladders were opened: the commit and time of the preregistration, the commits at which records
        of locked ladders were made, the time of the first of them, and the hours in between (NaN if unknown)."""
        page = self.said["preregistration"]
        locked = [of["made"] for of in self.said["ladders"].values() if of["role"] == "locked"]
        first = min((made["finished"][0] for made in locked), default=None)
        hours = float("nan")
        if first and page["committed"]:
            passed = datetime.fromisoformat(first) - datetime.fromisoformat(page["committed"])
            hours = passed.total_seconds() / 3600
        return {
            "preregistered": page["commit"],
            "committed": page["committed"],
            "opened_at": sorted({commit for made in locked for commit in made["commit"]}),
            "first_record": first,
            "hours_before": hours,
        }


def load(folder: Path) -> StudyTables:
    """The tables of a published study; ``ValueError`` with one line if they are not there."""
    try:
        said = json.loads((folder / "study.json").read_text())
        tables = [
            pd.read_parquet(folder / f"{name}.parquet")
            for name in ("checkpoints", "components", "gains", "forecast")
        ]
    except OSError as error:
        raise ValueError(
            f"{folder}: no published study ({error.strerror or error}); run `replicate study --publish {folder}`"
        ) from None
    whole = [table.astype(dict.fromkeys(table.select_dtypes("float32"), "float64")) for table in tables]
    return StudyTables(*whole, said)


def reading(
    tables: StudyTables, *, policy: str = "categorical", advantage: str = "leave_one_out", layer: int = -1
) -> pd.DataFrame:
    """The components of one reading, a row a rung; ``ValueError`` if there is none."""
    parts = tables.components
    chosen = parts[(parts.policy == policy) & (parts.advantage == advantage) & (parts.layer == layer)]
    if chosen.empty:
        raise ValueError(f"reading: no record for policy={policy!r}, advantage={advantage!r}, layer={layer}")
    return chosen.reset_index(drop=True)


def frame(tables: StudyTables) -> pd.DataFrame:
    """One row per ladder and rung: what was measured at it, the scores of it, and what RL made of it.

    ``J0`` is the reward on the prompts of the measurement, which share nothing with those on which the gain was
    evaluated; ``J0_held_out`` the one on those. ``gain`` is the mean over budgets 5 to 40 and over seeds, ``gain_n``
    and ``post_n`` are at budget n, ``pilot`` is the gain of the first seed after 5 updates and ``gain_other`` the mean
    gain of the other seeds over the budgets beyond 5, with which it shares no sample.
    """
    base = tables.checkpoints.rename(columns={"reward": "J0"})
    columns = ["V", "delta", "kappa", "empirical"]
    room = column_of(PRIMARY_HEADROOM)
    plain = reading(tables)[[*RUNG, *columns, room]].rename(columns={room: "H"})
    weighted = reading(tables, advantage="grpo")[[*RUNG, "kappa", "empirical"]]
    weighted["law"] = weighted.kappa / weighted.empirical.where(weighted.empirical > 0, 1.0) ** 0.5
    theta = ["kappa_theta", "empirical_theta", "normalised_theta"]
    parameter = tables.forecast.drop_duplicates(RUNG)[[*RUNG, *theta]]
    whole = base.merge(plain, on=RUNG).merge(weighted[[*RUNG, "law"]], on=RUNG).merge(parameter, on=RUNG)
    whole["VH"], whole["S"] = whole.V * whole.H, (whole.V - whole.delta) * whole.H
    whole = whole.merge(_response(tables.gains), on=RUNG)
    order = {name: i for i, name in enumerate(tables.said["ladders"])}
    whole = whole.sort_values(
        RUNG, key=lambda c: c.map(order) if c.name == "ladder" else c, ignore_index=True
    )
    return tables.ladders().drop(columns="seed").merge(whole, on="ladder")


def _response(gains: pd.DataFrame) -> pd.DataFrame:
    first, budgets = gains.seed.min(), sorted(map(int, gains.budget.unique()))
    wide = gains.groupby([*RUNG, "budget"])[["gain", "reward"]].mean().unstack()
    wide.columns = [f"{'post' if name == 'reward' else name}_{n}" for name, n in wide.columns]
    mean = _mean(gains, [n for n in budgets if n in MEAN_BUDGETS] or budgets)
    other = _mean(gains[gains.seed != first], [n for n in budgets if 5 < n <= max(MEAN_BUDGETS)] or budgets)
    pilot = gains[(gains.seed == first) & (gains.budget == budgets[0])].set_index(RUNG).gain
    start = gains.drop_duplicates(RUNG).set_index(RUNG).start
    named = {"gain": mean, "gain_other": other, "pilot": pilot, "J0_held_out": start}
    return wide.join(pd.DataFrame(named)).reset_index()


def _mean(gains: pd.DataFrame, budgets: Sequence[int]) -> pd.Series:
    return gains[gains.budget.isin(budgets)].groupby(RUNG).gain.mean()
