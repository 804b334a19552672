"""What became of a policy, on prompts that it did not learn from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.models.logits import entropy, log_policy
from replicate.rl.policies import Policy
from replicate.rl.prompts import Prompts, Reward, answers
from replicate.rl.rollout import distributions_of, sample

# Completions a prompt where the reward must be sampled, with uniform numbers that are the same at every budget.
_SAMPLES, _SEED = 4, 20


@dataclass(frozen=True)
class Curve:
    """What one seed did: a row of metrics per update, and a row of what the policy is after each ``budget``."""

    seed: int
    updates: list[dict[str, float]] = field(default_factory=list)
    budgets: list[dict[str, float | int]] = field(default_factory=list)


class Judge:
    """Judges ``policy`` on ``held_out`` and remembers what it was at first.

    ``reward`` is the expected reward in closed form: pi(y | q) of one token, the product of pi(y_t | q, y_<t) where all
    of several must be right. Beside it ``entropy`` in nats and the exact KL(pi_n, pi_0) over the vocabulary,
    ``kl_to_start``, per token along the right answer. Longer answers also have ``sampled``, the task's own reward of
    sampled completions.
    """

    def __init__(self, policy: Policy, held_out: Prompts, *, horizon: int, reward: Reward) -> None:
        self.policy, self.held_out, self.horizon, self._reward = policy, held_out, horizon, reward
        self._start: Tensor | None = None

    @torch.no_grad()
    def note(self, curves: Sequence[Curve], update: int) -> None:
        """Adds a row to each lane's curve."""
        now = self._log_policy()
        start = self._start = now if self._start is None else self._start
        sampled = self._sampled() if self.horizon > 1 else [None] * len(curves)
        for curve, log_probs, before, found in zip(curves, now, start, sampled, strict=True):
            row = {"budget": update, **self._judged(log_probs)}
            row["kl_to_start"] = (log_probs.exp() * (log_probs - before)).sum(-1).double().mean().item()
            curve.budgets.append(row if found is None else row | {"sampled": found})

    def _judged(self, log_probs: Float[Tensor, "prompts T vocab"]) -> dict[str, float]:
        if self.horizon == 1:
            found = answers(log_probs[:, 0], self.held_out)
            return {
                "reward": found.correct.double().mean().item(),
                "label_mass": found.label_mass.double().mean().item(),
                "entropy": found.entropy.double().mean().item(),
            }
        right = log_probs.gather(-1, self._labels()[..., None])[..., 0]
        return {
            "reward": right.double().sum(-1).exp().mean().item(),
            "each_right": right.double().exp().mean().item(),
            "entropy": entropy(log_probs).double().mean().item(),
        }

    def _labels(self) -> Int[Tensor, "prompts T"]:
        return self.held_out.labels.view(len(self.held_out), -1)

    def _log_policy(self, batch: int = 256) -> Float[Tensor, "lanes prompts T vocab"]:
        """Log-probabilities along the right answer."""
        tokens = self.held_out.tokens.expand(self.policy.lanes, -1, -1)
        if self.horizon == 1:
            parts = [self.policy.logits(part, keep=1) for part in tokens.split(batch, dim=1)]
            return log_policy(torch.cat(parts, dim=1), vocab=self.held_out.vocab)
        labels = self._labels()[None, :, None].expand(self.policy.lanes, -1, -1, -1)
        parts = zip(tokens.split(batch, dim=1), labels.split(batch, dim=1), strict=True)
        how = {"vocab": self.held_out.vocab}
        return torch.cat([distributions_of(self.policy, *part, **how)[:, :, 0] for part in parts], dim=1)

    def _sampled(self) -> list[float]:
        """Mean reward of sampled completions, lane by lane, all with the same uniform numbers."""
        prompts, device = self.held_out, self.held_out.tokens.device
        generator = torch.Generator(device=device).manual_seed(_SEED)
        shape = (1, len(prompts), _SAMPLES, self.horizon)
        uniforms = torch.rand(shape, generator=generator, device=device).expand(self.policy.lanes, -1, -1, -1)
        tokens = prompts.tokens.expand(self.policy.lanes, -1, -1)
        drawn = sample(self.policy, tokens, uniforms, vocab=prompts.vocab).tokens
        return [
            self._reward(lane, prompts.labels).flatten(1).double().sum(1).mean().item() / _SAMPLES
            for lane in drawn
        ]
