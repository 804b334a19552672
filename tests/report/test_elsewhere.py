"""Verdicts elsewhere: ranges of numbers, and every disagreement with what is published."""

import pytest

from replicate.report import claims, claims_page, elsewhere, readme
from replicate.report import verdicts as ledger

AT = {"where": "(6)", "quantity": "error"}


def table(value, *, control=2.0, notebook="06_gap"):
    verdicts = ledger.Verdicts(notebook, "toy MDPs")
    verdicts.check("small", kind="paper", value=value, below=1.0, **AT)
    verdicts.control("... and a wrong one is not", value=control, above=1.0, **AT)
    return verdicts


@pytest.fixture
def folder(tmp_path):
    """A published run and two runs elsewhere that agree with it."""
    table(0.5).save(tmp_path / "cpu" / "verdicts")
    for name, value in (("native-seed1", 0.25), ("stand-in-seed0", 0.75)):
        table(value).save(tmp_path / "elsewhere" / name / "verdicts")
    return tmp_path


def test_ranges_are_over_runs_and_published_numbers_are_not_among_them(folder):
    runs = elsewhere.load(folder / "elsewhere")
    assert set(runs) == {"native-seed1", "stand-in-seed0"}
    seen = elsewhere.ranges(runs.values())["06_gap", "small"]
    assert (seen.runs, seen.low, seen.high, seen.verdicts) == (2, 0.25, 0.75, {"reproduced"})
    page = claims_page.render(folder / "cpu", folder / "elsewhere")
    assert "`0.25` to `0.75` (2)" in page
    assert "In all 2 runs recorded (notebooks 06) every verdict is the published one." in page


@pytest.mark.parametrize("options", [{"value": 3.0}, {"value": 0.5, "control": 0.5}])
def test_another_verdict_and_a_failed_control_are_disagreements(folder, options):
    table(**options).save(folder / "elsewhere" / "native-seed2" / "verdicts")
    published, runs = claims.load(folder / "cpu" / "verdicts"), elsewhere.load(folder / "elsewhere")
    (line,) = elsewhere.disagreements(published, runs)
    assert line.startswith("native-seed2: 06_gap: ")
    assert "1 verdicts differ" in claims_page.render(folder / "cpu", folder / "elsewhere")
    assert "1 verdicts differ" in readme.claims_block(folder / "cpu", folder / "elsewhere")


def test_without_runs_the_page_says_so(folder):
    assert "No such run is recorded" in claims_page.render(folder / "cpu", folder / "nowhere")


def test_a_claim_without_a_number_has_no_range():
    verdicts = ledger.Verdicts("06_gap", "toy MDPs")
    verdicts.untestable("hangs", kind="paper", where="(7)", because="no data")
    assert str(elsewhere.ranges([[verdicts]])["06_gap", "hangs"]) == "(1)"


def test_the_page_shows_the_papers_statements_first_and_lists_the_audits(folder):
    page = claims_page.render(folder / "cpu", folder / "elsewhere")
    assert page.index("paper's statements") < page.index("## Ours") < page.index("## Background")
    for name in [f"A{i}" for i in range(1, 11)] + [f"B{i}" for i in range(1, 16)]:
        assert f"| {name} | " in page
