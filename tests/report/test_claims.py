"""Verdicts: judged by numbers, from a closed vocabulary, each with its owner, saved whole."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from replicate.report import claims
from replicate.report import verdicts as ledger
from replicate.statistics.over_ladders import over_ladders

AT = {"where": "(6)", "quantity": "error"}


def table():
    return ledger.Verdicts("02_costates", "toy MDPs")


def cells(verdicts):
    return [line.split(" | ") for line in verdicts._repr_markdown_().splitlines()[2:]]


def test_bounds_decide():
    verdicts = table()
    verdicts.check("a", kind="paper", value=1e-12, below=1e-10, **AT)
    verdicts.check("b", kind="paper", value=1e-3, below=1e-10, **AT)
    verdicts.check("c", kind="ours", value=3.0, above=1.0, below=2.0, **AT)
    verdicts.check("d", kind="background", value=float("nan"), below=1.0, **AT)
    verdicts.check("e", kind="ours", value=1.0, below=1.0, **AT)  # bounds are open
    assert [row.verdict for row in verdicts] == ["reproduced"] + 4 * ["not reproduced"]
    assert [row.claim for row in verdicts.failed] == ["b", "c", "d", "e"]


def test_an_interval_over_ladders_decides_only_beyond_the_bound_and_after_the_correction():
    ahead, behind, both = (
        over_ladders(np.array(x)) for x in ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [-1.0, 2.0])
    )
    verdicts = table()
    verdicts.decide("a", ahead, kind="ours", above=-0.5, **AT)
    verdicts.decide("b", behind, kind="ours", above=0.5, **AT)
    verdicts.decide("c", both, kind="ours", **AT)
    verdicts.decide("d", over_ladders([1.0, 1.1, 1.2]), kind="paper", corrected=0.04, **AT)
    verdicts.decide("e", over_ladders([1.0, 1.1, 1.2]), kind="paper", corrected=0.06, **AT)
    verdicts.decide(
        "f", over_ladders([1.0, 1.1, 1.2]), kind="paper", if_true="reproduced with a repair", **AT
    )
    words = ["reproduced", "not reproduced", "not testable here", "reproduced"]
    assert [row.verdict for row in verdicts] == [*words, "not testable here", "reproduced with a repair"]
    rows = list(verdicts)
    assert rows[0].value == pytest.approx(ahead.low)
    assert "undecided at 0" in rows[2].quantity
    assert "p = 0.06 among all questions" in rows[4].quantity
    assert "among all" not in rows[2].quantity


def test_numbers_of_any_kind_are_judged_and_saved(tmp_path):
    """A bound taken from data is numpy's, and so is a comparison with it, which JSON does not know."""
    verdicts = table()
    verdicts.check("a", kind="ours", value=np.float64(0.5), below=np.float64(0.75), **AT)
    verdicts.save(tmp_path)
    assert claims.load(tmp_path)[0].rows[0].passed is True


def test_a_check_gives_nothing_back():
    """So that no notebook cell ends in a row by accident, and none needs ``_ =`` in front."""
    verdicts = table()
    assert verdicts.check("a", kind="paper", value=0.0, below=1.0, **AT) is None
    assert verdicts.control("b", value=0.0, below=1.0, **AT) is None
    assert verdicts.refutes("c", value=0.0, below=1.0, **AT) is None
    assert verdicts.empties("d", value=0.0, below=1.0, **AT) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"if_true": "proved", "below": 1.0}, "expected one of"),
        ({}, "bound"),
        ({"kind": "theirs", "below": 1.0}, "kind: expected one of .*, got 'theirs'"),
        ({"kind": "control", "below": 1.0}, "use control"),
    ],
)
def test_what_a_row_needs_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        table().check("a", **{"kind": "paper", "value": 0.0, **AT, **options})


def test_a_claim_that_cannot_be_tested_has_an_owner():
    with pytest.raises(ValueError, match=r"kind: expected one of .*, got 'theirs'"):
        table().untestable("a", kind="theirs", where="(7)", because="no data")


def test_a_row_says_what_was_measured():
    unsourced = ledger.Verdicts("09_ladder", None)
    with pytest.raises(ValueError, match="source: 'a' does not say"):
        unsourced.check("a", kind="ours", value=0.0, below=1.0, **AT)
    unsourced.check("b", kind="ours", value=0.0, below=1.0, source="toy MDPs", **AT)
    assert unsourced.rows[0].source == "toy MDPs"


def test_a_refuting_row_never_reads_pass_and_not_reproduced():
    verdicts = table()
    verdicts.refutes("credit is blocked", value=0.7, above=1e-3, **AT)
    verdicts.refutes("credit flows", value=0.0, above=1e-3, **AT)
    (against, stands) = cells(verdicts)
    assert against[6:] == ["refuted", "**not reproduced** |"]
    assert stands[6:] == ["not refuted", "**reproduced** |"]
    assert verdicts.rows[0].kind == "paper"


def test_an_emptying_row_says_that_the_claim_says_nothing():
    verdicts = table()
    verdicts.empties("the bound holds", value=2e3, above=1.0, **AT)
    verdicts.empties("the other bound holds", value=0.5, above=1.0, **AT)
    (empty, binding) = cells(verdicts)
    assert empty[6:] == ["says nothing", "**true but vacuous here** |"]
    assert binding[6:] == ["binds", "**reproduced** |"]


def test_a_control_that_fails_fails_the_notebook():
    verdicts = table()
    verdicts.control("... and a flipped sign fails", value=2.0, above=1.0, **AT)
    verdicts.check("wrong", kind="paper", value=2.0, below=1.0, **AT)
    verdicts.require_controls()  # a claim that does not hold is a finding, not a failure
    verdicts.control("... and a dropped term fails", value=0.5, above=1.0, **AT)
    with pytest.raises(ledger.ControlFailed, match=r"1 control.*dropped term.*0\.5.*expected > 1"):
        verdicts.require_controls()


def test_a_tolerance_beside_a_round_bound_is_not_rounded_away():
    """Else a row reads as 1 < 1."""
    verdicts = table()
    verdicts.check("a", kind="ours", value=1.0, below=1 + 1e-9, **AT)
    verdicts.check("b", kind="ours", value=1.0, above=1 - 1e-9, below=3.890591886, **AT)
    assert [row.criterion for row in verdicts] == ["< 1 + 1e-09", "> 1 - 1e-09 and < 3.891"]


def test_the_criterion_of_a_row_that_speaks_against_its_claim_says_so():
    verdicts = table()
    verdicts.refutes("a", value=2.0, above=1.0, **AT)
    verdicts.empties("b", value=2.0, above=1.0, **AT)
    verdicts.untestable("c", kind="paper", where="(7)", because="no data")
    assert [row[5] for row in cells(verdicts)] == ["refuted if > 1", "says nothing if > 1", "-"]


def test_values_are_shown_where_nbval_passes_over_them():
    verdicts = table()
    verdicts.check("a", kind="ours", value=0.123456, below=1.0, **AT)
    verdicts.check("b", kind="ours", value=float("inf"), below=1.0, **AT)
    verdicts.untestable("c", kind="paper", where="(7)", because="no data")
    assert [row[4] for row in cells(verdicts)] == ["`0.123`", "not finite", "-"]


def test_saved_tables_come_back_in_order(tmp_path):
    for name in ("11_b", "02_a"):
        verdicts = ledger.Verdicts(name, "toy MDPs")
        verdicts.check("holds", kind="paper", value=0.25, below=1.0, **AT)
        verdicts.untestable("hangs", kind="paper", where="(7)", because="no data")
        verdicts.save(tmp_path)
    loaded = claims.load(tmp_path)
    assert [t.notebook for t in loaded] == ["02_a", "11_b"]
    assert loaded[0].rows[0].value == 0.25
    text = claims.claims_map(loaded)
    assert text.count("**reproduced**") == 2
    assert text.count("**not testable here**") == 2


def test_a_damaged_file_is_named(tmp_path):
    table().save(tmp_path)
    path = tmp_path / "02_costates.json"
    for text in ("{", '{"notebook": "02_costates", "rows": [{"claim": "a"}]}', "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"02_costates\.json: damaged"):
            claims.load(tmp_path)


def several():
    verdicts = table()
    verdicts.check("holds", kind="paper", value=0.0, below=1.0, **AT)
    verdicts.control("... and a flipped sign fails", value=2.0, above=1.0, **AT)
    verdicts.check("fails", kind="ours", value=2.0, below=1.0, **AT)
    verdicts.check("is known", kind="background", value=0.0, below=1.0, **AT)
    return verdicts


def test_controls_are_shown_in_the_notebook_and_kept_out_of_the_map():
    assert "flipped" in several()._repr_markdown_()
    assert "flipped" not in claims.claims_map([several()])


def test_a_bar_in_a_cell_does_not_end_it():
    verdicts = table()
    verdicts.check("holds", kind="ours", where="(6)", quantity="|z|", value=0.0, below=1.0)
    row = verdicts._repr_markdown_().splitlines()[2]
    assert row.replace("\\|", "").count("|") == 9


def test_a_map_can_be_of_some_verdicts_and_some_owners_only():
    some = claims.claims_map([several()], only=["not reproduced"])
    assert "fails" in some
    assert "holds" not in some
    some = claims.claims_map([several()], kinds=["paper"])
    assert "holds" in some
    assert "fails" not in some
    with pytest.raises(ValueError, match=r"only: expected verdicts out of .*, got \['wrong'\]"):
        claims.claims_map([several()], only=["wrong"])


def test_the_map_links_to_the_notebook_and_names_the_cell():
    verdicts = several()
    assert "[02_costates](notebooks/02_costates.ipynb)" in claims.claims_map(
        [verdicts], notebooks="notebooks"
    )
    assert "[02_costates](02_costates.ipynb)" in claims.claims_map([verdicts])


def test_a_link_leads_to_the_cell_that_made_the_row():
    """The number is that of the committed notebook: a cell that Papermill puts in front does not count."""
    book = json.loads((Path(__file__).parents[2] / "notebooks" / "02_costates.ipynb").read_text())
    identity = [cell["id"] for cell in book["cells"] if cell["cell_type"] == "code"][4]
    verdicts = several()
    verdicts.rows[:] = [dataclasses.replace(row, cell=5) for row in verdicts]
    found = claims.claims_map([verdicts], notebooks="notebooks")
    assert f"(notebooks/02_costates.ipynb#cell-id={identity}), [5]" in found


def test_papermills_own_cell_is_not_counted(monkeypatch):
    monkeypatch.setattr(ledger, "cell_number", lambda: 9)
    verdicts = ledger.Verdicts("02_costates", "toy MDPs", shift=1)
    verdicts.check("holds", kind="paper", value=0.0, below=1.0, **AT)
    assert verdicts.rows[0].cell == 8


def test_counts_leave_controls_out_and_add_up():
    other = ledger.Verdicts("03_b", "toy MDPs")
    other.check("holds too", kind="paper", value=0.0, below=1.0, **AT)
    assert claims.whose([several(), other]).splitlines()[2:] == [
        "| the paper's | 2 |  |  |  |  |",
        "| background | 1 |  |  |  |  |",
        "| ours |  |  |  | 1 |  |",
    ]
