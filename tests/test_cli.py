"""The command line: one-line errors that name the culprit, statuses, and a run that survives kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def call(*arguments, home=None, check=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if home:
        environment["REPLICATE_HOME"] = str(home)
    done = subprocess.run(
        [sys.executable, "-m", "replicate", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


@pytest.fixture
def tiny(ladder, home):
    """A folder with a ladder and a parameter file for a run of seconds."""
    shutil.copytree(ladder.checkpoints[0].where.parent, home / "ladder")
    values = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    values |= {"RUN_DIR": "run", "LADDER": "ladder", "FILLER": 4, "POOL_PROMPTS": 32, "EVAL_PROMPTS": 8}
    values |= {
        "MEASURE_PROMPTS": 8,
        "MEASURE_GROUP": 4,
        "PROMPTS": 4,
        "GROUP_SIZE": 4,
        "RL_SEEDS": [0, 1],
        "BUDGETS": [2],
    }
    (home / "p.yaml").write_text(yaml.safe_dump(values))
    return home


def test_help_lists_the_commands():
    text = call("--help", check=0).stdout
    for command in ("run", "sweep", "measure", "rl", "ladder", "check-params", "report"):
        assert command in text


def test_check_params_says_fine_or_one_line_and_status_2(tmp_path):
    call("check-params", ROOT / "params" / "cpu.yaml", check=0)
    (tmp_path / "bad.yaml").write_text("GRUOP_SIZE: 8\n")
    done = call("check-params", tmp_path / "bad.yaml", check=2)
    assert done.stderr.count("\n") == 1
    assert "GRUOP_SIZE" in done.stderr
    assert "Traceback" not in done.stderr


def test_overrides_are_typed_and_checked(tmp_path):
    file = ROOT / "params" / "smoke.yaml"
    call("check-params", file, "-p", "GROUP_SIZE=4", check=0)
    assert "GROUP_SIZE" in call("check-params", file, "-p", "GROUP_SIZE=four", check=2).stderr
    assert "KEY=VALUE" in call("check-params", file, "-p", "GROUP_SIZE", check=2).stderr


def test_unknown_ladder_is_one_line(tmp_path):
    done = call(
        "ladder", "-f", ROOT / "params" / "smoke.yaml", "-p", "LADDER=nowhere", home=tmp_path, check=2
    )
    assert done.stderr.strip().splitlines()[-1].startswith("replicate: error: ladder")
    assert "nowhere" in done.stderr


def test_ladder_lists_its_checkpoints(tiny):
    lines = call("ladder", "-f", tiny / "p.yaml", home=tiny, check=0).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0", "20", "40"]


def test_a_damaged_checkpoint_makes_status_1_and_keeps_the_rest(tiny):
    weights = next((tiny / "ladder").glob("stage1-step20-*")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    done = call("measure", "-f", tiny / "p.yaml", home=tiny, check=1)
    assert "2 jobs done" in done.stdout
    assert "step20" in done.stderr
    assert "model.safetensors" in done.stderr


def records(folder):
    from replicate.runs.store import content

    return {p.name: content(json.loads(p.read_text())) for p in (folder / "run" / "records").rglob("*.json")}


def test_killed_in_the_middle_and_started_again(tiny):
    """kill -9 once some records are there; the second call runs only what is missing, to the same content."""
    command = ("sweep", "-f", tiny / "p.yaml")
    call(*command, home=tiny, check=0)
    unbroken = records(tiny)
    shutil.rmtree(tiny / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "replicate", *map(str, command)],
        env={**os.environ, "REPLICATE_HOME": str(tiny), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(records(tiny)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survived = records(tiny)
    assert 2 <= len(survived) < len(unbroken)
    stamps = {p: p.stat().st_mtime_ns for p in (tiny / "run" / "records").rglob("*.json")}
    done = call(*command, home=tiny, check=0)
    assert f"{len(survived)} found finished" in done.stdout
    assert records(tiny) == unbroken
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
