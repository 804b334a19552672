"""Streams: the same names the same numbers, other names unrelated ones."""

import itertools

import numpy as np
import torch

from replicate.streams import generator, seed_of


def test_same_names_same_stream():
    draws = [torch.rand(5, generator=generator(3, "abc", "measure")) for _ in range(2)]
    assert torch.equal(*draws)


def test_every_name_its_order_and_its_kind_count():
    names = [
        (1, "2"),
        (1, 2),
        ("1", 2),
        ("1", "2"),
        (2, 1),
        (1, 2, 3),
        (12,),
        ("12",),
        (1,),
        ("1, 2",),
        ('1", "2',),
    ]
    assert len({seed_of(*name) for name in names}) == len(names)
    assert all(0 <= seed_of(*name) < 2**63 for name in names)


def test_neighbouring_streams_are_uncorrelated():
    rows = torch.stack([torch.rand(4000, generator=generator(seed, "x")) for seed in range(12)]).numpy()
    worst = max(abs(np.corrcoef(a, b)[0, 1]) for a, b in itertools.combinations(rows, 2))
    assert worst < 4.5 / 4000**0.5
