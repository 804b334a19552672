"""Relative paths mean the working directory, from the notebooks' folder the suite's, and REPLICATE_HOME overrides."""

import re
from pathlib import Path

import pytest

from replicate.runs import papermill, paths
from replicate.runs.params import ScaleParameters

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite with a finished run, which holds copies of the notebooks."""
    monkeypatch.delenv("REPLICATE_HOME", raising=False)
    root = (tmp_path / "suite").resolve()
    for folder in ("params", "notebooks", "benchmarks", "runs/cpu/notebooks"):
        (root / folder).mkdir(parents=True)
    for folder in ("notebooks", "runs/cpu/notebooks"):
        (root / folder / "00_start_here.ipynb").touch()
    return root


@pytest.mark.parametrize("start", [".", "notebooks", "runs/cpu/notebooks"])
def test_papermill_from_the_root_and_notebooks_in_place_share_one_folder(suite, monkeypatch, start):
    monkeypatch.chdir(suite / start)
    assert paths.resolve("runs/cpu") == suite / "runs" / "cpu"


@pytest.mark.parametrize("start", ["benchmarks", "runs", ".."])
def test_elsewhere_a_relative_path_is_the_callers(suite, monkeypatch, start):
    monkeypatch.chdir(suite / start)
    assert paths.resolve("out") == (suite / start).resolve() / "out"


def test_notebooks_without_a_suite_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.delenv("REPLICATE_HOME", raising=False)
    (tmp_path / "00_start_here.ipynb").touch()
    monkeypatch.chdir(tmp_path)
    assert paths.home() == tmp_path.resolve()


@pytest.mark.parametrize("start", [".", "notebooks", "benchmarks"])
def test_the_environment_overrides(suite, monkeypatch, tmp_path, start):
    monkeypatch.setenv("REPLICATE_HOME", str(tmp_path / "other"))
    monkeypatch.chdir(suite / start)
    assert paths.resolve("x") == tmp_path.resolve() / "other" / "x"


def test_absolute_paths_and_the_users_folder_are_meant_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.resolve("~/x") == tmp_path.resolve() / "x"
    assert paths.resolve(tmp_path / "y") == tmp_path.resolve() / "y"
    with pytest.raises(ValueError, match=re.escape("~nobody-of-this-name/x: no such path")):
        paths.resolve("~nobody-of-this-name/x")


def test_a_run_executes_the_suites_notebooks_wherever_it_is_started(tmp_path, monkeypatch):
    """A stranger's notebooks/ in the working directory is not executed; one below REPLICATE_HOME is meant."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_mine.ipynb").touch()
    monkeypatch.delenv("REPLICATE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.notebooks() == ROOT / "notebooks"
    monkeypatch.setenv("REPLICATE_HOME", str(tmp_path))
    assert paths.notebooks() == tmp_path / "notebooks"


def test_kernels_see_the_folders_that_the_command_sees(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    import nbformat

    monkeypatch.delenv("REPLICATE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    code = "from replicate.runs import paths\npaths.resolve(RUN_DIR).joinpath('seen').write_text(str(paths.home()))"
    cells = [
        nbformat.v4.new_code_cell('RUN_DIR = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    python = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=python), tmp_path / "books" / "01_where.ipynb"
    )
    params = ScaleParameters(RUN_DIR="out")
    assert papermill.execute(params, folder=tmp_path / "books") == {"01_where": None}
    assert (tmp_path / "out" / "seen").read_text() == str(paths.home()) == str(tmp_path.resolve())
