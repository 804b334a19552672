"""The hub path of ``params/olmo2-1b.yaml``, rehearsed: the same file and the same commands, against a small hub.

The hub has AI2's two repositories with AI2's names for revisions; behind them stand small models of the same
architecture and depth, and everything that goes wrong on hubs. ``python tests/rehearsal.py`` runs it and writes what
became of it into ``results/rehearsal``: the lock, a row a revision, what was refused. No number in it says anything
about OLMo-2.
"""

import os
import socket

if "HF_ENDPOINT" not in os.environ:  # before anything imports the client
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{free.getsockname()[1]}"

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from english import byte_level
from hub_server import Hub
from replicate.ladder.checkpoints import snapshot_name
from replicate.models.fresh import tiny_model

SUITE = Path(__file__).parents[1]
PARAMS = SUITE / "params" / "olmo2-1b.yaml"
MAIN, EARLY = "allenai/OLMo-2-0425-1B", "allenai/OLMo-2-0425-1B-early-training"
TOKENS_A_STEP = 2_097_152

TWINS, CUT, CHANGED, INCOMPLETE, HOLE = (200_000, 300_000), 400_000, 500_000, 700_000, 600_000
SHAKY, GOOD = 800_000, (100_000, 800_000, 1_900_000)
EARLY_STEPS = (0, 1000)


def branch(step: int) -> str:
    """AI2's name of a stage-1 revision."""
    return snapshot_name(step, step * TOKENS_A_STEP, unit="B")


def snapshot(step: int, tokenizer) -> dict[str, bytes]:
    """The files of a model of 16 blocks that a step decides, of OLMo-2's architecture, with a tokenizer of its kind."""
    model = tiny_model(
        "olmo2",
        layers=16,
        hidden=16,
        heads=2,
        vocab=len(tokenizer) + 6,
        gain=1 + step / 10**6,
        generator=torch.Generator().manual_seed(step + 1),
    )
    with tempfile.TemporaryDirectory() as folder:
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def hub(tokenizer) -> Hub:
    """Both repositories: five sound revisions, two that are twins, one cut short, one changed, one without a shard."""
    main = {branch(step): snapshot(step, tokenizer) for step in (*GOOD, TWINS[0], CUT, CHANGED)}
    main[branch(TWINS[1])] = main[branch(TWINS[0])]
    main["main"] = snapshot(4_000_000, tokenizer)
    found = Hub({MAIN: main, EARLY: {branch(s): snapshot(s, tokenizer) for s in EARLY_STEPS}})
    weights = "model.safetensors"
    for step in (CUT, CHANGED):
        found.claims[f"{MAIN}/{branch(step)}/{weights}"] = main[branch(step)][weights]
    main[branch(CUT)] = {**main[branch(CUT)], weights: main[branch(CUT)][weights][:5000]}
    changed = bytearray(main[branch(CHANGED)][weights])
    changed[-1] ^= 1
    main[branch(CHANGED)] = {**main[branch(CHANGED)], weights: bytes(changed)}
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    torn = {**snapshot(INCOMPLETE, tokenizer), "model.safetensors.index.json": json.dumps(index).encode()}
    main[branch(INCOMPLETE)] = torn
    found.faults[f"{MAIN}/{branch(SHAKY)}/{weights}"] = ["drop", "busy", "ill"]
    return found


def replicate(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A command with the file as it is but for where things lie."""
    lies = [f"HUB_LOCK={home}/lock.json", f"LADDER_DIR={home}/ladders", f"RUN_DIR={home}/run"]
    options = [part for item in lies for part in ("-p", item)]
    command = [sys.executable, "-m", "replicate", *arguments, "-f", str(PARAMS), *options]
    how = {"capture_output": True, "text": True, "cwd": SUITE, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    return subprocess.run(command, **how)


def on_a_cpu(*more: str) -> list[str]:
    """What has to be said where there is no GPU, and ``more``."""
    return [part for item in ("DEVICE=cpu", "COMPILE=false", *more) for part in ("-p", item)]


def rows(home: Path) -> list[dict[str, object]]:
    """What became of each revision of the lock: how many records it left, or why it was left out."""
    lock = json.loads((home / "lock.json").read_text())
    why = {row["step"]: row["error"] for row in json.loads((home / "run" / "failures.json").read_text())}
    left = Counter(
        (record["checkpoint"]["step"], record["experiment"])
        for record in (json.loads(path.read_text()) for path in (home / "run" / "records").rglob("*.json"))
    )
    experiments = ("measure", "rl", "forecast")
    return [
        {
            "repository": one["repo"],
            "revision": one["branch"],
            "step": one["step"],
            **{name: left[one["step"], name] for name in experiments},
            "left out because": why.get(one["step"], ""),
        }
        for one in lock["checkpoints"]
    ]


def main() -> None:
    """The whole of it, and what became of it into ``results/rehearsal``."""
    from replicate.runs import provenance

    target = SUITE / "results" / "rehearsal"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, hub(byte_level()):
        home, said = Path(folder), {}
        for command in ("list", "lock", "preflight"):
            done = replicate("hub", command, home=home)
            said[f"replicate hub {command}"] = {"status": done.returncode, "says": done.stdout.splitlines()}
        done = replicate("sweep", *on_a_cpu(), "--workers", "2", home=home)
        said["replicate sweep"] = {"status": done.returncode, "says": done.stdout.splitlines()}
        on_disk = [path.name for path in (home / "ladders").rglob("*.safetensors")]
        found = {"commands": said, "revisions": rows(home), "weights left on disk": on_disk}
        found["made"] = provenance.environment()
        text = json.dumps(found, indent=1).replace(str(home), "~")
        (target / "rehearsal.json").write_text(text.replace(os.environ["HF_ENDPOINT"], "the hub") + "\n")
        shutil.copy(home / "lock.json", target)


if __name__ == "__main__":
    main()
