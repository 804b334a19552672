"""The alarms of runs: in their records, as a table, and said once for a whole sweep, whoever ran what and when."""

import itertools
import shutil
import sys

import pandas as pd
import pytest
import yaml

from replicate import cli
from replicate.rl import alarms
from replicate.runs import jobs, sweep, tables, units
from replicate.runs.units import Outcome, warnings_of


def run(params, **options):
    return sweep.sweep(params, progress=False, **options)


def alarm(name="null update", share=1.0, said="in 2 of 2 updates, first at 1, so it is"):
    return {"alarm": name, "updates": 2, "first": 1, "share": share, "said": said}


def outcome(*runs):
    """What a sweep noted of runs: (step, seed, alarms)."""
    found = Outcome()
    for step, seed, raised in runs:
        found.note("rl", step, seed, {"alarms": raised})
    return found


def test_an_alarm_is_one_line_however_many_runs_raise_it_and_quotes_the_worst():
    runs = [(0, 0, [alarm(share=0.5)]), (20, 1, [alarm(share=0.75, said="worst")]), (40, 0, [])]
    for order in itertools.permutations(runs):
        (line,) = outcome(*order).warnings()
        assert line == "rl: null update on 2 of 3 runs, steps 0 to 20; most at step 20, seed 1: worst"


def test_alarms_of_two_kinds_are_two_lines_and_none_is_no_line():
    found = outcome((20, 0, [alarm("b"), alarm("a")]), (20, 1, [alarm("b")]))
    assert [line.partition(" runs, step 20; ")[0] for line in found.warnings()] == [
        "rl: a on 1 of 2",
        "rl: b on 2 of 2",
    ]
    assert outcome((20, 0, [])).warnings() == []


def test_what_raises_no_alarms_by_nature_is_not_counted():
    found = outcome((20, 0, [alarm()]))
    found.note("measure", 20, 0, {"reward": 0.5})
    assert dict(found.watched) == {"rl": 1}


def test_several_ladders_share_a_line_that_names_the_worst_ones():
    of = {"a": outcome((0, 0, [alarm(share=0.5)])), "b": outcome((60, 1, [alarm()]), (80, 1, []))}
    (line,) = warnings_of(of)
    assert line.startswith("rl: null update on 2 of 3 runs, steps 0 to 60; most at b, step 60, seed 1: ")


def test_records_have_the_alarms_of_their_own_updates(params, contents):
    """What is read back from the store is what the rules say of the metrics that stand beside it."""
    run(params)
    settings = jobs.settings(params, "rl")
    found = [r["result"] for r in contents(params).values() if r["experiment"] == "rl"]
    assert len(found) == 6
    for result in found:
        assert result["alarms"] == alarms.rung(result["updates"], settings.grpo, result["budgets"])
    # Before the ladder has learned anything, nothing right is sampled.
    assert any("all wrong" in a["alarm"] for result in found for a in result["alarms"])


def test_the_lines_do_not_depend_on_who_ran_the_jobs(params):
    here = run(params).warnings()
    shutil.rmtree(units.store_of(params).folder)
    assert here != []
    assert run(params, workers=2).warnings() == here


def test_a_sweep_that_goes_on_ends_with_the_lines_of_an_unbroken_one(params):
    """Of what was found finished and of what is run now, together; a second look says them again."""
    first = run(params)
    lost = sorted((units.store_of(params).folder / "rl").glob("*.json"))[:4]
    for path in lost:
        path.unlink()
    again = run(params)
    assert (again.done, again.found) == (4, 8)
    assert again.watched["rl"] == 6
    assert again.warnings() == first.warnings() == run(params).warnings() != []


def test_a_run_that_fails_is_not_among_those_looked_at(params, monkeypatch):
    real = jobs.run

    def diverging(experiment, settings, checkpoint, wanted):
        found = real(experiment, settings, checkpoint, wanted)
        if experiment == "rl":
            found[1]["updates"][0]["loss"] = float("nan")
        return found

    monkeypatch.setattr(jobs, "run", diverging)
    found = run(params)
    assert found.watched["rl"] == 3
    assert {row["seed"] for row in found.alarms} <= {0}


def test_the_table_has_a_row_per_alarm_and_its_columns_without_any(params, tmp_path):
    found = run(params)
    ladder = jobs.ladder(params)
    table = tables.load(params, ladder).alarms
    columns = ["step", "seed", "alarm", "updates", "first"]
    rows = sorted(tuple(row[c] for c in columns) for row in found.alarms)
    assert sorted(table[columns].itertuples(index=False, name=None)) == rows
    assert rows
    records = units.records(params, "rl", ladder)
    none = tables.alarms([{**r, "result": {**r["result"], "alarms": []}} for r in records])
    assert (len(none), list(none)) == (0, list(table))
    for name, saved in (("some", table), ("none", none)):
        saved.to_parquet(tmp_path / f"{name}.parquet", index=False)
        saved.to_csv(tmp_path / f"{name}.csv", index=False)
        assert list(pd.read_parquet(tmp_path / f"{name}.parquet")) == list(table)
        assert len(pd.read_csv(tmp_path / f"{name}.csv")) == len(saved)


def test_the_command_says_alarms_on_stderr_and_ends_well(capsys, monkeypatch, params, home):
    (home / "p.yaml").write_text(yaml.safe_dump(params.model_dump()))
    monkeypatch.setattr(sys, "argv", ["replicate", "rl", "-f", str(home / "p.yaml")])
    for done in ("6 jobs done, 0 found", "0 jobs done, 6 found"):
        with pytest.raises(SystemExit) as status:
            cli.main()
        out, err = capsys.readouterr()
        assert not status.value.code
        assert out.startswith(done)
        assert "alarm" not in out
        said = [line for line in err.splitlines() if line.startswith("alarm: ")]
        assert said == [f"alarm: {line}" for line in run(params, experiments=["rl"]).warnings()] != []
