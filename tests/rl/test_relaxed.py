"""Soft tokens in RL: what a policy reads of them, the two methods on them, and the bias of the relaxed gradient."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from transformers import GPT2Config, GPT2LMHeadModel

from replicate.models.fresh import tiny_olmo2
from replicate.models.logits import log_policy
from replicate.models.precision import full_precision
from replicate.rl import rollout as rollout_module
from replicate.rl.batch import Actor, Asked
from replicate.rl.methods import bptt, gumbel
from replicate.rl.policies import SinglePolicy, StackedPolicy, side_by_side
from replicate.rl.prompts import Prompts, all_right, each_right, exact_match
from replicate.rl.relaxed import (
    SoftRollout,
    discrete_gradient,
    gumbels,
    relaxed_gradient,
    relaxed_reward,
    relaxed_rollout,
)
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO

VOCAB = 9


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


def olmo2(*, seed=0, vocab=VOCAB, layers=2, hidden=16, gain=1.0):
    model = tiny_olmo2(
        layers=layers, hidden=hidden, heads=2, context=16, vocab=vocab,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain)
    return eager(model)


def tied():
    """Embeddings that are also the head, and rows beyond the vocabulary in use."""
    torch.manual_seed(0)
    return eager(GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=16, n_layer=2, n_head=2)))


def eager(model):
    model.set_attn_implementation("eager")
    return model.double().eval()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def asked(lanes=2, prompts=3, *, horizon=3, vocab=VOCAB, reward=all_right):
    tokens = torch.randint(vocab, (lanes, prompts, 4), generator=seeded(1))
    labels = torch.randint(vocab, (lanes, prompts, horizon), generator=seeded(2))
    return Asked(tokens, labels, vocab, horizon, reward)


def stacked(model, lanes=2):
    """Lanes with weights of their own."""
    policy = StackedPolicy(model, lanes)
    with torch.no_grad():
        policy.flat += 0.1 * torch.randn(policy.flat.shape, generator=seeded(3), dtype=torch.float64)
    return policy


def lane_model(policy, lane, model):
    """The plain model with one lane's weights."""
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(policy.flat[lane], model.parameters())
    return model


def generators(*seeds):
    return [seeded(seed) for seed in seeds]


@pytest.mark.parametrize("make", [olmo2, tied])
@pytest.mark.parametrize("kind", [stacked, lambda model: SinglePolicy(model)])
def test_a_soft_token_that_is_one_hot_is_that_token(make, kind):
    """In value and in the gradient of all weights, prompts and completions side by side behind their cache."""
    policy = kind(make())
    found = {}
    for soft in (False, True):
        tokens = torch.randint(VOCAB, (policy.lanes, 3, 4), generator=seeded(1))
        later = torch.randint(VOCAB, (policy.lanes, 3, 4), generator=seeded(2))
        if soft:
            tokens, later = (torch.nn.functional.one_hot(t, VOCAB).double() for t in (tokens, later))
        cache = []
        first = policy.logits(tokens, keep=2, cache=cache)
        rest = policy.logits(later, keep=4, cache=cache, behind=side_by_side(4, 2, 2))
        outputs = torch.cat([first, rest, policy.logits(tokens, keep=1)], 2)
        weights = torch.randn(outputs.shape, generator=seeded(4), dtype=torch.float64)
        found[soft] = outputs, *torch.autograd.grad((outputs * weights).sum(), policy.parameters())
    for hard, soft in zip(found[False], found[True], strict=True):
        assert torch.allclose(hard, soft, rtol=0, atol=1e-12)


def test_a_soft_token_has_a_gradient_of_its_own_and_may_not_be_too_long():
    """The slope in p(v) is e(v) times what arrives at the embeddings: by finite differences."""
    policy = SinglePolicy(tied())
    soft = torch.rand(1, 1, 3, VOCAB, generator=seeded(0), dtype=torch.float64).requires_grad_()

    def value(tokens):
        return policy.logits(tokens, keep=1).sin().sum()

    assert torch.autograd.gradcheck(value, soft, atol=1e-7)
    with pytest.raises(ValueError, match="at most 16 entries, got 17"):
        policy.logits(torch.rand(1, 1, 3, 17, dtype=torch.float64), keep=1)


def plain_loop(model, prompt, noise, temperature):
    """One completion of one prompt the slow way: full sequences of embeddings, nothing cached."""
    table = model.get_input_embeddings().weight[:VOCAB]
    fed, soft = table[prompt], []
    for g in noise:
        log_probs = model(inputs_embeds=fed[None], use_cache=False).logits[0, -1, :VOCAB].log_softmax(-1)
        soft.append(((log_probs + g) / temperature).softmax(-1))
        fed = torch.cat([fed, (soft[-1] @ table)[None]])
    return torch.stack(soft)


@pytest.mark.parametrize("widest", [2, 512])
@pytest.mark.parametrize("make", [olmo2, tied])
def test_the_relaxed_rollout_is_the_loop_over_full_sequences(monkeypatch, make, widest):
    """Soft tokens, hardened tokens, and the gradient of a lane's weights through everything that was fed back."""
    monkeypatch.setattr(rollout_module, "WIDEST", widest)
    policy, ask, noise = stacked(make()), asked(), gumbels(generators(5, 6), 3, 4, 3, VOCAB)
    found = relaxed_rollout(policy, ask.tokens, noise, temperature=0.7)
    weights = torch.randn(found.soft.shape, generator=seeded(4), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found.soft * weights).sum(), policy.parameters())
    for lane in range(2):
        model = lane_model(policy, lane, make())
        rows = [
            plain_loop(model, q, g, 0.7)
            for q, n in zip(ask.tokens[lane], noise[lane], strict=True)
            for g in n
        ]
        plain = torch.stack(rows).unflatten(0, (3, 4))
        assert torch.allclose(found.soft[lane], plain, rtol=0, atol=1e-12)
        assert torch.equal(found.tokens[lane], plain.argmax(-1))
        slow = torch.autograd.grad((plain * weights[lane]).sum(), list(model.parameters()))
        assert torch.allclose(gradient[lane], torch.cat([g.flatten() for g in slow]), rtol=0, atol=1e-10)


def test_the_first_hardened_token_is_a_sample_of_the_policy():
    """Chi-square of 20000 of them, 8 degrees of freedom; the policy one token off is rejected."""
    policy = SinglePolicy(olmo2(gain=3.0))
    tokens = torch.randint(VOCAB, (1, 1, 4), generator=seeded(1))
    noise = gumbels(generators(0), 1, 20000, 1, VOCAB)
    counts = torch.bincount(relaxed_rollout(policy, tokens, noise, temperature=1.0).tokens.flatten())
    probs = log_policy(policy.logits(tokens, keep=1)[0, 0, -1], vocab=VOCAB).exp().detach().numpy()
    assert stats.chisquare(counts, probs / probs.sum() * 20000).pvalue > 1e-4
    assert stats.chisquare(counts, np.roll(probs / probs.sum(), 1) * 20000).pvalue < 1e-10


@pytest.mark.parametrize("reward", [all_right, each_right])
def test_the_relaxed_reward_is_a_product_or_a_mean(reward):
    """By hand; and on hard tokens, where it is the reward itself."""
    ask = asked(reward=reward)
    soft = torch.rand(2, 3, 4, 3, VOCAB, generator=seeded(0), dtype=torch.float64)
    found = relaxed_reward(ask, SoftRollout(soft, soft.argmax(-1), soft[..., 0]))
    y = [float(soft[1, 2, 3, t, ask.labels[1, 2, t]]) for t in range(3)]
    assert float(found[1, 2, 3]) == pytest.approx(np.prod(y) if reward is all_right else np.mean(y))
    hard = torch.randint(2, (2, 3, 40, 3), generator=seeded(0))
    few = Asked(ask.tokens, ask.labels % 2, VOCAB, 3, reward)
    one_hot = torch.nn.functional.one_hot(hard, VOCAB).double()
    on_hard = relaxed_reward(few, SoftRollout(one_hot, hard, hard.double()))
    assert torch.allclose(on_hard, few.rated(hard).sum(-1).double())
    assert 0 < on_hard.mean() < 1


@pytest.mark.parametrize(
    "reward",
    [lambda t, y: 1 - all_right(t, y), lambda t, y: 2 * each_right(t, y), lambda t, y: each_right(t, y).sum(-1)],
)  # fmt: skip
def test_a_reward_of_another_form_is_refused(reward):
    soft = torch.rand(2, 3, 40, 3, VOCAB, generator=seeded(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="the relaxation of another reward is not known"):
        relaxed_reward(asked(reward=reward), SoftRollout(soft, soft.argmax(-1), soft[..., 0]))


def test_one_token_of_right_answer_is_read_where_it_stands():
    """exact_match reads the first token only, and so does its relaxation."""
    ask = asked(horizon=1, reward=exact_match)
    ask = Asked(ask.tokens, ask.labels[..., 0], VOCAB, 2, exact_match)
    soft = torch.rand(2, 3, 4, 2, VOCAB, generator=seeded(0), dtype=torch.float64)
    found = relaxed_reward(ask, SoftRollout(soft, soft.argmax(-1), soft[..., 0]))
    assert torch.equal(found[1, 0], soft[1, 0, :, 0, ask.labels[1, 0]])


@pytest.mark.parametrize("reward", [all_right, each_right])
def test_bptt_is_the_slope_of_the_relaxed_reward(reward):
    """Its loss's gradient against finite differences along a random direction of each lane's weights, through again."""
    policy, config = stacked(olmo2()), GRPO(method="bptt", group_size=4, temperature=0.8, reward_scale=3.0)
    actor = Actor(policy, policy)
    batch = bptt.draw(actor, asked(reward=reward), config, generators(5, 6))
    loss = bptt.losses(batch.signal, batch, config)
    assert torch.equal(bptt.again(actor, batch, config), batch.signal)
    (gradient,) = torch.autograd.grad(loss.sum(), policy.parameters())
    start = policy.flat.detach().clone()
    along = torch.randn(start.shape, generator=seeded(7), dtype=torch.float64)

    def at(step):
        with torch.no_grad():
            policy.flat.copy_(start + step * along)
            return bptt.losses(bptt.again(actor, batch, config), batch, config)

    slopes = (at(1e-6) - at(-1e-6)) / 2e-6
    assert torch.allclose(slopes, (gradient * along).sum(1), rtol=1e-6, atol=1e-10)
    assert torch.allclose(loss, -3.0 * batch.signal.mean((1, 2)))


@pytest.mark.parametrize("wrong", [{"kl_coef": 0.1}, {"credit": "to_go"}])
def test_bptt_refuses_what_has_no_meaning(wrong):
    policy = stacked(olmo2())
    with pytest.raises(ValueError, match="method bptt"):
        bptt.draw(Actor(policy, policy), asked(), GRPO(method="bptt", **wrong), generators(0, 1))


# The density of SofT-GRPO's actions, two kept tokens: integrals over g'_2 and the difference g'_1 - g'_2 on either side
# of 0, where the argmax changes.
LOGITS = torch.tensor([0.9, -0.4], dtype=torch.float64)
SECOND, APART = np.linspace(-6, 35, 601), np.linspace(0, 40, 601)


def integrals(first, values):
    """Over the plane where the first token is the largest (or is not), of columns that depend on the density and its
    score in the logits."""
    second, apart = np.meshgrid(SECOND, APART if first else -APART, indexing="ij")
    perturbed = torch.tensor(np.stack([second + apart, second], -1))
    leaf = LOGITS.expand(*perturbed.shape).clone().requires_grad_()
    kept = torch.arange(2).expand(*perturbed.shape)
    log_p = gumbel.log_density(leaf.log_softmax(-1), kept, perturbed)
    (score,) = torch.autograd.grad(log_p.sum(), leaf)
    found = values(log_p.detach().exp().numpy()[..., None], score.numpy())
    return integrate.simpson(integrate.simpson(found, x=APART, axis=1), x=SECOND, axis=0)


def test_the_density_of_an_action_by_quadrature():
    """It integrates to 1, its argmax is the token with probability pi, and its score gives the slope of pi."""
    pi = LOGITS.softmax(-1).numpy()
    for first, probability in ((True, pi[0]), (False, pi[1])):
        found = integrals(first, lambda density, score: density)
        assert found == pytest.approx([probability], abs=1e-6)
        slope = pi[0] * pi[1] * (1 if first else -1)  # dpi_1/dz_1 = -dpi_1/dz_2 = pi_1 pi_2
        assert integrals(first, lambda density, score: density * score) == pytest.approx(
            [slope, -slope], abs=1e-6
        )


def test_the_score_of_an_action_by_monte_carlo():
    """E[R(argmax) score] = dpi(y)/dz within 4 standard errors, more kept tokens than two; half the score is not."""
    logits = torch.tensor([1.0, 0.2, -0.3, 0.6], dtype=torch.float64)
    pi, draws = logits.softmax(-1), 200_000
    perturbed = logits.log_softmax(-1) + torch.from_numpy(
        stats.gumbel_r.rvs(size=(draws, 4), random_state=np.random.default_rng(0))
    )
    leaf = logits.expand(draws, -1).clone().requires_grad_()
    log_p = gumbel.log_density(leaf.log_softmax(-1), torch.arange(4).expand(draws, -1), perturbed)
    (score,) = torch.autograd.grad(log_p.sum(), leaf)
    samples = (perturbed.argmax(-1) == 3)[:, None] * score
    exact = pi[3] * (torch.eye(4, dtype=torch.float64)[3] - pi)
    error = samples.std(0) / draws**0.5
    assert ((samples.mean(0) - exact).abs() < 4 * error).all()
    assert not ((samples.mean(0) / 2 - exact).abs() < 4 * error).all()


def test_kept_tokens_are_the_fewest_of_the_likeliest():
    """By hand: of 7 tokens the five likeliest, of which four hold 95% of the mass; one that is sure stands alone."""
    probs = torch.tensor([[0.30, 0.02, 0.30, 0.20, 0.01, 0.14, 0.03], [1e-9] * 6 + [1 - 6e-9]]).double()
    kept, outside = gumbel.nucleus(probs.log())
    assert sorted(kept[0][~outside[0]].tolist()) == [0, 2, 3, 5]
    assert kept[1][~outside[1]].tolist() == [6]
    one = torch.full((5,), -torch.inf).double()
    one[0] = 0.3
    density = gumbel.log_density(probs[1].log(), kept[1], one)
    assert float(density) == pytest.approx(stats.gumbel_r.logpdf(0.3))


def drawn(policy, reference=None, *, horizon=3, **config):
    config = GRPO(method="gumbel", group_size=4, temperature=0.3, **config)
    actor = Actor(policy, reference or policy)
    return (
        actor,
        gumbel.draw(actor, asked(horizon=horizon, reward=each_right), config, generators(5, 6)),
        config,
    )


@pytest.mark.parametrize("horizon", [1, 3])
def test_actions_are_scored_under_the_present_weights_behind_the_same_inputs(horizon):
    """The signal of other weights against scipy's Gumbel density and full sequences of the same soft embeddings; the
    reference's likewise; at the first weights the ratio is 1 exactly."""
    policy, reference = stacked(olmo2(gain=4.0)), StackedPolicy(olmo2(seed=9), 2)
    actor, batch, config = drawn(policy, reference, horizon=horizon, kl_coef=0.1)
    assert torch.equal(batch.signal, batch.old)
    assert torch.allclose(gumbel.again(actor, batch, config), batch.old, rtol=0, atol=1e-12)
    for found, lane, model in (
        (batch.signal, 1, lane_model(policy, 1, olmo2())),
        (batch.ref, 0, lane_model(reference, 0, olmo2())),
    ):
        expected = plain_log_density(model, batch.asked.tokens[lane], batch.actions, lane)
        assert np.allclose(found[lane].detach(), expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        policy.flat += 0.05 * torch.randn(policy.flat.shape, generator=seeded(8), dtype=torch.float64)
    moved = gumbel.again(actor, batch, config)
    assert (moved - batch.old).abs().max() > 1e-3
    expected = plain_log_density(lane_model(policy, 0, olmo2()), batch.asked.tokens[0], batch.actions, 0)
    assert np.allclose(moved[0].detach(), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def plain_log_density(model, prompts, actions, lane):
    table, rows = model.get_input_embeddings().weight[:VOCAB], []
    for p, prompt in enumerate(prompts):
        for soft, kept, g in zip(
            *(x[lane, p] for x in (actions.soft, actions.kept, actions.perturbed)), strict=True
        ):
            fed = torch.cat([table[prompt], soft[:-1] @ table])
            logits = model(inputs_embeds=fed[None], use_cache=False).logits[0, len(prompt) - 1 :]
            row = []
            for z, ids, perturbed in zip(logits, kept, g, strict=True):
                ids, perturbed = ids[perturbed > -torch.inf], perturbed[perturbed > -torch.inf]
                row.append(stats.gumbel_r.logpdf(perturbed, loc=z[ids].log_softmax(-1)).sum())
            rows.append(row)
    return np.array(rows)


def test_soft_inputs_and_rewards_are_read_off_the_actions():
    """The input is softmax(g' / temperature) on the kept tokens and nothing elsewhere; the token is its largest."""
    _, batch, config = drawn(stacked(olmo2(gain=4.0)))
    actions = batch.actions
    assert actions.perturbed.isneginf().any()
    by_hand = torch.zeros_like(actions.soft).scatter(
        -1, actions.kept, (actions.perturbed / config.temperature).softmax(-1)
    )
    assert torch.allclose(actions.soft, by_hand)
    assert not actions.soft.requires_grad
    rewards = batch.asked.rated(actions.soft.argmax(-1)).sum(-1).flatten(1)
    assert torch.equal(batch.rewards, rewards)
    assert 0 < rewards.mean() < 1


def prompts_of(seed, count=20):
    """Prompts of three words, all with the same answer of two."""
    tokens = torch.randint(VOCAB, (count, 3), generator=seeded(seed))
    text = tuple(f"{seed} {i}" for i in range(count))
    return Prompts(text, tokens, torch.tensor([2, 5]).expand(count, -1), torch.arange(VOCAB), VOCAB)


def learner(method, seeds, *, updates=2, reward=each_right, **config):
    policy = StackedPolicy(olmo2(layers=1).float(), len(seeds))
    config = GRPO(
        **{
            "method": method,
            "prompts": 4,
            "group_size": 8,
            "learning_rate": 2e-2,
            "max_grad_norm": 0.0,
            **config,
        }
    )
    curves = train(
        policy, policy, prompts_of(0), prompts_of(1), config, seeds=list(seeds), budgets=[updates], horizon=2,
        reward=reward,
    )  # fmt: skip
    return {curve.seed: curve for curve in curves}


@pytest.mark.parametrize("method", ["bptt", "gumbel"])
def test_a_lane_is_independent_of_its_company(method):
    alone, company = (learner(method, seeds, iterations=2) for seeds in ([5, 5], [1, 2, 5]))
    assert alone[5] == company[5]
    assert company[1].updates != company[2].updates


@pytest.mark.parametrize("method", ["bptt", "gumbel"])
def test_both_methods_raise_the_reward(method):
    """Twelve updates, both lanes; with the sign of bptt's loss or of gumbel's advantages turned round it would fall."""
    for curve in learner(method, [0, 1], updates=12).values():
        start, end = (row["each_right"] for row in curve.budgets)
        assert end > start + 0.15


# The bias of the relaxed gradient: few tokens, lanes as independent draws, the exact gradient by enumeration.


def one_prompt(lanes, horizon, vocab, reward=all_right):
    tokens = torch.tensor([[[0, 1, 1]]]).expand(lanes, -1, -1)
    labels = torch.tensor([[[1, 0, 2]]])[..., :horizon].expand(lanes, -1, -1)
    return Asked(tokens, labels, vocab, horizon, reward)


def relative(horizon, temperature, *, vocab=5, draws=4000):
    """The relaxed gradients along the exact one, in its length: 1 on average if there is no bias. Mean and error."""
    model = olmo2(layers=1, hidden=8, vocab=vocab)
    exact = discrete_gradient(StackedPolicy(model, 1), one_prompt(1, horizon, vocab))[0]
    noise = gumbels(generators(7), draws, 1, horizon, vocab)[0][:, None]
    ask = one_prompt(draws, horizon, vocab)
    each = relaxed_gradient(StackedPolicy(model, draws), ask, noise, temperature=temperature)
    along = each @ exact / exact.square().sum()
    return float(along.mean()), float(along.std() / draws**0.5)


def test_the_discrete_gradient_is_that_of_a_tree_of_probabilities():
    """Against E[R] written as a product of full-sequence softmaxes along the one right answer."""
    model = olmo2(layers=1, hidden=8, vocab=5)
    ask = one_prompt(1, 3, 5)
    found = discrete_gradient(StackedPolicy(model, 1), ask)[0]
    row = torch.cat([ask.tokens[0, 0], ask.labels[0, 0]])
    probs = model(input_ids=row[None], use_cache=False).logits[0, 2:5, :5].softmax(-1)
    value = probs.gather(-1, ask.labels[0, 0][:, None]).prod()
    slow = torch.autograd.grad(value, list(model.parameters()))
    assert torch.allclose(found, torch.cat([g.flatten() for g in slow]), rtol=1e-10, atol=1e-14)


def two_token_ratio(gap, temperature):
    """E[y (1 - y)] / tau over pi (1 - pi): y = sigmoid((gap + logistic noise) / tau), by quadrature."""

    def integrand(y):  # the density of y, so that the integrand is smooth at any temperature
        noise = temperature * np.log(y / (1 - y)) - gap
        return stats.logistic.pdf(noise)

    pi = stats.logistic.cdf(gap)
    return integrate.quad(integrand, 0, 1, epsabs=1e-13, epsrel=1e-12)[0] / (pi * (1 - pi))


def test_of_two_tokens_the_bias_is_known():
    """One step, two tokens: the mean relaxed gradient is the exact one times a number found by quadrature, which goes
    to 1 as the square of the temperature."""
    model = olmo2(layers=1, hidden=8, vocab=2)
    logits = model(input_ids=torch.tensor([[0, 1, 1]])).logits[0, -1].detach()
    gap = float(logits[1] - logits[0])
    for temperature in (1.0, 0.3):
        mean, error = relative(1, temperature, vocab=2)
        assert abs(mean - two_token_ratio(gap, temperature)) < 4 * error
    small = np.array([0.02, 0.04, 0.08])
    off = [abs(two_token_ratio(gap, t) - 1) for t in small]
    assert np.polyfit(np.log(small), np.log(off), 1)[0] == pytest.approx(2, abs=0.05)


def test_of_one_token_the_bias_goes_with_the_temperature():
    """Beyond 10 standard errors at temperature 1; at 0.2 within 4, which are less than half of what it was at 1."""
    warm, warm_error = relative(1, 1.0)
    cool, cool_error = relative(1, 0.2)
    assert abs(warm - 1) > 10 * warm_error
    assert abs(cool - 1) < 4 * cool_error < abs(warm - 1) / 2


def test_of_three_tokens_the_product_has_a_bias():
    mean, error = relative(3, 1.0)
    assert abs(mean - 1) > 6 * error
