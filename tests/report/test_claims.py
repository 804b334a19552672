"""Verdicts: judged by numbers, from a closed vocabulary, saved whole."""

import pytest

from replicate.report import claims


def table():
    return claims.Verdicts("02_costates", "toy MDPs")


def test_bounds_decide():
    verdicts = table()
    common = {"where": "(6)", "quantity": "error"}
    assert verdicts.check("a", value=1e-12, below=1e-10, **common).verdict == "reproduced"
    assert verdicts.check("b", value=1e-3, below=1e-10, **common).verdict == "not reproduced"
    assert verdicts.check("c", value=3.0, above=1.0, below=2.0, **common).passed is False
    assert verdicts.check("d", value=float("nan"), below=1.0, **common).passed is False
    assert [row.claim for row in verdicts.failed] == ["b", "c", "d"]


def test_vocabulary_is_closed_and_a_bound_is_needed():
    with pytest.raises(ValueError, match="expected one of"):
        table().check("a", where="", quantity="", value=0.0, below=1.0, if_true="proved")
    with pytest.raises(ValueError, match="bound"):
        table().check("a", where="", quantity="", value=0.0)


def test_digits_are_shown_only_on_request():
    verdicts = table()
    verdicts.check("a", where="(6)", quantity="error", value=0.12345, below=1.0)
    assert "0.12" not in verdicts._repr_markdown_()
    verdicts.check("b", where="(6)", quantity="slope", value=-0.5012, below=0.0, show="+.1f")
    assert "slope = -0.5" in verdicts._repr_markdown_()


def test_saved_tables_come_back_in_order(tmp_path):
    for name in ("11_b", "02_a"):
        verdicts = claims.Verdicts(name, "toy MDPs")
        verdicts.check("holds", where="(6)", quantity="error", value=0.25, below=1.0)
        verdicts.untestable("hangs", where="(7)", because="no data")
        verdicts.save(tmp_path)
    loaded = claims.load(tmp_path)
    assert [t.notebook for t in loaded] == ["02_a", "11_b"]
    assert loaded[0].rows[0].value == 0.25
    text = claims.claims_map(loaded)
    assert text.count("**reproduced**") == 2
    assert text.count("**not testable here**") == 2


def test_controls_are_shown_in_the_notebook_and_kept_out_of_the_map():
    verdicts = table()
    verdicts.check("holds", where="(6)", quantity="error", value=0.0, below=1.0)
    verdicts.check("... and a flipped sign fails", where="(6)", quantity="error", value=2.0, above=1.0)
    assert "flipped" in verdicts._repr_markdown_()
    assert "flipped" not in claims.claims_map([verdicts])


def test_a_bar_in_a_cell_does_not_end_it():
    verdicts = table()
    verdicts.check("holds", where="(6)", quantity="|z|", value=0.0, below=1.0)
    row = verdicts._repr_markdown_().splitlines()[2]
    assert row.replace("\\|", "").count("|") == 7


def test_a_map_can_be_of_some_verdicts_only():
    verdicts = table()
    verdicts.check("holds", where="(6)", quantity="error", value=0.0, below=1.0)
    verdicts.check("fails", where="(6)", quantity="error", value=2.0, below=1.0)
    some = claims.claims_map([verdicts], only=["not reproduced"])
    assert "fails" in some
    assert "holds" not in some
    with pytest.raises(ValueError, match=r"only: expected verdicts out of .*, got \['wrong'\]"):
        claims.claims_map([verdicts], only=["wrong"])


def test_counts_leave_controls_out_and_add_up():
    verdicts = table()
    verdicts.check("holds", where="(6)", quantity="error", value=0.0, below=1.0)
    verdicts.check("... and a control", where="(6)", quantity="error", value=0.0, below=1.0)
    verdicts.check("fails", where="(6)", quantity="error", value=2.0, below=1.0)
    other = claims.Verdicts("03_b", "toy MDPs")
    other.check("holds too", where="(6)", quantity="error", value=0.0, below=1.0)
    rows = claims.counts([verdicts, other]).splitlines()
    assert rows[2:] == [
        "| 02_costates | 1 |  |  | 1 |  |",
        "| 03_b | 1 |  |  |  |  |",
        "| all | 2 |  |  | 1 |  |",
    ]
