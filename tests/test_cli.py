"""The command line: one-line errors that name the culprit, statuses, and a run that survives kill -9."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from replicate import cli

ROOT = Path(__file__).parents[1]


def call(*arguments, home=None, check=None, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if home:
        environment["REPLICATE_HOME"] = str(home)
    done = subprocess.run(
        [sys.executable, "-m", "replicate", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
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
    for command in ("run", "sweep", "study", "measure", "rl", "ladder", "hub", "check-params", "report"):
        assert command in text


def test_a_shard_is_refused_if_it_is_none_and_else_runs_its_rungs(capsys, monkeypatch, tiny):
    call = ("measure", "-f", tiny / "p.yaml", "--shard")
    assert "--shard: expected I/N with I from 1 to N, as in 2/8, got '3/2'" in refused(
        capsys, monkeypatch, *call, "3/2"
    )
    assert "1 jobs done, 0 found" in accepted(capsys, monkeypatch, *call, "2/2")
    assert "2 jobs done, 0 found" in accepted(capsys, monkeypatch, *call, "1/2")
    assert "0 jobs done, 3 found" in accepted(capsys, monkeypatch, *call, "1/1")


def test_version():
    assert call("--version", check=0).stdout.startswith("replicate ")


def test_every_option_has_its_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    hub = (("hub", name) for name in ("list", "lock", "preflight", "fetch"))
    for command in ("run", "sweep", "study", "measure", "rl", "ladder", "check-params", "report", *hub):
        words = command if isinstance(command, tuple) else (command,)
        found = accepted(capsys, monkeypatch, *words, "--help")
        options = [line.split("  ") for line in found.splitlines() if line.startswith("  -")]
        assert options
        assert all(len(parts) > 2 for parts in options), found


def test_without_a_command_the_help_is_shown(capsys, monkeypatch):
    assert "Relative paths" in accepted(capsys, monkeypatch)


def accepted(capsys, monkeypatch, *arguments):
    """What a command prints that ends well, in this process."""
    monkeypatch.setattr(sys, "argv", ["replicate", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        cli.main()
    out, err = capsys.readouterr()
    assert not status.value.code, err
    return out


def refused(capsys, monkeypatch, *arguments):
    """The one line of an input error, from a call in this process."""
    monkeypatch.setattr(sys, "argv", ["replicate", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        cli.main()
    out, err = capsys.readouterr()
    assert (status.value.code, out) == (2, "")
    assert err.startswith("replicate: error: ")
    assert err.count("\n") == 1
    assert len(err) < 400
    return err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["run", "--bogus"], "No such option: --bogus"),
        (["sweep", "--workers", "0"], "'--workers'"),
        (["sweep", "--workers", "two"], "'--workers'"),
        (["check-params"], "Missing argument"),
        (["report", "--results", "nowhere"], "nowhere"),
        (["report", "--publish", "nowhere"], "nowhere: not a finished run"),
    ],
)
def test_mistyped_commands_are_one_line_with_the_remedy(capsys, monkeypatch, tmp_path, arguments, named):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, monkeypatch, *arguments)
    assert named in line
    assert "see replicate --help" in line or arguments[0] == "report"


@pytest.mark.parametrize("command", ["run", "sweep", "measure", "rl", "ladder", "check-params"])
def test_every_command_refuses_before_any_work(capsys, monkeypatch, tiny, command):
    """What check-params finds, no command starts with: not one checkpoint is opened, no record is written."""
    if command == "run":
        pytest.importorskip("papermill")  # its own complaint would come first
    for begin in ("ladder", "stream"):
        monkeypatch.setattr(f"replicate.runs.jobs.{begin}", lambda *_, **__: pytest.fail("work began"))
    where = [tiny / "p.yaml"] if command == "check-params" else ["-f", tiny / "p.yaml"]
    for override, named in [
        ("LADDER=nonexist", "nonexist: no such folder; give 'tiny' or a folder"),
        ("DEVICE=cudaa", "DEVICE: 'cudaa' with float32 does not work here"),
        ("LABELS=20", "LABELS: Input should be less than or equal to 16, got 20"),
        ("MEASURE_LAYERS=[9]", "MEASURE_LAYERS must be 0 to 2 or -1"),
        ("RUN_DIR=p.yaml", "RUN_DIR: cannot write to 'p.yaml'"),
        ("SEED=[", "not valid YAML"),
        ("SEED=a: b: c", "not valid YAML"),
        ("RUN_DIR=@x", "quote what is text"),
        ("GRUOP_SIZE=3", "the nearest known: GROUP_SIZE"),
    ]:
        assert named in refused(capsys, monkeypatch, command, *where, "-p", override)
    assert not list(tiny.glob("run/*"))


def test_a_run_that_cannot_end_well_says_so_before_the_jobs(capsys, monkeypatch, tiny):
    for begin in ("ladder", "stream"):
        monkeypatch.setattr(f"replicate.runs.jobs.{begin}", lambda *_, **__: pytest.fail("work began"))
    run = ("run", "-f", tiny / "p.yaml")
    assert "--only '99': no such notebook; there are 00_" in refused(
        capsys, monkeypatch, *run, "--only", "99"
    )
    assert "engine: expected one of ('local', 'ray'), got 'slurm'" in refused(
        capsys, monkeypatch, *run, "--engine", "slurm"
    )
    monkeypatch.setattr("replicate.runs.paths.notebooks", lambda: tiny / "notebooks")
    assert f"none in {tiny / 'notebooks'}; set REPLICATE_HOME" in refused(capsys, monkeypatch, *run)


def test_check_params_says_fine_or_one_line_and_status_2(tmp_path):
    done = call("check-params", ROOT / "params" / "cpu.yaml", check=0, cwd=tmp_path)
    assert done.stdout.endswith("cpu.yaml: fine\n")
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad.yaml").write_text("GRUOP_SIZE: 8\n")
    done = call("check-params", "bad.yaml", check=2, cwd=tmp_path)
    assert done.stderr == (
        "replicate: error: bad.yaml: unknown parameter GRUOP_SIZE, the nearest known: GROUP_SIZE, OPTIMIZER\n"
    )


@pytest.mark.parametrize(
    "text", ["1: 2", "null: 2", "2026-01-01: 2", "[" * 2000, "SEED: 1\nSEED: 2", "\0", "SEED: 010"]
)
def test_malformed_files_are_one_line_and_status_2(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    done = call("check-params", "p.yaml", check=2, cwd=tmp_path)
    assert done.stderr.startswith("replicate: error: p.yaml: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("check-params", "nofile"), ("run", "-f", "nofile"), ("ladder", "-f", "nofile")]
)
def test_a_missing_file_is_said_before_anything_heavy_is_imported(tmp_path, arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = call(*arguments, check=2, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.startswith("replicate: error: nofile: cannot be read (No such file or directory)")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_overrides_are_typed_and_checked(capsys, monkeypatch, tiny):
    assert "fine" in accepted(capsys, monkeypatch, "check-params", tiny / "p.yaml", "-p", "GROUP_SIZE=4")
    for item, named in [("GROUP_SIZE=four", "GROUP_SIZE"), ("GROUP_SIZE", "expected KEY=VALUE")]:
        assert named in refused(capsys, monkeypatch, "check-params", tiny / "p.yaml", "-p", item)


@pytest.mark.parametrize("command", ["run", "sweep", "measure", "elsewhere"])
def test_answers_that_cannot_be_measured_are_refused_before_any_work(capsys, monkeypatch, tiny, command):
    long = ("-p", "TASK=sequence_copying", "-p", "ANSWER_TOKENS=2")
    said = refused(capsys, monkeypatch, command, "-f", tiny / "p.yaml", *long)
    assert "with -p: TASK: expected answers of one token" in said
    assert "or run nothing but `replicate rl`" in said


def test_relative_paths_mean_the_callers_folder(capsys, monkeypatch, tiny):
    """On the command line and in the file alike, and wherever the file is."""
    monkeypatch.delenv("REPLICATE_HOME")
    here = tiny / "here"
    shutil.copytree(tiny / "ladder", here / "ladder")
    monkeypatch.chdir(here)
    assert "3 checkpoints" in accepted(capsys, monkeypatch, "ladder", "-f", "../p.yaml")
    assert (here / "run").is_dir()
    monkeypatch.chdir(tiny)
    overrides = ("-p", "LADDER=here/ladder", "-p", "RUN_DIR=other")
    accepted(capsys, monkeypatch, "ladder", "-f", "p.yaml", *overrides)
    assert (tiny / "other").is_dir()
    monkeypatch.setenv("REPLICATE_HOME", str(here))  # for what parameters name, not for -f
    accepted(capsys, monkeypatch, "ladder", "-f", "p.yaml", "-p", "RUN_DIR=third")
    assert (here / "third").is_dir()


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
