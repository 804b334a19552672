"""Sequence copying: label copying with an answer of several tokens (audit A9).

A prompt names T labels one after another, then come filler words, and the answer is those labels in that order::

    label is red blue red ; water often early ... answer :        then  red blue red

The labels of a prompt are all different and in random order: with repeats a model could not go by what followed the
label that it said last, and a tiny one does not learn to count. The text is label copying's ``TEMPLATE`` with all T
labels, blanks between them, where that has one, so with T = 1 it is label copying
(:mod:`replicate.rl.tasks.label_copying`), rewarded as that is; there the labels come in equal shares.

What a tokenizer must do: each label is exactly one more token at each place of the answer, whatever stands before it.
That is tried on every prompt with its answer. Prompts are of one length in tokens.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from replicate.rl.prompts import Prompts, Reward, added_tokens, all_right, each_right, exact_match
from replicate.rl.tasks import label_copying as one
from replicate.settings.task import Task

_REWARDS = {"all": all_right, "each": each_right}
_OTHER_WORDS = "choose other LABEL_WORDS"


def horizon(settings: Task) -> int:
    """As many tokens as labels are asked for."""
    return settings.answer_tokens


def reward(settings: Task) -> Reward:
    """Right or wrong for one token; for several what ``settings.reward`` says, "all" or "each"."""
    return exact_match if settings.answer_tokens == 1 else _REWARDS[settings.reward]


def draw(tokenizer, count: int, *, settings: Task, rng: np.random.Generator) -> Prompts:
    """``count`` prompts whose ``labels`` are [prompts, T], or [prompts] if T is 1.

    Raises ``ValueError`` if the tokenizer cannot say them: a label that is not one more token at some place of an
    answer, hardly a filler word that is one token, prompts that differ in length.
    """
    names = settings.label_words.split()
    one.require_sizes(count, labels=settings.labels, filler=settings.filler, names=names)
    template = settings.template
    known = one.fillers(tokenizer, template, names) if settings.filler else one.WORDS
    every = np.tile(np.arange(settings.labels), (count, 1))
    chosen = rng.permuted(every, axis=1)[:, : settings.answer_tokens]
    words = rng.integers(len(known), size=(count, settings.filler))
    said = [" ".join(names[y] for y in row) for row in chosen]
    text = tuple(
        one.prompt_text(label, [known[w] for w in row], template)
        for label, row in zip(said, words, strict=True)
    )
    ids = _ids(tokenizer, text[0], settings)
    place = torch.arange(settings.answer_tokens)
    labels = ids[place, torch.from_numpy(chosen)]
    _require_spelling(tokenizer, text, said, labels, blank=one.blank_of(template))
    right = labels[:, 0] if settings.answer_tokens == 1 else labels
    return Prompts(text, one.in_tokens(tokenizer, text), right, ids.unique(), len(tokenizer))


def _ids(tokenizer, prompt: str, settings: Task) -> Int[Tensor, "T labels"]:
    """The token of each label at each place: the first place is behind the prompt, the others are behind a label."""
    names, blank = settings.label_words.split()[: settings.labels], one.blank_of(settings.template)
    later = []
    if settings.answer_tokens > 1:
        # Asked first: a label that is one token behind a blank may need nothing but a blank in the template.
        later = one.answer_ids(tokenizer, f"{prompt}{blank}{names[0]}", names, blank=" ", remedy=_OTHER_WORDS)
    first = one.answer_ids(tokenizer, prompt, names, blank=blank)
    return torch.tensor([first, *[later] * (settings.answer_tokens - 1)])


def _require_spelling(tokenizer, text, said, labels: Int[Tensor, "prompts T"], *, blank: str) -> None:
    """``ValueError`` if a prompt with its answer is not the prompt's tokens and then its labels'."""
    for prompt, answer, right in zip(text, said, labels.tolist(), strict=True):
        more = added_tokens(tokenizer, prompt, f"{prompt}{blank}{answer}")
        if more != right:
            pieces = more or tokenizer.encode(f"{blank}{answer}", add_special_tokens=False)
            raise ValueError(
                f"tokenizer: expected answer {answer!r} to be one more token a label after the prompt, got "
                f"{[tokenizer.decode([i]) for i in pieces]}; {_OTHER_WORDS}"
            )
