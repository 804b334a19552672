"""A close look at ladders of other makes: what their cells call works on them, and claims they cannot test say so."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from replicate.ladder import landmarks, open_ladder
from replicate.lm import (
    blockwise,
    costate,
    differences,
    logit_path,
    paths,
    pathways,
    recurrence,
    relaxed,
    sampling,
    shapes,
    spectra,
    theorem_one,
)
from replicate.report.ledger.asked import Asked
from replicate.report.ledger.questions import Ledger
from replicate.report.verdicts import ControlFailed
from replicate.runs.closeup import Look
from replicate.runs.estimate import Plan
from replicate.runs.notebook import start


@pytest.fixture
def opened(home):
    """A notebook's run on a ladder, started as the notebook does it."""

    def open_(notebook, ladder, **values):
        return start(notebook, {"LADDER": str(ladder), "RUN_DIR": "run", **values}, source="fresh models")

    return open_


MAKES = [("llama", {"kv_heads": 2}, True), ("gpt2", {}, False), ("olmo2", {}, True)]


@pytest.mark.parametrize(("family", "shape", "bytes_"), MAKES)
def test_everything_that_is_measured_of_a_ladder_can_be_of_any_make(
    tmp_path, snapshots_of, whole_bpe, opened, capsys, family, shape, bytes_
):
    """Two rungs, embedding rows behind the tokenizer's tokens, two tokenizers."""
    words = whole_bpe if bytes_ else None
    folder = snapshots_of(
        tmp_path / "own", family, steps=(0, 50), words=words, padding=5, hidden=32, heads=4, **shape
    )
    look = opened("05_empirical_costates", folder).look(rng=np.random.default_rng(0))
    assert "local checkpoints (own): 0." in capsys.readouterr().out
    assert [rung.stage for rung in look.rungs] == ["before", "after"]
    assert (look.focus_name, look.count, look.trained) == ("last rung", "two rungs", ["after"])
    model, q, V = look.focus.model, look.prompts.tokens, look.prompts.vocab
    at = landmarks.columns(look.ladder, look.prompts)
    assert at.names == ["label", "is", "y", ";", *(f"filler {i}" for i in (1, 2, 3, 4)), "answer", ":"]
    # 05
    layers = [0, *look.blocks, -1]
    exact = look.influence(layers)
    assert not exact[-1, :, -1][torch.ones(10, 10).triu(1).bool()].any()
    probed = replace(look, plan=Plan(prompts=4, probes=2)).influence(layers)
    assert torch.equal(probed > 0, exact > 0)
    o, A = torch.randint(V, (4, 3)), torch.randn(4).double()
    lam = costate.layer_costates(model, q[:4], o, A, vocab=V, layers=layers)
    assert costate.credit_matrix(model, q[:4], o, A, vocab=V, layer=0).sum(1).shape == lam[0][:, -3:].shape
    assert 0 <= look.undecided < len(look.asked)
    moved = differences.reach(model, q[0], layers=layers, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moved > 0, exact > 0)
    assert min(costate.upward_share(x) for x in (exact, moved)) > 0
    e_q, y = model.get_input_embeddings()(q[:2, :-1]), look.prompts.labels[:2]
    kept = relaxed.around_token(model, e_q, y, vocab=V, cut=True)
    assert not kept[0].any()
    assert kept[1].any()
    # 06 and 08
    F, s = recurrence.transformer(model, vocab=V), recurrence.prompt_state(model, q[:1])
    noise = relaxed.gumbel(2, V, generator=torch.Generator().manual_seed(0))
    drawn = paths.soft_tokens(F, s, 1.0, 1.0, noise, False, matched=True)
    found = logit_path.logit_paths(F, s, *drawn)
    assert (found.exact <= found.right["pairs"] * (1 + 1e-9)).all()
    assert (found.right["pairs"] <= found.right["paper"] * (1 + 1e-9)).all()
    sides = logit_path.two_paths(model, F, q[:1], noise, taus=(1.0,))
    assert all(0 < row["share"] < 1 for row in sides)
    y = int(look.prompts.labels[0])
    state, options = recurrence.prompt_state(model, q[:1, :-1]), {"horizon": 2}
    sides = theorem_one.both_sides(F, state, lambda soft: soft[:, -1, y], **options)
    assert sides.error[0] <= sides.sharp[0] * (1 + 1e-9)
    begun = blockwise.Start(model, q[:1, :-1], F, state)
    found = blockwise.sides(begun, lambda soft: soft[:, -1, y], **options)
    assert 0 < found.error <= found.sharp * (1 + 1e-9) <= found.entropy * (1 + 2e-9)
    # 08b
    assert sampling.answer_costs(begun, y)["crossing"] > 0
    # 07
    row = pathways.sublayer_ranks(model, q[0, :5], rtol=look.rank_rtol, layers=look.blocks)
    assert row["rank"] <= row["input bound"] == shapes.shape_of(model).input_bound
    assert (look.held_back is None) == (row["input bound"] == 32)
    values = spectra.participation_ratio(shapes.value_path_weights(model))
    table = pathways.effective_ranks(model, q[:2], layers=look.blocks)
    first = table.groupby(["layer", "head"])["value only"].first()
    np.testing.assert_allclose(first.to_numpy(), values.flatten().numpy(), rtol=1e-9)


def test_a_ladder_of_one_and_named_rungs(tmp_path, snapshots_of, opened):
    folder = snapshots_of(tmp_path / "own", "llama", hidden=16, heads=2)
    one = opened("08_theorem_1", folder / "checkpoint-100").look(rng=np.random.default_rng(0))
    assert [(rung.stage, rung.checkpoint.step) for rung in one.rungs] == [("after", 100)]
    named = opened("08_theorem_1", folder, RUNGS="[200, 0]").look(rng=np.random.default_rng(0))
    assert [(rung.stage, rung.checkpoint.step) for rung in named.rungs] == [("before", 200), ("after", 0)]
    assert named.not_fresh == "the first rung has been trained, for 200 steps"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RUNGS": [100, 7]}, r"RUNGS: expected steps of .*, which has \[0, 100, 200\], got \[7\]"),
        ({"RUNGS": [0, 100, 200, 300]}, "RUNGS: List should have at most 3 items"),
        ({"RUNGS": [100, 100]}, "RUNGS: expected distinct numbers"),
        (
            {"LADDER": "nowhere"},
            "LADDER: ladder .*nowhere: no such folder; give 'tiny' or a folder of snapshots",
        ),
        ({"MAX_MEMORY_GB": -1.0}, "MAX_MEMORY_GB: Input should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_any_work(tmp_path, snapshots_of, opened, values, message):
    folder = snapshots_of(tmp_path / "own", "llama", hidden=16, heads=2)
    with pytest.raises(ValueError, match=message):
        opened("05_empirical_costates", **{"ladder": folder} | values) if "LADDER" not in values else opened(
            "05_empirical_costates", values["LADDER"]
        )


def test_a_model_beyond_memory_is_refused_before_it_is_opened(tmp_path, snapshots_of, opened):
    folder = snapshots_of(tmp_path / "own", "llama", hidden=16, heads=2)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    run = opened("07_attention_pathways", folder, MAX_MEMORY_GB=0.1)
    with pytest.raises(
        ValueError, match=r"^LADDER: 3 rung\(s\) of 0 M parameters need about .*MAX_MEMORY_GB"
    ):
        run.look(rng=np.random.default_rng(0))


@pytest.fixture
def look(ladder, opened, tmp_path):
    """A look at the session's ladder as somebody else's, of which only the last two rungs are named."""
    folder = ladder.checkpoints[0].where.parent
    run = opened("05_empirical_costates", folder, RUNGS=[20, 40])
    run.verdict = Asked(run.verdicts, Ledger())  # what the notebook itself asks is not asked here
    return run.look(rng=np.random.default_rng(0))


ROW = {"kind": "ours", "where": "A3", "quantity": "q"}


def test_rows_carry_the_ladders_kind_and_say_what_cannot_be_tested(look):
    assert look.foreign
    look.check("there", **ROW, value=lambda: 1.0, above=0.0, needs=("before", "after"))
    look.check("no climb", **ROW, value=lambda: 1 / 0, above=0.0, needs=["climbing"])
    look.check("no premise", **ROW, value=1.0, above=0.0, unless=[None, "because"])
    look.check("no number", **ROW, value=float("nan"), above=0.0)
    look.control("no row", where="A3", quantity="q", value=lambda: 1 / 0, above=0.0, needs=["climbing"])
    rows = look.run.verdicts.rows
    assert {row.source for row in rows} == {look.ladder.kind}
    assert [row.verdict for row in rows] == ["reproduced", *["not testable here"] * 3]
    reasons = ["the ladder has no climbing rung", "because", "too little to measure it on: q"]
    assert [row.quantity for row in rows[1:]] == reasons


def test_on_the_tiny_ladder_no_premise_is_asked_and_no_control_forgiven(look):
    tiny = Look(look.run, look.ladder, look.prompts, look.rungs, look.plan)
    object.__setattr__(look.run, "params", look.run.params.model_copy(update={"LADDER": "tiny"}))
    assert not tiny.foreign
    tiny.check("asked all the same", **ROW, value=1.0, above=0.0, unless=["because"])
    tiny.check("no number", **ROW, value=float("nan"), above=0.0)
    tiny.control("toothless", where="A3", quantity="q", value=1.0, above=2.0)
    assert [row.verdict for row in tiny.run.verdicts] == ["reproduced", "not reproduced", "-"]
    with pytest.raises(ControlFailed):
        look.run.finish()


def test_a_control_that_rejects_nothing_there_takes_its_check_back(look):
    look.check("first", **ROW, value=1.0, above=0.0)
    look.check("guarded", **ROW, value=1.0, above=0.0)
    look.control("toothless", where="A3", quantity="q", value=1.0, above=2.0)
    look.control("sharp", where="A3", quantity="q", value=3.0, above=2.0)
    saved = json.loads(
        (look.run.finish() and look.run.folder / "verdicts" / f"{look.run.name}.json").read_text()
    )
    rows = {row["claim"]: row for row in saved["rows"]}
    assert rows["first"]["verdict"] == "reproduced"
    assert rows["guarded"]["verdict"] == "not testable here"
    assert "its control rejects nothing on this ladder" in rows["guarded"]["quantity"]
    assert (rows["toothless"]["value"], rows["sharp"]["value"]) == (None, 3.0)
    look.run.verdicts.control(
        "elsewhere", where="A3", quantity="q", value=1.0, above=2.0, source="fresh models"
    )
    with pytest.raises(ControlFailed, match="elsewhere"):
        look.run.finish()


def test_rewards_without_spread_are_replaced_on_another_ladder_only(look, capsys):
    alike, mixed = torch.zeros(4).double(), torch.tensor([0.0, 1, 1, 0]).double()
    assert look.with_spread(alike).tolist() == [0, 1, 0, 1]
    assert "every second one" in capsys.readouterr().out
    assert look.with_spread(mixed) is mixed


def test_the_sessions_ladder_is_opened_as_its_own_kind(look, ladder):
    assert look.ladder.kind == ladder.kind == open_ladder(look.run.params.LADDER).kind
