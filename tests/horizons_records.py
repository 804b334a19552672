"""Records of a study of longer answers that nobody ran: made from a truth that is known, in the published format.

``python tests/horizons_records.py FOLDER [PAGE]`` writes them, so that notebook 15 can be executed before there are
others; PAGE is the preregistration that they shall name.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

LADDERS = ("h1", "h2", "h3", "h4")
HORIZONS, BUDGETS = (1, 2, 4, 8, 16), (5, 10, 20, 40)
BASE = {
    "METHOD": "surrogate", "CREDIT": "outcome", "SCALE": "std", "BASELINE": "mean", "LEARNING_RATE": 2.0e-4,
    "PROMPTS": 8, "GROUP_SIZE": 8, "KL_COEF": 0.0, "ITERATIONS": 1,
}  # fmt: skip
CHANGES = {
    "grpo": {}, "rloo": {"SCALE": "none", "BASELINE": "leave_one_out"}, "to go": {"CREDIT": "to_go"},
    "ppo": {"CREDIT": "gae"}, "bptt": {"METHOD": "bptt"}, "gumbel": {"METHOD": "gumbel", "KL_COEF": 0.001},
}  # fmt: skip
SLOPES = {
    ("all", "outcome"): -1.0,
    ("all", "critic"): -0.4,
    ("each", "outcome"): -0.5,
    ("each", "to go"): -0.2,
}
"""How log signal / noise falls with log T under each credit."""


def kinds():
    """T and density of all tasks; one token has one density."""
    return [(T, density) for T in HORIZONS for density in (("all",) if T == 1 else ("all", "each"))]


def cells():
    """The table of cells, in the order of the study's file."""
    rows = []
    for T, density in kinds():
        rows.append(_cell(f"rungs T{T} {density}", "T", T, T, density))
    for T, density in kinds():
        for method, changes in CHANGES.items():
            if method != "to go" or (density == "each" and T > 1):
                rows.append(_cell(f"{method} T{T} {density}", method, T, T, density, **changes))
    for density in ("all", "each"):
        for method in ("grpo", "rloo", "ppo"):
            for size in (2, 4, 16):
                more = {**CHANGES[method], "GROUP_SIZE": size, "PROMPTS": 64 // size}
                rows.append(_cell(f"{method} T8 {density} N{size}", method, size, 8, density, **more))
    return pd.DataFrame(rows)


def _cell(name, factor, level, T, density, **changes):
    said = {"cell": name, "group": "one-factor", "factor": factor, "level": str(level), "rate": 1.0}
    return said | BASE | changes | {"ANSWER_TOKENS": T, "ANSWER_REWARD": density}


def gain(cell):
    """What a method gains in a cell, in the mean over budgets: the truth to be found.

    The critic pays 0.1 at T = 16 with the reward at the end and nothing elsewhere, groups of 2 cost GRPO 0.08, BPTT
    loses 0.1 from T = 8 on where the end pays, soft tokens lose 0.1 anywhere.
    """
    T, late = cell.ANSWER_TOKENS, cell.ANSWER_REWARD == "all"
    found = 0.3 - 0.03 * np.log2(T)
    found += {"to go": 0.02, "gumbel": -0.1, "rloo": -0.01}.get(cell.factor, 0.0)
    if cell.factor == "ppo":
        found += 0.1 if late and T == 16 else 0.0 if T < 16 else -0.03
    if cell.factor == "bptt" and late and T >= 8:
        found -= 0.1
    if cell.factor in ("grpo", "rloo") and cell.GROUP_SIZE == 2:
        found -= 0.08
    return found


def gains(rng, table, rungs, noise):
    """Gains that grow with the square root of the budget: of methods as :func:`gain` has it, of rungs as the score at T
    has it."""
    rows, scale = [], np.sqrt(BUDGETS) / np.mean(np.sqrt(BUDGETS))
    for cell in table.itertuples():
        everywhere = cell.factor == "T"
        for rung in rungs[cell.cell] if everywhere else [r for r in rungs["rungs T4 all"] if r["rung"] == 4]:
            level = 0.5 * rung["score"] if everywhere else gain(cell)
            for seed in range(2 if everywhere else 5):
                found = level * scale + noise * rng.normal(size=len(BUDGETS))
                for budget, one in zip(BUDGETS, found, strict=True):
                    rows.append(_row(cell, rung, seed, budget, one))
    return pd.DataFrame(rows)


def _row(cell, rung, seed, budget, gained):
    start = rung["right"]
    row = {
        "ladder": rung["ladder"], "cell": cell.cell, "step": rung["step"], "seed": seed, "budget": budget,
        "entropy": 1.0, "kl_to_start": 0.01 * budget,
    }  # fmt: skip
    if cell.ANSWER_TOKENS == 1:
        return row | {"reward": start + gained, "start": start, "gain": gained}
    # The closed form, all tokens right, is another number than the reward that is sampled.
    closed = {"reward": start / 2 + gained / 2, "start": start / 2, "gain": gained / 2}
    return row | closed | {"each_right": start, "sampled": start + gained, "sampled_start": start}


def measured(rng, count, scatter):
    """By cell of all rungs what was measured at each: the score at T is the truth, that at one token scattered."""
    found = {}
    for T, density in kinds():
        name = f"rungs T{T} {density}"
        found[name] = [
            {
                "ladder": ladder, "step": 20 * i, "rung": i, "right": right, "T": T, "density": density,
                "score": right * (1 - right) + 0.002 * i, "first": right * (1 - right) + scatter * rng.normal(),
            }
            for ladder in LADDERS for i, right in enumerate(np.linspace(0.1, 0.9, count))
        ]  # fmt: skip
    return found


def longer(rungs):
    """The measurements as the experiment publishes them; kappa is the score times a size that says nothing."""
    rows = []
    for cell, own in rungs.items():
        for rung in own:
            row = {"ladder": rung["ladder"], "cell": cell, "step": rung["step"], "reward": rung["right"] ** 2}
            row |= {"each_right": rung["right"], "sampled": rung["right"]}
            for part, score in (("first", rung["first"]), ("whole", rung["score"])):
                size = 1.0 + rung["rung"]
                more = {"reward": rung["right"], "room": 0.3, "V": 1.0, "spread": 0.5}
                more |= {"kappa": score * size, "empirical": size**2}
                row |= {f"{part}_{name}": x for name, x in more.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def costates(rng, rungs, noise):
    """Signal and noise whose ratio falls with T as :data:`SLOPES` has it; single signals scatter around it."""
    rows = []
    for cell, own in rungs.items():
        for rung in own:
            T = rung["T"]
            for (density, credit), slope in SLOPES.items():
                if density != rung["density"] or (T == 1 and credit != "outcome"):
                    continue
                blocks = [
                    ("all", 0),
                    *(("token", t) for t in range(T)),
                    *(("label", k) for k in range(T)),
                ]
                for block, index in blocks:
                    signal = T**slope * (1 + noise * rng.normal()) / (1 + index)
                    where = {"ladder": rung["ladder"], "cell": cell, "step": rung["step"], "credit": credit}
                    rows.append({**where, "block": block, "index": index, "signal": signal, "noise": 10.0})
    return pd.DataFrame(rows)


def trl(rng, *, updates=40, seeds=5, off=0.0):
    """Rewards that rise alike on both sides, TRL's by ``off`` less; GRPO's and RLOO's curves are not the same."""
    rows = []
    for trainer, end in (("GRPO", 0.8), ("RLOO", 0.7)):
        for whose in ("TRL", "ours"):
            for seed in range(seeds):
                own = 0.4 + (end - 0.4) * np.arange(updates) / updates + 0.02 * rng.normal()
                own = own + 0.05 * rng.normal(size=updates) - off * (whose == "TRL")
                where = {"trainer": trainer, "whose": whose, "seed": seed}
                rows += [{**where, "update": n, "reward": x} for n, x in enumerate(own)]
    return pd.DataFrame(rows)


def _silence(tables, T):
    """Takes reward, signal and noise out of all cells that are paid at the end of T tokens."""
    for name in ("gains", "longer", "costates"):
        table = tables[name]
        own = table.cell.str.contains(f"T{T} all")
        numbers = [
            c for c in table.select_dtypes("float64") if c not in ("entropy", "kl_to_start", "each_right")
        ]
        table.loc[own, numbers] = 0.0


def write(folder, *, seed=0, count=8, noise=0.01, scatter=0.08, page=None, with_trl=True, dead=()):
    """The published tables of a made-up study of four ladders with ``count`` rungs, in ``folder``.

    Paid at the end of so many tokens as ``dead`` names, nobody is ever right.
    """
    rng, table = np.random.default_rng(seed), cells()
    rungs = measured(rng, count, scatter)
    alarm = {
        "ladder": "h1",
        "cell": "grpo T16 all",
        "step": 80,
        "seed": 0,
        "alarm": "no signal",
        "updates": 8,
    }
    tables = {
        "cells": table, "gains": gains(rng, table, rungs, noise), "longer": longer(rungs),
        "costates": costates(rng, rungs, 0.2), "alarms": pd.DataFrame([alarm | {"first": 1}]),
    }  # fmt: skip
    for T in dead:
        _silence(tables, T)
    if with_trl:
        tables["trl"] = trl(rng)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, whole in tables.items():
        floats = whole.select_dtypes("float64").columns
        whole.astype(dict.fromkeys(floats, "float32")).to_parquet(folder / f"{name}.parquet", index=False)
    said = hashlib.sha256(Path(page).read_bytes()).hexdigest() if page else None
    made = {"commit": ["0" * 40], "finished": ["2026-01-01T12:00:00+00:00", "2026-01-02T12:00:00+00:00"]}
    about = {
        "preregistration": {"sha256": said, "commit": "0" * 40, "committed": "2026-01-01T00:00:00+00:00"},
        "ladders": {name: {"role": "locked", "kind": "synthetic", "parameters": {}} for name in LADDERS},
        "cells": {f"{name}, {cell}": {"made": made} for name in LADDERS for cell in table.cell},
    }
    (folder / "study.json").write_text(json.dumps(about))
    return rungs


if __name__ == "__main__":
    write(sys.argv[1], page=sys.argv[2] if len(sys.argv) > 2 else None)
