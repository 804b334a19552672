"""B4: no verdict hangs on coordinates. The final norm divided by 128 and the head multiplied by it change no output."""

import json
from pathlib import Path

import pytest

from replicate.report import claims

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").glob("*.ipynb") if "RESCALE = " in p.read_text())


def test_those_that_compare_costates_can_be_rescaled():
    assert {path.stem[:2] for path in NOTEBOOKS} >= {"05", "06", "07", "08"}


@pytest.mark.rescaling
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_rescaling_changes_no_verdict(path, tmp_path):
    papermill = pytest.importorskip("papermill")
    values = {"RESCALE": 128.0, "RUN_DIR": str(tmp_path), "LADDER_DIR": str(ROOT / "runs" / "ladders")}
    papermill.execute_notebook(path, tmp_path / path.name, values, kernel_name="python3", progress_bar=False)
    found = json.loads((tmp_path / "verdicts" / f"{path.stem}.json").read_text())["rows"]
    (published,) = [t for t in claims.load(ROOT / "results/cpu/verdicts") if t.notebook == path.stem]
    of = {row.claim: (row.verdict, row.passed) for row in published}
    moved = {row["claim"] for row in found if of.get(row["claim"]) != (row["verdict"], row["passed"])}
    assert moved == set()
    assert len(found) == len(of)
