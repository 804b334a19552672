"""The corpus: the statistics it promises, and that its text is the task's text."""

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


def test_noise_breaks_the_stated_share_of_labels():
    mixture = Mixture(labels=8, noise=0.5)
    tokens = corpus.label_documents(mixture, sequences=4000, length=20, rng=rng())
    colon = corpus.VOCABULARY.index(":")
    given = tokens[np.arange(4000), (tokens == colon).argmax(axis=1) + 1]
    wrong = (given != tokens[:, 2]).mean()
    assert wrong == pytest.approx(0.5 * 7 / 8, abs=0.03)


def test_mixture_shares():
    mixture = Mixture(records=0.3, label_documents=0.2)
    tokens = corpus.batch(CHAIN, mixture, sequences=5000, length=20, rng=rng())
    label, equals = corpus.VOCABULARY.index("label"), corpus.VOCABULARY.index("=")
    assert (tokens[:, 0] == label).mean() == pytest.approx(0.2, abs=0.03)
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
        ({"labels": 1}, "labels"),
        ({"noise": 1.5}, "noise"),
    ],
)
def test_impossible_mixtures_are_named(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        Mixture(**options)
