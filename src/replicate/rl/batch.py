"""What passes between the trainer and its parts: who acts, what is asked, what came of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.rl.policies import Policy
from replicate.rl.prompts import Reward

if TYPE_CHECKING:
    from replicate.rl.critic import Critic

Completions = Float[Tensor, "lanes completions T"]


@dataclass(frozen=True)
class Actor:
    """The ``policy`` that is trained, the frozen ``reference`` of the KL, and the ``critic`` of the credit."""

    policy: Policy
    reference: Policy
    critic: "Critic | None" = None


@dataclass(frozen=True)
class Asked:
    """The prompts of one update: [lanes, prompts, length], with the right tokens [lanes, prompts] or [lanes, prompts,
    T]; ``vocab`` token ids are in use. Answers have ``horizon`` tokens and are rated by ``reward``."""

    tokens: Int[Tensor, "lanes prompts length"]
    labels: Int[Tensor, "lanes prompts ..."]
    vocab: int
    horizon: int
    reward: Reward

    def rated(self, tokens: Int[Tensor, "lanes prompts group T"]) -> Float[Tensor, "lanes prompts group T"]:
        """The reward of every token; one for the whole completion stands at its last token."""
        found = self.reward(tokens.flatten(0, 1), self.labels.flatten(0, 1))
        if found.ndim == 2:
            found = torch.cat([found.new_zeros(*found.shape, tokens.shape[3] - 1), found[..., None]], -1)
        return found.unflatten(0, tokens.shape[:2])


@dataclass(frozen=True)
class Lesson:
    """What the critic learns from a batch: completions ``tokens`` of ``prompts``, the ``values`` that it gave to their
    tokens (with the graph of that pass), and the ``targets`` that they should have been."""

    prompts: Int[Tensor, "lanes prompts length"]
    tokens: Int[Tensor, "lanes prompts group T"]
    values: Float[Tensor, "lanes prompts group T"]
    targets: Float[Tensor, "lanes prompts group T"]


@dataclass(frozen=True)
class Batch:
    """The samples of one update: ``prompts`` x ``group`` completions a lane, and what a method's loss needs of them.

    ``rewards`` are those of whole completions, unscaled. ``signal`` is what the loss is a function of, with the graph
    of the pass that sampled: log-probabilities of the actions, or, for a method that differentiates the reward itself,
    that. ``old`` is the same without a graph, None where there is no ratio; ``ref`` the reference's (None where its KL
    weighs nothing). ``advantages`` are those of every token, ``lesson`` is what a critic learns from them. ``actions``
    is the method's own: what it needs to find ``signal`` again under other weights.
    """

    asked: Asked
    rewards: Float[Tensor, "lanes completions"]
    entropy: Float[Tensor, "lanes ..."]
    signal: Completions
    actions: Any
    advantages: Completions | None = None
    old: Completions | None = None
    ref: Completions | None = None
    lesson: Lesson | None = None
