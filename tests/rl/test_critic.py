"""The critic: whose weights it has, what it reads, what it learns, and that it plugs into the trainer."""

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from replicate.ladder import corpus
from replicate.models.fresh import tiny_olmo2
from replicate.models.precision import full_precision
from replicate.rl import credit, methods
from replicate.rl.batch import Actor, Batch, Lesson
from replicate.rl.critic import Critic, with_value_head
from replicate.rl.policies import SinglePolicy, StackedPolicy
from replicate.rl.prompts import exact_match
from replicate.rl.tasks.label_copying import label_copying
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO
from short_answers import (
    COMPLETIONS,
    PROMPT,
    TOKENS,
    VOCAB,
    T,
    asked,
    exact_values,
    network,
    rewards,
    seeded,
    stacked,
)


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


def gpt2():
    """Its head is tied to its embeddings."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    model.set_attn_implementation("eager")
    return model.double().eval()


def disturbed(policy, seed=5):
    """``policy`` with weights that are no longer those of the model it was made of, other ones in every lane."""
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=seeded(seed), dtype=weight.dtype)
    return policy


POLICIES = {
    "stacked": lambda: StackedPolicy(network(), 2),
    "single": lambda: SinglePolicy(network()),
    "stacked, tied": lambda: StackedPolicy(gpt2(), 2),
    "single, tied": lambda: SinglePolicy(gpt2()),
}


def lane_model(policy, lane):
    """The network of one lane as a plain model."""
    model = copy.deepcopy(policy.model)
    if isinstance(policy, StackedPolicy):
        model.load_state_dict({name: w[lane] for name, w in policy.weights().items()}, strict=False)
    return model


@pytest.mark.parametrize("kind", POLICIES)
def test_values_are_a_linear_map_of_the_policys_own_final_state_before_the_token(kind):
    """The policy's present network, lane by lane, on whole sequences without a cache; w and b given here.

    One place later the same states give other values.
    """
    policy = disturbed(POLICIES[kind]())
    critic = Critic(policy, GRPO(credit="gae"))
    lanes = policy.lanes
    prompts, tokens = PROMPT.expand(lanes, -1, -1), TOKENS.expand(lanes, -1, -1, -1)
    assert critic.values(prompts, tokens).abs().max() == 0
    w, b = torch.randn(lanes, 16, generator=seeded(), dtype=torch.float64), torch.arange(lanes) + 0.5
    _set_head(critic.model, w, b)
    found = critic.values(prompts, tokens)
    whole = torch.cat([PROMPT[0].expand(len(COMPLETIONS), -1), COMPLETIONS], dim=1)
    for lane in range(lanes):
        states = lane_model(policy, lane).base_model(input_ids=whole, use_cache=False).last_hidden_state
        expected = states[:, -T - 1 :] @ w[lane] + b[lane]
        assert torch.allclose(found[lane, 0], expected[:, :-1], atol=1e-10)
        assert not torch.allclose(found[lane, 0], expected[:, 1:], atol=1e-2)


@torch.no_grad()
def _set_head(model, w, b):
    if isinstance(model, SinglePolicy):
        model.model.get_output_embeddings().weight.copy_(w)
        model.model.get_output_embeddings().bias.copy_(b)
        return
    weights = model.weights()  # views of the flat tensor
    weights["lm_head.weight"].copy_(w[:, None])
    weights["lm_head.bias"].copy_(b[:, None])


@pytest.mark.parametrize("kind", POLICIES)
def test_all_of_the_critic_learns_and_none_of_the_policy(kind):
    """The head alone in the first step, whose w is 0, and the network with it from the second on."""
    policy = POLICIES[kind]()
    before = [weight.detach().clone() for weight in policy.parameters()]
    critic = Critic(policy, GRPO(credit="gae", critic_rate=1e-2))
    prompts, tokens = PROMPT.expand(policy.lanes, -1, -1), TOKENS.expand(policy.lanes, -1, -1, -1)
    start, moved = _named(critic.model), []
    for _ in range(2):
        values = critic.values(prompts, tokens)
        critic.fit(Lesson(prompts, tokens, values, rewards().expand(policy.lanes, -1, -1, -1)))
        now = _named(critic.model)
        moved.append({name for name in now if not torch.equal(now[name], start[name])})
    head = {"lm_head.weight", "lm_head.bias"}
    assert moved == [head, set(start)]
    assert all(torch.equal(*pair) for pair in zip(before, policy.parameters(), strict=True))


def _named(policy):
    pairs = policy.weights() or dict(policy.model.named_parameters())
    return {name: weight.detach().clone() for name, weight in pairs.items()}


def test_a_policy_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="got a SimpleNamespace"):
        with_value_head.__wrapped__(SimpleNamespace())


def test_what_is_said_of_a_fit_is_by_numpy():
    """Mean squared error and explained variance of the values before the fit, lane by lane; equal targets explain 0."""
    policy = StackedPolicy(network(), 3)
    critic = Critic(policy, GRPO(credit="gae"))
    prompts, tokens = PROMPT.expand(3, -1, -1), TOKENS.expand(3, -1, -1, -1)
    values = critic.values(prompts, tokens)
    values = values + torch.randn(values.shape, generator=seeded(), dtype=torch.float64)
    targets = values.detach() * 0.5 + torch.randn(values.shape, generator=seeded(1), dtype=torch.float64)
    targets[2] = 0.25
    found = critic.fit(Lesson(prompts, tokens, values, targets))
    for lane in range(3):
        y, v = targets[lane].numpy(), values[lane].detach().numpy()
        assert found["critic_loss"][lane].item() == pytest.approx(((y - v) ** 2).mean())
        explained = 1 - np.var(y - v) / np.var(y) if lane < 2 else 0
        assert found["explained_variance"][lane].item() == pytest.approx(explained)


def learnt(weight, *, fits, shifted=False):
    """Relative errors of a critic's values, before and after each of ``fits`` batches of fits in turn.

    Its policy is uniform, so that in the batch of all 27 completions each has the share that it has in V. The targets
    are the trainer's own, made with the critic's values; ``shifted`` puts them one token late.
    """
    policy = stacked()
    with torch.no_grad():
        policy.weights()["lm_head.weight"].zero_()
    config = GRPO(credit="gae", gae_weight=weight, critic_rate=1e-2, scale="none")
    critic = Critic(policy, config)
    actor = Actor(policy, policy, critic)
    exact = exact_values(torch.full((len(COMPLETIONS),), VOCAB**-T, dtype=torch.float64), rewards()[0, 0])

    def error():
        with torch.no_grad():
            return ((critic.values(PROMPT, TOKENS)[0, 0] - exact).norm() / exact.norm()).item()

    errors = [error()]
    for count in fits:
        for _ in range(count):
            lesson = credit.assign(actor, asked(), TOKENS, rewards(), config).lesson
            if shifted:
                lesson = dataclasses.replace(lesson, targets=lesson.targets.roll(1, dims=-1))
            critic.fit(lesson)
        errors.append(error())
    return errors


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_critic_comes_to_the_exact_values(weight):
    """From its own bootstrapped targets as from plain returns, nearer at each look, to 2%."""
    errors = learnt(weight, fits=(20, 30, 50))
    assert errors[0] == pytest.approx(1)
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.02


def test_targets_one_token_late_lead_elsewhere():
    """The control."""
    assert learnt(1.0, fits=(40,), shifted=True)[-1] > 0.3


def learner(seeds, *, single=False, updates=3, **config):
    """Three updates with a critic on answers of three tokens, each rated on its own."""
    words = corpus.tokenizer()
    model = tiny_olmo2(layers=1, hidden=16, heads=2, context=16, vocab=len(words), generator=seeded())
    model.set_attn_implementation("eager")
    model.double()
    policy = SinglePolicy(model) if single else StackedPolicy(model, len(seeds))
    pools = [
        label_copying(words, count, labels=4, filler=4, rng=np.random.default_rng(count)) for count in (16, 4)
    ]
    config = {
        "credit": "gae",
        "prompts": 4,
        "group_size": 4,
        "learning_rate": 3e-3,
        "iterations": 2,
        **config,
    }
    curves = train(
        policy, policy, *pools, GRPO(**config), seeds=list(seeds), budgets=[updates], horizon=3, reward=_third
    )
    return {curve.seed: curve for curve in curves}, policy


def _third(tokens, labels):
    return (tokens % 3 == 0).double()


def test_a_seed_gives_the_same_bits_in_any_company_with_a_critic():
    alone, _ = learner([5, 5])
    company, _ = learner([1, 2, 5])
    assert alone[5] == company[5]
    assert company[1].updates != company[2].updates


def test_single_and_stacked_policies_learn_the_same_with_a_critic():
    """Every metric and every weight to 1e-10 after three updates of two steps; with another critic they differ."""
    (one, many, other), policies = zip(
        learner([3], single=True), learner([3]), learner([3], critic_rate=2e-3), strict=True
    )
    weights = [torch.cat([w.detach().flatten() for w in policy.parameters()]) for policy in policies]
    assert (weights[0] - weights[1]).abs().max() < 1e-10
    assert (weights[2] - weights[1]).abs().max() > 1e-6
    for ours, theirs in zip(one[3].updates, many[3].updates, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-10)
    assert other[3].updates[0] == many[3].updates[0]  # the critic learns behind the policy's first steps


def test_the_trainer_notes_what_the_critic_does_and_without_one_does_not():
    """The first values are 0, so the first loss is the mean square of the returns."""
    with_critic, without = learner([0]), learner([0], credit="to_go")
    rows = with_critic[0][0].updates
    assert rows[0]["explained_variance"] == 0
    assert rows[2]["critic_loss"] < rows[0]["critic_loss"]
    assert {"critic_loss", "explained_variance"}.isdisjoint(without[0][0].updates[0])


def test_a_method_without_advantages_refuses_credit(monkeypatch):
    """One that differentiates the reward itself has none."""

    def draw(actor, asked, config, draws):
        one = torch.zeros(1, 1, 1)
        return Batch(asked, one[0], one, one, None)

    monkeypatch.setattr(methods, "get", lambda name: SimpleNamespace(draw=draw))
    for name in ("gae", "to_go"):
        with pytest.raises(ValueError, match="no advantages, expected 'outcome'"):
            learner([0], credit=name)


def test_answers_of_one_token_have_a_critic_too():
    """Then the value is the prompt's, and the advantage the reward less it."""
    policy = disturbed(stacked())
    critic = Critic(policy, GRPO(credit="gae"))
    _set_head(critic.model, torch.ones(1, 16), torch.ones(1))
    first = dataclasses.replace(asked(), horizon=1, labels=torch.ones(1, 1, dtype=torch.long))
    tokens = torch.arange(VOCAB).view(1, 1, VOCAB, 1)
    r = exact_match(tokens[0], first.labels[0])[None, ..., None].double()
    found = credit.assign(Actor(policy, policy, critic), first, tokens, r, GRPO(credit="gae", scale="none"))
    value = found.lesson.values.flatten()
    assert value[0] != 0
    assert torch.equal(value, value[:1].expand(VOCAB))
    assert torch.allclose(found.advantages.flatten(), r.flatten() - value, atol=1e-12)
