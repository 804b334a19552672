"""Ladders: training, resuming, reuse, opening, and damaged folders."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from replicate import files, identity, kernels
from replicate.ladder import corpus, open_ladder, pretrain, sources
from replicate.ladder.checkpoints import NAME, decides, snapshot_name
from replicate.ladder.pretrain import train
from replicate.settings.tiny_ladder import TinyLadder


def shas(ladder):
    return [checkpoint.sha for checkpoint in ladder]


def test_names_are_ai2s_with_tokens_rounded_up():
    assert snapshot_name(10000, 10000 * 2097152, unit="B") == "stage1-step10000-tokens21B"
    assert NAME.match("stage2-ingredient3-step23852-tokens51B")["ingredient"] == "3"
    assert not NAME.match("stage1-step5")


def test_checkpoints_come_in_step_order_and_are_ordinary_snapshots(ladder):
    assert [c.step for c in ladder] == [0, 20, 40]
    assert [c.tokens for c in ladder] == [0, 11000, 21000]
    files = {path.name for path in ladder.checkpoints[0].where.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert ladder.checkpoints[0].model().config.model_type == "olmo2"
    assert "tiny OLMo-2" in ladder.kind


def test_training_changes_every_checkpoint_and_lowers_the_loss(ladder, spec):
    assert len(set(shas(ladder))) == 3
    chain, rng = corpus.prose_chain(0), np.random.default_rng(9)
    data = torch.from_numpy(corpus.batch(chain, spec, sequences=64, length=32, rng=rng))
    losses = [c.model()(input_ids=data, labels=data).loss.item() for c in ladder]
    assert losses[0] > losses[1] > losses[2]


def test_a_killed_run_resumes_to_the_same_bits(ladder, spec, tmp_path, monkeypatch):
    """Killed in the middle of writing the last checkpoint, then started again."""
    rename = pretrain.Path.rename

    def die(self, target):
        if "step40" in str(target):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(pretrain.Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path, progress=False)
    monkeypatch.undo()
    started = []
    save = pretrain._save
    monkeypatch.setattr(pretrain, "_save", lambda *args: (started.append(args[1]), save(*args)))
    assert shas(train(spec, tmp_path, progress=False)) == shas(ladder)
    assert started == [40]  # steps 0 and 20 were not trained again


def test_a_finished_ladder_is_reused_and_other_parameters_make_another(ladder, spec, monkeypatch):
    folder = ladder.checkpoints[0].where.parents[1]
    monkeypatch.setattr(pretrain, "_train", lambda *_: pytest.fail("trained again"))
    assert shas(train(spec, folder, progress=False)) == shas(ladder)
    assert pretrain.key(spec.model_copy(update={"seed": 1})) != pretrain.key(spec)


def test_the_folder_says_what_made_it_and_is_named_by_that(ladder, spec):
    """Parameters, code, libraries, kernels: a ladder is never taken for one that other arithmetic would have made."""
    folder = ladder.checkpoints[0].where.parent
    said = json.loads((folder / "parameters.json").read_text())
    del said["origin"]  # who trained it is no part of what it is
    assert said["spec"] == spec.model_dump()
    assert said["code"] == identity.digest("replicate.ladder.pretrain")
    assert torch.__version__.startswith(said["versions"]["torch"])
    assert said["kernels"] == kernels.name()
    assert folder.name == hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", ["parameters.json", "LADDER"])
def test_killed_before_the_done_mark_the_ladder_is_finished_later(ladder, spec, tmp_path, monkeypatch, name):
    def die(path, text):
        if path.name == name:
            raise KeyboardInterrupt
        files.write_text(path, text)

    monkeypatch.setattr(pretrain, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path, progress=False)
    monkeypatch.undo()
    assert not (tmp_path / pretrain.key(spec) / "LADDER").exists()
    monkeypatch.setattr(pretrain, "_save", lambda *_: pytest.fail("trained again"))
    again = train(spec, tmp_path, progress=False)
    assert shas(again) == shas(ladder)
    assert again.kind == ladder.kind
    assert not (tmp_path / pretrain.key(spec) / "resume.pt").exists()


@pytest.mark.parametrize("length", [0, 1000])
def test_a_damaged_state_costs_time_and_nothing_else(ladder, spec, tmp_path, monkeypatch, length):
    monkeypatch.setattr(pretrain, "_finish", lambda *_: None)
    train(spec, tmp_path, progress=False)
    monkeypatch.undo()
    state = tmp_path / pretrain.key(spec) / "resume.pt"
    state.write_bytes(state.read_bytes()[:length])
    assert shas(train(spec, tmp_path, progress=False)) == shas(ladder)


def test_a_missing_tokenizer_is_named_and_damage_makes_another_checkpoint(ladder, tmp_path):
    """What damaged weights are called, and that they hide no other, is tested where jobs meet them: runs/test_sweep."""
    shutil.copytree(ladder.checkpoints[0].where.parent, tmp_path / "copy")
    before, after, _ = open_ladder(tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (before.where / name).unlink()
    with pytest.raises(ValueError, match=r"step0.*tokenizer"):
        before.tokenizer()
    weights = after.where / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert after.sha != ladder.checkpoints[1].sha


def test_bad_folders_are_named(ladder, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        open_ladder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no snapshot"):
        open_ladder(tmp_path)
    with pytest.raises(ValueError, match="step 7"):
        ladder.at(7)
    for name in ("stage1-step5-tokens1K", "stage1-step5-tokens1B"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="two snapshots at step 5"):
        open_ladder(tmp_path)


def test_billions_and_stage_two_are_read(tmp_path):
    for name in (
        "stage2-ingredient1-step10-tokens1B",
        "stage1-step20000-tokens42B",
        "stage1-step3000-tokens7B",
        "main",
    ):
        (tmp_path / name).mkdir()
    found = [(c.stage, c.step, c.tokens) for c in open_ladder(tmp_path)]
    assert found == [(1, 3000, 7 * 10**9), (1, 20000, 42 * 10**9), (2, 10, 10**9)]


@pytest.mark.parametrize("style", ["checkpoint-{}", "step{}", "step-{}", "global_step{}", "iter_{}"])
def test_names_of_trainers_are_read_and_say_nothing_of_tokens(tmp_path, style):
    for step in (5, 1000, 20):
        (tmp_path / style.format(step)).mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    found = [(c.name, c.stage, c.step, c.tokens) for c in open_ladder(tmp_path)]
    assert found == [(style.format(step), 1, step, None) for step in (5, 20, 1000)]
    (tmp_path / "stage1-step20-tokens1B").mkdir()
    with pytest.raises(ValueError, match="two snapshots at step 20"):
        open_ladder(tmp_path)


def test_one_snapshot_is_a_ladder_of_one_rung(ladder, tmp_path):
    rung = ladder.checkpoints[1]
    shutil.copytree(rung.where, tmp_path / "my model")
    (alone,) = open_ladder(tmp_path / "my model")
    assert (alone.name, alone.step, alone.tokens, alone.sha) == ("my model", 0, None, rung.sha)
    (named,) = open_ladder(rung.where)
    assert (named.step, named.tokens) == (rung.step, rung.tokens)


def test_contents_that_are_known_make_the_same_checkpoint_without_its_files(ladder, tmp_path):
    rung = ladder.checkpoints[0]
    known = tuple(
        (p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in rung.where.iterdir() if decides(p.name)
    )
    absent = dataclasses.replace(rung, where=tmp_path / "not there", contents=known[::-1])
    assert absent.sha == rung.sha
    other = dataclasses.replace(absent, contents=(*known[1:], (known[0][0], "0" * 64)))
    assert other.sha != rung.sha


@pytest.mark.parametrize("options", [{"steps": 10, "every": 3}, {"hidden": 30, "heads": 4}, {"steps": 0}])
def test_impossible_ladders_are_refused(options):
    with pytest.raises(ValueError, match=r"must be|expected|greater"):
        TinyLadder(**options)


def test_a_module_among_the_sources_opens_names_with_its_prefix(ladder, tmp_path, monkeypatch):
    text = "from replicate.ladder.checkpoints import Ladder, open_folder\n\n\ndef open(request):\n"
    text += "    one = open_folder(request.spec.partition(':')[2])\n"
    text += "    return Ladder(request.spec, 'thinned', one.checkpoints[::2])\n"
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    folder = ladder.checkpoints[0].where.parent
    thinned = open_ladder(f"mine:{folder}")
    assert (thinned.kind, [c.sha for c in thinned]) == ("thinned", shas(ladder)[::2])
    with pytest.raises(ValueError, match="no such folder"):  # no prefix that anybody knows
        open_ladder(f"mime:{folder}")
