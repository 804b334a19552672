"""Rewards of sampled answers against counting by hand, and what a longer answer is refused."""

import itertools

import pytest
import torch

from replicate.rl.prompts import Prompts, all_right, answers, each_right, exact_match


def every_answer(T, tokens=3):
    """All answers of T tokens, as the group of each of three rows."""
    found = torch.tensor(list(itertools.product(range(tokens), repeat=T)))
    return found.expand(3, -1, -1)


LABELS = torch.tensor([[0, 2, 1], [1, 1, 1], [2, 0, 0]])


def test_rewards_of_all_answers_are_what_counting_says():
    tokens = every_answer(3)
    both = all_right(tokens, LABELS), each_right(tokens, LABELS)
    assert (both[0].shape, both[1].shape) == ((3, 27), (3, 27, 3))
    for row, group in itertools.product(range(3), range(27)):
        hits = [int(o == y) for o, y in zip(tokens[row, group].tolist(), LABELS[row].tolist(), strict=True)]
        assert both[0][row, group] == (sum(hits) == 3)
        assert both[1][row, group].tolist() == pytest.approx([hit / 3 for hit in hits])


def test_expected_rewards_over_all_answers_are_products_and_means_of_probabilities():
    """Enumeration against the closed forms: E all = prod p_t(y_t), E sum each = mean p_t(y_t), tokens independent."""
    p = torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    p = p / p.sum(1, keepdim=True)  # [place, token]
    tokens = every_answer(3)
    mass = p[torch.arange(3), tokens[0]].prod(1)
    right = p[torch.arange(3), LABELS]  # [rows, T]
    of_all = (all_right(tokens, LABELS).double() * mass).sum(1)
    of_each = (each_right(tokens, LABELS).sum(-1).double() * mass).sum(1)
    torch.testing.assert_close(of_all, right.prod(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_each, right.mean(1), rtol=1e-6, atol=0)  # thirds in float32
    assert not torch.allclose(of_each, right.prod(1))


def test_one_token_earns_the_same_by_every_rule():
    tokens, labels = every_answer(1), torch.tensor([0, 2, 1])
    expected = exact_match(tokens, labels)
    assert expected.sum() == 3
    for given in (labels, labels[:, None]):
        assert torch.equal(all_right(tokens, given), expected)
        assert torch.equal(each_right(tokens, given)[..., 0], expected)


@pytest.mark.parametrize("reward", [all_right, each_right])
def test_as_many_labels_as_tokens(reward):
    """One label would be compared with every token of the answer, without a word."""
    with pytest.raises(ValueError, match=r"^labels: expected a right token for each of 3, got \[3\]$"):
        reward(every_answer(3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"for each of 2, got \[3, 3\]$"):
        reward(every_answer(2), LABELS)


def test_prompts_of_long_answers_are_chosen_with_them_and_not_read_off_one_token():
    tokens = torch.arange(12).view(3, 4)
    prompts = Prompts(("a", "b", "c"), tokens, LABELS, torch.arange(3), 12)
    chosen = prompts.select(torch.tensor([2, 0, 2]))
    assert chosen.text == ("c", "a", "c")
    assert torch.equal(chosen.labels, LABELS[[2, 0, 2]])
    assert torch.equal(prompts.to("cpu").labels, LABELS)
    with pytest.raises(ValueError, match=r"^labels: expected one right token a prompt, got \[3, 3\]$"):
        answers(torch.zeros(3, 12), prompts)
