"""The corpus: the statistics it promises, and that its text is the task's text."""

import hashlib
import itertools

import numpy as np
import pytest

from replicate.ladder import corpus
from replicate.rl.tasks.label_copying import LABELS, prompt_text
from replicate.settings.tiny_ladder import Mixture

CHAIN = corpus.prose_chain(0)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_token_of_the_vocabulary_survives_the_tokenizer():
    words = corpus.tokenizer()
    assert len(words) == len(set(corpus.VOCABULARY))
    assert words.encode(" ".join(corpus.VOCABULARY)) == list(range(len(words)))
    assert words.encode("unheard-of") == [words.unk_token_id]


def test_prose_follows_the_chain_and_its_weights():
    tokens = corpus.prose(CHAIN, sequences=400, length=50, rng=rng()) - corpus.VOCABULARY.index(
        corpus.WORDS[0]
    )
    before, after = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
    assert (CHAIN.successors[before] == after[:, None]).any(axis=1).all()
    # Frequencies of the first successor against its weights: z over all words together.
    first = CHAIN.successors[before, 0] == after
    p = CHAIN.weights[before, 0]
    assert abs((first - p).sum() / np.sqrt((p * (1 - p)).sum())) < 4


def test_a_small_batch_may_have_no_sequence_of_a_kind():
    """Of 4 sequences none is of records in a sixth of the batches."""
    mixture = Mixture(records=0.35, label_documents=0.1)
    for seed in range(40):
        assert corpus.batch(CHAIN, mixture, sequences=4, length=33, rng=rng(seed)).shape == (4, 33)


def test_a_key_keeps_its_value_within_a_sequence_only():
    tokens = corpus.key_value_records(sequences=50, length=49, rng=rng())
    meanings = []
    for row in tokens:
        pairs = {tuple(row[i : i + 3 : 2]) for i in range(0, 48, 4)}
        assert len({key for key, _ in pairs}) == len(pairs) <= 4
        meanings.append(dict(pairs))
    shared = [m[0][k] == m[1][k] for m in itertools.pairwise(meanings) for k in set(m[0]) & set(m[1])]
    assert not all(shared)


def test_label_documents_read_like_prompts():
    words, mixture = corpus.tokenizer(), Mixture(labels=4)
    for row in corpus.label_documents(mixture, sequences=30, length=33, rng=rng()):
        text = words.decode(row).split()
        label, at = text[2], text.index("answer")
        assert label in LABELS[:4]
        assert text[at : at + 4] == ["answer", ":", label, ";"]
        assert " ".join(text[: at + 2]) == prompt_text(label, text[4:at])


def test_without_sequence_documents_a_batch_is_bit_for_bit_what_it_was_before_there_were_any():
    """Published ladders were trained on these numbers. Hashes of batches drawn by the code of that time."""
    for mixture, length, expected in (
        (Mixture(records=0.35, label_documents=0.1, noise=0.2), 49, "6cec7fff5c2fc00002942c2218de8c64"),
        (Mixture(), 20, "368aee2edf28bc5003bd3f89361c18f2"),
    ):
        drawn = corpus.batch(
            CHAIN, mixture, sequences={49: 64, 20: 16}[length], length=length, rng=rng((0, 2, 7))
        )
        assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:32] == expected


def answers(row):
    """The labels that a document asks for and those it gives, read off its words; all else must be in its place."""
    text = corpus.tokenizer().decode(row).split()
    asked, at = text[2 : text.index(";")], text.index("answer")
    assert text[:2] == ["label", "is"]
    assert text[at + 1] == ":"
    given = text[at + 2 : at + 2 + len(asked)]
    assert text[at + 2 + len(asked)] == ";"
    filler = text[3 + len(asked) : at] + text[at + 3 + len(asked) :]
    assert set(filler) <= set(corpus.WORDS)
    assert set(asked + given) <= set(LABELS)
    return asked, given, " ".join(text[: at + 2])


def test_sequence_documents_read_like_prompts_of_every_length_that_fits():
    """In equal shares: chi-square of 2000 documents over 5 lengths, 4 degrees of freedom."""
    tokens = corpus.sequence_documents(Mixture(labels=16), sequences=2000, length=38, rng=rng())
    read = [answers(row) for row in tokens]
    for asked, given, prompt in read:
        assert given == asked
        words = prompt.split()
        assert prompt == prompt_text(" ".join(asked), words[3 + len(asked) : -2])
    counts = np.bincount([len(asked) for asked, *_ in read])
    assert np.flatnonzero(counts).tolist() == [1, 2, 4, 8, 16]
    assert ((counts[[1, 2, 4, 8, 16]] - 400) ** 2 / 400).sum() < 24  # 99.99% quantile


@pytest.mark.parametrize(("length", "longest"), [(12, 2), (13, 2), (14, 4), (37, 8), (38, 16)])
def test_no_document_is_longer_than_the_context(length, longest):
    tokens = corpus.sequence_documents(Mixture(labels=16), sequences=200, length=length, rng=rng())
    assert max(len(answers(row)[0]) for row in tokens) == longest
    with pytest.raises(ValueError, match=rf"^length: expected at least {6 + 4 * longest} tokens for"):
        corpus.label_documents(Mixture(), answer=2 * longest, sequences=1, length=5 + 4 * longest, rng=rng())


def test_labels_of_a_sequence_are_different_and_in_random_order():
    """Pairs at two places of 4000 documents: chi-square over the 56 pairs that there are, 55 degrees of freedom; the
    filler's length as in any other."""
    tokens = corpus.label_documents(Mixture(labels=8), answer=8, sequences=4000, length=40, rng=rng())
    labels = tokens[:, 2:10] - corpus.VOCABULARY.index(LABELS[0])
    assert (np.sort(labels, axis=1) == np.arange(8)).all()
    for one, two in ((0, 1), (3, 7)):
        counts = np.bincount(8 * labels[:, one] + labels[:, two], minlength=64).reshape(8, 8)
        counts = counts[~np.eye(8, dtype=bool)]
        assert ((counts - 4000 / 56) ** 2 / (4000 / 56)).sum() < 105  # 99.99% quantile
    at = (tokens == corpus.VOCABULARY.index("answer")).argmax(axis=1) - 11
    counts = np.bincount(at, minlength=19)
    assert len(counts) == 19
    assert ((counts - 4000 / 19) ** 2 / (4000 / 19)).sum() < 49  # 18 degrees of freedom


def test_noise_breaks_each_label_of_a_sequence_on_its_own():
    mixture = Mixture(labels=8, noise=0.5)
    tokens = corpus.label_documents(mixture, answer=4, sequences=2000, length=20, rng=rng())
    at = (tokens == corpus.VOCABULARY.index(":")).argmax(axis=1)
    wrong = tokens[np.arange(2000)[:, None], at[:, None] + 1 + np.arange(4)] != tokens[:, 2:6]
    assert wrong.mean(axis=0) == pytest.approx(np.full(4, 0.5 * 7 / 8), abs=0.05)
    both = (wrong[:, 0] & wrong[:, 1]).mean()
    assert both == pytest.approx((0.5 * 7 / 8) ** 2, abs=0.05)


def test_noise_breaks_the_stated_share_of_labels():
    mixture = Mixture(labels=8, noise=0.5)
    tokens = corpus.label_documents(mixture, sequences=4000, length=20, rng=rng())
    colon = corpus.VOCABULARY.index(":")
    given = tokens[np.arange(4000), (tokens == colon).argmax(axis=1) + 1]
    wrong = (given != tokens[:, 2]).mean()
    assert wrong == pytest.approx(0.5 * 7 / 8, abs=0.03)


def test_mixture_shares():
    mixture = Mixture(records=0.3, label_documents=0.2, sequence_documents=0.4)
    tokens = corpus.batch(CHAIN, mixture, sequences=5000, length=20, rng=rng())
    label, equals = corpus.VOCABULARY.index("label"), corpus.VOCABULARY.index("=")
    long = (tokens[:, 0] == label) & (tokens[:, 3] != corpus.VOCABULARY.index(";"))
    assert (tokens[:, 0] == label).mean() == pytest.approx(0.6, abs=0.03)
    assert long.mean() == pytest.approx(0.4 * 2 / 3, abs=0.03)  # of 1, 2 and 4 labels two are several
    assert (tokens[:, 1] == equals).mean() == pytest.approx(0.3, abs=0.03)


def test_batches_are_a_function_of_the_generator():
    one, two, three = (
        corpus.batch(CHAIN, Mixture(), sequences=8, length=20, rng=rng(seed)) for seed in (1, 1, 2)
    )
    assert (one == two).all()
    assert (one != three).any()


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"records": 0.9, "label_documents": 0.2}, "records"),
        (
            {"records": 0.6, "label_documents": 0.2, "sequence_documents": 0.3},
            "sequence_documents are shares",
        ),
        ({"labels": 1}, "labels"),
        ({"noise": 1.5}, "noise"),
    ],
)
def test_impossible_mixtures_are_named(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        Mixture(**options)
