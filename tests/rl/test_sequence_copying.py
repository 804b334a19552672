"""Sequence copying: its text, its labels token by token, its rewards, RL on it, and what it refuses."""

import re

import numpy as np
import pytest
import torch

from replicate.ladder import corpus
from replicate.models.fresh import tiny_olmo2
from replicate.rl import tasks
from replicate.rl.policies import StackedPolicy
from replicate.rl.prompts import all_right, each_right, exact_match
from replicate.rl.tasks.label_copying import WORDS, label_copying
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO
from replicate.settings.task import Task

TASK = tasks.get("sequence_copying")


def settings(T=3, **others):
    return Task(**{"task": "sequence_copying", "answer_tokens": T, "labels": 16, "filler": 4, **others})


def draw(count=40, T=3, seed=0, tokenizer=None, **others):
    how = {"settings": settings(T, **others), "rng": np.random.default_rng(seed)}
    return TASK.draw(tokenizer or corpus.tokenizer(), count, **how)


@pytest.mark.parametrize("T", [2, 3, 8])
def test_prompt_names_in_order_the_labels_that_are_its_answer(T):
    prompts, words = draw(T=T), corpus.tokenizer()
    assert prompts.labels.shape == (40, T)
    for text, tokens, labels in zip(prompts.text, prompts.tokens, prompts.labels, strict=True):
        assert words.decode(tokens) == text
        said = text.split()
        assert said[2 : 2 + T] == words.decode(labels).split()
        assert said[:2] + said[2 + T : 3 + T] + said[-2:] == ["label", "is", ";", "answer", ":"]
        assert set(said[3 + T : -2]) <= set(WORDS)
        assert len(said[3 + T : -2]) == 4


def test_labels_are_different_and_in_random_order():
    """Each pair of different labels at two places stands there in a 12th of 4000 prompts: chi-square, 11 degrees of
    freedom."""
    labels = draw(4000, T=3, labels=4).labels - draw(4, labels=4).label_set[0]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        counts = torch.bincount(4 * labels[:, one] + labels[:, two], minlength=16).view(4, 4)
        assert (counts.diagonal() == 0).all()
        counts = counts[~torch.eye(4, dtype=torch.bool)]
        assert ((counts - 4000 / 12) ** 2 / (4000 / 12)).sum() < 38  # 99.99% quantile


def test_same_seed_same_prompts_and_another_seed_others():
    assert draw(seed=3).text == draw(seed=3).text
    assert draw(seed=3).text != draw(seed=4).text


def test_one_label_is_label_copying():
    """One right token a prompt, in the same words, at the same length; so it can be measured."""
    mine, other = (
        draw(T=1, labels=4),
        label_copying(corpus.tokenizer(), 40, labels=4, filler=4, rng=np.random.default_rng(0)),
    )
    assert mine.tokens.shape == other.tokens.shape
    assert torch.equal(mine.label_set, other.label_set)
    constant = (other.tokens == other.tokens[0]).all(0)
    assert torch.equal(mine.tokens[:, constant], other.tokens[:, constant])
    assert torch.equal(mine.tokens[:, 2], mine.labels)
    assert tasks.one_token(settings(1)) is TASK


@pytest.mark.parametrize(
    ("T", "reward", "expected"),
    [(1, "all", exact_match), (1, "each", exact_match), (4, "all", all_right), (4, "each", each_right)],
)
def test_length_and_reward_are_the_settings(T, reward, expected):
    assert TASK.horizon(settings(T)) == T
    assert TASK.reward(settings(T, reward=reward)) is expected
    if T > 1:
        with pytest.raises(
            ValueError, match=r"^TASK: .* got sequence_copying with 4 tokens; set TASK to label_co"
        ):
            tasks.one_token(settings(T, reward=reward))


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        ("The label is {label}. {filler} The answer is {label}", " red rose"),
        ("={label} ; {filler} answer ={label}", "red rose"),
    ],
)
def test_each_label_is_a_token_at_its_place_for_a_byte_level_tokenizer(bpe, template, answer):
    """Behind a template without a blank the first label is another token than the same label further on."""
    prompts = draw(200, T=2, labels=2, label_words="red rose", template=template, tokenizer=bpe, filler=2)
    own = next(i for i, text in enumerate(prompts.text) if "red rose" in text)
    assert bpe.decode(prompts.labels[own]) == answer
    assert bpe.encode(prompts.text[own] + answer) == [*prompts.tokens[own], *prompts.labels[own]]
    first, last = (set(prompts.labels[:, t].tolist()) for t in (0, 1))
    assert (first == last) is answer.startswith(" ")
    assert first | last == set(prompts.label_set.tolist())


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (
            {"label_words": "red silver"},
            r"label 'silver' to be exactly one more token .*\]; choose other LABEL_WORDS$",
        ),
        # Behind no blank "gold" is one token, but only the first label stands there.
        ({"label_words": "red gold"}, r"label 'gold' to be .*\]; choose other LABEL_WORDS$"),
        (
            {"template": "{label} ; {filler} :{label}", "label_words": "red orange"},
            r"label 'orange' to be .*\]; end TEMPLATE in {label} with a blank before it$",
        ),
    ],
)
def test_what_a_byte_level_tokenizer_cannot_say_is_refused_with_pieces_and_remedy(bpe, others, line):
    with pytest.raises(ValueError, match=f"^tokenizer: expected {line}"):
        draw(8, T=2, labels=2, tokenizer=bpe, **others)


class Joining:
    """A tokenizer that makes one token of "green blue" at a text's end, as one with merges across blanks might."""

    def __init__(self):
        self.inner = corpus.tokenizer()

    def __len__(self):
        return len(self.inner)

    def encode(self, text, **options):
        ids = self.inner.encode(text, **options)
        return [*ids[:-2], 7] if text.endswith("green blue") else ids

    def decode(self, ids):
        return self.inner.decode(ids)


def test_an_answer_whose_labels_join_is_refused():
    """Each label is a token behind the first of them, and behind each other all but two."""
    with pytest.raises(
        ValueError, match=r"^tokenizer: expected answer 'green blue' to be one .*; choose other"
    ):
        draw(80, T=2, labels=4, tokenizer=Joining())


def test_only_a_task_of_long_answers_takes_a_length():
    with pytest.raises(
        ValueError, match=r"^answer_tokens must be 1 for label_copying, got 2; set task to sequence_copying$"
    ):
        Task(answer_tokens=2)
    for T in (0, 65):
        with pytest.raises(ValueError, match=r"^answer_tokens: "):
            settings(T)
    with pytest.raises(ValueError, match=re.escape("reward: Input should be 'all' or 'each', got 'some'")):
        settings(reward="some")
    fewer = settings().model_copy(update={"label_words": "red blue"})
    with pytest.raises(ValueError, match=r"^labels: expected 2 to 2, got 16$"):
        TASK.draw(corpus.tokenizer(), 3, settings=fewer, rng=np.random.default_rng(0))


def test_rl_raises_the_probability_of_right_tokens_and_a_flipped_reward_lowers_it():
    """From fresh weights, two labels of two: thirty updates with a reward for each token, which chance alone earns."""
    found = {}
    for sign in (1, -1):
        model = tiny_olmo2(
            layers=1, hidden=16, heads=2, context=16, vocab=len(corpus.tokenizer()),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        model.set_attn_implementation("eager")
        policy, asked = StackedPolicy(model, 2), settings(2, reward="each", labels=2, filler=2)
        sets = [
            TASK.draw(corpus.tokenizer(), 64, settings=asked, rng=np.random.default_rng(seed))
            for seed in (0, 1)
        ]
        reward = TASK.reward(asked)
        how = {"horizon": TASK.horizon(asked), "reward": lambda t, y, r=reward, s=sign: s * r(t, y)}
        config = GRPO(prompts=8, group_size=32, learning_rate=1e-2)
        curves = train(policy, policy, *sets, config, seeds=[0, 1], budgets=[30], **how)
        assert curves[0].budgets[0]["each_right"] == pytest.approx(1 / len(corpus.VOCABULARY), rel=0.1)
        found[sign] = [curve.budgets[-1]["each_right"] for curve in curves]
    assert min(found[1]) > 0.2
    assert max(found[-1]) < 1 / len(corpus.VOCABULARY)
