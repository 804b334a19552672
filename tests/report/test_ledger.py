"""What a notebook asks is declared before it is measured; every declaration is answered once and says what it must."""

import pytest

from replicate.report.ledger import questions
from replicate.report.ledger.asked import Asked
from replicate.report.ledger.questions import FOLDER, Knob, Ledger, Question, ledger, statements
from replicate.report.verdicts import Verdicts
from replicate.statistics.agreement import worst_z_bound

LEDGERS = sorted(path.stem for path in FOLDER.glob("[0-9]*.toml"))


def asked(*rows):
    table, shown = Verdicts("01_x", "toy"), []
    return Asked(table, Ledger({row.key: row for row in rows}), show=shown.append), table, shown


def row(key="k", **changes):
    fields = {"whose": "ours", "where": "(2)", "claim": "It holds", "quantity": "error", "below": 1.0}
    return Question(key, **{**fields, **changes})


def test_an_answer_is_a_row_of_the_table_and_is_shown():
    verdict, table, shown = asked(row(quantity="error, n = {n}", below="z({tests})"))
    verdict("k", 4.0, n=10, tests=6)
    assert shown == table.rows
    assert table.rows[0].quantity == "error, n = 10"
    assert table.rows[0].criterion == f"< {worst_z_bound(6):.4g}"
    assert table.rows[0].verdict == "reproduced"


@pytest.mark.parametrize(
    ("value", "polarity", "verdict"),
    [
        (0.5, "supports", "reproduced"),
        (2.0, "supports", "not reproduced"),
        (0.5, "refutes", "not reproduced"),
        (2.0, "refutes", "reproduced"),
        (0.5, "empties", "true but vacuous here"),
        (2.0, "empties", "reproduced"),
    ],
)
def test_the_polarity_says_in_which_direction_a_number_speaks(value, polarity, verdict):
    put, table, _ = asked(row(polarity=polarity))
    put("k", value)
    assert table.rows[0].verdict == verdict


def test_a_reason_in_place_of_a_number_is_not_testable_here():
    put, table, _ = asked(row(whose="paper", statement="eq_7", routes="a; b"))
    put("k", None, because="no rung")
    assert (table.rows[0].verdict, table.rows[0].quantity) == ("not testable here", "no rung")
    assert (table.rows[0].statement, table.rows[0].routes) == ("eq_7", "a; b")


def test_a_key_with_a_name_in_braces_may_be_asked_of_several():
    put, table, _ = asked(row(claim="It holds on the {task}"))
    for task in ("cart", "pendulum"):
        put("k", 0.5, task=task)
    assert [r.claim for r in table] == ["It holds on the cart", "It holds on the pendulum"]
    with pytest.raises(ValueError, match="k: expected one answer, got a second to 'It holds on the cart'"):
        put("k", 0.5, task="cart")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda put: put("other", 1.0), r"other: expected a row of 01_x.toml \(k\)"),
        (lambda put: put("k", 1.0), "k: expected a value for 'n'"),
        (lambda put: put.require_all(), "01_x: declared but not measured: k"),
    ],
)
def test_what_is_asked_wrongly_is_named(how, message):
    put, _, _ = asked(row(quantity="n = {n}"))
    with pytest.raises(ValueError, match=message):
        how(put)


def test_what_a_kind_of_row_needs_is_required():
    with pytest.raises(ValueError, match="k: expected statement= in a row of kind paper"):
        row(whose="paper")
    with pytest.raises(ValueError, match="k: expected rejects= in a row of kind control"):
        row(whose="control")
    with pytest.raises(ValueError, match=r"k: expected a statement out of statements\.toml, got 'x'"):
        row(whose="paper", statement="x", routes="a; b")


@pytest.mark.parametrize("value", [0.01, 3.0, "1", True, None, float("nan")])
def test_a_number_out_of_its_range_is_named_with_the_range(value):
    knob = Knob("SIGMA", 0.7, low=0.05, high=2.0, about="noise of the action")
    assert knob.checked(1, where="nb") == 1.0
    with pytest.raises(
        ValueError, match=r"^nb: SIGMA \(noise of the action\): expected a number from 0.05 to 2.0"
    ):
        knob.checked(value, where="nb")


def test_a_whole_number_stays_one():
    knob = Knob("HORIZON", 12, low=2, high=20, about="steps")
    assert knob.checked(3, where="nb") == 3
    with pytest.raises(ValueError, match=r"expected a whole number from 2 to 20, got 3\.0"):
        knob.checked(3.0, where="nb")
    assert knob.line == "HORIZON = 12  # steps: 2 to 20"


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "FOLDER", tmp_path)
    (tmp_path / "98_x.toml").write_text("[rows.a\n")
    with pytest.raises(ValueError, match=r"98_x\.toml: "):
        ledger("98_x")
    (tmp_path / "99_x.toml").write_text(
        '[rows.a]\nwhose = "control"\nwhere = "x"\nclaim = "c"\nquantity = "q"\nabove = 1\nrejects = ["b"]\n'
    )
    with pytest.raises(ValueError, match=r"99_x\.toml: expected rejects= to name rows, got b"):
        ledger("99_x")


@pytest.mark.parametrize("notebook", LEDGERS)
def test_every_row_of_the_paper_could_have_come_out_otherwise(notebook):
    """A control rejects a planted error, or the row itself speaks against the statement."""
    rows = ledger(notebook).rows.values()
    rejected = {key for r in rows for key in r.rejects}
    bare = [r.key for r in rows if r.whose == "paper" and r.polarity == "supports" and r.key not in rejected]
    assert bare == []


@pytest.mark.parametrize("notebook", LEDGERS)
def test_the_defaults_of_what_may_be_moved_are_within_range(notebook):
    for knob in ledger(notebook).knobs.values():
        assert knob.checked(knob.default, where=notebook) == knob.default


def test_every_statement_of_the_paper_has_its_place_and_a_text():
    assert len(statements()) > 30
    for key, statement in statements().items():
        assert set(statement) == {"where", "text"}, key
        assert statement["text"][-1] not in ".;:"
