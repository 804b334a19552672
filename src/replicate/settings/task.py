"""What the model is asked."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from replicate.settings.section import LABELS, MOST, SEED, Says, Section, Seed, Text

LABEL, FILLER = "{label}", "{filler}"
"""What a prompt's template has filled in."""


class Task(Section):
    """Which task, and the prompts on which it is evaluated and measured.

    ``task`` names a module of :mod:`replicate.rl.tasks`; ``labels`` answers are possible, the first of ``label_words``,
    which are separated by blanks; ``filler`` words stand between question and answer. ``template`` is a whole document
    and ends in the answer: the prompt is what stands before the last ``{label}``, without a blank in front of it, which
    belongs to the answer. On ``eval_prompts`` prompts RL is evaluated, on ``measure_prompts`` others a checkpoint is
    measured, and RL learns from neither. ``seed`` decides which prompts are drawn.

    An answer has ``answer_tokens`` tokens. Of several, the ``reward`` is 1 if "all" of them are right, given once for
    the whole answer; or "each" one that is right earns its share, 1 / ``answer_tokens``, where it stands.
    """

    about: ClassVar[str] = (
        "The seed of all but RL, and the task; TEMPLATE ends in the answer, and a blank before it is the answer's. "
        'Answers of several tokens earn 1 if "all" are right, or "each" token that is right its share.'
    )

    seed: Seed = SEED
    task: Text = "label_copying"
    labels: int = LABELS
    label_words: Text = (
        "red green blue black white brown gold silver gray pink orange purple yellow cream copper rose"
    )
    template: Text = f"label is {LABEL} ; {FILLER} answer : {LABEL}"
    filler: int = Field(16, ge=0, le=MOST)
    answer_tokens: int = Field(1, ge=1, le=64)
    reward: Literal["all", "each"] = Field("all", alias="ANSWER_REWARD")
    eval_prompts: int = Field(64, ge=1, le=MOST)
    measure_prompts: int = Field(64, ge=1, le=MOST)

    def complaints(self, says: Says) -> Iterator[str]:
        """Too few label words, or some twice, a template that asks for nothing or has no room for the filler, and long
        answers of a task that has none."""
        words = self.label_words.split()
        if len(set(words)) < len(words) or len(words) < self.labels:
            wanted = f"at least {says('labels')} ({self.labels}) different words, separated by blanks"
            yield f"{says('label_words')} must be {wanted}, got {self.label_words!r}"
        name, template = says("template"), self.template
        if template.count(LABEL) < 2 or not template.endswith(LABEL):
            wanted = f"name {LABEL} in the question and end in {LABEL}, the answer"
            yield f"{name} must {wanted}, got {template!r}"
        if template.count(FILLER) != 1 and (self.filler or FILLER in template):
            yield f"{name} must have {FILLER} once (or not at all with {says('filler')} 0), got {template!r}"
        if self.answer_tokens > self.labels:
            yield (
                f"{says('answer_tokens')} must not exceed {says('labels')} ({self.labels}), an answer's labels are all "
                f"different, got {self.answer_tokens}"
            )
        if self.task == "label_copying" and self.answer_tokens != 1:
            remedy = f"set {says('task')} to sequence_copying"
            yield f"{says('answer_tokens')} must be 1 for label_copying, got {self.answer_tokens}; {remedy}"
