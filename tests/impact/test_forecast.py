"""The forecasts: gradients against autograd, steps against the trainer, carried gains against finite differences."""

import pytest
import torch

from replicate.impact import forecast
from replicate.models.fresh import tiny_olmo2
from replicate.models.logits import log_policy
from replicate.models.precision import full_precision
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts, evaluate, exact_match
from replicate.rl.trainer import train
from replicate.settings.grpo import GRPO
from replicate.streams import generator

VOCAB = 9


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


@pytest.fixture
def model():
    made = tiny_olmo2(
        layers=2, hidden=8, heads=2, context=16, vocab=VOCAB, generator=torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():
        made.lm_head.weight.mul_(40)
    made.set_attn_implementation("eager")
    return made.eval()


def prompts(count, seed):
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (count, 5), generator=rng)
    labels = torch.randint(VOCAB, (count,), generator=rng)
    return Prompts(tuple(f"{seed}.{i}" for i in range(count)), tokens, labels, torch.arange(VOCAB), VOCAB)


def gradients(model, batches=4, config=None, seed=1, **options):
    rng = generator(seed, "", "grpo")
    config = config or GRPO(prompts=8, group_size=4)
    return list(
        forecast.batch_gradients(
            model, None, prompts(40, 5), config, batches=batches, generator=rng, horizon=1, reward=exact_match,
            **options,
        )
    )  # fmt: skip


def test_mean_batch_gradient_without_std_is_the_objectives(model):
    """Leave-one-out without std is unbiased: E g^ = grad J on the pool. With the std it is not along it alone."""
    pool, exact = prompts(40, 5), forecast.objective_gradient(model, prompts(40, 5))
    config = GRPO(prompts=8, group_size=4, baseline="leave_one_out", scale="none")
    found = gradients(model, batches=400, config=config)
    along = torch.tensor([forecast.dot(exact, g) for g in found])
    square = forecast.dot(exact, exact)
    assert abs((along.mean() - square) / (along.std() / 20)) < 4
    assert abs((along.mean() + square) / (along.std() / 20)) > 6  # the other sign would be seen
    assert len(pool) == 40


def test_the_first_frozen_step_is_the_trainers_first_update(model):
    """One update of the trainer, from the same stream of random numbers, moves the weights by the same amount."""
    config = GRPO(prompts=8, group_size=4, learning_rate=1e-3)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    [(_, step)] = forecast.frozen_steps(model, gradients(model, 1, config), config, [1])
    policy = SinglePolicy(model)
    train(policy, policy, prompts(40, 5), prompts(6, 6), config, seeds=[1], budgets=[1])
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.detach() - before[name], step[name], rtol=1e-6, atol=1e-12), name


@pytest.mark.parametrize("scale", [1e-6, 1e-5])
def test_forecasts_agree_to_first_order(model, scale):
    """All three have the slope <grad J, step> at zero, by central differences; they part at second order."""
    test, rng = prompts(12, 6), torch.Generator().manual_seed(3)
    direction = {n: torch.randn(p.shape, generator=rng, dtype=p.dtype) for n, p in model.named_parameters()}
    gradient = forecast.objective_gradient(model, test)
    up, down = (
        forecast.gains(model, test, gradient, {n: sign * scale * d for n, d in direction.items()})
        for sign in (1, -1)
    )
    slope = forecast.dot(gradient, direction)
    for name in ("linear", "linearised", "frozen"):
        assert (up[name] - down[name]) / (2 * scale) == pytest.approx(slope, rel=1e-5), name
    assert up["frozen"] == pytest.approx(up["linear"], rel=0.2)
    assert up["frozen"] != pytest.approx(up["linear"], rel=1e-6)


def test_frozen_is_the_reward_where_the_step_leads_and_linearised_stays_a_probability(model):
    test = prompts(12, 6)
    config = GRPO(prompts=8, group_size=4, learning_rate=0.3, max_grad_norm=0.0)
    gradient = forecast.objective_gradient(model, test)
    start = evaluate(model, test).correct.mean().item()
    steps = dict(forecast.frozen_steps(model, gradients(model, 3, config), config, [1, 5]))
    assert sorted(steps) == [1, 5]
    found = forecast.gains(model, test, gradient, steps[5])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += steps[5][name]
    assert found["frozen"] == pytest.approx(evaluate(model, test).correct.mean().item() - start, abs=1e-12)
    assert -start <= found["linearised"] <= 1 - start


def test_rest_in_parameter_space(model):
    """kappa, |g^|^2 and their normalised quotient by hand; a batch without a gradient counts as no gain."""
    exact = forecast.objective_gradient(model, prompts(12, 6))
    batches = [g for g in gradients(model, 12) if forecast.dot(g, g) > 0][:3]
    nothing = {name: torch.zeros_like(g) for name, g in exact.items()}
    found = forecast.in_parameter_space(exact, [*batches, nothing])
    flat = torch.cat([g.flatten() for g in exact.values()])
    rows = torch.stack([torch.cat([g.flatten() for g in batch.values()]) for batch in batches])
    assert found["kappa_theta"] == pytest.approx((rows @ flat).sum().item() / 4)
    assert found["empirical_theta"] == pytest.approx(rows.square().sum().item() / 4)
    assert found["normalised_theta"] == pytest.approx(((rows @ flat) / rows.norm(dim=1)).sum().item() / 4)


def test_objective_gradient_against_backward_in_one_batch(model):
    batch = prompts(5, 2)
    model.get_input_embeddings().padding_idx = None
    probs = log_policy(model(input_ids=batch.tokens, logits_to_keep=1).logits[:, -1], vocab=VOCAB).exp()
    wanted = torch.autograd.grad(probs.gather(1, batch.labels[:, None]).mean(), list(model.parameters()))
    for size in (1, 2, 64):
        found = forecast.objective_gradient(model, batch, batch=size)
        for got, expected in zip(found.values(), wanted, strict=True):
            assert torch.allclose(got, expected, rtol=1e-10, atol=1e-14)
        assert forecast.gradient_norm_squared(model, batch, batch=size) == pytest.approx(
            sum(g.square().sum().item() for g in wanted), rel=1e-10
        )
