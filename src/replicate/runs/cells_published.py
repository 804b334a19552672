"""What is kept of a study of cells: small tables, and who made them.

``cells.parquet`` has a row a cell with all settings of RL, ``gains.parquet`` a row per ladder, cell, rung, seed and
budget, ``alarms.parquet`` a row per alarm that went off in a run, ``failures.parquet`` one per run that broke;
``checkpoints``, ``components`` and ``forecast`` are those of the cell ``base``, where it was measured; ``longer`` and
``costates`` are what was measured of longer answers, cell by cell; and ``study.json`` says where all come from.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.files import replacing, write_text
from replicate.ladder.checkpoints import Ladder
from replicate.runs import cells, jobs, provenance, tables
from replicate.runs import study as studies
from replicate.runs.store import content
from replicate.runs.study import Entry, Study
from replicate.runs.units import records
from replicate.settings.grpo import GRPO

_TASK = ("ANSWER_TOKENS", "ANSWER_REWARD")


def publish(
    study: Study, entries: Sequence[Entry], folder: Path, failed: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes the tables of a finished study; ``ValueError`` names the first cell of which jobs are missing.

    ``failed`` has by entry the rows of jobs that were run and have no result: settings that break a run are a finding,
    and stand in a table of their own. Numbers are rounded to float32.
    """
    gains, alarms, failures, longer, costates, said = [], [], [], [], [], {}
    measured: dict[str, list[pd.DataFrame]] = {name: [] for name in ("checkpoints", "components", "forecast")}
    for entry in entries:
        name, _, cell = entry.name.partition(", ")
        ladder = jobs.ladder(entry.params, progress=False)
        where, broke = {"ladder": name, "cell": cell}, list(_failures(failed.get(entry.name, ())))
        found = _records(entry, ladder, broke)
        failures += [{**where, **row} for row in broke]
        gains += [{**where, **row} for record in found for row in _gains(record)]
        alarms += [{**where, **row} for record in found for row in _alarms(record)]
        said[entry.name] = _described(found)
        if "longer" in entry.experiments:
            for record in _records(entry, ladder, experiment="longer"):
                longer.append({**where, **_longer(record)})
                costates += [
                    {**where, "step": record["checkpoint"]["step"], **row}
                    for row in record["result"]["costates"]
                ]
        if "measure" in entry.experiments:
            loaded = tables.load(entry.params, ladder)
            for table, parts in measured.items():
                part = getattr(loaded, table)
                part.insert(0, "ladder", name)
                parts.append(part)
    whole = {"gains": pd.DataFrame(gains), "cells": _cells(study)}
    whole["alarms"] = pd.DataFrame(
        alarms, columns=["ladder", "cell", "step", "seed", "alarm", "updates", "first"]
    )
    whole["failures"] = pd.DataFrame(failures, columns=["ladder", "cell", "step", "seed", "error"])
    more = {"longer": longer, "costates": costates}
    whole |= {name: pd.DataFrame(rows) for name, rows in more.items() if rows}
    whole |= {name: pd.concat(parts, ignore_index=True) for name, parts in measured.items() if parts}
    for name, table in whole.items():
        floats = table.select_dtypes("float64").columns
        with replacing(folder / f"{name}.parquet") as handle:
            table.astype(dict.fromkeys(floats, "float32")).to_parquet(handle, index=False)
    ladders = {
        name: _ladder(name, entries) for name in dict.fromkeys(e.name.partition(", ")[0] for e in entries)
    }
    about = {
        "preregistration": studies.registered(study),
        "study": {"sha256": studies.digest(study.path)},
        "ladders": ladders,
        "cells": said,
    }
    write_text(folder / "study.json", json.dumps(about, indent=1) + "\n")


def _failures(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row["experiment"] == "rl":
            error = row["error"].partition("; {")[0]  # without the numbers, which hang on the machine
            yield from ({"step": row["step"], "seed": seed, "error": error} for seed in row["seeds"])


def _records(
    entry: Entry, ladder: Ladder, broke: Sequence[Any] = (), experiment: jobs.Experiment = "rl"
) -> list[dict[str, Any]]:
    """The records of an experiment; ``ValueError`` unless there is one for every job that did not break."""
    found = records(entry.params, experiment, ladder)
    wanted = len(ladder) * len(jobs.seeds(entry.params, experiment)) - len(broke)
    if len(found) < wanted:
        missing = f"{wanted - len(found)} of {wanted} jobs of {experiment} are missing"
        raise ValueError(f"{entry.name}: {missing}; run the study first")
    return found


def _gains(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    start, *after = record["result"]["budgets"]
    for row in after:
        more = {"sampled_start": start["sampled"]} if "sampled" in start else {}
        gain = row["reward"] - start["reward"]
        yield {
            "step": record["checkpoint"]["step"],
            "seed": record["seed"],
            **row,
            "start": start["reward"],
            "gain": gain,
            **more,
        }


def _longer(record: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of longer answers in one row; the columns of a dictionary have its name in front."""
    result = record["result"]
    nested = {f"{part}_{k}": v for part in ("first", "whole") for k, v in result[part].items()}
    plain = {name: result[name] for name in ("reward", "each_right", "sampled")}
    return {"step": record["checkpoint"]["step"], **plain, **nested}


def _alarms(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    where = {"step": record["checkpoint"]["step"], "seed": record["seed"]}
    for row in record["result"]["alarms"]:
        yield {**where, **{name: row[name] for name in ("alarm", "updates", "first")}}


def _cells(study: Study) -> pd.DataFrame:
    """A row a cell, with its settings under their flat names."""
    first = study.entries[0]
    rows = []
    for cell in cells.of(study):
        params = cell.apply(first.params, where=str(study.path)).model_dump()
        flat = dict.fromkeys([*map(GRPO.flat_name, GRPO.model_fields), *_TASK])
        said = {"cell": cell.name, "group": cell.group, "factor": cell.factor, "level": cell.level}
        rows.append({**said, "rate": cell.rate, **{name: params[name] for name in flat if name in params}})
    return pd.DataFrame(rows)


def _described(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    contents = sorted(json.dumps(content(record), sort_keys=True) for record in found)
    return {
        "records": hashlib.sha256("".join(contents).encode()).hexdigest(),
        "made": provenance.gather([record["origin"] for record in found]),
    }


def _ladder(name: str, entries: Sequence[Entry]) -> dict[str, Any]:
    entry = next(e for e in entries if e.name.partition(", ")[0] == name)
    ladder = jobs.ladder(entry.params, progress=False)
    return {
        "role": entry.role,
        "kind": ladder.kind,
        "parameters": entry.params.model_dump(),
        "steps": [rung.step for rung in ladder],
        "checkpoints": hashlib.sha256("".join(c.sha for c in ladder).encode()).hexdigest(),
    }
