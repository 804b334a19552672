r"""What RL will gain from a checkpoint, computed at the checkpoint, with no number fitted to any RL run.

GRPO's gradients of a few batches are taken at the checkpoint's weights theta and given, one after another and over
again, to the trainer's own optimiser: clipped, normalised by Adam, at the trainer's learning rate. Only the gradients
do not follow the weights. The steps Delta theta that come out are carried to the gain in three ways:

- ``linear``: <grad J, Delta theta>, the first-order gain, which knows no bound;
- ``linearised``: logits to first order, z + (dz/dtheta) Delta theta, rewards from their softmax: it saturates;
- ``frozen``: J(theta + Delta theta) - J(theta).

Beside them, in parameter space, what the law of impact has in state space: ``kappa_theta`` = E <grad J, g^> and
``empirical_theta`` = E |g^|^2 of one batch's gradient g^, and ``normalised_theta`` = E <grad J, g^> / |g^|, the gain
per unit of length of an update of fixed length.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jvp

from replicate.models.hooks import require_eager
from replicate.models.logits import log_policy
from replicate.rl import methods
from replicate.rl.batch import Actor
from replicate.rl.policies import Policy, SinglePolicy, train_padding_row
from replicate.rl.prompts import Prompts, Reward
from replicate.rl.trainer import ask, optimizer_of
from replicate.settings.grpo import GRPO

Step = dict[str, Tensor]
"""A tensor for each parameter, by name."""


def gradient_norm_squared(model: nn.Module, prompts: Prompts, *, batch: int = 64) -> float:
    """|grad_theta J|^2, the squared norm of the objective's gradient in parameter space (a baseline of audit A10)."""
    gradient = objective_gradient(model, prompts, batch=batch)
    return dot(gradient, gradient)


def objective_gradient(model: nn.Module, prompts: Prompts, *, batch: int = 64) -> Step:
    """grad_theta J, exact over the sampled answer: J = mean over prompts of pi(y | q)."""
    train_padding_row(model)
    parameters = dict(model.named_parameters())
    total = [torch.zeros_like(p) for p in parameters.values()]
    for start in range(0, len(prompts), batch):
        part = prompts.select(torch.arange(start, min(start + batch, len(prompts))))
        objective = _correct(_answer_logits(model, part), part).sum() / len(prompts)
        torch._foreach_add_(total, torch.autograd.grad(objective, list(parameters.values())))
    return dict(zip(parameters, total, strict=True))


def dot(one: Step, two: Step) -> float:
    """The inner product over all parameters, summed in float64."""
    return sum((one[name].double() * two[name].double()).sum().item() for name in one)


def batch_gradients(
    model: nn.Module,
    reference: Policy | None,
    pool: Prompts,
    config: GRPO,
    *,
    batches: int,
    generator: torch.Generator,
    horizon: int,
    reward: Reward,
) -> Iterator[Step]:
    """Minus the gradient of the trainer's loss (the direction of ascent) on each of ``batches`` batches, at the model's
    own weights. ``reference`` serves the KL, which vanishes with its gradient where the weights are the reference's."""
    policy, method = SinglePolicy(model), methods.get(config.method)
    actor = Actor(policy, reference or policy)
    for _ in range(batches):
        asked = ask(pool, config, [generator], horizon=horizon, reward=reward)
        drawn = method.draw(actor, asked, config, [generator])
        loss = method.losses(drawn.signal, drawn, config).sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
        yield {name: -g for (name, _), g in zip(model.named_parameters(), found, strict=True)}


def frozen_steps(
    model: nn.Module, gradients: Sequence[Step], config: GRPO, budgets: Iterable[int]
) -> Iterator[tuple[int, Step]]:
    """Delta theta after each of ``budgets`` updates of the trainer's optimiser that is fed ``gradients`` in turn."""
    start = dict(model.named_parameters())
    moved = {name: weight.detach().clone().requires_grad_() for name, weight in start.items()}
    optimizer = optimizer_of(list(moved.values()), config)
    wanted = set(budgets)
    for update, gradient in enumerate(islice(cycle(gradients), max(wanted)), 1):
        for name, weight in moved.items():
            weight.grad = -gradient[name]
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(moved.values(), config.max_grad_norm)
        for _ in range(config.iterations):
            optimizer.step()
        if update in wanted:
            yield update, {name: weight.detach() - start[name].detach() for name, weight in moved.items()}


def gains(model: nn.Module, prompts: Prompts, gradient: Step, step: Step) -> dict[str, float]:
    """The three forecasts of J(theta + step) - J(theta) on ``prompts``; ``gradient`` is J's on the same prompts.

    The model needs eager attention: fused kernels have no forward derivative.
    """
    require_eager(model, "a forward derivative")
    start = {name: weight.detach() for name, weight in model.named_parameters()}

    def logits(weights: Step) -> Float[Tensor, "prompts rows"]:
        return _answer_logits(lambda **inputs: functional_call(model, weights, kwargs=inputs), prompts)

    with torch.no_grad():
        now, slope = jvp(logits, (start,), (step,))
        moved = logits({name: weight + step[name] for name, weight in start.items()})
        before, first, after = (
            _correct(z, prompts).double().mean().item() for z in (now, now + slope, moved)
        )
    return {"linear": dot(gradient, step), "linearised": first - before, "frozen": after - before}


def in_parameter_space(gradient: Step, gradients: Sequence[Step]) -> dict[str, float]:
    """``kappa_theta``, ``empirical_theta`` and ``normalised_theta``, means over the batches' gradients."""
    along = [dot(gradient, found) for found in gradients]
    square = [dot(found, found) for found in gradients]
    # A batch whose groups all have equal rewards has no gradient, and moves nothing.
    per_length = [a / s**0.5 if s > 0 else 0.0 for a, s in zip(along, square, strict=True)]
    count = len(gradients)
    return {
        "kappa_theta": sum(along) / count,
        "empirical_theta": sum(square) / count,
        "normalised_theta": sum(per_length) / count,
    }


def _answer_logits(model, prompts: Prompts) -> Float[Tensor, "prompts rows"]:
    return model(input_ids=prompts.tokens, logits_to_keep=1, use_cache=False).logits[:, -1]


def _correct(logits: Float[Tensor, "prompts rows"], prompts: Prompts) -> Float[Tensor, " prompts"]:
    return log_policy(logits, vocab=prompts.vocab).gather(1, prompts.labels[:, None]).exp()[:, 0]
