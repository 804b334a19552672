"""Costates of longer answers at the prompt's embeddings, against enumeration and by hand."""

import numpy as np
import pytest
import torch

from replicate.impact.by_position import prompt_costates, rows_of, signal_and_noise
from replicate.lm.enumeration import all_completions
from replicate.models.fresh import tiny_olmo2
from replicate.models.logits import log_policy
from replicate.models.precision import full_precision
from replicate.rl.prompts import all_right, each_right
from replicate.runs.longer import credits, exact_values

VOCAB, T = 4, 3


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


@pytest.fixture(scope="module")
def model():
    made = tiny_olmo2(
        layers=1, hidden=8, heads=2, context=16, vocab=VOCAB, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)  # far from uniform
    made.set_attn_implementation("eager")
    return made.double().eval()


PROMPTS = torch.tensor([[1, 2, 0, 3], [3, 3, 1, 0]])
LABELS = torch.tensor([[1, 0, 2], [3, 3, 1]])


def enumerated(model):
    """All completions of each prompt, their probabilities, and those of the right tokens along the right answer."""
    tokens = all_completions(VOCAB, T)[None].expand(2, -1, -1)
    rows = torch.cat([PROMPTS[:, None].expand(-1, tokens.shape[1], -1), tokens[..., :-1]], -1).flatten(0, 1)
    with torch.no_grad():
        logits = model(input_ids=rows, logits_to_keep=T).logits
    logp = log_policy(logits, vocab=VOCAB).gather(-1, tokens.flatten(0, 1)[..., None])[..., 0]
    logp = logp.unflatten(0, (2, -1))
    found = (tokens == LABELS[:, None]).all(-1).nonzero()
    right = torch.stack([logp[p, n].exp() for p, n in found])
    return tokens, logp.sum(-1).exp(), right


def value(model, embedded, reward):
    """V(q) from the embeddings of one prompt, by enumeration, as a differentiable number."""
    tokens = all_completions(VOCAB, T)
    own = model.get_input_embeddings()(tokens[:, :-1]).detach()
    rows = torch.cat([embedded[None].expand(len(tokens), -1, -1), own], 1)
    logits = model(inputs_embeds=rows, logits_to_keep=T, use_cache=False).logits
    logp = log_policy(logits, vocab=VOCAB).gather(-1, tokens[..., None])[..., 0]
    return logp.sum(-1).exp() @ reward


@pytest.mark.parametrize("kind", ["all", "each"])
def test_every_credit_is_unbiased(model, kind):
    """A4: over all completions, weighted by their probabilities, every credit's costate is dV/de to 1e-10; with the
    credits of the tokens exchanged it is not."""
    tokens, chance, right = enumerated(model)
    if kind == "all":
        paid = all_right(tokens, LABELS).double()
        rewards = torch.cat([torch.zeros(*paid.shape, T - 1), paid[..., None]], -1)
    else:
        rewards = each_right(tokens, LABELS).double()
    # Twice, as the two halves of a group: what is taken off one half is then one number, as for independent samples.
    twice = credits(torch.cat([tokens, tokens], 1), torch.cat([rewards, rewards], 1), LABELS, right)
    for name, advantages in twice.items():
        advantages = advantages[:, : tokens.shape[1]].contiguous()
        costates = prompt_costates(model, PROMPTS, tokens, advantages, vocab=VOCAB)
        flipped = prompt_costates(model, PROMPTS, tokens, advantages.flip(-1), vocab=VOCAB)
        for p in range(2):
            embedded = model.get_input_embeddings()(PROMPTS[p]).detach().requires_grad_()
            (exact,) = torch.autograd.grad(value(model, embedded, rewards[p].sum(-1)), embedded)
            expected, wrong = (
                torch.einsum("n,ntld->ld", chance[p], found[p]) for found in (costates, flipped)
            )
            assert torch.allclose(expected, exact, atol=1e-10), name
            if name != "outcome":
                assert not torch.allclose(wrong, exact, atol=1e-3)


def test_exact_values_are_those_of_enumeration(model):
    """V(q, o_<t) is the mean reward of the completions that begin with o_<t."""
    tokens, chance, right = enumerated(model)
    values = exact_values(tokens, LABELS, right)
    paid = all_right(tokens, LABELS).double()
    for p in range(2):
        for n in (0, 5, 37, 63):
            for t in range(T + 1):
                alike = (tokens[p, :, :t] == tokens[p, n, :t]).all(-1)
                exact = (chance[p] * paid[p])[alike].sum() / chance[p][alike].sum()
                assert values[p, n, t].item() == pytest.approx(exact.item(), abs=1e-12)


def test_signal_and_noise_are_unbiased():
    """Of x = m + noise of variance v the signal is |m|^2 and the noise d v, within 5 standard errors of 4000 groups."""
    rng = np.random.default_rng(0)
    mean = np.array([0.3, -0.2, 0.1])
    samples = torch.from_numpy(mean + 0.5 * rng.standard_normal((4000, 4, 3)))
    per_prompt = [signal_and_noise(samples[i : i + 40]) for i in range(0, 4000, 40)]
    for found, exact in zip(zip(*per_prompt, strict=True), ((mean**2).sum(), 3 * 0.25), strict=True):
        found = torch.stack(found)
        assert abs(found.mean() - exact) < 5 * found.std() / 10
    with pytest.raises(ValueError, match="samples: expected a group of at least 2, got 1"):
        signal_and_noise(samples[:, :1])


def test_blocks_add_up(model):
    """The terms and positions of one costate are the parts of the whole; a rescaled block keeps its ratio."""
    tokens = torch.randint(VOCAB, (2, 6, T), generator=torch.Generator().manual_seed(0))
    advantages = torch.randn(2, 6, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    costates = prompt_costates(model, PROMPTS, tokens, advantages, vocab=VOCAB)
    rows = list(rows_of(costates, torch.tensor([1, 2])))
    assert [(r["block"], r["index"]) for r in rows] == [
        ("all", 0), ("token", 0), ("token", 1), ("token", 2), ("label", 0), ("label", 1)
    ]  # fmt: skip
    signal, noise = signal_and_noise(costates.sum(2)[:, :, 1])
    assert rows[4]["signal"] == pytest.approx(signal.item())
    scaled = list(rows_of(10 * costates, torch.tensor([1, 2])))
    for one, two in zip(rows, scaled, strict=True):
        assert two["noise"] / two["signal"] == pytest.approx(one["noise"] / one["signal"])
    assert noise > 0
