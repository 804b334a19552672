"""A fresh recurrence, its state and a reward for each of 4^3 completions, for tests of the ways to a costate."""

import torch

from replicate.lm import recurrence

V, T = 4, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(family: str = "olmo2", seed: int = 0):
    g = seeded(seed)
    F, s = recurrence.fresh_start(family, vocab=V, generator=g)
    return F, s, torch.randn(V**T, generator=g, dtype=torch.float64)
