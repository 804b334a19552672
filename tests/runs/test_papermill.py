"""Executing notebooks: a dead kernel or a dead worker is one failed notebook with its name, the others go on."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from replicate.runs import papermill
from replicate.runs.params import ScaleParameters

NEEDS_JUPYTER = pytest.mark.skipif(find_spec("papermill") is None, reason="Papermill is not installed")

# What the others leave behind is seen by 00 if it comes last; 01 takes its time.
CELLS = {
    "01_fine": "assert SEED == 7\nimport pathlib, time\ntime.sleep(1)\npathlib.Path('01_was_here').touch()",
    "02_kernel": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "03_worker": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "04_error": "raise KeyError('SEED')",
    "00_last": "import pathlib\nassert RUN_DIR == 'run'\nassert SEED == 0\nassert pathlib.Path('01_was_here').exists()",
}


def save_notebook(path, cell):
    nbformat = pytest.importorskip("nbformat")
    parameters = nbformat.v4.new_code_cell("SEED = 0\nRUN_DIR = ''", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(cell)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)


@pytest.fixture
def notebooks(home, monkeypatch):
    """A folder of small notebooks, most of which go wrong; kernels start in the scratch folder."""
    monkeypatch.chdir(home)
    folder = home / "notebooks"
    folder.mkdir()
    for name, cell in CELLS.items():
        save_notebook(folder / f"{name}.ipynb", cell)
    (folder / "05_broken.ipynb").write_text("{")
    return folder


@NEEDS_JUPYTER
def test_what_dies_is_one_failed_notebook_with_its_name(notebooks, home, capfd):
    """Each gets the values of its schema (00 knows no seed), and 00 comes when all others have ended."""
    status = papermill.execute(ScaleParameters(RUN_DIR="run", SEED=7), workers=2)
    assert list(status) == ["00_last", "01_fine", "02_kernel", "03_worker", "04_error", "05_broken"]
    assert status["00_last"] is None
    assert status["01_fine"] is None
    assert "kernel was killed" in status["02_kernel"]
    assert "process was killed by SIGKILL" in status["03_worker"]
    assert status["04_error"] == "KeyError: 'SEED'"
    assert status["05_broken"]
    assert all("\n" not in problem for problem in status.values() if problem)
    executed = home / "run" / "notebooks"
    (executed / "03_worker.ipynb").write_text("")
    (executed / "05_broken.ipynb").write_text("{")
    seconds = papermill.seconds(executed)
    assert {"00_last", "01_fine"} <= set(seconds) <= {"00_last", "01_fine", "02_kernel", "04_error"}
    assert all(0 < duration < 120 for duration in seconds.values())


@pytest.fixture
def executed(notebooks, home, monkeypatch):
    """Stands in for the workers: the waves as they were handed over, by name and target; nothing runs."""
    waves = []

    def run_each(function, tasks, *, workers):
        waves.append([(Path(source).stem, Path(target), given) for source, target, given in tasks])
        yield from ((index, None, None) for index in reversed(range(len(tasks))))

    monkeypatch.setattr(papermill, "run_each", run_each)
    return waves


@pytest.mark.parametrize(
    ("only", "waves"),
    [
        ([], [["01_fine", "02_kernel", "03_worker", "04_error", "05_broken"], ["00_last"]]),
        (["01"], [["01_fine"], []]),
        (["00", "04_e", "02"], [["02_kernel", "04_error"], ["00_last"]]),
    ],
)
def test_only_those_that_were_named_and_the_map_last(executed, home, only, waves):
    status = papermill.execute(ScaleParameters(RUN_DIR="run"), only=only)
    assert [[name for name, *_ in wave] for wave in executed] == waves
    assert status == dict.fromkeys(sorted(waves[0] + waves[1]))
    assert list(status) == sorted(status)
    for wave in executed:
        assert all(target == home / "run" / "notebooks" / f"{name}.ipynb" for name, target, _ in wave)


def test_nothing_to_execute_is_said(executed, notebooks):
    with pytest.raises(ValueError, match=f"notebooks: none to execute in {notebooks}"):
        papermill.execute(ScaleParameters(RUN_DIR="run"), only=["99"])
    assert executed == []


def test_a_notebook_is_handed_what_its_schema_knows():
    params = ScaleParameters(RUN_DIR="out", SEED=3, BUDGETS=[7])
    assert papermill.values("00_map", params) == {"RUN_DIR": "out"}
    toy = {"SEED": 3, "RUN_DIR": "out", "LADDER_DIR": "runs/ladders"}
    assert papermill.values("01_a", params) == papermill.values("04_b", params) == toy
    language = toy | {"LADDER": "tiny", "RUNGS": [], "MAX_MEMORY_GB": 0.0, "HUB_LOCK": "hub.lock.json"}
    assert papermill.values("05_a", params) == papermill.values("08_b", params) == language
    assert papermill.values("09_c", params) == papermill.values("12_d", params) == params.model_dump()


@NEEDS_JUPYTER
@pytest.mark.parametrize(("losses", "said"), [(2, None), (3, "kernel did not start: lost the race")])
def test_a_kernel_that_lost_the_race_for_its_ports_is_started_again(home, monkeypatch, losses, said):
    tried = []

    def launch(*args, **options):
        tried.append(args)
        if len(tried) <= losses:
            raise RuntimeError("lost the race\nat length")

    monkeypatch.setattr("papermill.execute_notebook", launch)
    monkeypatch.setattr(papermill.os, "dup2", lambda *_: None)  # this process keeps its stderr
    assert papermill._execute("a.ipynb", str(home / "a.ipynb"), {}) == said
    assert len(tried) == 3


def test_times_of_what_was_killed_or_damaged_are_left_out(tmp_path):
    for name, text in {
        "01_a": '{"metadata": {"papermill": {"duration": 1.26}}}',
        "02_b": '{"metadata"',
        "03_c": "{}",
    }.items():
        (tmp_path / f"{name}.ipynb").write_text(text)
    assert papermill.seconds(tmp_path) == {"01_a": 1.3}
