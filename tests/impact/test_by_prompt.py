"""The score by prompt: against the enumeration of all groups of completions, and against what the study measured."""

import itertools

import pytest
import torch

from replicate.impact.by_prompt import advantage_moments, of_answers, of_completions
from replicate.impact.measured import components_by_advantage
from replicate.impact.samples import Noise
from replicate.models.answer import AnswerPass, answer_pass
from replicate.models.fresh import tiny_model
from replicate.rl.grpo import group_advantages

VOCAB, HIDDEN = 5, 16
PROMPT = torch.tensor([[1, 4, 2]])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return tiny_model(request.param, vocab=VOCAB + 2, generator=torch.Generator().manual_seed(3))


def scores_of(model, tokens):
    """dlog pi(a)/dh for each token in use, by autograd, and the probabilities; h is what the head reads."""
    final = answer_pass(model, tokens).final[0].detach().requires_grad_()
    log_probs = model.get_output_embeddings()(final)[:VOCAB].log_softmax(-1)
    rows = [torch.autograd.grad(log_probs[a], final, retain_graph=True)[0] for a in range(VOCAB)]
    return torch.stack(rows), log_probs.exp().detach()


def enumerated(scores, chances, first, rewards, group):
    """kappa, E|lambda^|^2, V and the share of groups with a spread, by looking at every group of completions.

    ``chances``, ``first`` token and ``rewards`` are those of all completions there are.
    """
    g = (chances * rewards) @ scores[first]
    kappa = square = spread = 0.0
    for members in itertools.product(range(len(chances)), repeat=group):
        members = list(members)
        weight, own = chances[members].prod(), rewards[members]
        sent = group_advantages(own[None])[0][:, None] * scores[first[members]]
        kappa += weight * (sent @ g).mean()
        square += weight * sent.square().sum(1).mean()
        spread += weight * (own.max() > own.min())
    return {"V": g @ g, "kappa": kappa, "empirical": square, "spread": spread, "reward": chances @ rewards}


@pytest.mark.parametrize("right", [[2], [0, 3]])
def test_one_token_answers_are_the_enumeration_of_all_groups(model, right):
    """Each right answer counts, rows behind the vocabulary do not."""
    scores, probs = scores_of(model, PROMPT)
    rewards = torch.zeros(VOCAB, dtype=torch.float64)
    rewards[right] = 1.0
    wanted = enumerated(scores, probs, torch.arange(VOCAB), rewards, 3)
    padded = torch.tensor([[*right, -1]])
    found = of_answers(answer_pass(model, PROMPT), padded, vocab=VOCAB, group=3)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(float(value), rel=1e-10), name
    assert found["room"].item() ** 2 == pytest.approx((wanted["reward"] * (1 - wanted["reward"])).item())


def test_it_is_the_mean_of_what_the_study_sampled(model):
    """The law's constant was fitted to sampled scores: the closed form is their expectation, prompt by prompt."""
    prompts, labels = PROMPT.expand(4000, -1), torch.full((4000,), 2)
    how = {
        "layer": -1,
        "group_size": 8,
        "policy": "categorical",
        "vocab": VOCAB,
        "noise": Noise(),
        "kinds": ["grpo"],
    }
    sampled = components_by_advantage(
        model, prompts, labels, generator=torch.Generator().manual_seed(0), **how
    )
    exact = of_answers(answer_pass(model, PROMPT), labels[:1, None], vocab=VOCAB, group=8)
    per_prompt = sampled["grpo"].per_prompt
    for name in ("kappa", "empirical"):
        error = per_prompt[name].std() / len(prompts) ** 0.5
        assert abs(per_prompt[name].mean() - exact[name]) < 4 * error, name
        assert error < 0.05 * exact[name]
    for ours, theirs in (("V", "V"), ("reward", "reward"), ("room", "headroom")):
        assert exact[ours].item() == pytest.approx(per_prompt[theirs][0].item(), rel=1e-10)


def completions(model):
    """All completions of two tokens: their chances and first tokens."""
    pairs = list(itertools.product(range(VOCAB), repeat=2))
    first = torch.tensor([a for a, _ in pairs])
    _, start = scores_of(model, PROMPT)
    rest = [scores_of(model, torch.cat([PROMPT, torch.tensor([[a]])], 1))[1] for a in range(VOCAB)]
    return torch.stack([start[a] * rest[a][b] for a, b in pairs]), first


@pytest.mark.parametrize("values", ["zero or one", "shares"])
def test_two_groups_are_unbiased_for_rated_completions(model, values):
    """V, kappa and E|lambda^|^2 at the state before the first token, of a reward that hangs on both tokens; the mean of
    a single group times itself is not V, and the test sees it."""
    chances, first = completions(model)
    generator, count, group = torch.Generator().manual_seed(5), 20000, 2
    rewards = torch.rand(len(chances), generator=generator, dtype=torch.float64)
    if values == "zero or one":
        rewards = rewards.round()
    scores, _ = scores_of(model, PROMPT)
    wanted = enumerated(scores, chances, first, rewards, group)
    drawn = torch.multinomial(chances, count * 2 * group, replacement=True, generator=generator).view(
        count, 2, group
    )
    one = answer_pass(model, PROMPT)
    many = AnswerPass(one.final.expand(count, -1), one.logits.expand(count, -1), None, one.head)
    found = of_completions(many, first[drawn], rewards[drawn], vocab=VOCAB)
    for name, value in wanted.items():
        z = (found[name].mean() - value) / (found[name].std() / count**0.5)
        assert abs(z) < 4, name
    raw = group_advantages(rewards[drawn].flatten(0, 1), baseline="leave_one_out", scale="none").view(
        count, 2, group, 1
    )
    same = (raw * scores[first[drawn]]).mean(2)[:, 0].square().sum(-1)
    assert (same.mean() - wanted["V"]) / (same.std() / count**0.5) > 10


def test_a_sure_policy_leaves_no_negative_square():
    """Where one token has all mass but 1e-9 the squares about zero cancel: in float32 they must not turn over."""
    head = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1)) * 30
    logits = torch.tensor([[0.0, 20.0, 0.0, 0.0, -1.0, 1.0]])
    answer = AnswerPass(torch.zeros(1, HIDDEN), logits, None, head)
    exact = AnswerPass(answer.final.double(), logits.double(), None, head.double())
    for right in (1, 2):
        ids = torch.tensor([[right]])
        found, wanted = (of_answers(a, ids, vocab=6, group=8) for a in (answer, exact))
        for name in ("V", "kappa", "empirical"):
            assert found[name].item() == pytest.approx(wanted[name].item(), rel=2e-3, abs=1e-20)
            assert found[name] >= 0


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_without_luck_there_is_no_advantage(p):
    """A reward that never or always comes: the moments that could matter are finite, those that happen are zero."""
    c, won, lost = advantage_moments(torch.tensor([p], dtype=torch.float64), 4)
    assert torch.isfinite(torch.cat([c, won, lost])).all()
    assert (won if p else lost).item() == 0


def test_one_group_or_one_sample_is_refused(model):
    answer = answer_pass(model, PROMPT)
    for shape in ((1, 1, 4), (1, 2, 1)):
        with pytest.raises(
            ValueError, match=r"^rewards: expected two groups of at least 2 a prompt, got \[1, "
        ):
            of_completions(answer, torch.zeros(shape, dtype=torch.long), torch.zeros(shape), vocab=VOCAB)
