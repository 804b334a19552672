"""How many threads torch computes on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Sums over threads differ in their last bits with the number of threads. Fixed, neither weights nor records depend on
# the machine or on what runs beside; at one, models this small lose little and do not suffer on a busy machine.
THREADS = 1


@contextmanager
def fixed_threads(count: int = THREADS) -> Iterator[None]:
    """torch computes on exactly ``count`` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
