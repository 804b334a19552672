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
from replicate.ladder import open_ladder, pretrain
from replicate.rl import trainer
from replicate.rl.prompts import evaluate
from replicate.runs import forecast, jobs, measurement, prompts, sweep, tables, units
from replicate.runs.params import SECTIONS, ScaleParameters
from replicate.runs.store import content, key_of
from replicate.runs.workers import attempt
from replicate.settings.hub import Hub
from replicate.settings.run import Run
from replicate.settings.task import Task
from replicate.settings.tiny_ladder import TinyLadder


def run(params, **options):
    return sweep.sweep(params, progress=False, **options)


def test_a_second_sweep_finds_everything_and_runs_nothing(params, monkeypatch, contents):
    first = run(params)
    assert (first.done, first.found, first.failed) == (
        12,
        0,
        [],
    )  # 3 checkpoints x (measure + forecast + 2 seeds)
    before = contents(params)
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("a finished job ran again"))
    again = run(params)
    assert (again.done, again.found) == (0, 12)
    assert contents(params) == before


def test_an_interrupted_sweep_ends_with_the_records_of_an_unbroken_one(params, monkeypatch, contents):
    """Killed after five units, with one seed of a pair lost: the rest is run, alone, to the same bits."""
    run(params)
    unbroken = contents(params)
    shutil.rmtree(units.store_of(params).folder)
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
    assert 0 < len(survivors) < 12
    lost = next(name for name in survivors if name.startswith("rl/"))
    (units.store_of(params).folder / lost).unlink()
    assert run(params).found == len(survivors) - 1
    assert contents(params) == unbroken


@pytest.mark.parametrize("options", [{"workers": 2}, {"engine": "ray"}])
def test_records_do_not_depend_on_who_runs_the_jobs(params, options, contents):
    if options.get("engine") == "ray":
        pytest.importorskip("ray")
    run(params)
    local = contents(params)
    shutil.rmtree(units.store_of(params).folder)
    assert run(params, **options).done == 12
    assert contents(params) == local


def test_damaged_and_missing_files_become_failed_rows(params, home):
    """One truncated file, one folder without weights: both named, the third checkpoint's results stay."""
    checkpoints = open_ladder(home / "ladder").checkpoints
    weights = checkpoints[1].where / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (checkpoints[2].where / "model.safetensors").unlink()
    outcome = run(params)
    assert outcome.done == 4
    errors = {(row["step"], row["experiment"]): row["error"] for row in outcome.failed}
    assert set(errors) == {(step, e) for step in (20, 40) for e in jobs.EXPERIMENTS}
    assert all("step20" in errors[20, e] and "model.safetensors" in errors[20, e] for e in jobs.EXPERIMENTS)
    assert all("step40" in errors[40, e] and "no safetensors" in errors[40, e] for e in jobs.EXPERIMENTS)
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
    assert outcome.done == 11
    assert [(row["step"], row["seeds"]) for row in outcome.failed] == [(20, [1])]
    assert "result.updates[0].grad_norm is inf" in outcome.failed[0]["error"]
    assert len(contents(params)) == 11


def test_a_checkpoint_of_nan_weights_fails_alone(params, home, contents):
    folder = open_ladder(home / "ladder").at(20).where
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.full_like(w, torch.nan) for name, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    outcome = run(params)
    assert outcome.done == 8
    assert {(row["step"], row["experiment"]) for row in outcome.failed} == {(20, e) for e in jobs.EXPERIMENTS}
    assert len(contents(params)) == 8


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "foreign", "no text"])
def test_a_damaged_record_is_said_and_run_again(params, damage, capsys, contents):
    run(params)
    before = contents(params)
    paths = sorted(units.store_of(params).folder.glob("rl/*.json"))
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
    assert len(units.records(params, "rl", ladder)) == 5  # tables do not take it either
    capsys.readouterr()
    outcome = run(params)
    assert (outcome.done, outcome.found, len(outcome.damaged)) == (1, 11, 1)
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
    keys = {units.job_key(params, checkpoint, "rl", 0)}
    others = (
        (identity, "digest", "other"),
        (identity, "versions", {"torch": "0"}),
        (kernels, "name", "sse2"),
    )
    for module, name, value in others:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, value=value: value)
            keys.add(units.job_key(params, checkpoint, "rl", 0))
    assert len(keys) == 4


def test_a_worker_with_other_code_is_refused(params, monkeypatch):
    """Nodes of a cluster: a record must not carry the key of arithmetic that another node did."""
    (units.store_of(params).folder / "measure").mkdir(parents=True)
    unit, *_ = units.missing(params, jobs.ladder(params), ["measure"], units.Outcome())
    monkeypatch.setattr(identity, "digest", lambda *_: "other code")
    with pytest.raises(ValueError, match="code"):
        units.work(unit)


def test_a_record_says_who_made_it(params):
    run(params)
    for record in units.records(params, "rl", jobs.ladder(params)):
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
        keys = [units.job_key(p, checkpoint, experiment, 0) for p in (params, changed)]
        assert (keys[0] == keys[1]) is same


OTHERS = {
    "RUN_DIR": "x", "LADDER": "x", "LADDER_DIR": "x", "STUDY": "x", "RL_SEEDS": [7], "BUDGETS": [3],
    "MEASURE_LAYERS": [0], "TASK": "x", "STACK_SEEDS": False, "BASELINE": "leave_one_out", "SCALE": "none",
    "LENGTH": "token", "DTYPE": "float64", "DEVICE": "cuda",
    "HUB_LOCK": "x", "HUB_STEPS": ["x"], "HUB_KEEP": True, "RUNGS": [7],
    "TINY_DEVICE": "cuda", "TINY_DTYPE": "bfloat16", "COMPILE": True,
    "LABEL_WORDS": "blue red green white", "TEMPLATE": "{label} {filler} : {label}", "ANSWER_REWARD": "each",
    "METHOD": "x", "OPTIMIZER": "sgd", "CREDIT": "to_go", "GAE_WEIGHT": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", ScaleParameters.model_fields)
def test_every_parameter_is_in_a_key_or_declared_to_decide_nothing(params, name):
    """One that were in no key would silently find the records of another value."""
    if name == "ANSWER_TOKENS":  # another number than 1 is refused by label copying
        params = params.model_copy(update={"TASK": "sequence_copying"})
    checkpoint, value = jobs.ladder(params).checkpoints[0], getattr(params, name)
    changed = params.model_copy(update={name: OTHERS[name] if name in OTHERS else value + 1})
    assert getattr(changed, name) != value

    def keys(p):
        jobs_of = [jobs.settings(p, experiment) for experiment in jobs.EXPERIMENTS]
        spec = TinyLadder.model_construct(
            **{f: getattr(p, TinyLadder.flat_name(f)) for f in TinyLadder.model_fields}
        )
        return [key_of({"settings": found.model_dump()}) for found in jobs_of] + [pretrain.key(spec)]

    inert = any(name in map(section.flat_name, section.model_fields) for section in (Run, Hub))
    assert (keys(changed) == keys(params)) is inert
    with contextlib.suppress(ValueError):  # a task that there is not has no code
        for experiment in jobs.EXPERIMENTS:
            same = jobs.settings(changed, experiment) == jobs.settings(params, experiment)
            job = [units.job_key(p, checkpoint, experiment, 0) for p in (params, changed)]
            assert (job[0] == job[1]) is same


def test_every_section_is_used():
    """A section that no experiment takes, that is not the ladder's and not declared inert would configure nothing."""
    taken = {
        info.annotation for e in jobs.EXPERIMENTS for info in jobs.MODULES[e].Settings.model_fields.values()
    }
    assert taken | {TinyLadder, Run, Hub} == set(SECTIONS)


def test_a_trainers_folder_gives_the_same_records_and_a_table_without_tokens(params, home):
    """The content decides and not the name: every job of the renamed ladder is there already."""
    run(params)
    before = tables.per_checkpoint(tables.load(params, open_ladder(home / "ladder")))
    for checkpoint in open_ladder(home / "ladder"):
        checkpoint.where.rename(home / "ladder" / f"checkpoint-{checkpoint.step}")
    again = run(params)
    assert (again.done, again.found, again.failed) == (0, 12, [])
    frame = tables.per_checkpoint(tables.load(params, open_ladder(home / "ladder")))
    assert frame.gain.tolist() == before.gain.tolist()


def test_tokens_that_are_not_known_take_no_row_out_of_the_table(params, home):
    for checkpoint in open_ladder(home / "ladder"):
        checkpoint.where.rename(home / "ladder" / f"checkpoint-{checkpoint.step}")
    assert run(params).done == 12
    frame = tables.per_checkpoint(tables.load(params, open_ladder(home / "ladder")))
    assert frame.step.tolist() == [0, 20, 40]
    assert frame.tokens.isna().all()
    assert frame.gain.notna().all()


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


# --- A ladder in training while jobs run on its rungs -------------------------------------------------------------


@pytest.fixture
def untrained(params, spec):
    """The same jobs on the session's ladder, which is to be trained first."""
    tiny = {TinyLadder.flat_name(name): getattr(spec, name) for name in TinyLadder.model_fields}
    return params.model_copy(update={**tiny, "LADDER": "tiny", "LADDER_DIR": "ladders"})


@pytest.fixture
def arrive(ladder, home, spec):
    """Puts rungs of the session's ladder where the untrained one would leave them; at its end the done-mark."""
    folder = pretrain.folder_of(spec, home / "ladders")

    def put(*steps, done=False):
        for step in steps:
            shutil.copytree(ladder.at(step).where, folder / ladder.at(step).name)
        if done:
            (folder / "LADDER").write_text("tiny OLMo-2\n")

    return put


def taken(pipeline):
    """All that the schedule gives at the moment: of which plan, and which job (None: the ladder)."""
    found = []
    while (task := pipeline.take()) is not None:
        (plan, unit), argument = task
        assert argument == (unit or plan.stream,)
        found.append((plan.name, unit and (unit.experiment, unit.checkpoint.step)))
    return found


def all_of(name, *steps):
    return [(name, (experiment, step)) for step in steps for experiment in jobs.EXPERIMENTS]


def test_a_rungs_jobs_come_when_it_is_there_and_each_of_them_once(untrained, arrive):
    plan = sweep.Plan(untrained, jobs.EXPERIMENTS, name="a")
    pipeline = sweep.Pipeline([plan])
    assert taken(pipeline) == [("a", None)]
    assert plan.total() == 12
    arrive(0)
    assert taken(pipeline) == all_of("a", 0)
    assert taken(pipeline) == []
    arrive(20, 40, done=True)
    assert taken(pipeline) == all_of("a", 20, 40)
    assert pipeline.is_open()  # until the training says that it is at its end
    sweep._ladder_done(plan, None)
    assert taken(pipeline) == []
    assert not pipeline.is_open()


def test_the_first_plan_that_has_something_to_do_is_served_first(untrained, arrive):
    """While the first one waits for rungs, the second one's ladder is begun; then the first goes before it."""
    first, second = (
        sweep.Plan(p, jobs.EXPERIMENTS, name=name)
        for name, p in (("a", untrained), ("b", untrained.model_copy(update={"SEED": 1})))
    )
    pipeline = sweep.Pipeline([first, second])
    assert taken(pipeline) == [("a", None), ("b", None)]
    sweep._ladder_done(second, None)
    arrive(0, 20)
    assert taken(pipeline) == all_of("a", 0, 20)
    arrive(40, done=True)
    sweep._ladder_done(first, None)
    assert pipeline.is_open()
    assert taken(pipeline) == all_of("a", 40)
    assert not pipeline.is_open()


def test_a_ladder_that_is_there_is_not_trained_and_what_is_done_not_given(untrained, arrive):
    arrive(0, 20, 40, done=True)
    run(untrained, experiments=["measure"])
    plan = sweep.Plan(untrained, jobs.EXPERIMENTS, name="a")
    assert taken(sweep.Pipeline([plan])) == [job for job in all_of("a", 0, 20, 40) if job[1][0] != "measure"]
    assert plan.outcome.found == 3


def in_this_process(function, schedule, *, workers):
    """Stands in for the processes."""
    while schedule.is_open():
        name, task = schedule.take()
        yield name, *attempt(function, task)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ladder_whose_training_fails_is_one_failed_row_and_its_rungs_jobs_are_done(
    untrained, arrive, ladder, home, monkeypatch, contents, workers
):
    """The disk is full after two of three rungs; once there is room, the rest is done and no more."""

    def train(*_, **__):
        arrive(0, 20)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sweep, "run_each", in_this_process)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train", train)
        outcome = run(untrained, workers=workers)
    assert outcome.problems() == ["ladder at tiny: OSError: [Errno 28] No space left on device"]
    assert (outcome.done, outcome.found) == (8, 0)
    assert len(contents(untrained)) == 8
    assert json.loads((home / "run" / "failures.json").read_text()) == outcome.failed
    arrive(40, done=True)
    again = run(untrained, workers=workers)
    assert (again.done, again.found, again.failed) == (4, 8, [])


def test_a_failed_ladder_does_not_stop_the_next_one(untrained, arrive, monkeypatch):
    arrive(0, 20, 40, done=True)
    real = pretrain.train

    def train(spec, *rest, **how):
        if spec.seed == 1:
            raise ValueError("of no use")
        return real(spec, *rest, **how)

    monkeypatch.setattr(pretrain, "train", train)
    bad, good = (
        sweep.Plan(untrained.model_copy(update={"SEED": seed}), ["measure"], name=f"s{seed}")
        for seed in (1, 0)
    )
    sweep.sweep_all([bad, good], progress=False)
    assert bad.outcome.problems() == ["ladder at s1: of no use"]
    assert (bad.outcome.done, good.outcome.done) == (0, 3)
