"""Executing notebooks: a dead kernel or a dead worker is one failed notebook with its name, the others go on."""

import nbformat
import pytest

from replicate.runs import papermill
from replicate.runs.params import ScaleParameters

CELLS = {
    "01_fine": "print(SEED)",
    "02_kernel": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "03_worker": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "04_error": "raise KeyError('SEED')",
    "00_last": "import pathlib\nassert pathlib.Path(RUN_DIR).name == 'run'",
}


@pytest.fixture
def notebooks(home):
    """A folder of small notebooks, most of which go wrong."""
    folder = home / "notebooks"
    folder.mkdir()
    for name, cell in CELLS.items():
        parameters = nbformat.v4.new_code_cell("SEED = 0\nRUN_DIR = 'run'", metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(cell)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, folder / f"{name}.ipynb")
    (folder / "05_broken.ipynb").write_text("{")
    return folder


def test_what_dies_is_one_failed_notebook_with_its_name(notebooks, home, capfd):
    status = papermill.execute(ScaleParameters(RUN_DIR="run"), workers=2)
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
