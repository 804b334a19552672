"""What comes next in the corpus, by its own rules: the kind of every position, and the entropy of what fills it.

The tiny ladder's corpus is drawn by known rules (:mod:`replicate.ladder.corpus`), so at each position the distribution
of the next token *given the tokens before it* is known, and with it the entropy S_t that no training can remove. Kind
and S_t are functions of the tokens before a position, never of the token that happens to stand there.

    prose     a word                 entropy of the chain's six successors of the word before
    records   a key                  each of m keys seen so far with 1/4, else one of 24 - m others
              a value                log 40 the first time its key stands there, 0 again
    prompts   the label              log(labels)
              a word or "answer"     the line ends at every place with equal chance: h(r) + (1 - r) log 180
              the answer             0 without noise in the labels
    marks     = ; : is               0
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from replicate.ladder import corpus
from replicate.ladder.checkpoints import Ladder
from replicate.ladder.corpus import KEYS, VALUES, VOCABULARY, Chain
from replicate.rl.prompts import Prompts
from replicate.rl.tasks.label_copying import WORDS
from replicate.settings.tiny_ladder import Mixture, TinyLadder

MARK, WORD, KEY, FIRST, AGAIN, LABEL, UNTIL, ANSWER = KINDS = (
    "mark",
    "prose word",
    "key",
    "value, first time",
    "value, again",
    "label",
    "word or 'answer'",
    "the answer",
)
COPIED = (AGAIN, ANSWER)
"""Kinds that the tokens before decide (without noise), but only for a reader who looks them up."""
OPEN = (WORD, KEY, FIRST, LABEL, UNTIL)
"""Kinds that nothing before decides."""

_ID = {word: i for i, word in enumerate(VOCABULARY)}
_PAIRS = 4  # keys a sequence of records


@dataclass(frozen=True)
class Text:
    """Sequences of one kind of ``document``; ``kind`` and ``source`` say of positions t = 1..length-1 what comes next
    by rule, and the rule's entropy S_t in nats."""

    document: str
    tokens: Int[np.ndarray, "sequences length"]
    kind: np.ndarray
    source: Float[np.ndarray, "sequences positions"]


def texts(spec: TinyLadder, prompts: Prompts, *, sequences: int, rng: np.random.Generator) -> dict[str, Text]:
    """Fresh text by the rules of ``spec``'s corpus, of every kind of which it has any: prose and records drawn here,
    and for its label documents ``prompts`` of label copying, each with its answer.

    ``ValueError`` for a corpus with sequence documents: in it more labels may follow a label, and how likely that is is
    not written out here.
    """
    if spec.sequence_documents > 0:
        raise ValueError(
            f"sequence_documents: expected a corpus without any, got a share of {spec.sequence_documents}; set "
            f"{spec.flat_name('sequence_documents')} to 0"
        )
    how = {"sequences": sequences, "length": spec.context + 1, "rng": rng}
    found = {}
    if spec.records + spec.label_documents < 1 - 1e-9:
        chain = corpus.prose_chain(spec.seed)
        words = corpus.prose(chain, **how)
        found["prose"] = Text("prose", words, *_prose(words, chain))
    if spec.records > 0:
        lines = corpus.key_value_records(**how)
        found["records"] = Text("records", lines, *_records(lines))
    if spec.label_documents > 0:
        answered = np.column_stack([prompts.tokens[:sequences].numpy(), prompts.labels[:sequences].numpy()])
        found["prompts"] = Text("prompts", answered, *_prompts(answered, spec))
    return found


def _prose(tokens: np.ndarray, chain: Chain) -> tuple[np.ndarray, np.ndarray]:
    weights = np.diff(chain.weights, axis=1, prepend=0.0).clip(0.0)
    source = entr(weights).sum(axis=1)[tokens[:, :-1] - _ID[WORDS[0]]]
    return np.full(source.shape, WORD, dtype=object), source


def _records(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kind = np.full(tokens.shape, MARK, dtype=object)
    source = np.zeros(tokens.shape)
    for row, line in enumerate(tokens):
        seen: set[int] = set()
        for t in range(0, len(line), 4):
            kind[row, t], source[row, t] = KEY, key_entropy(len(seen))
            if t + 2 < len(line):
                known = int(line[t]) in seen
                kind[row, t + 2], source[row, t + 2] = (AGAIN, 0.0) if known else (FIRST, np.log(len(VALUES)))
            seen.add(int(line[t]))
    return kind[:, 1:], source[:, 1:]


def key_entropy(seen: int) -> float:
    """Entropy in nats of the next key after ``seen`` different ones: 1/4 on each of them, the rest on all others."""
    others = len(KEYS) - seen
    rest = (_PAIRS - seen) / _PAIRS
    return float(seen * entr(1 / _PAIRS) + others * entr(rest / others))


def _prompts(tokens: np.ndarray, spec: TinyLadder) -> tuple[np.ndarray, np.ndarray]:
    """``label is Y ; words answer : Y``: the word "answer" could have come at each place from 4 to context - 3."""
    places = np.arange(4, tokens.shape[1] - 2)
    left = spec.context - 2 - places
    ends = np.where(left > 0, 1 / np.maximum(left, 1), np.nan)  # no document is that long
    until = entr(ends) + entr(1 - ends) + (1 - ends) * np.log(len(WORDS))
    kind = np.array([MARK, LABEL, MARK, *[UNTIL] * len(places), MARK, ANSWER], dtype=object)
    source = np.array([0.0, np.log(spec.labels), 0.0, *until, 0.0, _answer_entropy(spec)])
    return np.tile(kind, (len(tokens), 1)), np.tile(source, (len(tokens), 1))


def _answer_entropy(mixture: Mixture) -> float:
    wrong = mixture.noise / mixture.labels
    return float(entr(1 - mixture.noise + wrong) + (mixture.labels - 1) * entr(wrong))


def require_corpus(ladder: Ladder) -> None:
    """``ValueError`` for a ladder whose models were not taught the corpus' words: its text says nothing to them."""
    if ladder.checkpoints[0].tokenizer().get_vocab() != _ID:
        raise ValueError(f"LADDER: expected one with the tiny corpus' tokenizer, got {ladder.spec}")
