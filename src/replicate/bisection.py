"""Bisection of many brackets at once."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def bisect(
    inside: Callable[[Float[Tensor, "*n"]], Bool[Tensor, "*n"]],
    low: Float[Tensor, "*n"],
    high: Float[Tensor, "*n"],
    *,
    steps: int,
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """The brackets [low, high] halved ``steps`` times, elementwise, around where ``inside`` turns from true to false.

    ``inside`` is asked at the middles only; where it is true the bracket keeps its upper half, elsewhere its lower one.
    """
    for _ in range(steps):
        middle = (low + high) / 2
        found = inside(middle)
        low, high = torch.where(found, middle, low), torch.where(found, high, middle)
    return low, high
