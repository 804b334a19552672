"""The sweep: records once and for all, the same bits in any order and company, failures reported and passed over."""

import contextlib
import errno
import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from replicate import files, identity, kernels
from replicate.ladder import pretrain
from replicate.ladder.checkpoints import open_ladder
from replicate.rl import trainer
from replicate.rl.prompts import evaluate
from replicate.runs import forecast, jobs, measurement, prompts, sweep, tables
from replicate.runs.params import SECTIONS, ScaleParameters
from replicate.runs.store import content, key_of
from replicate.settings.run import Run
from replicate.settings.task import Task
from replicate.settings.tiny_ladder import TinyLadder


def run(params, **options):
    return sweep.sweep(params, progress=False, **options)


def test_a_second_sweep_finds_everything_and_runs_nothing(params, monkeypatch, contents):
    first = run(params)
    assert (first.done, first.found, first.failed) == (9, 0, [])  # 3 checkpoints x (1 measurement + 2 seeds)
    before = contents(params)
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("a finished job ran again"))
    again = run(params)
    assert (again.done, again.found) == (0, 9)
    assert contents(params) == before


def test_an_interrupted_sweep_ends_with_the_records_of_an_unbroken_one(params, monkeypatch, contents):
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
def test_records_do_not_depend_on_who_runs_the_jobs(params, options, contents):
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


def test_a_result_that_is_not_finite_is_one_failed_row_and_the_sweep_goes_on(params, monkeypatch, contents):
    """One seed at one checkpoint diverges: its row says where; its neighbour in the same unit stays."""
    real = jobs.run

    def diverging(experiment, settings, checkpoint, wanted):
        found = real(experiment, settings, checkpoint, wanted)
        if experiment == "rl" and checkpoint.step == 20:
            found[1]["updates"][0]["grad_norm"] = float("inf")
        return found

    monkeypatch.setattr(jobs, "run", diverging)
    outcome = run(params)
    assert outcome.done == 8
    assert [(row["step"], row["seeds"]) for row in outcome.failed] == [(20, [1])]
    assert "result.updates[0].grad_norm is inf" in outcome.failed[0]["error"]
    assert len(contents(params)) == 8


def test_a_checkpoint_of_nan_weights_fails_alone(params, home, contents):
    folder = open_ladder(home / "ladder").at(20).where
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.full_like(w, torch.nan) for name, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    outcome = run(params)
    assert outcome.done == 6
    assert {(row["step"], row["experiment"]) for row in outcome.failed} == {(20, "measure"), (20, "rl")}
    assert len(contents(params)) == 6


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "foreign", "no text"])
def test_a_damaged_record_is_said_and_run_again(params, damage, capsys, contents):
    run(params)
    before = contents(params)
    paths = sorted(sweep.store_of(params).folder.glob("rl/*.json"))
    good = paths[0].read_bytes()
    digit = good.index(b"0.", good.index(b"reward")) + 3
    bad = {
        "empty": b"",
        "truncated": good[:-40],
        "bit": good[:digit] + bytes([good[digit] ^ 1]) + good[digit + 1 :],
        "foreign": paths[1].read_bytes(),
        "no text": b"\xff\xfe" + good,
    }[damage]
    paths[0].write_bytes(bad)
    ladder = jobs.ladder(params)
    assert len(sweep.records(params, "rl", ladder)) == 5  # tables do not take it either
    capsys.readouterr()
    outcome = run(params)
    assert (outcome.done, outcome.found, len(outcome.damaged)) == (1, 8, 1)
    said = capsys.readouterr().err
    assert said.count("damaged") == 1
    assert paths[0].name in said
    assert "damaged" in outcome.summary()
    assert contents(params) == before
    assert run(params).damaged == []


def test_a_full_disk_ends_the_sweep_in_one_line_and_keeps_what_is_done(params, monkeypatch, contents):
    real, calls = files.os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:  # a record takes two: of the file, of the folder
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*json"):
        run(params)
    monkeypatch.setattr(files.os, "fsync", real)
    assert len(contents(params)) == 2
    assert run(params).found == 2


def test_nothing_runs_where_nothing_can_be_written(params, home, monkeypatch):
    (home / "run").write_text("a file where the folder should be")
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("worked in vain"))
    with pytest.raises(OSError, match="run"):
        run(params)


def test_a_job_cannot_read_what_is_not_in_its_key(params):
    checkpoint = jobs.ladder(params).checkpoints[0]
    for experiment in jobs.EXPERIMENTS:
        settings = jobs.settings(params, experiment)
        for name in type(settings).model_fields:
            less = settings.model_construct(**{key: value for key, value in settings if key != name})
            with pytest.raises(AttributeError, match=name):
                jobs.run(experiment, less, checkpoint, [0])


def test_code_libraries_and_kernels_are_in_the_key(params, monkeypatch):
    checkpoint = jobs.ladder(params).checkpoints[0]
    keys = {sweep.job_key(params, checkpoint, "rl", 0)}
    others = (
        (identity, "digest", "other"),
        (identity, "versions", {"torch": "0"}),
        (kernels, "name", "sse2"),
    )
    for module, name, value in others:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, value=value: value)
            keys.add(sweep.job_key(params, checkpoint, "rl", 0))
    assert len(keys) == 4


def test_a_worker_with_other_code_is_refused(params, monkeypatch):
    """Nodes of a cluster: a record must not carry the key of arithmetic that another node did."""
    (sweep.store_of(params).folder / "measure").mkdir(parents=True)
    units, _ = sweep._missing(params, jobs.ladder(params), sweep.store_of(params), ["measure"])
    monkeypatch.setattr(identity, "digest", lambda *_: "other code")
    with pytest.raises(ValueError, match="code"):
        sweep._work(units[0])


def test_a_record_says_who_made_it(params):
    run(params)
    for record in sweep.records(params, "rl", jobs.ladder(params)):
        origin = record["origin"]
        assert torch.__version__.startswith(origin["versions"]["torch"])
        assert origin["kernels"] == kernels.name()
        assert origin["threads"] == 1
        assert origin["wall_seconds"] > 0
        assert {"commit", "processor", "cores", "accelerator", "finished"} <= set(origin)
        assert not {"origin", "checksum"} & set(content(record))


def test_settings_that_do_not_matter_to_a_job_leave_its_record_valid(params):
    checkpoint = jobs.ladder(params).checkpoints[0]
    changed = params.model_copy(update={"LEARNING_RATE": 0.5, "RUN_DIR": "elsewhere"})
    for experiment, same in (("measure", True), ("rl", False)):
        keys = [sweep.job_key(p, checkpoint, experiment, 0) for p in (params, changed)]
        assert (keys[0] == keys[1]) is same


OTHERS = {
    "RUN_DIR": "x", "LADDER": "x", "LADDER_DIR": "x", "RL_SEEDS": [7], "BUDGETS": [3], "MEASURE_LAYERS": [0],
    "TASK": "x", "STACK_SEEDS": False, "BASELINE": "leave_one_out", "SCALE": "none", "LENGTH": "token",
    "DTYPE": "float64", "DEVICE": "cuda",
}  # fmt: skip


@pytest.mark.parametrize("name", ScaleParameters.model_fields)
def test_every_parameter_is_in_a_key_or_declared_to_decide_nothing(params, name):
    """One that were in no key would silently find the records of another value."""
    checkpoint, value = jobs.ladder(params).checkpoints[0], getattr(params, name)
    changed = params.model_copy(update={name: OTHERS[name] if name in OTHERS else value + 1})
    assert getattr(changed, name) != value

    def keys(p):
        jobs_of = [jobs.settings(p, experiment) for experiment in jobs.EXPERIMENTS]
        spec = TinyLadder.model_construct(
            **{f: getattr(p, TinyLadder.flat_name(f)) for f in TinyLadder.model_fields}
        )
        return [key_of({"settings": found.model_dump()}) for found in jobs_of] + [pretrain.key(spec)]

    inert = name in map(Run.flat_name, Run.model_fields)
    assert (keys(changed) == keys(params)) is inert
    with contextlib.suppress(ValueError):  # a task that there is not has no code
        for experiment in jobs.EXPERIMENTS:
            same = jobs.settings(changed, experiment) == jobs.settings(params, experiment)
            job = [sweep.job_key(p, checkpoint, experiment, 0) for p in (params, changed)]
            assert (job[0] == job[1]) is same


def test_every_section_is_used():
    """A section that no experiment takes, that is not the ladder's and not declared inert would configure nothing."""
    taken = {
        info.annotation for e in jobs.EXPERIMENTS for info in jobs.MODULES[e].Settings.model_fields.values()
    }
    assert taken | {TinyLadder, Run} == set(SECTIONS)


def test_gains_are_differences_to_the_start_on_held_out_prompts(params):
    run(params)
    found = tables.load(params, jobs.ladder(params))
    for row in found.gains.itertuples():
        model = jobs.ladder(params).at(row.step).model()
        start = evaluate(model, jobs.held_out(params, jobs.ladder(params).at(row.step))).correct
        assert row.start == pytest.approx(start.double().mean().item(), abs=1e-6)
        assert row.gain == pytest.approx(row.reward - row.start, abs=1e-12)
    frame = tables.per_checkpoint(found)
    assert frame.gain.tolist() == pytest.approx(found.gains.groupby("step").gain.mean().tolist())
    assert (frame.S - (frame.V - frame.delta) * frame.H).abs().max() < 1e-12


def test_prompts_to_evaluate_to_measure_and_to_learn_from_are_disjoint(params):
    checkpoint = jobs.ladder(params).checkpoints[0]
    crowded = params.model_copy(
        update={"FILLER": 1, "EVAL_PROMPTS": 200, "MEASURE_PROMPTS": 200, "POOL_PROMPTS": 400}
    )
    sets = [set(draw(crowded, checkpoint).text) for draw in (jobs.held_out, jobs.measured, jobs.pool)]
    assert all(sets)
    for one, two in itertools.combinations(sets, 2):
        assert not one & two
    without = prompts._draw(crowded.section(Task), checkpoint, 400, prompts._POOL)
    assert set(without.text) & sets[0]  # crowded enough for the test to mean something
    assert set(without.text) & sets[1]


def test_checkpoints_share_no_random_numbers(params, monkeypatch):
    """Each checkpoint is measured, forecast and trained with streams of its own, and the same ones every time."""
    seen = []
    for module in (measurement, forecast, trainer.streams):
        real = module.generator
        monkeypatch.setattr(
            module, "generator", lambda *names, real=real, **how: seen.append(names) or real(*names, **how)
        )
    run(params)
    names = {(experiment, sha) for _, sha, experiment in seen}
    ladder = jobs.ladder(params)
    assert names == {(e, c.sha) for e in ("measure", "forecast", "grpo") for c in ladder}


def test_unknown_engine_is_refused(params):
    with pytest.raises(ValueError, match="engine"):
        run(params, engine="slurm")
