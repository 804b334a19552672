"""Label words and template reach the jobs, through the tokenizer of whoever's checkpoint it is."""

import pytest
import torch

from replicate.ladder import open_ladder
from replicate.runs import forecast, measurement, prompts, response
from replicate.settings.grpo import GRPO
from replicate.settings.machine import Machine
from replicate.settings.measurement import Measurement
from replicate.settings.response import Response
from replicate.settings.task import Task

ENGLISH = Task(
    labels=3,
    label_words="red orange black",
    template="The label is {label} . {filler} . The answer is {label}",
    filler=3,
    eval_prompts=9,
    measure_prompts=12,
)


def test_a_job_measures_plain_english_on_somebody_elses_checkpoint(strangers, bpe):
    """J_0 of the job's record against the softmax over the tokens in use, prompt by prompt."""
    rung = open_ladder(strangers).checkpoints[1]
    settings = measurement.Settings(
        task=ENGLISH, measurement=Measurement(group=4), machine=Machine(dtype="float64")
    )
    record = measurement.run(settings, rung, [0])[0]
    chosen = prompts.measured(ENGLISH, rung, "cpu")
    model, mass = rung.model(dtype=torch.float64), []
    for text, label in zip(chosen.text, chosen.labels, strict=True):
        assert text.startswith(f"The label is{bpe.decode([label])} . ")
        with torch.no_grad():
            logits = model(torch.tensor([bpe.encode(text)])).logits[0, -1, : len(bpe)]
        mass.append(logits.softmax(-1)[label].item())
    assert record["reward"] == pytest.approx(sum(mass) / len(mass), rel=1e-10)


def test_the_three_sets_share_no_prompt(strangers):
    rung = open_ladder(strangers).checkpoints[0]
    sets = [prompts.held_out(ENGLISH, rung, "cpu"), prompts.measured(ENGLISH, rung, "cpu")]
    sets.append(prompts.pool(ENGLISH, 30, rung, "cpu"))
    texts = [text for found in sets for text in set(found.text)]
    assert len(texts) == len(set(texts)) > 40


LONG = Task(
    task="sequence_copying",
    answer_tokens=3,
    reward="each",
    labels=4,
    filler=4,
    eval_prompts=9,
    measure_prompts=8,
)
TRAINED = {
    "response": Response(budgets=[1, 2], pool_prompts=32),
    "grpo": GRPO(prompts=4, group_size=4),
    "machine": Machine(),
}


def test_rl_takes_long_answers_and_judges_them_token_by_token(ladder):
    """The record's start against the model's own softmax along the right answer, one pass a prompt."""
    rung = ladder.checkpoints[-1]
    settings = response.Settings(task=LONG, **TRAINED)
    start = response.run(settings, rung, [0])[0]["budgets"][0]
    chosen = prompts.held_out(LONG, rung, "cpu")
    model, each = rung.model(dtype=torch.float64), []
    for tokens, labels in zip(chosen.tokens, chosen.labels, strict=True):
        with torch.no_grad():
            logits = model(torch.cat([tokens, labels])[None]).logits[0, len(tokens) - 1 : -1, : chosen.vocab]
        each.append(logits.softmax(-1)[torch.arange(3), labels])
    each = torch.stack(each)
    assert start["each_right"] == pytest.approx(each.mean().item(), rel=1e-4)
    assert start["reward"] == pytest.approx(each.prod(1).mean().item(), rel=1e-4)
    thirds = start["sampled"] * 3 * 4 * 9  # 4 samples of 9 prompts, a third for each right token
    assert thirds == pytest.approx(round(thirds), abs=1e-4)


def test_what_is_read_off_one_token_refuses_long_answers(ladder):
    rung, line = (
        ladder.checkpoints[-1],
        "^TASK: expected answers of one token .* got sequence_copying with 3 tokens",
    )
    with pytest.raises(ValueError, match=line):
        measurement.run(
            measurement.Settings(task=LONG, measurement=Measurement(), machine=Machine()), rung, [0]
        )
    with pytest.raises(ValueError, match=line):
        forecast.run(forecast.Settings(task=LONG, measurement=Measurement(), **TRAINED), rung, [0])
