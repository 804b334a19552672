"""Provenance: gathered from the records, so that old numbers keep their origin, and mixtures are said."""

import json
import shutil

import pytest

from replicate.ladder.pretrain import train
from replicate.runs import jobs, main_job, papermill, provenance, sweep


@pytest.fixture
def moved(monkeypatch):
    """Sets where the next records come from."""

    def move(commit, processor):
        monkeypatch.setattr(provenance, "_commit", lambda: commit)
        monkeypatch.setattr(provenance, "_processor", lambda: processor)

    return move


def described(params):
    return main_job.describe(params, jobs.ladder(params), provenance.Clock())


def test_a_run_of_one_origin_says_so(params, moved):
    moved("aaa", "one")
    sweep.sweep(params, progress=False)
    found = described(params)
    assert found["mixed"] == []
    assert found["jobs"]["records"] == 9
    assert found["jobs"]["commit"] == {"aaa": 9}
    seconds = [
        r["origin"]["wall_seconds"]
        for e in jobs.EXPERIMENTS
        for r in sweep.records(params, e, jobs.ladder(params))
    ]
    assert found["jobs"]["wall_seconds"] == pytest.approx(sum(seconds), abs=0.1)
    json.dumps(found)


def test_old_numbers_keep_their_commit_and_mixed_origins_are_said(params, moved):
    moved("aaa", "one")
    sweep.sweep(params, experiments=["measure"], progress=False)
    moved("bbb", "two")
    sweep.sweep(params, progress=False)
    found = described(params)
    assert found["jobs"]["commit"] == {"aaa": 3, "bbb": 6}
    assert found["jobs"]["processor"] == {"one": 3, "two": 6}
    assert found["notebooks"]["commit"] == "bbb"
    assert found["mixed"] == ["commit", "processor"]


def test_the_main_job_says_mixed_origins_aloud(params, moved, monkeypatch):
    monkeypatch.setattr(papermill, "execute", lambda *_, **__: {})
    moved("aaa", "one")
    assert "mixed origins" not in main_job.main_job(params, workers=1).summary()
    moved("bbb", "one")
    outcome = main_job.main_job(params, workers=1)
    assert "mixed origins: records, ladder and notebooks differ in commit" in outcome.summary()
    written = json.loads((outcome.folder / "provenance.json").read_text())
    assert written["jobs"]["commit"] == {"aaa": 9}
    assert written["mixed"] == ["commit"]


def test_the_ladders_training_is_part_of_it(params, spec, home, moved):
    moved("aaa", "one")
    shutil.rmtree(home / "ladder")
    trained = train(spec, home / "ladders", progress=False, origin=provenance.environment())
    shutil.copytree(trained.checkpoints[0].where.parent, home / "ladder")
    moved("bbb", "one")
    sweep.sweep(params, progress=False)
    found = described(params)
    assert found["ladder_origin"]["commit"] == "aaa"
    assert found["jobs"]["commit"] == {"bbb": 9}
    assert found["mixed"] == ["commit"]


def test_a_published_run_replaces_the_old_one_whole(params, home, monkeypatch):
    monkeypatch.setattr(papermill, "execute", lambda *_, **__: {})
    run = main_job.main_job(params, workers=1).folder
    for name in ("figures", "verdicts"):
        (run / name).mkdir()
        (run / name / "a.csv").write_text("new")
    results = home / "results" / "cpu"
    results.mkdir(parents=True)
    (results / "old").write_text("old")
    copy, monkeys = shutil.copytree, []

    def dying(*args, **options):
        if monkeys:
            raise KeyboardInterrupt
        monkeys.append(copy(*args, **options))

    monkeypatch.setattr(shutil, "copytree", dying)
    with pytest.raises(KeyboardInterrupt):
        main_job.publish_run(run, results)
    assert [p.name for p in results.iterdir()] == ["old"]
    monkeypatch.setattr(shutil, "copytree", copy)
    main_job.publish_run(run, results)
    assert {p.name for p in results.iterdir()} == {"figures", "tables", "verdicts", "provenance.json"}
    assert [p.name for p in results.parent.iterdir()] == ["cpu"]


def test_a_run_whose_jobs_all_failed_still_executes_its_notebooks(params, home, monkeypatch):
    monkeypatch.setattr(papermill, "execute", lambda *_, **__: {"01_fine": None})
    for weights in (home / "ladder").rglob("model.safetensors"):
        weights.unlink()
    outcome = main_job.main_job(params, workers=1)
    assert outcome.notebooks == {"01_fine": None}
    assert len(outcome.problems()) == 7  # three checkpoints, two experiments, no tables
    assert outcome.problems()[-1].startswith("tables: ")
