"""What must fail is refused before any work, by a line that names the parameter and the remedy."""

import json
import re
import shutil

import pytest
import torch

from replicate import files
from replicate.runs import preflight
from replicate.runs.params import ScaleParameters

SMALL = {"FILLER": 4, "POOL_PROMPTS": 32, "EVAL_PROMPTS": 8, "MEASURE_PROMPTS": 8, "RUN_DIR": "run"}


@pytest.fixture
def folder(ladder, home):
    """A copy of the session's ladder: two blocks, a context of 32 tokens."""
    return shutil.copytree(ladder.checkpoints[0].where.parent, home / "ladder")


def require(**values):
    preflight.require(ScaleParameters(**{**SMALL, **values}), where="p.yaml")


def refused(message, **values):
    with pytest.raises(ValueError, match=f"^p.yaml: .*{message}") as error:
        require(**values)
    assert str(error.value).isprintable()


def test_what_can_run_passes(folder):
    require()
    require(LADDER="ladder", MEASURE_LAYERS=[-1, 0, 2])
    require(LADDER=str(folder), FILLER=26)


def test_a_ladder_that_is_not_there(folder, home):
    remedy = "give 'tiny' or a folder of snapshots"
    refused(f"LADDER: .*{home}/nowhere: no such folder; {remedy}", LADDER="nowhere")
    lock = "no lock file .*/hub.lock.json; make it with `replicate hub lock`$"
    refused(f"LADDER: ladder hub:allenai/OLMo-2-0425-1B: {lock}", LADDER="hub:allenai/OLMo-2-0425-1B")
    refused("LADDER: ladder hub:OLMo: expected hub:organisation/name", LADDER="hub:OLMo")
    (home / "empty").mkdir()
    refused(f"LADDER: .*no snapshot folder named .*; {remedy}", LADDER="empty")


def test_layers_deeper_than_the_model(folder):
    for layers in ([3], [-1, 9]):
        refused(
            "MEASURE_LAYERS must be 0 to 2 or -1, the final state .the model has 2 blocks.",
            LADDER="ladder",
            MEASURE_LAYERS=layers,
        )


def test_the_first_readable_snapshot_tells_a_damaged_one_is_a_failed_row_later(folder):
    first, second, third = sorted(
        folder.glob("stage1-*"), key=lambda p: int(p.name.split("step")[1].split("-")[0])
    )
    (first / "config.json").write_text("{")
    (first / "tokenizer.json").unlink()
    (first / "tokenizer_config.json").unlink()
    require(LADDER="ladder")
    refused("MEASURE_LAYERS must be 0 to 2 or -1", LADDER="ladder", MEASURE_LAYERS=[3])
    for snapshot in (second, third):
        (snapshot / "config.json").write_text(json.dumps({"num_hidden_layers": None}))
    refused("LADDER: no snapshot in 'ladder' has a readable config.json", LADDER="ladder")


def test_a_ladder_without_a_tokenizer(folder):
    for file in folder.glob("stage1-*/tokenizer*"):
        file.unlink()
    refused("LADDER: no snapshot in 'ladder' has a usable tokenizer", LADDER="ladder")


def test_prompts_longer_than_the_models_context(folder):
    message = (
        "FILLER: expected prompts that fit into the model's context of 32 tokens.*got 33 tokens; lower FILLER"
    )
    refused(message, LADDER="ladder", FILLER=27)
    refused(message, FILLER=27)  # before the tiny ladder is trained


def test_long_answers_have_to_fit_with_their_prompts(folder):
    """A prompt of 6 + T + FILLER tokens; the answer's last token is never read."""
    long = {"TASK": "sequence_copying", "ANSWER_TOKENS": 8, "LABELS": 8, "LADDER": "ladder"}
    require(**long, FILLER=12)
    refused("got 26 tokens and 8 of the answer; lower FILLER", **long, FILLER=13)


def test_prompts_that_this_tokenizer_cannot_make(folder):
    for file in folder.glob("stage1-*/tokenizer.json"):
        file.write_text(file.read_text().replace('"gold"', '"good"'))
    require(LADDER="ladder", LABELS=4)
    refused("LABELS, FILLER: these prompts cannot be made with this ladder.*gold", LADDER="ladder", LABELS=8)


@pytest.mark.parametrize("ladder_of", ["tiny", "ladder"])
def test_a_pool_with_nothing_left(folder, ladder_of):
    refused("MEASURE_PROMPTS: all 8 prompts drawn are used", LADDER=ladder_of, FILLER=0)
    four = {"LADDER": ladder_of, "FILLER": 0, "EVAL_PROMPTS": 2}  # four texts, two of them held out
    refused("POOL_PROMPTS: all 32 prompts drawn are used", **four, MEASURE_PROMPTS=16)
    require(**{**four, "EVAL_PROMPTS": 1}, MEASURE_PROMPTS=2)
    require(LADDER=ladder_of, FILLER=1)


def test_devices_that_cannot_be_used(home):
    for device in ("cudaa", "meta", "cuda:99", "cpu:x"):
        refused(f"DEVICE: '{device}' with float32 does not work here .*; use DEVICE=cpu", DEVICE=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_one_line(home):
    refused("DEVICE: 'cuda' with float32 does not work here", DEVICE="cuda")


def test_folders_that_cannot_be_written(home):
    (home / "file").touch()
    for name in ("RUN_DIR", "LADDER_DIR"):
        for value in ("file", "file/below", "x" * 300):
            refused(
                f"{name}: cannot write to '{value[:9]}.*; name a folder that can be written", **{name: value}
            )


def test_a_full_disk_shows(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full)
        refused("RUN_DIR: cannot write to 'run' .No space left on device.")
    assert list((home / "run").iterdir()) == []


def test_a_check_leaves_nothing_behind_a_run_keeps_its_folder(home):
    before = sorted(home.iterdir())
    preflight.require(ScaleParameters(RUN_DIR="a/b/c"), where="x", keep=False)
    assert sorted(home.iterdir()) == before
    (home / "a").mkdir()
    preflight.require(ScaleParameters(RUN_DIR="a/b/c"), where="x", keep=False)
    assert not any((home / "a").iterdir())
    preflight.require(ScaleParameters(RUN_DIR="a/b/c"), where="x")
    assert (home / "a/b/c").is_dir()


def test_several_faults_are_named_together(home):
    (home / "file").touch()
    refused("RUN_DIR: .*; DEVICE: .*; LADDER: ", RUN_DIR="file", DEVICE="cudaa", LADDER="no")


def test_notebooks_and_engines_that_are_not_there(home, monkeypatch):
    pytest.importorskip("papermill")
    preflight.require_notebooks()
    preflight.require_notebooks(["00", "11_rl"])
    with pytest.raises(ValueError, match="--only '99': no such notebook; there are 00_start_here"):
        preflight.require_notebooks(["00", "99"])
    preflight.require_engine("local")
    with pytest.raises(ValueError, match=r"engine: expected one of \('local', 'ray'\), got 'slurm'"):
        preflight.require_engine("slurm")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name in ("papermill", "ray") else name)
    with pytest.raises(
        ValueError, match="papermill not installed; pip install papermill, or use `replicate sweep`"
    ):
        preflight.require_notebooks()
    with pytest.raises(ValueError, match=r"engine: .* installed, got 'ray'; pip install ray"):
        preflight.require_engine("ray")


def test_no_notebooks_folder_is_said_with_the_remedy(home, monkeypatch):
    monkeypatch.setattr(preflight.paths, "notebooks", lambda: home / "notebooks")
    with pytest.raises(ValueError, match=re.escape(f"none in {home / 'notebooks'}; set REPLICATE_HOME")):
        preflight.require_notebooks()
