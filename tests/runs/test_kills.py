"""Killed at any moment and started again, a sweep ends with the records of one that nobody disturbed."""

import os
import random
import shutil
import signal
import time

import pytest

from child_sweeps import start
from replicate.runs import sweep, units


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_killed_at_random_and_started_again(params, contents, name, workers):
    sweep.sweep(params, progress=False)
    unbroken = contents(params)
    folder = units.store_of(params).folder
    shutil.rmtree(folder)
    chance = random.Random(f"{name} {workers}")
    child, wanted = start(params, workers=workers), chance.randrange(1, 6)
    deadline = time.monotonic() + 180
    while len(list(folder.rglob("*.json"))) < wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, getattr(signal, name))
    os.waitpid(child, 0)
    survivors = contents(params)  # each of them can be read
    assert wanted <= len(survivors) <= len(unbroken)
    outcome = sweep.sweep(params, progress=False)
    assert (outcome.found, outcome.damaged) == (len(survivors), [])
    assert contents(params) == unbroken
    assert [p.name for p in folder.rglob("*.part")] == []


def test_a_killed_worker_is_one_failed_row(params, contents, home, monkeypatch):
    """One checkpoint kills whatever process opens it; the others' jobs are done all the same."""
    (home / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and 'step20-' in str(args[0]) and 'config.json' in str(args[0]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{home}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    outcome = sweep.sweep(params, experiments=["measure"], workers=2, progress=False)
    assert outcome.done == 2
    assert [(row["step"], row["seeds"]) for row in outcome.failed] == [(20, [0])]
    assert "SIGKILL" in outcome.failed[0]["error"]
    assert len(contents(params)) == 2
