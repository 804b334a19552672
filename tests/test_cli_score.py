"""``replicate score`` from the command line, and the README's example of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Hub
from replicate import cli
from replicate.ladder.hub import lock

ROOT = Path(__file__).parents[1]
TASK = "".join(
    json.dumps({"prompt": f"label is {colour} ; old answer :", "answers": [f" {colour}"]}) + "\n"
    for colour in ("red", "green", "blue", "black")
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a task."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text(TASK)
    (tmp_path / "p.jsonl").write_text(re.sub(r', "answers": \[[^]]*\]', "", TASK))
    return tmp_path


def called(capsys, monkeypatch, *arguments):
    """Status, stdout and stderr of a call in this process."""
    monkeypatch.setattr(sys, "argv", ["replicate", "score", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        cli.main()
    return status.value.code or 0, *capsys.readouterr()


def test_the_page_says_what_was_found_and_what_it_is_worth(strangers, here, capsys, monkeypatch):
    options = ("--ladder", strangers, "--task", "t.jsonl", "--out", "o", "--budget", 500)
    status, out, err = called(capsys, monkeypatch, *options)
    assert (status, err) == (0, "")
    said = json.loads((here / "o" / "score.json").read_text())
    for row in said["checkpoints"]:
        assert re.search(
            rf"^{row['name']} +{row['J0']:.4g} \[.*{row['end']:.4g} \[.* 1.0$", out, re.MULTILINE
        )
    rank, r2 = (said["law"][f"{name} on locked ladders"] for name in ("rank", "R^2"))
    assert f"{rank['mean']:+.2f} [{rank['low']:+.2f}, {rank['high']:+.2f}], 4 of 4 ladders (confirmed" in out
    assert f"{r2['mean']:+.2f} [{r2['low']:+.2f}, {r2['high']:+.2f}], 3 of 4 ladders (not confirmed" in out
    assert "500 updates are beyond the 160 that were ever run" in out
    assert "Validated on: tiny OLMo-2" in out
    top = max(said["checkpoints"], key=lambda row: row["score"])
    assert f"Not told apart from {top['name']}, the largest score: " in out
    best = max(said["checkpoints"], key=lambda row: row["end"])
    assert f"Highest predicted reward after 500 updates: {best['name']}." in out


def test_other_groups_than_the_studys_are_said_to_be(strangers, here, capsys, monkeypatch):
    options = (
        "--ladder",
        strangers,
        "--task",
        "p.jsonl",
        "--verifier",
        "operator:ne",
        "--samples",
        4,
        "--prompts",
        3,
    )
    status, out, _ = called(capsys, monkeypatch, *options, "--max-tokens", 2)
    assert status == 2  # a completion is never its prompt
    (here / "even.py").write_text("def even(prompt, completion): return len(completion) % 2\n")
    status, out, _ = called(
        capsys, monkeypatch, *options[:4], "--verifier", "even:even", *options[6:], "--max-tokens", 2
    )
    assert status == 0
    assert "3 prompts, two groups of 4 sampled completions a prompt" in out
    assert "The constant belongs to groups of 8, these are of 4" in out


def test_a_rung_that_cannot_be_opened_gives_status_one(strangers, here, capsys, monkeypatch):
    folder = shutil.copytree(strangers, here / "rungs")
    (folder / "checkpoint-100" / "model.safetensors").unlink()
    status, out, err = called(capsys, monkeypatch, "--ladder", "rungs", "--task", "t.jsonl", "--budget", 500)
    assert status == 1
    assert "1 of 2 checkpoints scored on t.jsonl" in out
    assert re.fullmatch(r"failed: checkpoint-100: .*no safetensors file in this snapshot\n", err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "t.jsonl"], "Missing option '--ladder'"),
        (["--ladder", "nowhere", "--task", "t.jsonl"], "nowhere: no such folder"),
        (["--ladder", "FOLDER", "--task", "no.jsonl"], "task no.jsonl: cannot be read"),
        (["--ladder", "FOLDER", "--task", "p.jsonl"], 'task p.jsonl, line 1: expected "answers"'),
        (
            ["--ladder", "FOLDER", "--task", "t.jsonl", "--max-tokens", "4"],
            "--max-tokens: expected 1 without --verifier",
        ),
        (
            ["--ladder", "FOLDER", "--task", "t.jsonl", "--verifier", "operator:eq"],
            "expected no answers beside a verifier",
        ),
        (
            ["--ladder", "FOLDER", "--task", "p.jsonl", "--verifier", "eq"],
            "--verifier 'eq': expected module:function",
        ),
        (["--ladder", "FOLDER", "--task", "t.jsonl", "--dtype", "int8"], "dtype: "),
        (
            ["--ladder", "FOLDER", "--task", "t.jsonl", "--device", "nowhere"],
            "--device nowhere: does not work here",
        ),
        (["--ladder", "FOLDER", "--task", "t.jsonl", "--samples", "1"], "'--samples'"),
        (["--ladder", "FOLDER", "--task", "t.jsonl", "--seed", str(2**40)], "seed: "),
        (["--ladder", "FOLDER", "--task", "t.jsonl", "--study", "nowhere"], "nowhere: no published study"),
        (["--ladder", "FOLDER", "--task", "t.jsonl", "--out", "t.jsonl"], "no files can be made here"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_left_behind(ladder, here, capsys, monkeypatch, options, said):
    folder = str(ladder.checkpoints[0].where.parent)
    status, out, err = called(capsys, monkeypatch, *[folder if o == "FOLDER" else o for o in options])
    assert (status, out) == (2, "")
    assert err.startswith("replicate: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert {path.name for path in here.iterdir()} <= {"t.jsonl", "p.jsonl", "runs"}


def test_the_example_in_the_readme_runs(ladder, here):
    """As it stands there, in under 20 lines, on a folder called ``checkpoints``."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Score your own checkpoints\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    assert len(example.splitlines()) < 20
    shutil.copytree(ladder.checkpoints[0].where.parent, here / "checkpoints")
    script = f'set -e\nreplicate() {{ {sys.executable} -m replicate "$@"; }}\n{example}'
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 of 3 checkpoints scored on ") == 2
    for folder in ("scored", "rated"):
        rows = json.loads((here / folder / "score.json").read_text())["checkpoints"]
        assert len(rows) == 3
        assert all(0 <= row["J0"] <= 1 for row in rows)


def test_a_ladder_on_a_hub_is_scored_like_the_same_files_in_a_folder(strangers, here, capsys, monkeypatch):
    snapshots = {p.name: {f.name: f.read_bytes() for f in p.iterdir()} for p in strangers.iterdir()}
    names = dict(zip(("step100", "step200"), sorted(snapshots), strict=True))
    options = ("--task", "t.jsonl", "--out")
    assert called(capsys, monkeypatch, "--ladder", strangers, *options, "folder")[0] == 0
    with Hub({"me/run": {branch: snapshots[name] for branch, name in names.items()}}):
        lock.make(["me/run"], ["all"]).save(here / "my.lock")
        hub = ("--ladder", "hub:me/run", "--lock", "my.lock", *options, "hub")
        status, out, err = called(capsys, monkeypatch, *hub)
    assert (status, err) == (0, "")
    assert "checkpoints of me/run" in out
    found, wanted = (
        json.loads((here / o / "score.json").read_text())["checkpoints"] for o in ("hub", "folder")
    )
    assert [{**row, "name": None} for row in found] == [{**row, "name": None} for row in wanted]
    assert list(here.rglob("*.safetensors")) == []  # fetched, used, and let go
