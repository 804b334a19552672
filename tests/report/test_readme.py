"""The README's generated blocks: made from the results alone, each in its place, and nothing outside the markers."""

import json
import re
import sys

import pytest

from replicate import cli
from replicate.report import first_screen, readme
from replicate.report import verdicts as ledger

PROVENANCE = {
    "ladder": "tiny ladder",
    "checkpoints": {"a": "1", "b": "2"},
    "seeds": {"rl": [0, 1]},
    "parameters": {"BUDGETS": [5]},
    "notebooks": {
        "cores": 2, "processor": "P", "kernels": "pinned avx2", "versions": {"torch": "T", "transformers": "F"}
    },
    "wall_seconds": {"ladder": 60.2, "jobs": 90.0, "notebooks": 30.0},
    "notebook_seconds": {"01_a": 4.0, "06_gap": 26.4},
    "mixed": [],
}  # fmt: skip


@pytest.mark.parametrize(("mixed", "said"), [([], False), (["commit"], True)])
def test_what_ran_where_and_how_long(tmp_path, mixed, said):
    """Mixed origins are said aloud."""
    (tmp_path / "provenance.json").write_text(json.dumps(PROVENANCE | {"mixed": mixed}))
    text = readme.run_block(tmp_path)
    for piece in ("2 checkpoints", "3.0 minutes on 2 cores", "kernels pinned avx2", "06_gap, took 26 s"):
        assert piece in text
    assert ("Mixed origins: commit." in text) is said


def test_only_what_stands_between_markers_changes():
    text = "before <!-- run:start -->\nold\n<!-- run:end --> after"
    filled = readme.fill(text, {"run": r"new \1"})
    assert filled == "before <!-- run:start -->\nnew \\1\n<!-- run:end --> after"
    assert readme.fill(filled, {"run": r"new \1"}) == filled


def test_a_block_may_stand_in_two_places():
    place = "<!-- run:start -->\nold\n<!-- run:end -->"
    filled = readme.fill(f"{place} between {place}", {"run": "new"})
    assert filled == f"{place} between {place}".replace("old", "new")


@pytest.mark.parametrize(
    "text",
    [
        "no marker at all",
        "<!-- claims:start -->\nnever ends <!-- run:start -->\n<!-- run:end -->",
        "<!-- run:start -->\n<!-- run:end --> never began <!-- claims:end -->",
        "<!-- claims:end -->\nback to front <!-- claims:start -->\n",
    ],
)
def test_a_block_without_its_place_is_named(text):
    with pytest.raises(ValueError, match="README: no block named claims"):
        readme.fill(text, {"claims": "x", "run": "y"})


@pytest.mark.parametrize("marker", ["start", "end"])
def test_a_place_that_nobody_fills_is_named(marker):
    """Else its text would stay what it was for ever, and look generated."""
    text = f"<!-- run:start -->\n<!-- run:end -->\n<!-- times:{marker} -->\n"
    with pytest.raises(ValueError, match=r"README: expected blocks out of \('run',\), got times"):
        readme.fill(text, {"run": "y"})


README = """# Title, `typed` by hand
<!-- answer:start -->
<!-- answer:end -->
<!-- rows:start -->
<!-- rows:end -->
<!-- run:start -->
<!-- run:end -->
<!-- claims:start -->
old claims
<!-- claims:end -->
between
<!-- benchmarks:start -->
<!-- benchmarks:end -->
The end."""


def _save_first_screen(folder):
    """A verdict for every line of the first screen, one of them with an interval."""
    lines = [*first_screen.ANSWER, *first_screen.ROWS]
    for number in sorted({line.notebook for line in lines}):
        table = ledger.Verdicts(f"{number}_n", "toys")
        for line in lines:
            if line.notebook == number:
                quantity = "correlation: +0.50 [-0.10, +1.10], 1 of 2 ladders; lower end"
                row = (line.claim or line.key, "paper", "(1)", quantity, 2.0, None, 1.0)
                table.judge(*row, ("reproduced", "not reproduced"), None, key=line.key or None)
        table.save(folder)


def test_a_line_whose_verdict_is_gone_is_an_error(published):
    page, results = published
    path = results / "verdicts" / "13_n.json"
    path.write_text(path.read_text().replace("spearman", "pearson"))
    with pytest.raises(ValueError, match="first screen"):
        readme.render(page, results)


def test_a_number_without_an_interval_stands_beside_its_criterion():
    table = ledger.Verdicts("04_n", "toys")
    table.check("c", kind="paper", where="(1)", quantity="error", value=0.25, below=1.0)
    assert first_screen._number(table.rows[0]) == "`0.25` (< 1)"


@pytest.fixture
def published(tmp_path):
    """A README and what it is made from."""
    verdicts = ledger.Verdicts("06_gap", "toy MDPs")
    verdicts.check("large", kind="paper", where="(6)", quantity="error", value=2.0, below=1.0)
    verdicts.check("small", kind="ours", where="(6)", quantity="error", value=0.5, below=1.0)
    results = tmp_path / "results" / "cpu"
    verdicts.save(results / "verdicts")
    _save_first_screen(results / "verdicts")
    verdicts.save(results.parent / "elsewhere" / "native-seed1" / "verdicts")
    (results / "provenance.json").write_text(json.dumps(PROVENANCE))
    (results.parent / "benchmarks").mkdir()
    table = {"title": "Times", "columns": ["what", "s"], "rows": [["step", "0.5"]]}
    (results.parent / "benchmarks" / "a.json").write_text(json.dumps(table))
    (tmp_path / "README.md").write_text(README)
    return tmp_path / "README.md", results


def test_the_page_is_made_from_the_results_and_made_again_is_the_same(published):
    page, results = published
    text = readme.render(page, results)
    for piece in (
        "| the paper's | 10 |  |  | 1 |  |",
        "1 of 2 ladders",
        "2 checkpoints",
        "Times\n\n| what | s |\n|---|---|\n| step | 0.5 |",
    ):
        assert piece in text
    assert "In all 1 runs recorded" in text
    assert "small" not in text  # the long tables are on the page of claims
    assert "old claims" not in text
    outside = [
        re.sub(r"(\w+:start -->\n).*?(<!-- \w+:end)", r"\1\2", t, flags=re.DOTALL) for t in (README, text)
    ]
    assert outside[0] == outside[1]
    assert page.read_text() == README  # nothing is written here
    page.write_text(text)
    assert readme.render(page, results) == text


@pytest.mark.parametrize("name", ["claims", "run", "benchmarks"])
def test_a_page_that_lacks_a_block_is_refused(published, name):
    page, results = published
    page.write_text(README.replace(f"<!-- {name}:start -->\n", ""))
    with pytest.raises(ValueError, match=f"no block named {name}"):
        readme.render(page, results)


def test_results_without_verdicts_are_named(published):
    page, results = published
    for path in (results / "verdicts").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f"{results}: no verdicts"):
        readme.render(page, results)


def report(monkeypatch, capsys, published, *options):
    """The status of ``replicate report`` and what it says of each page."""
    page, results = published
    claims = page.with_name("CLAIMS.md")
    command = ["replicate", "report", "--readme", page, "--results", results, "--claims", claims, *options]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as status:
        cli.main()
    said = [line.split(": ")[-1] for line in capsys.readouterr().out.splitlines()]
    return status.value.code or 0, said


def test_stale_pages_are_said_then_rewritten_then_up_to_date(published, monkeypatch, capsys):
    page, _ = published
    assert report(monkeypatch, capsys, published, "--check") == (1, ["out of date"] * 3)
    assert page.read_text() == README
    assert not page.with_name("CLAIMS.md").exists()
    assert report(monkeypatch, capsys, published) == (0, ["rewritten"] * 3)
    assert report(monkeypatch, capsys, published, "--check") == (0, ["up to date"] * 3)
    page.write_text(page.read_text().replace("0.5 |", "0.4 |"))  # a number changed by hand
    assert report(monkeypatch, capsys, published, "--check") == (
        1,
        ["out of date", "up to date", "up to date"],
    )
    assert report(monkeypatch, capsys, published) == (0, ["rewritten", "up to date", "up to date"])
    assert "0.5 |" in page.read_text()
