"""Provenance: gathered from the records, so that old numbers keep their origin, and mixtures are said."""

import json
import shutil
import subprocess

import pytest

from replicate.ladder.pretrain import train
from replicate.runs import jobs, main_job, papermill, provenance, sweep, units


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
    assert found["jobs"]["records"] == 12
    assert found["jobs"]["commit"] == {"aaa": 12}
    seconds = [
        r["origin"]["wall_seconds"]
        for e in jobs.EXPERIMENTS
        for r in units.records(params, e, jobs.ladder(params))
    ]
    assert found["jobs"]["wall_seconds"] == pytest.approx(sum(seconds), abs=0.1)
    json.dumps(found)


def test_old_numbers_keep_their_commit_and_mixed_origins_are_said(params, moved):
    moved("aaa", "one")
    sweep.sweep(params, experiments=["measure"], progress=False)
    moved("bbb", "two")
    sweep.sweep(params, progress=False)
    found = described(params)
    assert found["jobs"]["commit"] == {"aaa": 3, "bbb": 9}
    assert found["jobs"]["processor"] == {"one": 3, "two": 9}
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
    assert written["jobs"]["commit"] == {"aaa": 12}
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
    assert found["jobs"]["commit"] == {"bbb": 12}
    assert found["mixed"] == ["commit"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A source tree under version control, of which this module is a file; runs git there."""
    tree = tmp_path / "tree"
    module = tree / "src" / "replicate" / "runs" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")

    def git(*words):
        done = subprocess.run(["git", *who, *words], cwd=tree, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    provenance._commit.cache_clear()
    yield module, git
    provenance._commit.cache_clear()


def test_the_commit_is_that_of_the_source_tree_and_changes_are_marked(checkout):
    """A plus says that nobody else has the code that made these numbers."""
    module, git = checkout
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    (module.parent / "untracked").write_text("a run's results change nothing")
    assert provenance.environment()["commit"] == git("rev-parse", "HEAD")
    module.write_text("changed")
    # The process imported its code before: what is committed later is not what computes.
    assert provenance.environment()["commit"] == git("rev-parse", "HEAD")
    provenance._commit.cache_clear()
    assert provenance.environment()["commit"] == git("rev-parse", "HEAD") + "+"


def test_outside_a_checkout_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout[0].parents[3].parent))
    assert provenance.environment()["commit"] is None


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.environment()["commit"] is None


def test_a_stage_counts_again_and_when_it_fails(monkeypatch):
    ticks = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: next(ticks))
    clock = provenance.Clock()
    with clock.stage("jobs"):
        pass
    with pytest.raises(KeyError), clock.stage("jobs"):
        raise KeyError
    assert clock.seconds == {"jobs": 5.0}


MATTER = ("commit", "versions", "kernels", "processor", "cores", "accelerator", "threads")


def origin(**differs):
    """An origin as a record has it."""
    common = dict.fromkeys(MATTER, "same")
    return {**common, "finished": "2026-01-02", "wall_seconds": 1.25, **differs}


@pytest.mark.parametrize("aspect", MATTER)
def test_any_aspect_that_differs_is_counted_and_said(aspect):
    origins = [
        origin(),
        origin(**{aspect: "other"}),
        origin(finished="2026-01-01"),
        origin(finished="2026-01-03"),
    ]
    found = provenance.gather(origins)
    assert found[aspect] == {"same": 3, "other": 1}
    assert (found["records"], found["wall_seconds"]) == (4, 5.0)
    assert found["finished"] == ["2026-01-01", "2026-01-03"]
    assert provenance.mixed(origins) == [aspect]


def test_versions_are_compared_by_what_they_say():
    """In whatever order the libraries stand, and with one that was not installed left out."""
    one, two = {"torch": "1", "numpy": "2", "ray": None}, {"numpy": "2", "torch": "1"}
    assert provenance.mixed([origin(versions=one), origin(versions=two)]) == []
    assert provenance.mixed([origin(versions=one), origin(versions={**two, "torch": "3"})]) == ["versions"]


def test_no_records_are_no_origin():
    found = provenance.gather([])
    assert (found["records"], found["wall_seconds"], found["finished"]) == (0, 0, [])
    assert provenance.mixed([]) == []


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"origin": null}'])
def test_somebody_elses_ladder_has_no_origin_and_is_described_all_the_same(params, home, text):
    note = home / "ladder" / "parameters.json"
    note.unlink()
    if text is not None:
        note.write_text(text)
    found = described(params)
    assert found["ladder_origin"] is None
    assert found["mixed"] == []
    assert found["jobs"]["records"] == 0
    assert found["parameters"] == params.model_dump()
    assert found["checkpoints"] == {c.name: c.sha for c in jobs.ladder(params)}
