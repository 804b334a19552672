"""The training data of the ladder, step by step, in time for the device that trains on them."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from replicate.ladder import corpus
from replicate.settings.tiny_ladder import TinyLadder

AHEAD = 8
"""How many batches are drawn before they are asked for."""


class Batches:
    """The batch of each step, a function of (seed, step) alone, on the device of ``spec``.

    On a CPU it is drawn when it is asked for. Another device would wait for that: there a thread draws the steps that
    come next into pinned memory, from which they are copied while the device computes.
    """

    def __init__(self, spec: TinyLadder) -> None:
        self.spec, self.chain = spec, corpus.prose_chain(spec.seed)
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: dict[int, Future[Tensor]] = {}

    def __call__(self, step: int) -> Int[Tensor, "batch length"]:
        """The tokens of ``step``, and of each sequence the one that comes after its last input."""
        if self.spec.device == "cpu":
            return self._draw(step)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="batches")
        for later in range(step, step + AHEAD):
            if later not in self._waiting:
                self._waiting[later] = self._thread.submit(self._draw, later)
        found = self._waiting[step].result()
        # A branch that cools down reads the trunk's next batches, and the trunk reads them again.
        for past in [known for known in self._waiting if not step - AHEAD < known < step + AHEAD]:
            del self._waiting[past]
        return found.to(self.spec.device, non_blocking=True)

    def _draw(self, step: int) -> Int[Tensor, "batch length"]:
        rng = np.random.default_rng((self.spec.seed, 2, step))
        length = self.spec.context + 1
        tokens = torch.from_numpy(
            corpus.batch(self.chain, self.spec, sequences=self.spec.batch, length=length, rng=rng)
        )
        return tokens.pin_memory() if torch.device(self.spec.device).type == "cuda" else tokens
