"""The sweep: records once and for all, the same bits in any order and company, failures reported and passed over."""

import json
import shutil

import pytest

from replicate.ladder.checkpoints import open_ladder
from replicate.runs import jobs, sweep, tables
from replicate.runs.params import ScaleParameters
from replicate.runs.store import Store, key_of


@pytest.fixture
def params(ladder, home):
    """A sweep of seconds on a copy of the session's ladder."""
    folder = home / "ladder"
    shutil.copytree(ladder.checkpoints[0].where.parent, folder)
    return ScaleParameters(
        RUN_DIR="run", LADDER="ladder", FILLER=4, POOL_PROMPTS=32, EVAL_PROMPTS=8, MEASURE_PROMPTS=8, MEASURE_GROUP=4,
        PROMPTS=4, GROUP_SIZE=4, RL_SEEDS=[0, 1], BUDGETS=[1, 2],
    )  # fmt: skip


def contents(params):
    folder = sweep.store_of(params).folder
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.json")}


def run(params, **options):
    return sweep.sweep(params, progress=False, **options)


def test_a_second_sweep_finds_everything_and_runs_nothing(params, monkeypatch):
    first = run(params)
    assert (first.done, first.found, first.failed) == (9, 0, [])  # 3 checkpoints x (1 measurement + 2 seeds)
    before = contents(params)
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("a finished job ran again"))
    again = run(params)
    assert (again.done, again.found) == (0, 9)
    assert contents(params) == before


def test_an_interrupted_sweep_ends_with_the_records_of_an_unbroken_one(params, monkeypatch):
    """Killed after five units, with one seed of a pair lost: the rest is run, alone, to the same bits."""
    run(params)
    unbroken = contents(params)
    shutil.rmtree(sweep.store_of(params).folder)
    real, calls = jobs.run, []

    def dying(*args):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(jobs, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        run(params)
    monkeypatch.setattr(jobs, "run", real)
    survivors = contents(params)
    assert 0 < len(survivors) < 9
    lost = next(name for name in survivors if name.startswith("rl/"))
    (sweep.store_of(params).folder / lost).unlink()
    assert run(params).found == len(survivors) - 1
    assert contents(params) == unbroken


@pytest.mark.parametrize("options", [{"workers": 2}, {"engine": "ray"}])
def test_records_do_not_depend_on_who_runs_the_jobs(params, options):
    if options.get("engine") == "ray":
        pytest.importorskip("ray")
    run(params)
    local = contents(params)
    shutil.rmtree(sweep.store_of(params).folder)
    assert run(params, **options).done == 9
    assert contents(params) == local


def test_damaged_and_missing_files_become_failed_rows(params, home):
    """One truncated file, one folder without weights: both named, the third checkpoint's results stay."""
    checkpoints = open_ladder(home / "ladder").checkpoints
    weights = checkpoints[1].where / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (checkpoints[2].where / "model.safetensors").unlink()
    outcome = run(params)
    assert outcome.done == 3
    errors = {(row["step"], row["experiment"]): row["error"] for row in outcome.failed}
    assert set(errors) == {(20, "measure"), (20, "rl"), (40, "measure"), (40, "rl")}
    assert all("step20" in errors[20, e] and "model.safetensors" in errors[20, e] for e in ("measure", "rl"))
    assert all("step40" in errors[40, e] and "no safetensors" in errors[40, e] for e in ("measure", "rl"))
    assert str(home) not in json.dumps(outcome.failed)
    assert json.loads((home / "run" / "failures.json").read_text()) == outcome.failed
    frame = tables.per_checkpoint(tables.load(params, open_ladder(home / "ladder")))
    assert frame.step.tolist() == [0]


def test_nan_in_a_job_is_a_failure_and_leaves_no_record(params, monkeypatch):
    monkeypatch.setattr(jobs, "run", lambda *args: {seed: {"reward": float("nan")} for seed in args[3]})
    with pytest.raises(ValueError, match=r"JSON|nan"):
        run(params)
    assert contents(params) == {}


def test_settings_that_do_not_matter_to_a_job_leave_its_record_valid(params):
    checkpoint = jobs.ladder(params).checkpoints[0]
    changed = params.model_copy(update={"LEARNING_RATE": 0.5, "RUN_DIR": "elsewhere"})
    for experiment, same in (("measure", True), ("rl", False)):
        keys = [sweep.job_key(p, checkpoint, experiment, 0) for p in (params, changed)]
        assert (keys[0] == keys[1]) is same


def test_gains_are_differences_to_the_start_on_held_out_prompts(params):
    run(params)
    found = tables.load(params, jobs.ladder(params))
    base = found.checkpoints.set_index("step").reward
    for row in found.gains.itertuples():
        assert row.gain == pytest.approx(row.reward - base[row.step], abs=1e-6)
    frame = tables.per_checkpoint(found)
    assert frame.gain.tolist() == pytest.approx(found.gains.groupby("step").gain.mean().tolist())
    assert (frame.S - (frame.V - frame.delta) * frame.H).abs().max() < 1e-12


def test_pool_and_held_out_prompts_are_disjoint(params):
    checkpoint = jobs.ladder(params).checkpoints[0]
    crowded = params.model_copy(update={"FILLER": 0, "EVAL_PROMPTS": 3})
    held_out, pool = (jobs.prompts(crowded, checkpoint, which) for which in ("eval", "pool"))
    assert len(pool) > 0
    assert not set(pool.text) & set(held_out.text)


def test_store_refuses_nan_and_names_a_damaged_record(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.put("rl", "k", {"x": float("nan")})
    assert store.get("rl", "k") is None
    store.put("rl", "k", {"x": 1})
    assert store.get("rl", "k") == {"x": 1}
    store.path("rl", "k").write_text("{")
    with pytest.raises(ValueError, match=r"k\.json"):
        store.get("rl", "k")


def test_keys_depend_on_values_not_on_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_unknown_engine_is_refused(params):
    with pytest.raises(ValueError, match="engine"):
        run(params, engine="slurm")
