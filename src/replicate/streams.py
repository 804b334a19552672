"""Independent streams of random numbers, named by what they are for."""

import hashlib
import json

import torch


def seed_of(*names: int | str) -> int:
    """A seed of 63 bits that belongs to these names, in this order: other names, an unrelated stream.

    Neighbouring numbers given to a generator as they are may start streams that resemble each other; a hash does not.
    """
    said = json.dumps(names)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the beginning of the stream of these names."""
    return torch.Generator(device=device).manual_seed(seed_of(*names))
