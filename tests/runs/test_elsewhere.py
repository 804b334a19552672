"""Runs elsewhere: each in a process with kernels of its own, finished ones not done again, failures named."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from replicate import kernels
from replicate.runs import elsewhere


@pytest.fixture
def calls(home, monkeypatch):
    """Stands in for the main job: writes what one leaves behind; fails for seed 7."""
    seen = []

    def run(command, *, env, stdout, stderr):
        chosen = dict(
            item.removeprefix("--set=").split("=", 1) for item in command if item.startswith("--set=")
        )
        seen.append((command, env, chosen))
        folder = Path(chosen["RUN_DIR"])
        if chosen["SEED"] == "7":
            stderr.write("replicate: error: no such thing\n")
            (folder / "verdicts").mkdir(exist_ok=True)
            (folder / "verdicts" / "06_gap.json").write_text("{}")
            return SimpleNamespace(returncode=2)
        (folder / "verdicts").mkdir(exist_ok=True)
        for name in (item.removeprefix("--only=") for item in command if item.startswith("--only=")):
            (folder / "verdicts" / f"{name}.json").write_text("{}")
        parameters = {"SEED": int(chosen["SEED"]), "RUN_DIR": str(folder)}
        provenance = {"jobs": {}, "notebooks": {}, "mixed": [], "parameters": parameters}
        (folder / "provenance.json").write_text(json.dumps(provenance))
        return SimpleNamespace(returncode=0)

    (home / "notebooks").mkdir()
    for name in ("00_map", "06_gap", "07_attention"):
        (home / "notebooks" / f"{name}.ipynb").touch()
    monkeypatch.setattr(subprocess, "run", run)
    return seen


def run(home, **options):
    common = {"seeds": [0, 1], "settings": ["native", "stand-in"], "only": [], "overrides": [], "workers": 2}
    return elsewhere.elsewhere(Path("p.yaml"), results=home / "results", **{**common, **options})


def test_every_seed_under_every_setting_in_a_process_of_its_own(home, calls, monkeypatch):
    """The parent has pinned its kernels; a child must not inherit the pins, or it would not be elsewhere."""
    monkeypatch.setenv("MKL_CBWR", kernels.PINS["MKL_CBWR"])
    status = run(home, only=["06"], overrides=["RL_SEEDS=[0, 1]"])
    assert status == dict.fromkeys(["native-seed0", "native-seed1", "stand-in-seed0", "stand-in-seed1"])
    assert sorted((env["REPLICATE_KERNELS"], chosen["SEED"]) for _, env, chosen in calls) == [
        *(("native", "0"), ("native", "1"), ("stand-in", "0"), ("stand-in", "1"))
    ]
    for command, env, chosen in calls:
        assert not set(env) & set(kernels.PINS)
        assert chosen["RL_SEEDS"] == "[0, 1]"
        assert [item for item in command if item.startswith("--only")] == ["--only=06_gap"]
    note = json.loads((home / "results" / "native-seed1" / "run.json").read_text())
    assert note["parameters"] == {"SEED": 1}  # no folder of this machine
    assert (home / "results" / "native-seed1" / "verdicts" / "06_gap.json").is_file()


def test_what_is_finished_is_not_done_again_and_what_failed_is(home, calls):
    assert run(home, seeds=[0, 7])["native-seed7"] == "status 2: replicate: error: no such thing"
    kept = [path.name for path in (home / "results" / "native-seed7" / "verdicts").iterdir()]
    assert kept == ["06_gap.json"]  # what was finished when the run failed
    before = len(calls)
    run(home, seeds=[0, 7])
    again = [[item for item in command if item.startswith("--only")] for command, *_ in calls[before:]]
    assert again == [["--only=07_attention"]] * 2


def test_only_the_notebooks_that_are_missing_are_executed(home, calls):
    run(home, seeds=[0], settings=["native"], only=["06"])
    run(home, seeds=[0], settings=["native"])
    executed = [[item for item in command if item.startswith("--only")] for command, *_ in calls]
    assert executed == [["--only=06_gap"], ["--only=07_attention"]]


def test_an_unknown_setting_is_named(home):
    with pytest.raises(ValueError, match="settings: expected some of pinned, native, stand-in, got avx9"):
        run(home, settings=["native", "avx9"])
