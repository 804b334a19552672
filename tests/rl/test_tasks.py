"""The label-copying task: its text, its closed form, and what it refuses."""

import re

import numpy as np
import pytest
import torch

from replicate.ladder import corpus
from replicate.models.logits import log_policy
from replicate.rl import tasks
from replicate.rl.prompts import answers, evaluate
from replicate.rl.tasks.label_copying import LABELS, WORDS, label_copying, prompt_text
from replicate.settings.task import Task


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

    def decode(self, ids):
        return self.inner.decode(ids)


def test_a_label_of_two_tokens_is_refused():
    with pytest.raises(ValueError, match="exactly one more token"):
        label_copying(Splitting(), 4, labels=4, filler=3, rng=np.random.default_rng(0))


def said(tokenizer, count=12, seed=0, **settings):
    return tasks.get("label_copying").draw(
        tokenizer, count, settings=Task(**settings), rng=np.random.default_rng(seed)
    )


def test_the_built_in_prompts_are_what_they_have_always_been():
    """Text, not only shape: records and ladders of earlier versions asked exactly this."""
    assert draw(2, labels=4, filler=3, seed=5).text == OLD
    assert prompt_text("red", []) == "label is red ; answer :"
    assert prompt_text("red", ["a", "b"]) == "label is red ; a b answer :"


OLD = ("label is green ; main air man answer :", "label is red ; first friend hour answer :")


@pytest.mark.parametrize(
    ("template", "filler", "prompt", "answer"),
    [
        ("label is {label} ; {filler} answer : {label}", 2, "label is red ; {} answer :", " red"),
        ("The label is {label}.{filler} The answer is {label}", 0, "The label is red. The answer is", " red"),
        ("{filler} ; label is {label} : {label}", 0, "; label is red :", " red"),
        ("={label} ; {filler} answer ={label}", 1, "=red ; {} answer =", "red"),
    ],
)
def test_a_template_is_a_document_that_ends_in_the_answer(bpe, template, filler, prompt, answer):
    """The label's token is the one that its text has behind the prompt, the blank before it included or not."""
    prompts = said(
        bpe,
        template=template,
        filler=filler,
        labels=2,
        label_words="red gold" if "={" in template else "red blue",
    )
    own = next(i for i, text in enumerate(prompts.text) if re.search(r"\bred\b", text))
    words = [word for word in prompts.text[own].split() if word in WORDS]
    assert len(words) == filler
    assert prompts.text[own] == prompt.format(" ".join(words))
    assert bpe.decode([prompts.labels[own]]) == answer
    assert bpe.decode([*prompts.tokens[own], prompts.labels[own]]) == prompts.text[own] + answer


def test_plain_english_goes_through_a_byte_level_tokenizer(bpe):
    """One token a word, so that all prompts have one length; words it splits are not drawn."""
    prompts = said(bpe, 600, labels=4, filler=8)
    assert prompts.tokens.shape == (600, 14)
    used = {word for text in prompts.text for word in text.split()[4:-2]}
    assert used == set(WORDS) - {"ocean"}
    assert len(bpe.encode(" ocean")) > 1
    assert prompts.vocab == len(bpe)


def test_a_filler_word_that_is_a_label_is_not_drawn(bpe):
    prompts = said(bpe, 300, labels=2, label_words="early often", filler=8)
    assert not {"early", "often"} & {w for text in prompts.text for w in text.split()[4:-2]}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"label_words": "red silver", "labels": 2},
            r"label 'silver' to be exactly one more token after the prompt, got \[.*\]; choose other LABEL_WORDS",
        ),
        (
            {"label_words": "red gold", "labels": 2},
            r"label 'gold' .*got \[' g', .*\]; end TEMPLATE in {label} without a blank before it",
        ),
        (
            {"template": "{label} ; {filler} :{label}", "label_words": "red orange green", "labels": 3},
            r"label '.*' to be .*got \[.*\]; end TEMPLATE in {label} with a blank before it",
        ),
        (
            {"template": "is:{label} ; {filler} : {label}", "label_words": "red orange", "labels": 2},
            r"prompts of one length in tokens, got lengths \[13, 14\]; choose LABEL_WORDS .*TEMPLATE",
        ),
    ],
)
def test_what_a_byte_level_tokenizer_cannot_say_is_refused_with_pieces_and_remedy(bpe, settings, line):
    with pytest.raises(ValueError, match=f"^tokenizer: expected {line}"):
        said(bpe, filler=8, **settings)


def test_a_tokenizer_without_filler_words_is_refused():
    with pytest.raises(
        ValueError, match=r"filler words of one token, got 0 of 180 .*set FILLER to 0, or put a blank"
    ):
        said(corpus.tokenizer(), template="label is {label} ;{filler} answer : {label}")


def test_a_label_that_no_tokenizer_entry_has_is_refused():
    with pytest.raises(ValueError, match="label 'maroon' is not in its vocabulary; choose other LABEL_WORDS"):
        said(corpus.tokenizer(), label_words="red maroon", labels=2)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"label_words": "red green red"}, "label_words must be at least labels (4) different words"),
        ({"label_words": "red green blue"}, "label_words must be at least labels (4) different words"),
        (
            {"template": "{filler} answer : {label}"},
            "template must name {label} in the question and end in {label}",
        ),
        (
            {"template": "{label} {filler} : {label} ;"},
            "template must name {label} in the question and end in",
        ),
        ({"template": "{label} : {label}"}, "template must have {filler} once (or not at all with filler 0)"),
        ({"template": "{label} {filler} {filler} {label}", "filler": 0}, "template must have {filler} once"),
    ],
)
def test_a_task_that_asks_for_nothing_is_refused_before_any_tokenizer(settings, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}.*, got "):
        Task(**settings)


def test_rows_without_a_token_stay_masked(bpe):
    """A model may have more rows than its tokenizer has tokens; no mass that they could win counts."""
    prompts = said(bpe, 4, labels=2, filler=4)
    logits = torch.zeros(4, len(bpe) + 40)
    logits[:, len(bpe) :] = 50.0
    found = answers(log_policy(logits, vocab=prompts.vocab), prompts)
    assert found.correct.tolist() == pytest.approx([1 / len(bpe)] * 4)
