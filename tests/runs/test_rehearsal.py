"""``params/olmo2-1b.yaml`` as it is, against a hub on which much is wrong: each fault costs its own revision."""

import json

import pytest
import yaml

import rehearsal
from english import byte_level
from replicate.ladder import open_ladder
from replicate.runs import jobs, params, sweep, units
from replicate.runs.store import content

SOUND = {*rehearsal.EARLY_STEPS, *rehearsal.GOOD}
# Less of the same, for the sake of the clock.
LESS = (
    "EVAL_PROMPTS=4", "MEASURE_PROMPTS=4", "POOL_PROMPTS=16", "PROMPTS=2", "GROUP_SIZE=2", "MEASURE_GROUP=2",
    "MEASURE_BATCHES=2", "RL_SEEDS=[0]", "BUDGETS=[1]",
)  # fmt: skip


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The folder of a lock, a preflight and a sweep, and what the two last said."""
    home = tmp_path_factory.mktemp("rehearsal")
    with rehearsal.hub(byte_level()) as hub:
        locked, checked = (rehearsal.replicate("hub", name, home=home) for name in ("lock", "preflight"))
        assert locked.returncode == 0, locked.stderr
        swept = rehearsal.replicate("sweep", *rehearsal.on_a_cpu(*LESS), home=home)
        yield home, locked, checked, swept, hub


def test_the_lock_names_the_holes_and_the_preflight_the_twins_and_the_missing_shard(rehearsed):
    _, locked, checked, _, _ = rehearsed
    assert f"nothing near step {rehearsal.HOLE}" in locked.stdout
    assert checked.returncode == 1
    refused = [line for line in checked.stderr.splitlines() if line.startswith("refused: ")]
    assert [line.split("@")[1].split(":")[0] for line in refused] == [
        rehearsal.branch(step) for step in (*rehearsal.TWINS, rehearsal.INCOMPLETE)
    ]


def test_each_fault_is_one_line_and_all_other_rows_are_there(rehearsed):
    home, _, _, swept, _ = rehearsed
    assert swept.returncode == 1
    rows = {row["step"]: row for row in rehearsal.rows(home)}
    bad = {*rehearsal.TWINS, rehearsal.CUT, rehearsal.CHANGED, rehearsal.INCOMPLETE}
    assert set(rows) == SOUND | bad
    for step, row in rows.items():
        assert bool(row["left out because"]) == (step in bad)
        assert [row[name] for name in ("measure", "rl", "forecast")] == [int(step in SOUND)] * 3
    lines = [line for line in swept.stderr.splitlines() if line.startswith("failed: ")]
    assert {step for step in bad for line in lines if rehearsal.branch(step) in line} == bad
    assert "it ends at byte 5000" in rows[rehearsal.CUT]["left out because"]
    assert "the lock says" in rows[rehearsal.CHANGED]["left out because"]


def test_nothing_stays_on_disk_but_what_is_small(rehearsed):
    home, *_ = rehearsed
    fetched = list((home / "ladders" / "hub").rglob("config.json"))
    assert len(fetched) >= len(SOUND)
    assert list((home / "ladders").rglob("*.safetensors")) == []


def test_the_records_are_those_of_the_same_files_in_a_folder(rehearsed, tmp_path, monkeypatch):
    """Named by content: one rung of the hub, copied by hand, has the same records, found and not made."""
    home, _, _, _, hub = rehearsed
    step = rehearsal.GOOD[0]
    folder = tmp_path / "ladder" / rehearsal.branch(step)
    folder.mkdir(parents=True)
    for name, text in hub.repos[rehearsal.MAIN][folder.name].items():
        (folder / name).write_bytes(text)
    values = yaml.safe_load(rehearsal.PARAMS.read_text())
    values |= {name: yaml.safe_load(value) for name, value in (item.split("=") for item in LESS)}
    values |= {"DEVICE": "cpu", "COMPILE": False, "LADDER": str(folder.parent), "RUN_DIR": str(home / "run")}
    given = params.ScaleParameters(**values)
    (rung,) = open_ladder(folder.parent)
    kept = {e: units.store_of(given).get(e, units.job_key(given, rung, e, 0)) for e in jobs.EXPERIMENTS}
    assert all(kept.values())
    again = given.model_copy(update={"RUN_DIR": str(tmp_path / "run")})
    outcome = sweep.sweep(again, progress=False)
    assert (outcome.done, outcome.failed) == (3, [])
    for experiment in jobs.EXPERIMENTS:
        made = units.store_of(again).get(experiment, units.job_key(again, rung, experiment, 0))
        assert json.dumps(content(made), sort_keys=True) == json.dumps(
            content(kept[experiment]), sort_keys=True
        )
