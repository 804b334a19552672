"""Shared by the tests of runs: a sweep of seconds, and what its records say."""

import json
import shutil

import pytest

from replicate.runs import sweep, units
from replicate.runs.params import ScaleParameters
from replicate.runs.store import content


@pytest.fixture
def params(ladder, home):
    """A sweep of seconds on a copy of the session's ladder."""
    folder = home / "ladder"
    shutil.copytree(ladder.checkpoints[0].where.parent, folder)
    return ScaleParameters(
        RUN_DIR="run", LADDER="ladder", FILLER=4, POOL_PROMPTS=32, EVAL_PROMPTS=8, MEASURE_PROMPTS=8, MEASURE_GROUP=4,
        PROMPTS=4, GROUP_SIZE=4, RL_SEEDS=[0, 1], BUDGETS=[1, 2],
    )  # fmt: skip


@pytest.fixture
def contents():
    """What the records of a run say, by file."""

    def read(params):
        folder = units.store_of(params).folder
        files = folder.rglob("*.json")
        return {p.relative_to(folder).as_posix(): content(json.loads(p.read_text())) for p in files}

    return read


@pytest.fixture
def unbroken(params, contents):
    """What the records say of a run in this process that nobody shared or broke; its folder is empty again."""
    sweep.sweep(params, progress=False)
    found = contents(params)
    shutil.rmtree(units.store_of(params).folder)
    return found
