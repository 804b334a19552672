"""Label words and template reach the jobs, through the tokenizer of whoever's checkpoint it is."""

import pytest
import torch

from replicate.ladder import open_ladder
from replicate.runs import measurement, prompts
from replicate.settings.machine import Machine
from replicate.settings.measurement import Measurement
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
