"""The recipes for clusters, run here: by a stand-in for Slurm, and by Snakemake where it is installed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from replicate.runs import sweep, units
from replicate.runs.params import ScaleParameters
from replicate.runs.store import content

HERE = Path(__file__).parents[1]
RECIPES = HERE / "recipes"

# sbatch --array=A-B SCRIPT ARGUMENT...: the tasks at once, each with the variables that Slurm sets.
SBATCH = """#!/usr/bin/env bash
range=${1#--array=}; shift
first=${range%-*} last=${range#*-}
export SLURM_ARRAY_TASK_MIN=$first SLURM_ARRAY_TASK_COUNT=$((last - first + 1))
tasks=()
for task in $(seq "$first" "$last"); do
    SLURM_ARRAY_TASK_ID=$task bash "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""


@pytest.fixture
def suite(ladder, home, monkeypatch):
    """A folder with a ladder, parameters for a sweep of seconds, and a program ``replicate``."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(ladder.checkpoints[0].where.parent, home / "ladder")
    params = ScaleParameters(
        RUN_DIR="run", LADDER="ladder", FILLER=4, POOL_PROMPTS=32, EVAL_PROMPTS=8, MEASURE_PROMPTS=8, MEASURE_GROUP=4,
        PROMPTS=4, GROUP_SIZE=4, RL_SEEDS=[0, 1], BUDGETS=[1, 2],
    )  # fmt: skip
    (home / "p.yaml").write_text(yaml.safe_dump(params.model_dump()))
    for name, text in {
        "replicate": f'#!/usr/bin/env bash\necho "$@" >> calls\nexec {sys.executable} -m replicate "$@"\n',
        "sbatch": SBATCH,
    }.items():
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    monkeypatch.setenv("REPLICATE", str(home / "replicate"))
    return params


def records(params):
    folder = units.store_of(params).folder
    return {p.name: content(json.loads(p.read_text())) for p in folder.rglob("*.json")}


@pytest.fixture
def serial(suite):
    """The records of a sweep in this process; the run's folder is empty again."""
    sweep.sweep(suite, progress=False)
    found = records(suite)
    shutil.rmtree("run")
    assert len(found) == 12
    return found


def run(*command, status=0):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("array", ["1-2", "0-3"])
def test_a_slurm_array_leaves_the_records_of_one_sweep(suite, serial, array):
    """Wherever the array begins; a task with no rung left, and one that is requeued, have nothing to do."""
    submit = ("./sbatch", f"--array={array}", RECIPES / "slurm.sh", "-f", "p.yaml")
    said = run(*submit)
    assert sum(map(int, re.findall(r"(\d+) jobs done", said))) == 12
    assert records(suite) == serial
    shards = [line.split()[2] for line in Path("calls").read_text().splitlines()]
    assert sorted(shards) == [f"{i + 1}/{len(shards)}" for i in range(len(shards))]
    assert sum(map(int, re.findall(r"(\d+) jobs done", run(*submit)))) == 0


def test_the_slurm_script_outside_of_an_array_says_what_is_missing(suite, monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    said = run("bash", RECIPES / "slurm.sh", "-f", "p.yaml", status=2)
    assert said == "slurm.sh: expected a task of an array, got none; submit with sbatch --array=1-N\n"


def test_what_the_slurm_script_asks_for_is_known_to_slurm():
    """Directives are read only before the first command."""
    lines = (RECIPES / "slurm.sh").read_text().splitlines()
    asked = [i for i, line in enumerate(lines) if line.startswith("#SBATCH --")]
    assert asked
    assert max(asked) < next(i for i, line in enumerate(lines) if line and not line.startswith("#"))


@pytest.mark.snakemake
def test_snakemake_leaves_the_records_of_one_sweep(suite, serial):
    snakemake = shutil.which(HERE / os.environ.get("SNAKEMAKE", "")) or shutil.which("snakemake")
    assert snakemake, "snakemake: not found; install it, or name it with SNAKEMAKE=..."
    config = ("--config", "params=p.yaml", "shards=2", "replicate=./replicate")
    command = (snakemake, "-s", RECIPES / "Snakefile", "--cores", "2", "--quiet", "all", *config)
    run(*command)
    assert records(suite) == serial
    calls = Path("calls").read_text().splitlines()
    assert calls[0].startswith("ladder")
    assert sorted(line.split("--shard ")[1] for line in calls if "--shard" in line) == ["1/2", "2/2"]
    run(*command)
    assert len(Path("calls").read_text().splitlines()) == len(calls)
