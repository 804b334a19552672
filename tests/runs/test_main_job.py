"""The main job: all is run and left behind, what fails is said and stops nothing; publishing is all or nothing."""

import json
import shutil
from pathlib import Path

import pytest

from replicate.runs import main_job, papermill, tables


def save_notebook(path, code):
    """A notebook of one cell after its parameters."""
    import nbformat

    parameters = nbformat.v4.new_code_cell("SEED = 5\nRUN_DIR = 'nowhere'", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(book, path)


@pytest.fixture
def no_notebooks(monkeypatch):
    """Stands in for the execution of notebooks, seconds each."""
    monkeypatch.setattr(papermill, "execute", lambda *_, **__: {"01_fine": None})


def test_a_failed_job_and_a_failed_notebook_are_said_and_the_others_are_done(params, home):
    """One checkpoint without weights, one notebook that raises: the rest of the run is all there."""
    pytest.importorskip("ipykernel")
    next((home / "ladder").glob("stage1-step20-*/model.safetensors")).unlink()
    save_notebook(home / "notebooks" / "01_fine.ipynb", "assert (SEED, RUN_DIR) == (0, 'run')")
    save_notebook(home / "notebooks" / "02_error.ipynb", "raise KeyError('SEED')")
    save_notebook(home / "notebooks" / "03_not_asked_for.ipynb", "")
    outcome = main_job.main_job(params, only=["01", "02"], workers=2)
    folder = home / "run"
    assert outcome.folder == folder
    assert outcome.notebooks == {"01_fine": None, "02_error": "KeyError: 'SEED'"}
    assert (outcome.sweep.done, outcome.no_tables) == (8, None)

    for piece in ("8 jobs done, 0 found finished, 3 failed", "1 of 2 notebooks executed", str(folder)):
        assert piece in outcome.summary()
    *failed_jobs, failed_notebook = outcome.problems()
    assert {line.split(" at ")[0] for line in failed_jobs} == {"measure", "rl", "forecast"}
    assert all("step20" in line and "no safetensors" in line for line in failed_jobs)
    assert failed_notebook == "notebook 02_error: KeyError: 'SEED'"

    assert {p.stem for p in (folder / "tables").glob("*.csv")} == set(tables.Tables.__dataclass_fields__)
    assert {p.stem for p in (folder / "notebooks").glob("*.ipynb")} == {"01_fine", "02_error"}
    said = json.loads((folder / "provenance.json").read_text())
    assert said["jobs"]["records"] == 8
    assert set(said["wall_seconds"]) == {"ladder and jobs", "notebooks"}
    assert set(said["notebook_seconds"]) == {"01_fine", "02_error"}
    assert said["fingerprint"]


def test_a_run_without_failures_has_no_problems(params, no_notebooks):
    outcome = main_job.main_job(params, workers=1)
    assert outcome.problems() == []
    assert outcome.summary().startswith("12 jobs done, 0 found finished, 0 failed; 1 of 1 notebooks executed")
    again = main_job.main_job(params, workers=1)
    assert again.summary().startswith("0 jobs done, 12 found finished, 0 failed")


def test_provenance_is_there_when_the_notebooks_begin(params, home, monkeypatch):
    """So that a run that is killed among its notebooks can say where its records come from."""
    seen = []

    def execute(*_, **__):
        seen.append(json.loads((home / "run" / "provenance.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        main_job.main_job(params, workers=1)
    assert seen[0]["jobs"]["records"] == 12


def test_a_run_whose_jobs_all_failed_still_executes_its_notebooks(params, home, no_notebooks):
    for weights in (home / "ladder").rglob("model.safetensors"):
        weights.unlink()
    outcome = main_job.main_job(params, workers=1)
    assert outcome.notebooks == {"01_fine": None}
    assert len(outcome.problems()) == 10  # three checkpoints, three experiments, no tables
    assert outcome.problems()[-1].startswith("tables: ")


def test_nothing_runs_where_nothing_can_be_written(params, home, monkeypatch):
    (home / "run").write_text("a file where the folder should be")
    monkeypatch.setattr(main_job.jobs, "ladder", lambda *_, **__: pytest.fail("worked in vain"))
    with pytest.raises(OSError, match="run"):
        main_job.main_job(params)


# --- Publishing --------------------------------------------------------------------------------------------------

SMALL = {"figures/a.png", "figures/a.csv", "tables/gains.csv", "verdicts/01_fine.json", "provenance.json"}
LARGE = {"figures/a.pdf", "tables/gains.parquet", "tables/updates.csv", "tables/.gains.csv.0.part"}


@pytest.fixture
def run(tmp_path):
    """A finished run, by the names of its files."""
    for name in (*SMALL, *LARGE, "records/rl/k.json", "notebooks/01_fine.ipynb"):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
    return tmp_path / "run"


@pytest.fixture
def results(tmp_path):
    """Published results of an older run."""
    path = tmp_path / "results" / "cpu" / "figures" / "old.png"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    return tmp_path / "results" / "cpu"


def held(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def alone(results):
    """Whether nothing else was left beside the results."""
    return [p.name for p in results.parent.iterdir()] == [results.name]


def test_what_is_small_takes_the_place_of_the_old_results(run, results):
    main_job.publish_run(run, results)
    assert held(results) == SMALL
    assert alone(results)
    main_job.publish_run(run, results.parent / "first")  # and where there was nothing
    assert held(results.parent / "first") == SMALL
    assert held(run) > LARGE  # copied, not moved


@pytest.mark.parametrize("name", ["figures", "tables", "verdicts", "provenance.json"])
def test_a_run_that_lacks_something_is_named_and_the_old_results_stay(run, results, name):
    lacking = run / name
    shutil.rmtree(lacking) if lacking.is_dir() else lacking.unlink()
    with pytest.raises(ValueError, match=f"{run}: not a finished run, it has no {name}$"):
        main_job.publish_run(run, results)
    assert held(results) == {"figures/old.png"}
    assert alone(results)


def failing_at(monkeypatch, owner, name, when):
    """Makes the ``when``-th call of ``owner.name`` fail, as a full disk does."""
    real, calls = getattr(owner, name), []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) == when:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(owner, name, fail)
    return calls


STEPS = [
    *((shutil, "copytree", n) for n in (1, 2, 3)),
    (shutil, "copy", 1),
    *((Path, "rename", n) for n in (1, 2)),
]


@pytest.mark.parametrize(
    ("owner", "name", "when"), STEPS, ids=lambda value: str(getattr(value, "__name__", value))
)
def test_whatever_step_fails_the_old_results_stay_whole(run, results, monkeypatch, owner, name, when):
    with monkeypatch.context() as patch:
        calls = failing_at(patch, owner, name, when)
        with pytest.raises(OSError, match="No space left"):
            main_job.publish_run(run, results)
    assert len(calls) >= when
    assert held(results) == {"figures/old.png"}
    assert alone(results)
    main_job.publish_run(run, results)
    assert held(results) == SMALL


def test_interrupted_once_the_new_results_are_there_they_stay(run, results, monkeypatch):
    rename = Path.rename

    def interrupt(self, target):
        rename(self, target)
        if self.name == "new":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main_job.publish_run(run, results)
    assert held(results) == SMALL
    assert alone(results)
