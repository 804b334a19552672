"""The first line of the law's derivation, checked by taking the step: what an update of fixed length gains."""

from collections.abc import Sequence

import torch
from torch import nn

from replicate.impact.forecast import Step, dot, objective_gradient
from replicate.rl.prompts import Prompts, evaluate


def gain_of_step(model: nn.Module, prompts: Prompts, direction: Step, *, eta: float) -> float:
    """J(theta + eta u) - J(theta) on ``prompts``, u = ``direction`` over its norm; the model is left as it was."""
    length = dot(direction, direction) ** 0.5
    if length == 0:
        raise ValueError("direction: expected one that is not zero")
    weights = dict(model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    start = evaluate(model, prompts).correct.double().mean().item()
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.add_(direction[name], alpha=eta / length)
        return evaluate(model, prompts).correct.double().mean().item() - start
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def worst_gaps(
    model: nn.Module, prompts: Prompts, gradients: Sequence[Step], *, eta: float
) -> dict[str, float]:
    """``right``: the largest relative difference, over ``gradients``, of the gain of a step and its first order
    eta <grad J, u>; ``turned``: the smallest, when u is turned round in the first order alone."""
    gradient = objective_gradient(model, prompts)
    right, turned = [], []
    for found in gradients:
        first = eta * dot(gradient, found) / dot(found, found) ** 0.5
        gain = gain_of_step(model, prompts, found, eta=eta)
        scale = max(abs(gain), abs(first))
        right.append(abs(gain - first) / scale)
        turned.append(abs(gain + first) / scale)
    return {"right": max(right), "turned": min(turned)}
