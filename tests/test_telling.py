"""How notebooks 01 to 08 are told: short sentences, few cells, exercises with answers that run, numbers to move, one
meaning a letter."""

import ast
import re
import statistics
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

from replicate.report import glossary  # noqa: E402
from replicate.report.ledger.questions import ledger  # noqa: E402

ROOT = Path(__file__).parents[1]
ALL = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOLD = [path for path in ALL if path.stem[:2] in {f"0{i}" for i in range(1, 9)}]

# Letters that are bound where they stand (a dummy variable, an index, a vector of one line) and so are no symbols.
BOUND = set("abcdeijklmquvwxy")


@pytest.fixture(params=TOLD, ids=lambda p: p.stem)
def book(request):
    return nbformat.read(request.param, 4), request.param.stem


def text(cells):
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def prose(source):
    """The sentences, without displayed formulas, tables, code and headings."""
    source = re.sub(r"\$\$.*?\$\$|```.*?```", " ", source, flags=re.DOTALL)
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("|", "#"))]
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.!?:])\s+", p.strip())]
    return [s for s in sentences if len(s.split()) > 2]


def test_the_median_sentence_is_short(book):
    cells, _ = book
    assert statistics.median(len(s.split()) for s in prose(text(cells.cells))) < 20


def test_few_code_cells_mostly_short(book):
    cells, _ = book
    shown = [c for c in cells.cells if c.cell_type == "code" and "answer" not in c.metadata.get("tags", [])]
    assert len(shown) <= 26
    assert statistics.median(len(c.source.splitlines()) for c in shown) <= 17


def test_two_or_three_exercises_with_folded_answers_that_assert(book):
    """Answers are executed with the notebook, so one that is wrong fails there."""
    cells, _ = book
    answers = [i for i, c in enumerate(cells.cells) if "answer" in c.metadata.get("tags", [])]
    assert len(answers) in (2, 3)
    for number, i in enumerate(answers, start=1):
        cell, asked = cells.cells[i], cells.cells[i - 1]
        assert asked.cell_type == "markdown"
        assert f"**Exercise {number}.**" in asked.source
        assert cell.metadata.jupyter.source_hidden
        assert "hide-cell" in cell.metadata.tags
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


def test_there_is_something_to_move_and_it_is_used(book):
    cells, name = book
    code = [c.source for c in cells.cells if c.cell_type == "code"]
    used = {n.id for source in code[1:] for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
    assert ledger(name).knobs
    assert set(ledger(name).knobs) <= used


def test_verdicts_are_short_lines(book):
    """A row's words stand in its ledger; no other way to a verdict is left in these notebooks."""
    cells, _ = book
    for cell in cells.cells:
        if cell.cell_type == "code":
            assert not re.search(r"\b(check|control|refutes|empties)\(", cell.source)


def letters(source):
    """The letters of a text's formulas, with their typeface, without words in them and without indices."""
    formulas = re.findall(r"\$\$(.*?)\$\$|(?<!\$)\$([^$]+?)\$(?!\$)", source, flags=re.DOTALL)
    found = set()
    for formula in (a or b for a, b in formulas):
        words = r"\\(?:operatorname\*?|text|mathrm|texttt|tag|label|begin|end|textbf|textit|mathit)\{[^{}]*\}"
        formula = re.sub(words, " ", formula)
        faces = re.findall(r"\\(mathcal|mathbf|mathbb|mathsf)\s*\{?([A-Za-z])\}?", formula)
        found |= {f"{face}:{letter}" for face, letter in faces}
        formula = re.sub(r"\\(mathcal|mathbf|mathbb|mathsf)\s*(\{[^{}]*\}|[A-Za-z])", " ", formula)
        found |= set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", formula)))
    return found


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_letter_of_the_formulas_is_in_the_glossary(path):
    cells = nbformat.read(path, 4)
    known = {letter for s in glossary.symbols() for letter in letters(f"${s['symbol']}$")}
    always = {"mathbb:E", "mathbb:R", "mathbb:P", "mathcal:N", "mathbf:1", "mathbf:I", "I", "O", "F"}
    assert sorted(letters(text(cells.cells)) - known - BOUND - always) == []


def test_a_symbol_of_the_glossary_has_one_entry():
    symbols = [part.strip() for s in glossary.symbols() for part in s["symbol"].split(",")]
    assert len(symbols) == len(set(symbols))


_CITED = r"([A-Z][\w-]+(?: et al\.| and [A-Z][\w-]+)?),? \(?((?:19|20)\d\d)\)?"


def test_what_is_cited_is_listed(book):
    """A name with a year; a listed name may begin with a particle, and months or plain years are no names."""
    cells, _ = book
    listed = set(glossary.references())
    cited = {f"{name} {year}" for name, year in re.findall(_CITED, text(cells.cells))}
    assert {key for key in cited if not any(entry.endswith(key) for entry in listed)} == set()


def test_references_are_sorted_and_every_one_is_cited():
    listed = list(glossary.references())
    assert listed == sorted(listed, key=str.lower)
    everything = " ".join(re.sub(r"[(),]", "", text(nbformat.read(p, 4).cells)) for p in TOLD)
    assert [key for key in listed if key.removeprefix("de ") not in everything] == []
