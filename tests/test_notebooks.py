"""Notebooks as committed: executed once from top to bottom, compared by nbval, clean of noise, in the house form.

``python tests/test_notebooks.py FILE...`` asks the same of single notebooks: the hook before a commit does so.
"""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def opened(path):
    return path, nbformat.read(path, 4)


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return opened(request.param)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


def test_executed_once_from_top_to_bottom(notebook):
    """nbval executes a cell without a count but compares nothing there."""
    _, book = notebook
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))


def test_no_cell_takes_the_name_of_an_import(notebook):
    """A table that is called like a module hides it from every later cell."""
    _, book = notebook
    nodes = list(ast.walk(ast.parse("\n".join(cell.source for cell in code(book)))))
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    imported = {alias.asname or alias.name for n in imports for alias in n.names}
    assert not imported & {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def test_compared_outputs_are_there(notebook):
    """At least the verdict table (the claims map in 00) is an output that nbval compares."""
    _, book = notebook
    compared = [
        c for c in code(book) if c.outputs and "nbval-ignore-output" not in c.metadata.get("tags", [])
    ]
    tables = [o for c in compared for o in c.outputs if "**" in o.get("data", {}).get("text/markdown", "")]
    assert tables


def test_no_errors_no_timings_no_paths(notebook):
    path, book = notebook
    assert not [o for c in code(book) for o in c.outputs if o.output_type == "error"]
    assert "papermill" not in book.metadata
    assert not any({"papermill", "execution"} & set(c.metadata) for c in book.cells)
    assert not re.search(r"/(home|root|work|tmp|usr|Users)/", path.read_text())


def test_stderr_only_where_it_is_not_compared(notebook):
    _, book = notebook
    for cell in code(book):
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            assert not [o for o in cell.outputs if o.get("name") == "stderr"]


def test_opens_with_its_claim_and_closes_with_its_verdict(notebook):
    path, book = notebook
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith(f"# {path.stem.partition('_')[0]} ")
    if not path.stem.startswith("00"):
        assert "**Claim" in book.cells[0].source
        assert book.cells[-1].source.strip() == "run.finish()"
    assert len(code(book)) <= 32


def test_opening_a_notebook_changes_nothing(notebook):
    """JupyterLab writes the kernel's name and all it says of its language back into a notebook that lacks them."""
    _, book = notebook
    assert book.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    assert set(book.metadata.language_info) == {
        *(
            "name",
            "version",
            "mimetype",
            "file_extension",
            "pygments_lexer",
            "codemirror_mode",
            "nbconvert_exporter",
        )
    }


def test_a_long_parameter_cell_opens_folded(notebook):
    _, book = notebook
    (cell,) = [c for c in code(book) if "parameters" in c.metadata.get("tags", [])]
    assert (len(cell.source.splitlines()) > 10) == bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


ASKED = (
    test_executed_once_from_top_to_bottom,
    test_no_cell_takes_the_name_of_an_import,
    test_compared_outputs_are_there,
    test_no_errors_no_timings_no_paths,
    test_stderr_only_where_it_is_not_compared,
    test_opens_with_its_claim_and_closes_with_its_verdict,
    test_opening_a_notebook_changes_nothing,
    test_a_long_parameter_cell_opens_folded,
)


def faults(path):
    """What the notebook at ``path`` does not pass of the tests above, a line each."""
    for test in ASKED:
        try:
            test(opened(path))
        except AssertionError:
            yield f"{path}: fails {test.__name__}"


@pytest.mark.parametrize(
    ("name", "family", "steps"),
    [("05", "llama", (0,)), ("07", "gpt2", (0, 50))],
    ids=lambda value: str(value),
)
def test_a_ladder_of_another_make_is_looked_at_to_the_end(
    tmp_path, snapshots_of, whole_bpe, name, family, steps
):
    """One rung and two, another architecture and tokenizer: what cannot be tested says so, nothing breaks."""
    papermill = pytest.importorskip("papermill")
    folder = snapshots_of(tmp_path / "own", family, steps=steps, words=whole_bpe, hidden=32, heads=4)
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
    values = {"LADDER": str(folder), "RUN_DIR": str(tmp_path / "run")}
    papermill.execute_notebook(path, tmp_path / path.name, values, kernel_name="python3", progress_bar=False)
    saved = json.loads((tmp_path / "run" / "verdicts" / f"{path.stem}.json").read_text())
    kind = "local checkpoints (own)"
    rows = [row for row in saved["rows"] if kind in row["source"]]
    assert len(rows) > 5
    assert not any("tiny OLMo-2" in row["source"] for row in saved["rows"])
    assert any(row["verdict"] == "not testable here" for row in rows)
    assert any(row["verdict"] == "reproduced" for row in rows)


def test_every_question_is_asked_of_single_files_too():
    taking_a_notebook = [
        f for name, f in globals().items() if name.startswith("test_") and "notebook" in parameters(f)
    ]
    assert list(ASKED) == taking_a_notebook


def parameters(function):
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def test_a_single_file_that_was_not_executed_is_named(tmp_path):
    fine, book = opened(NOTEBOOKS[1])
    assert list(faults(fine)) == []
    code(book)[-1].execution_count = None
    nbformat.write(book, tmp_path / fine.name)
    assert list(faults(tmp_path / fine.name)) == [
        f"{tmp_path / fine.name}: fails test_executed_once_from_top_to_bottom"
    ]


if __name__ == "__main__":
    sys.exit("\n".join(line for name in sys.argv[1:] for line in faults(Path(name))) or 0)
