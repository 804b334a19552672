"""Interventions: J_0 is where it was wanted, and nothing but the named change was made."""

import numpy as np
import pytest
import torch

from replicate.ladder import corpus, interventions
from replicate.rl.prompts import evaluate
from replicate.rl.tasks.label_copying import label_copying


@pytest.fixture(scope="module")
def prompts():
    return label_copying(corpus.tokenizer(), 40, labels=4, filler=4, rng=np.random.default_rng(3))


def reward(rung, prompts):
    return evaluate(rung.model(), prompts).correct.double().mean().item()


@pytest.mark.parametrize("kind", interventions.KINDS)
def test_j0_is_held_where_it_was_wanted(ladder, tmp_path, prompts, kind):
    before = [reward(rung, prompts) for rung in ladder]
    held = interventions.make(ladder, tmp_path, prompts, kind=kind, reward=0.2)
    assert len(held) >= 1
    for rung in held:
        assert reward(rung, prompts) == pytest.approx(0.2, abs=1e-5)
    assert max(abs(x - 0.2) for x in before) > 0.01  # or nothing would have been done
    assert f"J_0 held at 0.2 ({kind})" in held.kind


def test_temperature_changes_the_head_by_a_factor_and_nothing_else(ladder, tmp_path, prompts):
    held = interventions.make(ladder, tmp_path, prompts, kind="temperature", reward=0.2)
    rung = held.checkpoints[-1]
    tau, old = interventions.note(rung)["temperature"], ladder.at(rung.step)
    assert interventions.note(rung)["of"] == old.sha
    assert tau != pytest.approx(1.0, abs=1e-3)
    now = dict(rung.model().named_parameters())
    for name, weight in old.model().named_parameters():
        factor = 1 / tau if name == "lm_head.weight" else 1.0
        assert torch.allclose(now[name], weight * factor, rtol=1e-6), name


def test_averaged_weights_are_the_mean_of_neighbours(ladder):
    one, two, three = (dict(rung.model().named_parameters()) for rung in ladder)
    for name, weight in interventions.averaged(ladder.checkpoints).named_parameters():
        assert torch.allclose(weight, (one[name] + two[name] + three[name]) / 3, atol=1e-6), name


def test_what_is_there_is_opened_and_every_nth_rung_is_taken(ladder, tmp_path, prompts, monkeypatch):
    made = interventions.make(ladder, tmp_path, prompts, kind="average", reward=0.2, every=2)
    assert {rung.step for rung in made} <= {0, 40}
    monkeypatch.setattr(interventions, "_intervened", None)
    again = interventions.make(ladder, tmp_path, prompts, kind="average", reward=0.2, every=2)
    assert [rung.sha for rung in again] == [rung.sha for rung in made]


def test_a_reward_that_is_passed_twice_takes_the_temperature_nearest_to_one(prompts):
    """Two tokens in front of the right one when cold, all alike when hot: in between J rises and falls again."""
    logits = torch.zeros(len(prompts), prompts.vocab, dtype=torch.float64)
    logits[torch.arange(len(prompts)), prompts.labels] = 6.0
    wrong = (prompts.labels + 1) % 16
    logits[torch.arange(len(prompts)), wrong] = 6.5
    found = interventions.temperature_for(logits, prompts, 0.3)
    p = (logits / found).log_softmax(-1).gather(1, prompts.labels[:, None]).exp().mean().item()
    assert p == pytest.approx(0.3, abs=1e-8)
    others = [0.7, 0.5, 0.4]
    at = [(logits / t).softmax(-1).gather(1, prompts.labels[:, None]).mean().item() for t in others]
    assert max(at) > 0.3  # it is passed on the way to the cold side, too
    assert interventions.temperature_for(logits, prompts, 0.9) is None


@pytest.mark.parametrize(
    ("options", "culprit"),
    [({"kind": "magic"}, "kind"), ({"reward": 1.0}, "reward"), ({"reward": 0.999}, "reward")],
)
def test_refusals(ladder, tmp_path, prompts, options, culprit):
    how = {"kind": "temperature", "reward": 0.2, **options}
    with pytest.raises(ValueError, match=culprit):
        interventions.make(ladder, tmp_path, prompts, **how)
