"""Records as tables (pandas): what notebooks plot and what statistics read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.files import replacing, write_text
from replicate.impact import headrooms
from replicate.impact.scores import PRIMARY_SIGNAL, signal
from replicate.ladder.checkpoints import Ladder
from replicate.runs.params import ScaleParameters
from replicate.runs.units import records


@dataclass(frozen=True)
class Tables:
    """``checkpoints``: a row per checkpoint (J_0 and companions); ``components``: a row per checkpoint x layer x
    policy x advantage; ``gains``: a row per checkpoint x RL seed x budget; ``updates``: per GRPO update;
    ``forecast``: a row per checkpoint x budget; ``alarms``: per alarm of a run, see :func:`alarms`."""

    checkpoints: pd.DataFrame
    components: pd.DataFrame
    gains: pd.DataFrame
    updates: pd.DataFrame
    forecast: pd.DataFrame
    alarms: pd.DataFrame

    def save(self, folder: Path) -> None:
        """Writes every table as parquet and as CSV."""
        for name, table in vars(self).items():
            with replacing(folder / f"{name}.parquet") as handle:
                table.to_parquet(handle, index=False)
            write_text(folder / f"{name}.csv", table.to_csv(index=False))


def load(params: ScaleParameters, ladder: Ladder) -> Tables:
    """The tables of all finished jobs; ``ValueError`` if there is none."""
    measured, trained = records(params, "measure", ladder), records(params, "rl", ladder)
    if missing := [name for name, found in (("measure", measured), ("rl", trained)) if not found]:
        what = f"no finished job of {' and '.join(missing)} with these parameters"
        raise ValueError(f"RUN_DIR {params.RUN_DIR}: {what}, run the sweep first")
    base = [{**_where(r), **{k: v for k, v in r["result"].items() if k != "readings"}} for r in measured]
    parts = [{**_where(r), **reading} for r in measured for reading in r["result"]["readings"]]
    gains = [
        {
            **_where(r),
            "seed": r["seed"],
            **row,
            "start": _start(r),
            "gain": row["reward"] - _start(r),
        }
        for r in trained
        for row in r["result"]["budgets"]
        if row["budget"] > 0
    ]
    updates = [
        {**_where(r), "seed": r["seed"], "update": i + 1, **metrics}
        for r in trained
        for i, metrics in enumerate(r["result"]["updates"])
    ]
    forecasts = [
        {**_where(r), **row, **{k: v for k, v in r["result"].items() if k != "budgets"}}
        for r in records(params, "forecast", ladder)
        for row in r["result"]["budgets"]
    ]
    plain = (pd.DataFrame(rows) for rows in (base, parts, gains, updates, forecasts))
    return Tables(*plain, alarms(trained))


def alarms(trained: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per alarm of a run, from the records of RL: where and which seed, then ``alarm, updates, first, share,
    said`` (:mod:`replicate.rl.alarms`). Where all is well it has its columns and no row."""
    own = {"stage": int, "step": int, "tokens": float, "seed": int}
    types = {**own, "alarm": str, "updates": int, "first": int, "share": float, "said": str}
    rows = [
        {**_where(record), "seed": record["seed"], **alarm}
        for record in trained
        for alarm in record["result"]["alarms"]
    ]
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def _where(record) -> dict[str, int | float]:
    tokens = record["checkpoint"]["tokens"]
    return {
        "stage": record["checkpoint"]["stage"],
        "step": record["checkpoint"]["step"],
        "tokens": float("nan") if tokens is None else tokens,
    }


def _start(record) -> float:
    return next(row["reward"] for row in record["result"]["budgets"] if row["budget"] == 0)


def per_checkpoint(
    tables: Tables,
    *,
    policy: str = "categorical",
    advantage: str = "leave_one_out",
    layer: int = -1,
    kind: str = PRIMARY_SIGNAL,
    headroom: str = "std",
    conditional: bool = False,
) -> pd.DataFrame:
    """One row per checkpoint: J_0, the components in one reading, the score S = U x H, and the measured response.

    Columns: ``step, tokens, J0, entropy, label_mass, gradient_norm_squared, V, delta, kappa, U, H, S``; ``gain`` and
    ``post`` (post-RL reward) averaged over budgets and seeds, ``gain_n`` and ``post_n`` per budget n, and ``gain_se``,
    the standard error of ``gain`` over seeds. Checkpoints whose RL or measurement failed are left out.
    """
    parts = tables.components
    chosen = parts[(parts.policy == policy) & (parts.advantage == advantage) & (parts.layer == layer)]
    if chosen.empty:
        raise ValueError(f"reading: no record for policy={policy!r}, advantage={advantage!r}, layer={layer}")
    where = ["stage", "step", "tokens"]
    base = tables.checkpoints.rename(columns={"reward": "J0"})
    columns = ["V_mean", "delta_mean", "kappa_mean"] if conditional else ["V", "delta", "kappa"]
    frame = base.merge(
        chosen[[*where, *columns, headrooms.column_of(headroom)]].set_axis(
            [*where, "V", "delta", "kappa", "H"], axis=1
        ),
        on=where,
    )
    frame["U"] = [
        signal(v, d, k, kind=kind) for v, d, k in zip(frame.V, frame.delta, frame.kappa, strict=True)
    ]
    frame["S"] = frame.U * frame.H
    # Tokens that are not known must not make groups disappear.
    per_seed = tables.gains.groupby([*where, "seed"], dropna=False)[["gain", "reward"]].mean()
    grouped = per_seed.groupby(where, dropna=False)
    response = grouped.mean().rename(columns={"reward": "post"})
    response["gain_se"] = grouped.gain.sem()
    by_budget = tables.gains.groupby([*where, "budget"], dropna=False)[["gain", "reward"]]
    by_budget = by_budget.mean().unstack()
    by_budget.columns = [f"{'post' if name == 'reward' else name}_{n}" for name, n in by_budget.columns]
    return frame.merge(response.join(by_budget).reset_index(), on=where).sort_values(where, ignore_index=True)
