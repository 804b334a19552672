"""What notebook 16 says of costs and records, against the jobs themselves and planted records."""

import json
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from replicate.ladder.hub.lock import Lock
from replicate.models import costs
from replicate.runs import at_scale, jobs, paths
from replicate.runs.params import ScaleParameters

SHAPE = costs.Shape(hidden=32, intermediate=128, layers=2, heads=2, rows=288, vocab=288)


@pytest.mark.parametrize("experiment", jobs.EXPERIMENTS)
def test_the_operations_of_a_job_are_about_those_that_a_counter_sees(ladder, home, experiment):
    """About: a counter sees what a mask hides, and the formulas leave out half a backward pass here and there."""
    shutil.copytree(ladder.checkpoints[0].where.parent, home / "ladder")
    given = ScaleParameters(LADDER="ladder", FILLER=16, RL_SEEDS=[0], STACK_SEEDS=False, BUDGETS=[2, 4])
    rung = jobs.ladder(given).checkpoints[-1]
    config = rung.config()
    assert (config["hidden_size"], config["intermediate_size"]) == (SHAPE.hidden, SHAPE.intermediate)
    length = jobs.held_out(given, rung).tokens.shape[1]
    shape = costs.Shape(**{**vars(SHAPE), "rows": config["vocab_size"]})
    said = at_scale.work(given, shape, length).set_index("job").operations[experiment]
    with FlopCounterMode(display=False) as counter:
        jobs.run(experiment, jobs.settings(given, experiment), rung, [0])
    assert 0.6 < said / counter.get_total_flops() < 1.6


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite of its own with the rehearsal's records and no others."""
    source = paths.notebooks().parent
    for name in ("params", "results/rehearsal"):
        shutil.copytree(source / name, tmp_path / name)
    monkeypatch.setattr(at_scale, "suite", lambda: tmp_path)
    return tmp_path


def test_records_of_another_shape_or_of_a_cpu_are_not_taken_for_a_gpus(suite):
    folder = suite / "results" / "gpu"
    folder.mkdir(parents=True)
    record = {"shape": "1b", "device": "cuda", "origin": {"accelerator": "a card"}}
    for name, changes in (("measure", {}), ("grpo-1", {"shape": "tiny"}), ("grpo-8", {"device": "cpu"})):
        (folder / f"{name}.json").write_text(json.dumps(record | changes))
    assert list(at_scale.gpu()) == ["measure"]
    table = at_scale.standing(False, at_scale.gpu()).set_index("piece")
    assert table.run[at_scale.PIECES["measure"]] == "yes"
    assert table["where"][at_scale.PIECES["measure"]] == "a card"
    assert table.run[at_scale.PIECES["grpo-1"]] == table.run["the list of AI2's revisions"] == "no"


def test_ai2s_lock_is_taken_before_the_rehearsals_and_said(suite):
    locked, real = at_scale.lock()
    assert (real, len(locked.checkpoints)) == (False, 10)
    table = at_scale.revisions(locked)
    assert table.set_index("step").refused.astype(bool).sum() == 3  # the twins, and the one without a shard
    Lock(**{**locked.model_dump(), "checkpoints": []}).save(suite / at_scale.olmo2().HUB_LOCK)
    assert at_scale.lock()[1]
    assert at_scale.standing(True, {}).set_index("piece").run["the list of AI2's revisions"] == "yes"


def test_the_rehearsals_records_are_what_the_notebook_says_of_them(suite):
    rows, record = at_scale.rehearsal()
    faulty = rows["left out because"] != ""
    assert (len(rows), faulty.sum()) == (10, 5)
    assert record["weights left on disk"] == []
    assert torch.equal(torch.tensor(rows.measure), torch.tensor((~faulty).astype(int)))
