"""Records of a study of RL's settings that nobody ran: made from a law that is known, in the published format.

``python tests/sensitivity_records.py FOLDER [PAGE]`` writes them, so that notebook 14 can be executed before there are
others; PAGE is the preregistration that they shall name.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from replicate.statistics.factorial import fraction

BASE = {
    "METHOD": "surrogate", "PROMPTS": 16, "GROUP_SIZE": 8, "LEARNING_RATE": 2.0e-4, "OPTIMIZER": "adamw",
    "MAX_GRAD_NORM": 1.0, "REWARD_SCALE": 1.0, "SCALE": "std", "CLIP": 0.2, "KL_COEF": 0.0, "ITERATIONS": 1,
}  # fmt: skip
SGD = {"OPTIMIZER": "sgd", "LEARNING_RATE": 0.004, "MAX_GRAD_NORM": 0.0}
PLAIN = {**SGD, "SCALE": "none"}
LONG, SHORT = (5, 10, 20, 40, 80, 160), (5, 10, 20, 40)

# Name, factor, level, rate, changes: what the study's file lists.
LISTED = [
    ("base", "", "", 1.0, {}),
    *((f"rate {said}", "learning rate", str(rate), rate, {}) for said, rate in (("1/4", 0.25), ("4", 4.0))),
    *(
        (f"{name}{said}", factor, str(rate), rate, changes)
        for name, factor, changes in (("sgd", "SGD", SGD), ("sgd no std", "SGD without std", PLAIN))
        for said, rate in (("", 1.0), (" rate 1/4", 0.25), (" rate 4", 4.0))
    ),
    ("no std", "std", "none", 1.0, {"SCALE": "none"}),
    ("graded", "reward", "graded", 1.0, {"METHOD": "shift"}),
    ("graded no std", "reward", "graded without std", 1.0, {"METHOD": "shift", "SCALE": "none"}),
    *(
        (f"reward {said} {name}", factor, str(x), 1.0, {"REWARD_SCALE": x, **changes})
        for name, factor, changes in (
            ("std", "reward scale with std", {}), ("sgd", "reward scale under SGD without std", PLAIN)
        )
        for said, x in (("1/2", 0.5), ("2", 2.0))
    ),
    *((f"prompts {n}", "prompts", str(n), 1.0, {"PROMPTS": n}) for n in (4, 8, 32)),
    *((f"group {n}", "group", str(n), 1.0, {"GROUP_SIZE": n}) for n in (2, 4, 16)),
    *((f"kl {x:g}", "KL weight", str(x), 1.0, {"KL_COEF": x}) for x in (0.01, 0.1, 1.0)),
    *((f"iterations {n}", "iterations", str(n), 1.0, {"ITERATIONS": n}) for n in (2, 4, 8)),
    ("iterations 8 clip 1", "clip at 8 iterations", "1", 1.0, {"ITERATIONS": 8, "CLIP": 1.0}),
]  # fmt: skip

# Low and high of the nine factors, in the order of the letters.
TWO_LEVELS = {
    "A": ({"rate": 0.25}, {"rate": 4.0}), "B": ({}, SGD), "C": ({}, {"SCALE": "none"}), "D": ({}, {"METHOD": "shift"}),
    "E": ({"REWARD_SCALE": 0.5}, {"REWARD_SCALE": 2.0}), "F": ({"PROMPTS": 8}, {"PROMPTS": 32}),
    "G": ({"GROUP_SIZE": 4}, {"GROUP_SIZE": 16}), "H": ({}, {"KL_COEF": 0.1}), "J": ({}, {"ITERATIONS": 4}),
}  # fmt: skip
GENERATORS = {"F": "BCDE", "G": "ACDE", "H": "ABDE", "J": "ABCE"}
THRESHOLDS = {
    "few_share": 0.5, "saturated_share": 0.8, "saturated_gain": 0.8, "saturated_from": 0.9, "scale_null": 0.02,
    "mean_budgets": [5, 10, 20, 40], "rates": [5.0e-5, 2.0e-4, 8.0e-4],
}  # fmt: skip


def cells():
    """The table of cells: 29 that move one factor, and the 32 of the fraction."""
    rows = []
    for name, factor, level, rate, changes in LISTED:
        said = {"cell": name, "group": "one-factor", "factor": factor, "level": level}
        rows.append(said | {"rate": rate} | BASE | changes)
    for _, run in fraction("ABCDE", GENERATORS).iterrows():
        high = "".join(letter for letter in TWO_LEVELS if run[letter] > 0)
        settings = {"rate": 1.0} | BASE
        for letter, levels in TWO_LEVELS.items():
            settings |= levels[int(run[letter] > 0)]
        rows.append(
            {"cell": f"f {high or '(1)'}", "group": "factorial", "factor": "", "level": high} | settings
        )
    table = pd.DataFrame(rows)
    return table.assign(LEARNING_RATE=table.LEARNING_RATE * table.rate)


def rungs(rng, ladders, count):
    """What is measured at each rung: J_0 at even ranks, V and the law two noisy humps of it that differ."""
    parts = []
    for ladder in ladders:
        J0 = np.linspace(0.02, 0.97, count) + 0.005 * rng.normal(size=count)
        hump = J0 * (1 - J0)
        law, V = hump**0.7 * np.exp(0.25 * rng.normal(size=(2, count)))
        part = {
            "ladder": ladder,
            "step": 20 * np.arange(count),
            "J0": J0,
            "law": law,
            "V": V**2,
            "spread": rng.uniform(1, 2, count),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)  # fmt: skip


def speed(cell, rung):
    """The first-order gain of one update in a cell, the truth to be found: V under SGD without std, else the law."""
    if cell.OPTIMIZER == "sgd":
        score = 6 * rung.V * cell.REWARD_SCALE if cell.SCALE == "none" else 4 * rung.law**2
    else:
        score = rung.law
    return 0.06 * cell.rate * score * (1 - 0.3 * min(cell.KL_COEF, 1)) * cell.ITERATIONS**0.5


def gains(rng, table, measured, noise):
    """Gains that saturate, with noise that is the same for all cells of a rung and some of each one's own."""
    parts = []
    shared = noise * rng.normal(size=len(measured))
    for cell in table.itertuples():
        budgets = (
            LONG
            if cell.cell == "base" or "rate" in cell.cell or cell.cell in ("sgd", "sgd no std")
            else SHORT
        )
        for n in budgets:
            room = 1 - measured.J0
            found = room * -np.expm1(-n * speed(cell, measured) / room) + shared
            found = found + 0.3 * noise * rng.normal(size=len(measured))
            part = measured[["ladder", "step"]].assign(
                cell=cell.cell, seed=0, budget=n, start=measured.J0, gain=found
            )
            parts.append(part.assign(reward=part.start + part.gain, kl_to_start=0.1 * n, entropy=1.0))
    return pd.concat(parts, ignore_index=True)


def _measured_tables(measured):
    one = {"policy": "categorical", "layer": -1}
    plain = measured[["ladder", "step", "V"]].assign(
        **one, advantage="leave_one_out", delta=2 * measured.V * measured.spread, kappa=measured.V,
        empirical=3 * measured.V, headroom=(measured.J0 * (1 - measured.J0)) ** 0.5,
    )  # fmt: skip
    own = plain.assign(
        advantage="grpo",
        kappa=measured.law * measured.spread,
        empirical=measured.spread**2,
        delta=5 * measured.V,
    )
    checkpoints = measured[["ladder", "step"]].assign(
        tokens=1000 * measured.step, entropy=2 - measured.J0, gradient_norm_squared=measured.V * measured.spread,
        reward=measured.J0, top=(measured.J0 > 0.5).astype(float),
    )  # fmt: skip
    theta = {"kappa_theta": 1.0, "empirical_theta": 1.0, "normalised_theta": measured.law * measured.spread}
    forecast = measured[["ladder", "step"]].assign(budget=5, **theta)
    return {
        "checkpoints": checkpoints,
        "components": pd.concat([plain, own], ignore_index=True),
        "forecast": forecast,
    }


def write(folder, *, seed=0, count=12, noise=0.01, page=None, broken=None):
    """The published tables of a made-up study of four ladders with ``count`` rungs, in ``folder``; ``broken`` has a row
    for each run that did not come to its end."""
    rng, ladders, table = np.random.default_rng(seed), [f"s{i}" for i in (1, 2, 3, 4)], cells()
    measured = rungs(rng, ladders, count)
    alarms = [
        {"ladder": ladder, "cell": cell, "step": 0, "seed": 0, "alarm": alarm, "updates": 8, "first": 1}
        for ladder in ladders
        for cell, alarm in (
            ("group 2", "no signal"),
            ("sgd rate 4", "far from the start"),
            ("base", "no signal"),
        )
    ]
    tables = {"cells": table, "gains": gains(rng, table, measured, noise), "alarms": pd.DataFrame(alarms)}
    tables["failures"] = pd.DataFrame(broken or [], columns=["ladder", "cell", "step", "seed", "error"])
    for row in broken or []:
        own = tables["gains"]
        gone = (own.ladder == row["ladder"]) & (own.cell == row["cell"]) & (own.step == row["step"])
        tables["gains"] = own[~gone]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, whole in (tables | _measured_tables(measured)).items():
        floats = whole.select_dtypes("float64").columns
        whole.astype(dict.fromkeys(floats, "float32")).to_parquet(folder / f"{name}.parquet", index=False)
    said = hashlib.sha256(Path(page).read_bytes()).hexdigest() if page else None
    parameters = {"LABELS": 4, "FILLER": 8, "TINY_COOLDOWN": 0, "SEED": 1}
    made = {"commit": ["0" * 40], "finished": ["2026-01-01T12:00:00+00:00", "2026-01-02T12:00:00+00:00"]}
    about = {
        "preregistration": {
            "sha256": said, "commit": "0" * 40, "committed": "2026-01-01T00:00:00+00:00", "thresholds": THRESHOLDS
        },
        "ladders": {name: {"role": "locked", "kind": "synthetic", "parameters": parameters} for name in ladders},
        "cells": {f"{name}, {cell}": {"made": made} for name in ladders for cell in table.cell},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(about))
    return measured


if __name__ == "__main__":
    write(sys.argv[1], page=sys.argv[2] if len(sys.argv) > 2 else None)
