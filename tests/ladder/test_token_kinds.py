"""What comes next in the corpus: kinds by hand, and source entropies against frequencies in much text."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from replicate.ladder import corpus, token_kinds
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.ladder.token_kinds import AGAIN, ANSWER, FIRST, KEY, LABEL, MARK, UNTIL, WORD
from replicate.rl.tasks.label_copying import label_copying
from replicate.settings.tiny_ladder import TinyLadder

SPEC = TinyLadder(records=0.3, label_documents=0.2, labels=4, context=24)
WORDS = corpus.tokenizer()


def rng(seed=0):
    return np.random.default_rng(seed)


def prompts(count=8, *, labels=4):
    return label_copying(WORDS, count, labels=labels, filler=5, rng=rng())


def texts(spec=SPEC, *, sequences=8, seed=0):
    return token_kinds.texts(spec, prompts(), sequences=sequences, rng=rng(seed))


def plug_in(counts):
    """Entropy of frequencies, with the first-order correction for its bias."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum() + (len(p) - 1) / (2 * counts.sum()))


def test_only_what_the_mixture_has():
    assert list(texts()) == ["prose", "records", "prompts"]
    assert list(texts(TinyLadder(records=0.5, label_documents=0.5))) == ["records", "prompts"]
    assert list(texts(TinyLadder(records=0.0, label_documents=0.0))) == ["prose"]
    for text in texts().values():
        assert text.kind.shape == text.source.shape == (8, text.tokens.shape[1] - 1)


def test_kinds_of_records_read_off_one_line():
    line = "key3 = value1 ; key5 = value9 ; key3 = value1 ; key0 = value7 ; key5"
    tokens = np.array([WORDS.encode(line)])
    kind, source = token_kinds._records(tokens)
    mark_value = [
        MARK,
        FIRST,
        MARK,
        KEY,
        MARK,
        FIRST,
        MARK,
        KEY,
        MARK,
        AGAIN,
        MARK,
        KEY,
        MARK,
        FIRST,
        MARK,
        KEY,
    ]
    assert kind[0].tolist() == mark_value
    assert source[0, [1, 5, 9, 13]].tolist() == pytest.approx([math.log(40), math.log(40), 0, math.log(40)])
    assert source[0, [3, 7, 11, 15]].tolist() == pytest.approx(
        [token_kinds.key_entropy(m) for m in (1, 2, 2, 3)]
    )


def test_entropy_of_the_next_key_is_that_of_its_frequencies():
    tokens = corpus.key_value_records(sequences=60_000, length=12, rng=rng()) - WORDS.convert_tokens_to_ids(
        "key0"
    )
    one, two, three = tokens[:, 0], tokens[:, 4], tokens[:, 8]
    relative = (two - one) % 24  # by symmetry the same law for every first key
    assert plug_in(np.bincount(relative)) == pytest.approx(token_kinds.key_entropy(1), abs=0.01)
    after_two = (three - one)[(one == 0) & (two == 1)]
    assert plug_in(np.bincount(after_two % 24)) == pytest.approx(token_kinds.key_entropy(2), abs=0.25)
    assert token_kinds.key_entropy(4) == pytest.approx(math.log(4))
    assert token_kinds.key_entropy(0) == pytest.approx(math.log(24))


def test_a_corpus_with_sequence_documents_is_refused():
    """There "label is red" may go on with another label, so the rule for what follows is another one."""
    spec = TinyLadder(records=0.3, label_documents=0.2, sequence_documents=0.1, labels=4, context=24)
    with pytest.raises(
        ValueError, match=r"^sequence_documents: .* got a share of 0.1; set TINY_SEQUENCE_DOCUM"
    ):
        texts(spec)


def test_entropy_of_prose_is_that_of_the_chain_row():
    chain = corpus.prose_chain(SPEC.seed)
    first = WORDS.convert_tokens_to_ids(corpus.WORDS[0])
    text = texts(sequences=4)["prose"]
    assert set(text.kind.ravel()) == {WORD}
    many = corpus.prose(chain, sequences=4000, length=40, rng=rng(1)) - first
    word = int(text.tokens[0, 6]) - first
    after = many[:, 1:][many[:, :-1] == word]
    assert text.source[0, 6] == pytest.approx(plug_in(np.bincount(after)), abs=0.1)


def test_where_a_line_may_end_is_what_label_documents_do():
    text = texts()["prompts"]
    assert text.kind[0].tolist() == [MARK, LABEL, MARK, *[UNTIL] * 6, MARK, ANSWER]
    documents = corpus.label_documents(SPEC, sequences=40_000, length=SPEC.context + 1, rng=rng(2))
    ends = (documents == WORDS.convert_tokens_to_ids("answer")).argmax(axis=1)
    for place in (4, 7, 9):
        r = (ends == place).sum() / (ends >= place).sum()
        by_count = -r * math.log(r) - (1 - r) * math.log(1 - r) + (1 - r) * math.log(len(corpus.WORDS))
        assert text.source[0, place - 1] == pytest.approx(by_count, abs=0.05)
    assert text.source[0, 1] == pytest.approx(math.log(4))
    assert text.source[0, [0, 2, 9, 10]].tolist() == [0, 0, 0, 0]


def test_the_last_place_for_the_answer_is_certain_and_none_comes_after():
    spec = TinyLadder(labels=4, context=12)
    text = token_kinds.texts(spec, prompts(), sequences=2, rng=rng())["prompts"]
    assert text.source[0, 8] == pytest.approx(0)  # place 9 = context - 3
    shorter = TinyLadder(labels=4, context=12)
    long = label_copying(WORDS, 2, labels=4, filler=8, rng=rng())
    assert np.isnan(token_kinds.texts(shorter, long, sequences=2, rng=rng())["prompts"].source[0, 9])


def test_noise_in_the_labels_is_left_in_the_answer():
    text = token_kinds.texts(TinyLadder(labels=4, noise=0.4, context=24), prompts(), sequences=2, rng=rng())[
        "prompts"
    ]
    assert text.source[0, -1] == pytest.approx(-0.7 * math.log(0.7) - 3 * 0.1 * math.log(0.1))


def test_a_ladder_with_other_words_is_named(monkeypatch):
    ladder = Ladder("here", "", (Checkpoint("a", 1, 0, 0, 0, Path()),))
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda self: WORDS)
    token_kinds.require_corpus(ladder)
    other = SimpleNamespace(get_vocab=lambda: {"a": 0})
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda self: other)
    with pytest.raises(ValueError, match=r"LADDER: expected one with the tiny corpus' tokenizer, got here"):
        token_kinds.require_corpus(ladder)
