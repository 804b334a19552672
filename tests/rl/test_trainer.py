"""Rollouts that share the prompt, stacked policies, and the trainer."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from replicate import streams
from replicate.models.fresh import tiny_olmo2
from replicate.models.logits import log_policy
from replicate.models.precision import full_precision
from replicate.rl import rollout as rollout_module
from replicate.rl.grpo import group_advantages
from replicate.rl.policies import SinglePolicy, StackedPolicy, side_by_side, train_padding_row
from replicate.rl.prompts import exact_match
from replicate.rl.rollout import log_probs_of, sample
from replicate.rl.tasks.label_copying import label_copying
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO

VOCAB = 23


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


def olmo2(seed=0):
    return tiny_olmo2(
        layers=2, hidden=16, heads=2, context=32, vocab=VOCAB, generator=torch.Generator().manual_seed(seed)
    )


def eager(model):
    model.set_attn_implementation("eager")
    return model.double().eval()


MODELS = {
    "olmo2": olmo2,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=32)
    ),
}  # fmt: skip


def drawn(lanes=2, prompts=3, length=5, group=4, horizon=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (lanes, prompts, length), generator=generator)
    return tokens, torch.rand(lanes, prompts, group, horizon, generator=generator, dtype=torch.float64)


def plain_log_probs(model, prompts, completions):
    """The slow way: every completion behind its own copy of the prompt, no cache, no lanes."""
    lanes, rows, group, horizon = completions.shape
    full = torch.cat([prompts[:, :, None].expand(-1, -1, group, -1), completions], dim=-1).flatten(0, 2)
    logits = model(input_ids=full, use_cache=False).logits[:, -horizon - 1 : -1]
    logp = log_policy(logits, vocab=VOCAB).gather(-1, completions.reshape(-1, horizon)[..., None])
    return logp.view(lanes, rows, group, horizon)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("horizon", [1, 3])
def test_shared_prompt_gives_the_log_probs_of_full_sequences(name, horizon):
    """The cached rollout, the teacher-forced pass and plain full sequences agree, in value and in gradient."""
    model = eager(MODELS[name]())
    tokens, uniforms = drawn(horizon=horizon)
    policy = StackedPolicy(model, 2)
    rollout = sample(policy, tokens, uniforms, vocab=VOCAB)
    plain = plain_log_probs(model, tokens, rollout.tokens)
    forced = log_probs_of(policy, tokens, rollout.tokens, vocab=VOCAB)
    assert torch.allclose(rollout.logp, plain, atol=1e-10)
    assert torch.allclose(forced, plain, atol=1e-10)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad((rollout.logp * weights).sum(), policy.parameters())
    reference = torch.autograd.grad((plain * weights).sum(), list(model.parameters()))
    assert torch.allclose(grad.sum(0), torch.cat([g.flatten() for g in reference]), atol=1e-10)


@pytest.mark.parametrize("widest", [1, 2, 4, 100])
def test_a_large_group_stands_in_several_rows(monkeypatch, widest):
    """However its completions are spread over rows they are the same, and so are their log-probabilities."""
    monkeypatch.setattr(rollout_module, "WIDEST", widest)
    model = eager(olmo2())
    tokens, uniforms = drawn(lanes=1, horizon=3)
    assert rollout_module.members_of(4, 2) == {1: 1, 2: 1, 4: 2, 100: 4}[widest]
    found = sample(SinglePolicy(model), tokens, uniforms, vocab=VOCAB)
    forced = log_probs_of(SinglePolicy(model), tokens, found.tokens, vocab=VOCAB)
    plain = plain_log_probs(model, tokens, found.tokens)
    assert torch.allclose(found.logp, plain, atol=1e-10)
    assert torch.allclose(forced, plain, atol=1e-10)


def test_a_single_policy_agrees_with_a_stacked_one():
    model = eager(olmo2())
    tokens, uniforms = drawn(lanes=1)
    stacked = sample(StackedPolicy(model, 1), tokens, uniforms, vocab=VOCAB)
    single = sample(SinglePolicy(model), tokens, uniforms, vocab=VOCAB)
    assert torch.equal(stacked.tokens, single.tokens)
    assert torch.allclose(stacked.logp, single.logp, atol=1e-12)


def test_tokens_follow_the_policy():
    """Frequencies of 40000 first tokens against the policy's probabilities: chi-square, 22 degrees of freedom."""
    model = eager(olmo2())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)  # far from uniform
    tokens, _ = drawn(lanes=1, prompts=1)
    uniforms = torch.rand(1, 1, 40000, 1, generator=torch.Generator().manual_seed(0))
    found = sample(SinglePolicy(model), tokens, uniforms, vocab=VOCAB).tokens.flatten()
    p = log_policy(model(input_ids=tokens[0]).logits[0, -1], vocab=VOCAB).exp().detach()
    expected = p * 40000

    def chi_square(expected):
        return ((torch.bincount(found, minlength=VOCAB) - expected) ** 2 / expected.clamp(min=1e-9)).sum()

    assert chi_square(expected) < 55  # 99.99% quantile
    assert chi_square(expected.roll(1)) > 1000  # off by one token


def test_fused_attention_is_refused_for_stacked_lanes():
    with pytest.raises(ValueError, match="eager"):
        StackedPolicy(olmo2(), 2)


def task(seed=0, count=64):
    from replicate.ladder import corpus

    return label_copying(corpus.tokenizer(), count, labels=4, filler=4, rng=np.random.default_rng(seed))


def learner(seeds, *, budgets=(3,), **config):
    from replicate.ladder import corpus

    model = tiny_olmo2(
        layers=1, hidden=16, heads=2, context=16, vocab=len(corpus.tokenizer()),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model.set_attn_implementation("eager")
    policy, reference = StackedPolicy(model, len(seeds)), StackedPolicy(model, len(seeds))
    config = {"prompts": 8, "group_size": 8, "learning_rate": 3e-3, **config}
    curves = train(
        policy, reference, task(0), task(1), GRPO(**config), seeds=list(seeds), budgets=list(budgets)
    )
    return {curve.seed: curve for curve in curves}, policy


def test_a_seed_gives_the_same_bits_in_any_company():
    """The record of a seed is a function of the seed alone, whoever shares its batch (two lanes or more)."""
    alone, _ = learner([5, 5])
    company, _ = learner([1, 2, 5, 0])
    assert alone[5] == company[5]
    assert company[1].updates != company[2].updates


def test_one_update_is_a_step_down_the_gradient_of_the_loss():
    """The first update of the trainer against the same update by hand: sampling, advantages, loss, AdamW."""
    curves, policy = learner([0, 8], budgets=(1,), max_grad_norm=0.0)
    _, fresh = learner([0, 8], budgets=(1,), learning_rate=1e-30)
    pool = task(0)
    generator = streams.generator(0, "", "grpo")
    chosen = torch.randint(len(pool), (8,), generator=generator)
    uniforms = torch.rand(8, 8, 1, generator=generator)
    weights = fresh.flat.detach().clone().requires_grad_()
    fresh.flat = weights
    tokens = pool.tokens[chosen].expand(2, -1, -1)
    rollout = sample(fresh, tokens, uniforms.expand(2, -1, -1, -1), vocab=pool.vocab)
    rewards = (rollout.tokens[0, ..., 0] == pool.labels[chosen][:, None]).float()
    loss = -(rollout.logp[0, ..., 0] * group_advantages(rewards)).mean()
    (grad,) = torch.autograd.grad(loss, weights)
    by_hand = weights.detach()[0].clone().requires_grad_()
    by_hand.grad = grad[0]
    torch.optim.AdamW([by_hand], lr=3e-3, weight_decay=0.0).step()
    moved = (
        grad[0].abs() > 1e-6
    )  # AdamW's first step is a sign: where the gradient is rounding, so is the step
    assert moved.any()
    assert torch.allclose(policy.flat[0][moved], by_hand[moved], atol=1e-5)
    assert curves[0].updates[0]["reward"] == pytest.approx(rewards.mean().item())


def test_rl_raises_the_reward_and_a_flipped_reward_lowers_it():
    """Forty updates towards the reward gain; the wrong sign loses. A trainer that ignores rewards fails."""
    gain = {}
    for sign in (1, -1):
        model_curves, _ = _with_reward(lambda t, y, s=sign: s * exact_match(t, y))
        gain[sign] = np.mean(
            [c.budgets[-1]["label_mass"] - c.budgets[0]["label_mass"] for c in model_curves.values()]
        )
    assert gain[1] > 0.05
    assert gain[1] > gain[-1] + 0.05


def _with_reward(reward):
    from replicate.ladder import corpus

    model = tiny_olmo2(
        layers=1, hidden=16, heads=2, context=16, vocab=len(corpus.tokenizer()),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model.set_attn_implementation("eager")
    policy = StackedPolicy(model, 2)
    config = GRPO(prompts=16, group_size=32, learning_rate=1e-2)
    curves = train(policy, policy, task(0), task(1), config, seeds=[0, 1], budgets=[40], reward=reward)
    return {curve.seed: curve for curve in curves}, policy


def test_kl_to_the_reference_holds_the_policy_back():
    free, _ = learner([0, 1], budgets=(20,), learning_rate=1e-2)
    held, _ = learner([0, 1], budgets=(20,), learning_rate=1e-2, kl_coef=20.0)
    assert "kl" in held[0].updates[0]
    assert "kl" not in free[0].updates[0]
    assert held[0].updates[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the policy starts at its reference
    assert held[0].budgets[-1]["kl_to_start"] < 0.5 * free[0].budgets[-1]["kl_to_start"]


def test_the_clip_acts_only_from_the_second_iteration_on():
    once, _ = learner([0, 1], budgets=(5,), learning_rate=3e-2)
    thrice, _ = learner([0, 1], budgets=(5,), learning_rate=3e-2, iterations=3)
    assert all(m["clip_fraction"] == 0 for m in once[0].updates)
    assert max(m["clip_fraction"] for m in thrice[0].updates) > 0


def test_nan_weights_stop_the_run_and_name_the_seed():
    from replicate.ladder import corpus

    model = tiny_olmo2(
        layers=1, hidden=16, heads=2, context=16, vocab=len(corpus.tokenizer()),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.set_attn_implementation("eager")
    policy = StackedPolicy(model, 2)
    with pytest.raises(ValueError, match="seed 3"):
        train(policy, policy, task(0), task(1), GRPO(), seeds=[3, 4], budgets=[2])


def test_held_out_prompts_may_not_be_in_the_pool():
    model = olmo2()
    policy = SinglePolicy(model)
    with pytest.raises(ValueError, match="held_out"):
        train(policy, policy, task(0), task(0), GRPO(), seeds=[0], budgets=[1])


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"group_size": 1}, "group_size"),
        ({"prompts": 0}, "prompts"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_settings_are_named(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        GRPO(**options)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("horizon", [1, 3])
def test_bfloat16_passes_are_those_of_the_model_in_bfloat16_and_its_weights_stay_in_float32(stacked, horizon):
    """Log-probabilities in float32 of logits in bfloat16, and the gradient within bfloat16's digits."""
    plain = olmo2_eager()
    train_padding_row(plain)
    policy = StackedPolicy(olmo2_eager(), 2, dtype=torch.bfloat16) if stacked else _single_bfloat16()
    tokens, uniforms = drawn(lanes=policy.lanes, horizon=horizon)
    found = sample(policy, tokens, uniforms, vocab=VOCAB)
    assert found.logp.dtype == torch.float32
    half = copy.deepcopy(plain).bfloat16()
    expected = plain_log_probs(half, tokens, found.tokens)
    wrong = plain_log_probs(plain, tokens, found.tokens)
    if horizon == 1:
        assert torch.allclose(found.logp, expected, atol=1e-6)
        assert not torch.allclose(found.logp, wrong, atol=1e-4)
    else:  # the passes are cut otherwise, so roundings differ: as many, not more
        assert (found.logp - wrong).norm() < 2 * (expected - wrong).norm()
    weights = torch.randn(found.logp.shape, generator=torch.Generator().manual_seed(1))
    found_gradient = torch.autograd.grad((found.logp * weights).sum(), policy.parameters())
    assert {g.dtype for g in found_gradient} == {p.dtype for p in policy.parameters()} == {torch.float32}
    exact = torch.autograd.grad(
        (plain_log_probs(plain, tokens, found.tokens) * weights).sum(), list(plain.parameters())
    )
    one, two = (torch.cat([g.flatten() for g in found_gradient]), torch.cat([g.flatten() for g in exact]))
    one = one.view(policy.lanes, -1).sum(0) if stacked else one
    assert (one - two).norm() < 0.03 * two.norm()


def olmo2_eager():
    model = olmo2()
    model.set_attn_implementation("eager")
    return model


def _single_bfloat16():
    return SinglePolicy(olmo2_eager(), dtype=torch.bfloat16)


@pytest.mark.parametrize("stacked", [False, True])
def test_small_updates_of_a_bfloat16_policy_add_up(stacked):
    """A hundred steps of a thousandth of bfloat16's spacing: in bfloat16 weights not one of them would be seen."""
    policy = StackedPolicy(olmo2_eager(), 2, dtype=torch.bfloat16) if stacked else _single_bfloat16()
    tokens, _ = drawn(lanes=policy.lanes)
    before = policy.logits(tokens, keep=1).detach()
    with torch.no_grad():
        for weight in policy.parameters():
            for _ in range(100):
                weight.mul_(1 - 1e-4)
    after = policy.logits(tokens, keep=1).detach()
    assert not torch.equal(after, before)
    assert torch.tensor(1.0).bfloat16() * (1 - 1e-4) == 1


def test_the_fused_optimiser_is_seen_by_the_copies():
    """They are made anew after each step of the trainer's own optimiser, and only then."""
    policy = _single_bfloat16()
    tokens, uniforms = drawn(lanes=1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        policy.logits(tokens, keep=1)
    first = policy.weights()
    logp = sample(policy, tokens, uniforms, vocab=VOCAB).logp
    again = policy.weights()
    assert all(first[name] is again[name] for name in first)
    logp.sum().backward()
    optimizer.step()
    now = dict(policy.model.named_parameters())
    assert all(torch.equal(copy, now[name].bfloat16()) for name, copy in policy.weights().items())


def test_a_bfloat16_policy_goes_when_it_is_dropped():
    """And its weights with it, at once: a large one would not fit beside the next."""
    gc.disable()
    try:
        policy = _single_bfloat16()
        tokens, uniforms = drawn(lanes=1)
        sample(policy, tokens, uniforms, vocab=VOCAB).logp.sum().backward()
        weight = weakref.ref(policy.parameters()[0])
        del policy
        assert weight() is None
    finally:
        gc.enable()


def test_a_float32_policy_reads_its_parameters_themselves():
    assert SinglePolicy(olmo2()).weights() is None
    policy = StackedPolicy(olmo2_eager(), 2)
    assert all(w.untyped_storage().data_ptr() == policy.flat.untyped_storage().data_ptr()
               for w in policy.weights().values())  # fmt: skip


def test_completions_side_by_side_see_the_prompt_and_themselves():
    """Two completions of two tokens behind a prompt of one, by hand."""
    behind = side_by_side(1, 2, 2)
    assert behind.positions.tolist() == [1, 1, 2, 2]
    assert behind.sees.int().tolist() == [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
