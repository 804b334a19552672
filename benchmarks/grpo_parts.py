"""Where an update's time goes, on one thread: its parts, what products of matrices must take, what launching takes.

Time is what the process has computed, so that other work on the machine does not count.
"""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from replicate.models import olmo2_lanes
from replicate.rl import rollout

PARTS = ("prompts", "steps", "draws", "scoring", "backward", "optimiser", "rest")
PRODUCT, REPEATS = 512, 40


def parts(updates: Callable[[int, int, int], float], *, repeats: int) -> dict[str, float]:
    """Shares of the parts of an update, its milliseconds, and two floors.

    ``updates(count, prompts, group)`` runs so many updates and returns their seconds; medians of ``repeats``.
    ``products`` is the share that the operations in an update's products of matrices take at the rate of one large
    square product measured here, ``launching`` the time of an update of one prompt and two completions as a share:
    the same operations on next to nothing.
    """
    updates(1, 16, 8)
    spent: dict[str, list[float]] = defaultdict(list)
    whole, least = [], []
    for _ in range(repeats):
        with _clocked() as found:
            whole.append(updates(1, 16, 8))
        for name in PARTS[:-1]:
            spent[name].append(found[name] / whole[-1])
        spent["rest"].append(1 - sum(found.values()) / whole[-1])
        least.append(updates(1, 1, 2) / whole[-1])
    with FlopCounterMode(display=False) as counter:
        updates(1, 16, 8)
    shares = {name: round(statistics.median(spent[name]), 3) for name in PARTS}
    products = counter.get_total_flops() / _rate() / statistics.median(whole)
    return {
        "milliseconds": round(1e3 * statistics.median(whole), 1),
        **shares,
        "products": round(products, 3),
        "launching": round(statistics.median(least), 3),
    }


def _rate() -> float:
    """Operations a second of a square product in float32: the best of many, for the machine has other work too."""
    a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * PRODUCT**3 / best


@contextlib.contextmanager
def _clocked() -> Iterator[dict[str, float]]:
    """Inside, seconds spent in the parts of an update."""
    found: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                found[name] += time.process_time() - start

        return run

    def steps(*args):
        return timed("steps", make(*args))

    make = timed("steps", olmo2_lanes.steps)
    places = {
        "prompts": [(rollout, "first_of"), (olmo2_lanes, "prompt_pass"), (rollout, "_net")],
        "draws": [(rollout, "_draw"), (rollout, "_drawn")],
        "scoring": [(rollout, "_rest")],
        "backward": [(torch.Tensor, "backward")],
        "optimiser": [(torch.optim.AdamW, "step")],
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(olmo2_lanes, "steps", steps))
        for name, where in places.items():
            for owner, attribute in where:
                timer = timed(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timer))
        yield found
