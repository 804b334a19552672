"""Label copying: the paper's controlled task, as text, with its expected reward in closed form.

A prompt names a label y among a few, then come filler words, and the answer position must put mass on y's token::

    label is green ; water often early ... answer :

With the reward R(a) = 1[a = y] of a sampled token a, the objective J = E_q pi(y | q) needs no sampling: it is read
off the logits, over the whole vocabulary. Rows of the embedding that no token uses (padding rows) are masked first.

Which words are labels and how they are asked for is the task's: ``LABEL_WORDS`` and ``TEMPLATE``
(:class:`~replicate.settings.task.Task`). The built-in words are common English ones, so that the same text is one token
a word both for the word-level tokenizer of the tiny ladder and for a byte-pair tokenizer such as OLMo-2's.

What a tokenizer must do. Behind its prompt every label is exactly one more token, with the blank in front of it where
the template has one; a label of several is refused. Filler words are drawn from those that are one token where they
stand, so that a tokenizer that splits a few of them loses these and no more. Prompts then are of one length in tokens
unless a label is split in the *question*, which is refused as well: nothing is padded.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from replicate.rl.prompts import Prompts, Reward, added_tokens, exact_match
from replicate.settings.task import FILLER, LABEL, Task

_DEFAULTS = Task()
LABELS = tuple(_DEFAULTS.label_words.split())

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


def prompt_text(label: str, filler: list[str], template: str = _DEFAULTS.template) -> str:
    """The text of one prompt: ``template`` up to its last ``{label}``, which is due next, and the blank before that."""
    text = template.removesuffix(LABEL).removesuffix(" ").replace(LABEL, label)
    if filler:
        return text.replace(FILLER, " ".join(filler))
    return re.sub(rf"^{re.escape(FILLER)} | ?{re.escape(FILLER)}", "", text)


def label_copying(
    tokenizer,
    prompts: int,
    *,
    labels: int,
    filler: int,
    rng: np.random.Generator,
    label_words: str = _DEFAULTS.label_words,
    template: str = _DEFAULTS.template,
) -> Prompts:
    """Draws ``prompts`` label-copying prompts with ``filler`` filler words each, labels in equal shares.

    Raises ``ValueError`` if the tokenizer cannot say them: a label that is not one more token behind its prompt, hardly
    a filler word that is one token, prompts that differ in length.
    """
    names = label_words.split()
    require_sizes(prompts, labels=labels, filler=filler, names=names)
    known = fillers(tokenizer, template, names) if filler else WORDS
    chosen = rng.permutation(np.arange(prompts) % labels)
    words = rng.integers(len(known), size=(prompts, filler))
    text = tuple(
        prompt_text(names[y], [known[w] for w in row], template) for y, row in zip(chosen, words, strict=True)
    )
    label_ids = torch.tensor(answer_ids(tokenizer, text[0], names[:labels], blank=blank_of(template)))
    tokens = in_tokens(tokenizer, text)
    return Prompts(text, tokens, label_ids[torch.from_numpy(chosen)], label_ids, len(tokenizer))


def horizon(settings: Task) -> int:
    """One token, whatever the settings."""
    return 1


def reward(settings: Task) -> Reward:
    """Right or wrong, whatever the settings."""
    return exact_match


def draw(tokenizer, count: int, *, settings: Task, rng: np.random.Generator) -> Prompts:
    """:func:`label_copying` with the settings of a run."""
    how = {name: getattr(settings, name) for name in ("labels", "filler", "label_words", "template")}
    return label_copying(tokenizer, count, rng=rng, **how)


def require_sizes(prompts: int, *, labels: int, filler: int, names: Sequence[str]) -> None:
    """``ValueError`` for too few prompts or filler words, and for more labels than there are ``names``."""
    if not 2 <= labels <= len(names):
        raise ValueError(f"labels: expected 2 to {len(names)}, got {labels}")
    if prompts < 1 or filler < 0:
        raise ValueError(f"prompts, filler: expected at least 1 and 0, got {prompts} and {filler}")


def in_tokens(tokenizer, text: Sequence[str]) -> Int[Tensor, "prompts length"]:
    """The prompts' tokens; ``ValueError`` if the prompts are not of one length, with the remedy."""
    rows = [tokenizer.encode(line, add_special_tokens=False) for line in text]
    if len(lengths := {len(row) for row in rows}) > 1:
        raise ValueError(
            f"tokenizer: expected prompts of one length in tokens, got lengths {sorted(lengths)}; choose LABEL_WORDS "
            f"that are one token where TEMPLATE asks for them, and set {FILLER} between blanks"
        )
    return torch.tensor(rows)


def fillers(tokenizer, template: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The words, labels apart, that are one known token, each, where the filler stands in the template.

    ``ValueError`` with the remedy if hardly any is.
    """
    before = template.partition(FILLER)[0].replace(LABEL, labels[0])
    first = " " if before.endswith(" ") else ""  # all other filler words stand behind a blank
    before, unknown = before.removesuffix(" "), getattr(tokenizer, "unk_token_id", None)

    def fits(word: str, blank: str) -> bool:
        more = added_tokens(tokenizer, before, f"{before}{blank}{word}")
        return more is not None and len(more) == 1 and more[0] != unknown

    known = tuple(w for w in WORDS if w not in labels and all(fits(w, blank) for blank in {first, " "}))
    if len(known) < 2:
        raise ValueError(
            f"tokenizer: expected filler words of one token, got {len(known)} of {len(WORDS)} where TEMPLATE has "
            f"{FILLER}; set FILLER to 0, or put a blank before {FILLER}"
        )
    return known


def blank_of(template: str) -> str:
    """The blank that a template has before its answer, which is the answer's, or nothing."""
    return " " if template.endswith(f" {LABEL}") else ""


def answer_ids(tokenizer, prompt: str, labels: Sequence[str], *, blank: str, remedy: str = "") -> list[int]:
    """The one token, each, that says a label behind ``prompt`` and ``blank``.

    Where one is none, or several: ``ValueError`` with its pieces and the ``remedy`` (by default, what helps with a
    label behind a whole prompt).
    """
    return [_answer_id(tokenizer, prompt, label, blank, remedy) for label in labels]


def _answer_id(tokenizer, prompt: str, label: str, blank: str, remedy: str) -> int:
    more = added_tokens(tokenizer, prompt, f"{prompt}{blank}{label}")
    if more is None or len(more) != 1:
        pieces = more if more is not None else tokenizer.encode(f"{blank}{label}", add_special_tokens=False)
        raise ValueError(
            f"tokenizer: expected label {label!r} to be exactly one more token after the prompt, got "
            f"{[tokenizer.decode([i]) for i in pieces]}; {remedy or _remedy(tokenizer, prompt, label, blank)}"
        )
    if more[0] == getattr(tokenizer, "unk_token_id", None):
        raise ValueError(f"tokenizer: label {label!r} is not in its vocabulary; choose other LABEL_WORDS")
    return more[0]


def _remedy(tokenizer, prompt: str, label: str, blank: str) -> str:
    """Where the label is one token the other way, with or without a blank before it, that is what to write."""
    other = added_tokens(tokenizer, prompt, f"{prompt}{'' if blank else ' '}{label}")
    if other is not None and len(other) == 1:
        return f"end TEMPLATE in {LABEL} {'without' if blank else 'with'} a blank before it"
    return "choose other LABEL_WORDS, or another TEMPLATE"
