"""The command itself in the small regime, killed and started again: nothing is lost, nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from replicate.runs.store import content

ROOT = Path(__file__).parents[2]
PARAMS = "params/smoke.yaml"

# A minute and a half: run by `make test-smoke`, not with the others.
pytestmark = pytest.mark.smoke


def command(folder, run):
    """``replicate run`` into ``folder/run``, on the ladder that all runs below ``folder`` share."""
    overrides = [f"RUN_DIR={folder / run}", f"LADDER_DIR={folder / 'ladders'}"]
    options = [option for override in overrides for option in ("-p", override)]
    program = [sys.executable, "-m", "replicate", "run"]
    return [*program, "-f", PARAMS, *options, "--only", "09", "--workers", "2"]


def start(folder, run):
    """Starts the command as the head of a process group of its own, with its words in ``folder/RUN.log``."""
    environment = {name: value for name, value in os.environ.items() if name != "REPLICATE_HOME"}
    with (folder / f"{run}.log").open("a") as log:
        return subprocess.Popen(
            command(folder, run), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def finish(folder, run):
    """Runs the command to its end, which must be a good one; what it said."""
    status = start(folder, run).wait()
    said = (folder / f"{run}.log").read_text()
    assert status == 0, said
    return said


def records(folder):
    return sorted((folder / "records").rglob("*.json"))


def contents(folder):
    """What the records of a run say, by file."""
    return {str(path.relative_to(folder)): content(json.loads(path.read_text())) for path in records(folder)}


def kill_after(process, folder, count):
    """Kills the whole process group once ``count`` records are there."""
    deadline = time.monotonic() + 120
    while len(records(folder)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_that_is_killed_and_started_again_ends_as_an_undisturbed_one(tmp_path):
    values = yaml.safe_load((ROOT / PARAMS).read_text())
    checkpoints = values["TINY_STEPS"] // values["TINY_EVERY"] + 1
    jobs = checkpoints * (2 + len(values["RL_SEEDS"]))  # one measurement, one forecast, and RL at each seed
    finish(tmp_path, "undisturbed")
    kill_after(start(tmp_path, "killed"), tmp_path / "killed", count=jobs // 3)
    survivors = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in records(tmp_path / "killed")}
    assert jobs // 3 <= len(survivors) < jobs
    said = finish(tmp_path, "killed")
    assert f"{jobs - len(survivors)} jobs done, {len(survivors)} found finished, 0 failed" in said
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in survivors} == survivors
    found = contents(tmp_path / "killed")
    assert len(found) == jobs
    assert found == contents(tmp_path / "undisturbed")
    (verdicts,) = (tmp_path / "killed" / "verdicts").iterdir()
    assert verdicts.read_text() == (tmp_path / "undisturbed" / "verdicts" / verdicts.name).read_text()
    assert list((tmp_path / "killed").rglob("*.part")) == []
