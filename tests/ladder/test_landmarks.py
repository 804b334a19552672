"""Landmarks: the first rung, the last, and the inner one whose J is nearest half-way, on any ladder."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from replicate.ladder import landmarks, open_ladder


@pytest.fixture
def prompts(ladder):
    """A few prompts in the words of the ladder."""
    return landmarks.prompts_for(ladder, 16, filler=4, rng=np.random.default_rng(0))


@pytest.fixture
def planted(ladder, tmp_path):
    """Makes a ladder whose rungs are those of the session's at the given places, in that order."""

    def plant(places):
        for step, place in enumerate(places):
            shutil.copytree(ladder.checkpoints[place].where, tmp_path / f"stage1-step{step}-tokens{step}K")
        return open_ladder(tmp_path)

    return plant


def rewards(ladder, prompts):
    """J of each rung, from its logits and nothing of the package: E pi(y | q)."""
    found = []
    for rung in ladder:
        logits = rung.model(dtype=torch.float64)(input_ids=prompts.tokens).logits[:, -1, : prompts.vocab]
        found.append(torch.softmax(logits, -1)[torch.arange(len(prompts)), prompts.labels].mean().item())
    return found


def test_the_sessions_ladder_climbs(ladder, prompts):
    """What the plans below rest on: J at places 0, 1, 2 grows, and the middle one is nearer the first."""
    low, middle, high = rewards(ladder, prompts)
    assert low < middle < (low + high) / 2 < high


@pytest.mark.parametrize(
    ("places", "middle"),
    [
        ([0, 1, 2], 1),
        ([2, 1, 0], 1),  # one that falls
        ([0, 0, 1, 2], 2),
        ([0, 2, 1, 2], 2),  # up, down, up: by J, not by where it stands
        ([1, 0, 2, 1], 1),  # first and last are nearest half-way themselves
        ([2, 0, 1, 2], 2),
        ([0, 1, 2, 0, 0], 3),  # half-way between the ends, not between the extremes
        ([0, 2, 2, 0], 1),  # none but the ends is near: the earliest of the inner ones
    ],
)
def test_the_middle_is_chosen_by_j_among_the_inner_rungs(planted, prompts, places, middle):
    ladder = planted(places)
    found = landmarks.landmarks(ladder, prompts)
    assert [mark.stage for mark in found] == ["before", "climbing", "after"]
    chosen = (0, middle, len(places) - 1)
    assert [mark.checkpoint.step for mark in found] == list(chosen)
    exact = rewards(ladder, prompts)
    # float32 forward passes against float64 ones.
    assert [mark.reward for mark in found] == pytest.approx([exact[i] for i in chosen], rel=1e-4)


def test_models_are_ready_for_exact_statements(ladder, prompts):
    for mark in landmarks.landmarks(ladder, prompts):
        assert {p.dtype for p in mark.model.parameters()} == {torch.float64}
        assert mark.model.config._attn_implementation == "eager"
        assert not mark.model.training


@pytest.mark.parametrize(
    ("places", "stages", "focus"), [([1], ["after"], 0), ([0, 2], ["before", "after"], 1)]
)
def test_fewer_than_three_rungs_stand_for_the_last_and_the_first(planted, prompts, places, stages, focus):
    found = landmarks.landmarks(planted(places), prompts)
    assert [mark.stage for mark in found] == stages
    assert [mark.checkpoint.step for mark in found] == list(range(len(places)))
    assert landmarks.focus(found).checkpoint.step == focus


@pytest.mark.parametrize("steps", [[3], [3, 1], [2, 0, 1]])
def test_named_rungs_are_taken_in_their_order_whatever_their_j(planted, prompts, steps):
    ladder = planted([0, 1, 2, 0])
    found = landmarks.landmarks(ladder, prompts, steps)
    assert [mark.checkpoint.step for mark in found] == steps
    assert [mark.stage for mark in found] == {1: ["after"], 2: ["before", "after"], 3: [*landmarks.STAGES]}[
        len(steps)
    ]
    exact = dict(zip(range(4), rewards(ladder, prompts), strict=True))
    assert [mark.reward for mark in found] == pytest.approx([exact[step] for step in steps], rel=1e-4)
    assert landmarks.focus(found).checkpoint.step == steps[len(steps) // 2]


@pytest.mark.parametrize(
    ("steps", "message"),
    [([0, 1, 2, 3], "RUNGS: expected at most 3 steps"), ([0, 7], "has no step 7 .it has .0, 1, 2, 3")],
)
def test_rungs_that_are_not_there_are_refused(planted, prompts, steps, message):
    with pytest.raises(ValueError, match=message):
        landmarks.landmarks(planted([0, 1, 2, 0]), prompts, steps)


def test_columns_of_prompts_are_read_off_their_tokens(ladder, prompts):
    found = landmarks.columns(ladder, prompts)
    fillers = [f"filler {i}" for i in (1, 2, 3, 4)]
    assert found.names == ["label", "is", "y", ";", *fillers, "answer", ":"]
    assert (found.label, found.filler) == (2, [4, 5, 6, 7])
    elsewhere = replace(prompts, labels=prompts.labels + 1)
    assert landmarks.columns(ladder, elsewhere).label is None


def test_prompts_are_in_the_ladders_words_with_four_labels(ladder, prompts):
    words = ladder.checkpoints[0].tokenizer()
    assert len(prompts) == 16
    assert len(prompts.label_set) == 4
    assert [words.decode(row) for row in prompts.tokens] == list(prompts.text)
    assert all(len(text.split()) == 4 + 4 + 2 for text in prompts.text)
