"""The label-copying task: its text, its closed form, and what it refuses."""

import numpy as np
import pytest
import torch

from replicate.ladder import corpus
from replicate.rl.prompts import answers, evaluate
from replicate.rl.tasks.label_copying import LABELS, WORDS, label_copying


def draw(count=40, *, labels=8, filler=5, seed=0):
    return label_copying(
        corpus.tokenizer(), count, labels=labels, filler=filler, rng=np.random.default_rng(seed)
    )


def test_words_are_distinct_and_shared_with_no_label():
    assert len(set(WORDS)) == len(WORDS) == 180
    assert not set(WORDS) & set(LABELS)


def test_prompt_names_the_label_that_is_its_answer():
    prompts = draw()
    words = corpus.tokenizer()
    for text, tokens, label in zip(prompts.text, prompts.tokens, prompts.labels, strict=True):
        assert words.decode(tokens) == text
        assert text.split()[2] == words.decode([label])
        assert text.endswith("answer :")


def test_labels_come_in_equal_shares():
    counts = torch.bincount(draw(80).labels)
    assert set(counts[counts > 0].tolist()) == {10}


def test_same_seed_same_prompts_and_another_seed_others():
    assert draw(seed=3).text == draw(seed=3).text
    assert draw(seed=3).text != draw(seed=4).text


def test_closed_form_reads_the_right_column():
    prompts = draw(16)
    log_probs = torch.randn(16, prompts.vocab, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found = answers(log_probs, prompts)
    by_hand = [log_probs[i, y].exp().item() for i, y in enumerate(prompts.labels.tolist())]
    assert found.correct.tolist() == pytest.approx(by_hand)
    assert found.label_mass.tolist() == pytest.approx(log_probs.exp()[:, prompts.label_set].sum(1).tolist())
    assert ((found.correct <= found.label_mass + 1e-6) & (found.label_mass <= 1 + 1e-6)).all()


def test_evaluation_does_not_depend_on_the_batch_size(ladder):
    model, words = ladder.checkpoints[-1].model(dtype=torch.float64), ladder.checkpoints[-1].tokenizer()
    prompts = label_copying(words, 20, labels=4, filler=6, rng=np.random.default_rng(0))
    one, all_at_once = evaluate(model, prompts, batch=3), evaluate(model, prompts, batch=100)
    assert torch.allclose(one.correct, all_at_once.correct, rtol=1e-12)
    assert one.correct.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"labels": 1}, "labels"),
        ({"labels": 99}, "labels"),
        ({"filler": -1}, "filler"),
        ({"count": 0}, "prompts"),
    ],
)
def test_bad_sizes_are_named(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        draw(**{"count": 4, **options})


class Splitting:
    """A tokenizer that makes two tokens of each label, as a byte-pair tokenizer might."""

    def __init__(self):
        self.inner = corpus.tokenizer()

    def __len__(self):
        return len(self.inner)

    def encode(self, text, **options):
        ids = self.inner.encode(text, **options)
        return [*ids, 7] if text.split()[-1] in LABELS else ids


def test_a_label_of_two_tokens_is_refused():
    with pytest.raises(ValueError, match="exactly one more token"):
        label_copying(Splitting(), 4, labels=4, filler=3, rng=np.random.default_rng(0))
