"""A statement of the paper is judged from all its rows: charitably, and not more charitably than they allow."""

from pathlib import Path

import pytest

from replicate.report import claims, statements
from replicate.report.ledger.questions import statements as declared
from replicate.report.verdicts import Verdicts

RESULTS = Path(__file__).parents[2] / "results" / "cpu" / "verdicts"


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        ([], "not testable here"),
        (["not testable here"], "not testable here"),
        (["reproduced", "not testable here"], "holds"),
        (["reproduced", "reproduced with a repair"], "holds in part"),
        (["reproduced", "not reproduced"], "holds in part"),
        (["reproduced", "true but vacuous here"], "holds in part"),
        (["reproduced with a repair", "not reproduced"], "holds repaired"),
        (["reproduced with a repair", "true but vacuous here"], "holds repaired"),
        (["true but vacuous here"], "holds and says nothing"),
        (["true but vacuous here", "not reproduced"], "holds and says nothing"),
        (["not reproduced", "not testable here"], "fails"),
    ],
)
def test_the_outcome_of_several_readings(verdicts, outcome):
    assert statements.outcome(verdicts) == outcome


def tables(**verdict_of):
    table = Verdicts("02_x", "toy")
    for key, value in verdict_of.items():
        row = {"kind": "paper", "where": "(7)", "quantity": "error", "statement": key}
        table.check(f"claim on {key}", value=value, below=1.0, **row)
    table.check("ours", kind="ours", where="(7)", quantity="error", value=5.0, below=1.0, statement="eq_7")
    return [table]


def test_the_count_and_the_table_speak_of_the_papers_rows_only():
    found = tables(eq_7=0.5, eq_8=2.0)
    others = len(declared()) - 2
    assert statements.tally(found) == (
        f"Of the paper's {len(declared())} statements 1 holds as it stands, 1 fails wherever it could be tested and "
        f"{others} cannot be tested here."
    )
    lines = statements.table(found, notebooks="notebooks").splitlines()
    (line,) = [line for line in lines if "| (7) |" in line]
    assert "**holds** | 1 reproduced | [02](notebooks/02_x.ipynb)" in line


def test_every_statement_is_judged_by_a_row_of_the_published_run_and_every_row_judges_one():
    published = claims.load(RESULTS)
    paper = [row for table in published for row in table if row.kind == "paper"]
    assert [row.claim for row in paper if row.statement not in declared()] == []
    assert [s.key for s in statements.judged(published) if not s.rows] == []
