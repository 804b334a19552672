"""Label copying: the paper's controlled task, as text, with its expected reward in closed form.

A prompt names a label y among a few, then come filler words, and the answer position must put mass on y's token::

    label is green ; water often early ... answer :

With the reward R(a) = 1[a = y] of a sampled token a, the objective J = E_q pi(y | q) needs no sampling: it is read
off the logits, over the whole vocabulary. Rows of the embedding that no token uses (padding rows) are masked first.

The words are common English ones, so that the same text is one token a word both for the word-level tokenizer of the
tiny ladder and for a byte-pair tokenizer such as OLMo-2's; :func:`label_copying` refuses a tokenizer where the label
is not exactly one more token, or where prompts differ in length.
"""

import numpy as np
import torch

from replicate.rl.prompts import Prompts, exact_match
from replicate.settings.task import Task

_LABELS = """
    red green blue black white brown gold silver gray pink orange purple yellow cream copper rose
"""
LABELS = tuple(_LABELS.split())

_WORDS = """
    able above after again air also always among animal area army art away back bank base bed before
    begin below best better big body book both box boy bread bring build business call car carry
    case cause center chance change child choice church city class clear close cold common company
    cost country course cover current dark day deal dear deep different door down dry early earth
    east easy edge energy even every eye face fact fall family far farm fast field figure final fire
    first fish floor food foot force form free friend full game garden girl give glass good great
    ground group hand hard head heart heat heavy high hill home horse hour house idea inside island
    job join keep kind king land large last late law lead learn leave left letter level life light
    line list little live local long look low main man map market matter mile mind money month moon
    more morning mother mountain move music name nature near need never new night north note number
    ocean often old once open order other page paper part
"""
WORDS = tuple(_WORDS.split())


def prompt_text(label: str, filler: list[str]) -> str:
    """The text of one prompt, up to and including the colon after which the label is due."""
    return " ".join(["label", "is", label, ";", *filler, "answer", ":"])


def label_copying(tokenizer, prompts: int, *, labels: int, filler: int, rng: np.random.Generator) -> Prompts:
    """Draws ``prompts`` label-copying prompts with ``filler`` filler words each, labels in equal shares.

    Raises ``ValueError`` if the tokenizer splits a label into several tokens or the prompts differ in length.
    """
    if not 2 <= labels <= len(LABELS):
        raise ValueError(f"labels: expected 2 to {len(LABELS)}, got {labels}")
    if prompts < 1 or filler < 0:
        raise ValueError(f"prompts, filler: expected at least 1 and 0, got {prompts} and {filler}")
    chosen = rng.permutation(np.arange(prompts) % labels)
    words = rng.integers(len(WORDS), size=(prompts, filler))
    text = tuple(
        prompt_text(LABELS[y], [WORDS[w] for w in row]) for y, row in zip(chosen, words, strict=True)
    )
    label_ids = torch.tensor([_answer_id(tokenizer, text[0], name) for name in LABELS[:labels]])
    rows = [tokenizer.encode(line, add_special_tokens=False) for line in text]
    if len(lengths := {len(row) for row in rows}) > 1:
        raise ValueError(
            f"tokenizer: expected prompts of one length in tokens, got lengths {sorted(lengths)}"
        )
    return Prompts(text, torch.tensor(rows), label_ids[torch.from_numpy(chosen)], label_ids, len(tokenizer))


HORIZON = 1
reward = exact_match


def draw(tokenizer, count: int, *, settings: Task, rng: np.random.Generator) -> Prompts:
    """:func:`label_copying` with the settings of a run."""
    return label_copying(tokenizer, count, labels=settings.labels, filler=settings.filler, rng=rng)


def _answer_id(tokenizer, prompt: str, label: str) -> int:
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(f"{prompt} {label}", add_special_tokens=False)
    if after[:-1] != before:
        raise ValueError(f"tokenizer: expected label {label!r} to be exactly one more token after the prompt")
    if after[-1] == getattr(tokenizer, "unk_token_id", None):
        raise ValueError(f"tokenizer: label {label!r} is not in its vocabulary")
    return after[-1]
