"""The synthetic corpus of the tiny ladder, and its tokenizer.

Four kinds of sequences, each filling the whole context:

- *prose*: a sparse Markov chain over 180 words, so that there is something to learn from neighbours alone;
- *records*: ``key = value ;`` over and over, each key keeping its value within the sequence, so that copying from
  the context pays;
- *label documents*: ``label is Y ; filler ... answer : Y ;``, few, in the form of
  :mod:`replicate.rl.tasks.label_copying`;
- *sequence documents*: the same with T labels in a row, ``label is Y1 .. YT ; filler ... answer : Y1 .. YT ;``, in the
  form of :mod:`replicate.rl.tasks.sequence_copying`; none, unless they are asked for.

Everything is drawn for a whole batch at once with numpy: no Python loop over sequences.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from replicate.rl.tasks.label_copying import LABELS, WORDS
from replicate.settings.tiny_ladder import Mixture

SPECIAL = ("<pad>", "<eos>", "<unk>")
MARKS = (";", "=", ":", "label", "is", "answer")
KEYS = tuple(f"key{i}" for i in range(24))
VALUES = tuple(f"value{i}" for i in range(40))
VOCABULARY = SPECIAL + MARKS + LABELS + KEYS + VALUES + WORDS

_ID = {word: i for i, word in enumerate(VOCABULARY)}
_SUCCESSORS = 6
_PAIRS = 4
_ANSWERS = (1, 2, 4, 8, 16)


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the corpus' vocabulary; words are separated by white space."""
    # `Whitespace` would split "<eos>" into three; WhitespaceSplit cuts at white space alone.
    core = Tokenizer(models.WordLevel(_ID, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class Chain:
    """The Markov chain of the prose: ``successors`` [words, 6] and the cumulated ``weights`` [words, 6]."""

    successors: np.ndarray
    weights: np.ndarray


def prose_chain(seed: int) -> Chain:
    """The chain that belongs to ``seed``: six successors a word, with Dirichlet(1) weights."""
    rng = np.random.default_rng((seed, 1))
    successors = rng.permuted(np.tile(np.arange(len(WORDS)), (len(WORDS), 1)), axis=1)[:, :_SUCCESSORS]
    return Chain(successors, rng.dirichlet(np.ones(_SUCCESSORS), size=len(WORDS)).cumsum(axis=1))


def batch(
    chain: Chain, mixture: Mixture, *, sequences: int, length: int, rng: np.random.Generator
) -> Int[np.ndarray, "sequences length"]:
    """Draws ``sequences`` token sequences of exactly ``length`` tokens each from the mixture."""
    if length < 12:
        raise ValueError(f"length: expected at least 12 tokens, got {length}")
    kind = rng.random(sequences)
    records = kind < mixture.records
    documents = ~records & (kind < mixture.records + mixture.label_documents)
    copied = kind < mixture.records + mixture.label_documents + mixture.sequence_documents
    copied &= ~records & ~documents
    out = prose(chain, sequences=sequences, length=length, rng=rng)
    out[records] = key_value_records(sequences=int(records.sum()), length=length, rng=rng)
    out[documents] = label_documents(mixture, sequences=int(documents.sum()), length=length, rng=rng)
    # Of none nothing is drawn: without them a batch is what it was before there were any.
    out[copied] = sequence_documents(mixture, sequences=int(copied.sum()), length=length, rng=rng)
    return out


def prose(
    chain: Chain, *, sequences: int, length: int, rng: np.random.Generator
) -> Int[np.ndarray, "sequences length"]:
    """Walks of the chain, from a uniform first word."""
    words = np.empty((sequences, length), dtype=np.int64)
    words[:, 0] = rng.integers(len(WORDS), size=sequences)
    draws = rng.random((sequences, length))
    for t in range(1, length):
        before = words[:, t - 1]
        choice = (draws[:, t, None] > chain.weights[before]).sum(axis=1).clip(max=_SUCCESSORS - 1)
        words[:, t] = chain.successors[before, choice]
    return words + _ID[WORDS[0]]


def key_value_records(
    *, sequences: int, length: int, rng: np.random.Generator
) -> Int[np.ndarray, "sequences length"]:
    """``key = value ;`` with four keys a sequence, each keeping its value."""
    count = -(-length // 4)
    keys = rng.permuted(np.tile(np.arange(len(KEYS)), (sequences, 1)), axis=1)[:, :_PAIRS]
    values = rng.integers(len(VALUES), size=(sequences, _PAIRS))
    pick = rng.integers(_PAIRS, size=(sequences, count))
    out = np.empty((sequences, count, 4), dtype=np.int64)
    out[..., 0] = np.take_along_axis(keys, pick, axis=1) + _ID[KEYS[0]]
    out[..., 1] = _ID["="]
    out[..., 2] = np.take_along_axis(values, pick, axis=1) + _ID[VALUES[0]]
    out[..., 3] = _ID[";"]
    return out.reshape(sequences, 4 * count)[:, :length]


def label_documents(
    mixture: Mixture, *, sequences: int, length: int, rng: np.random.Generator, answer: int = 1
) -> Int[np.ndarray, "sequences length"]:
    """``label is Y ; filler answer : Y ;`` with filler of random length, and filler again to the end.

    ``answer`` different labels stand for Y; with them a document has at least 6 + 2 ``answer`` tokens,
    and ``ValueError`` says so if ``length`` has not.
    """
    if length < _shortest(answer):
        raise ValueError(
            f"length: expected at least {_shortest(answer)} tokens for {answer} labels, got {length}"
        )
    out = rng.integers(len(WORDS), size=(sequences, length)) + _ID[WORDS[0]]
    shape = (sequences, answer)
    label = _labels(mixture.labels, shape, rng)
    given = np.where(rng.random(shape) < mixture.noise, rng.integers(mixture.labels, size=shape), label)
    out[:, :2] = _ID["label"], _ID["is"]
    out[:, 2 : 2 + answer] = label + _ID[LABELS[0]]
    out[:, 2 + answer] = _ID[";"]
    row = np.arange(sequences)
    at = 3 + answer + rng.integers(length - _shortest(answer) + 1, size=sequences)
    for offset, mark in ((0, "answer"), (1, ":"), (2 + answer, ";")):
        out[row, at + offset] = _ID[mark]
    out[row[:, None], at[:, None] + 2 + np.arange(answer)] = given + _ID[LABELS[0]]
    return out


def _labels(
    labels: int, shape: tuple[int, int], rng: np.random.Generator
) -> Int[np.ndarray, "sequences answer"]:
    """One label, or several different ones, in random order."""
    if shape[1] == 1:
        return rng.integers(labels, size=shape)
    return rng.permuted(np.tile(np.arange(labels), (shape[0], 1)), axis=1)[:, : shape[1]]


def sequence_documents(
    mixture: Mixture, *, sequences: int, length: int, rng: np.random.Generator
) -> Int[np.ndarray, "sequences length"]:
    """:func:`label_documents` with 1, 2, 4, 8 or 16 labels, each number as likely as another among those that fit into
    ``length`` and that there are different labels for."""
    fitting = [answer for answer in _ANSWERS if _shortest(answer) <= length and answer <= mixture.labels]
    which = rng.integers(len(fitting), size=sequences)
    out = np.empty((sequences, length), dtype=np.int64)
    for index, answer in enumerate(fitting):
        rows = which == index
        how = {"sequences": int(rows.sum()), "length": length, "rng": rng}
        out[rows] = label_documents(mixture, answer=answer, **how)
    return out


def _shortest(answer: int) -> int:
    """The tokens of a document without filler: ``label is``, the labels, ``; answer :``, the labels, ``;``."""
    return 6 + 2 * answer
