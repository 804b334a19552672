"""Sweeps that share a run's folder: every job is done, by one of them; who dies is replaced by who waits."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import pytest

from child_sweeps import start, wait_for
from replicate.runs import jobs, sweep, units
from replicate.runs.shares import Claims, Shard


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/2 ", "²/3", "9" * 7 + "/2"]
)
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"^--shard: expected I/N with I from 1 to N, as in 2/8, got "):
        Shard.parse(text)


@pytest.mark.parametrize("rungs", [0, 1, 5, 61])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_shards_are_all_rungs_each_of_them_once_and_of_equal_size(rungs, count):
    names = [str(i) for i in range(rungs)]
    parts = [
        Shard.parse(f"{i + 1}/{count}").names(SimpleNamespace(name=name) for name in names)
        for i in range(count)
    ]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_claim_is_on_a_content_and_ends_when_it_is_given_back_or_its_process_dies(tmp_path, ladder):
    mine, others = Claims(tmp_path), Claims(tmp_path)
    one, another, _ = ladder
    same = dataclasses.replace(one, name="of another name")
    assert mine.take(one)
    assert [others.take(one), others.take(same), others.take(another)] == [False, False, True]
    mine.give_back(one)
    assert others.take(same)
    others.close()
    child = os.fork()
    if child == 0:
        kept = Claims(tmp_path)
        kept.take(one)
        (tmp_path / "taken").touch()
        signal.pause()
    wait_for((tmp_path / "taken").exists)
    assert not mine.take(one)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert mine.take(one)


def ended(children):
    for child in children:
        os.waitpid(child, 0)


def reports(home, names):
    return [json.loads((home / name).read_text()) for name in names]


def test_shards_side_by_side_leave_the_records_of_one_sweep(params, home, contents, unbroken):
    ended([start(params, home / f"said{i}", shard=Shard(i, 2)) for i in (1, 2)])
    said = reports(home, ["said1", "said2"])
    assert [(one["done"], one["found"], one["problems"]) for one in said] == [(8, 0, []), (4, 0, [])]
    assert contents(params) == unbroken


def test_sweeps_that_race_share_the_jobs_and_do_none_twice(params, home, contents, unbroken):
    """Each ends only when all is there, whoever did it."""
    ended([start(params, home / f"said{i}", workers=1 + i % 2) for i in range(3)])
    said = reports(home, ["said0", "said1", "said2"])
    assert sum(one["done"] for one in said) == 12
    assert all(one["done"] + one["found"] == 12 and one["problems"] == [] for one in said)
    assert contents(params) == unbroken
    assert list(units.store_of(params).folder.rglob("*.part")) == []


def test_a_sweep_that_is_killed_leaves_its_rung_to_the_one_that_waits(
    params, home, contents, unbroken, monkeypatch
):
    """The first one is stopped in the middle of a rung, so that the second must wait for it, and then killed."""
    with monkeypatch.context() as patch:
        real = jobs.run

        def stopping(experiment, *rest):
            if experiment == "rl":
                (home / "stopped").touch()
                signal.pause()
            return real(experiment, *rest)

        patch.setattr(jobs, "run", stopping)
        first = start(params)
    wait_for((home / "stopped").exists)
    second = start(params, home / "said")
    wait_for(lambda: len(contents(params)) == 9)  # its own two rungs, and what the first did of its rung
    assert not (home / "said").exists()
    os.kill(first, signal.SIGKILL)
    ended([first, second])
    assert reports(home, ["said"]) == [{"done": 11, "found": 1, "problems": []}]
    assert contents(params) == unbroken


def test_failures_of_a_shard_are_in_a_file_of_its_own(params, home):
    next((home / "ladder").glob("stage1-step20-*/model.safetensors")).unlink()
    outcomes = [
        sweep.sweep(params, experiments=["measure"], shard=Shard(i, 2), progress=False) for i in (1, 2)
    ]
    assert [(outcome.done, len(outcome.failed)) for outcome in outcomes] == [(2, 0), (0, 1)]
    assert json.loads((home / "run" / "failures-1-of-2.json").read_text()) == []
    assert json.loads((home / "run" / "failures-2-of-2.json").read_text()) == outcomes[1].failed


def test_a_shard_of_a_ladder_that_is_yet_to_be_trained_is_refused(params):
    untrained = params.model_copy(update={"LADDER": "tiny"})
    with pytest.raises(
        ValueError, match=r"^--shard: expected a ladder that is there.*run `replicate ladder` first"
    ):
        sweep.sweep(untrained, shard=Shard(1, 2), progress=False)
