r"""The law's score of a checkpoint, prompt by prompt, for answers of one token and for completions that are rated.

The score is kappa / sqrt(E|lambda^|^2) (:mod:`replicate.impact.law`), with lambda^ = A dlog pi(a)/dh the empirical
costate under GRPO's own advantages in groups of G, at the final state h that the head reads at the first answer
position. Whatever is behind the first token hangs on h through that token alone, so lambda^ there is exact for longer
completions, too (A3, A4): a is the first token, and A rates the whole completion. What it is made of are means over
prompts, so each prompt has a row of its own:

``reward``
    its expected reward, the mean of which is J_0; ``room``, the standard deviation of it (the headroom);
``V``, ``kappa``, ``empirical``
    |g|^2 with g = dE[R]/dh, <E lambda^, g>, and E|lambda^|^2;
``spread``
    the share of groups of G completions whose rewards differ: the others teach GRPO nothing.

*One token, right or wrong.* With p = pi(right tokens) nothing is sampled. E lambda^ = c g, with c = E[A | R = 1] -
E[A | R = 0] over the successes K ~ Binomial(G - 1, p) of the others, and with s_a = W_a - sum_b pi_b W_b

    E|lambda^|^2 = E[A^2 | R = 1] sum_{a right} pi_a |s_a|^2 + E[A^2 | R = 0] sum_{a wrong} pi_a |s_a|^2.

*Rated completions.* Two independent groups a prompt. What one says times what the other says is unbiased where two
means are multiplied: V and kappa, which may come out below zero.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor

from replicate.impact.measured import advantages
from replicate.models.answer import AnswerPass
from replicate.models.logits import log_policy

PerPrompt = Float[Tensor, " prompts"]
COLUMNS = ("reward", "room", "V", "kappa", "empirical", "spread")


def of_answers(
    answer: AnswerPass, right: Int[Tensor, "prompts answers"], *, vocab: int, group: int
) -> dict[str, PerPrompt]:
    """The columns of a task whose reward is 1 for ``right`` tokens and 0 for all others, in closed form.

    ``right`` has the token ids of a prompt's right answers, each once, and -1 where it has fewer than others; ``vocab``
    token ids are in use, ``group`` is GRPO's.
    """
    policy, known = _policy(answer, vocab), right >= 0
    chance = torch.where(known, policy.probs.gather(1, right.clamp(min=0)), 0.0)
    scores = policy.scores(right.clamp(min=0))
    p = chance.sum(1).clamp(max=1.0)
    V = (chance[..., None] * scores).sum(1).square().sum(-1)
    won = (chance * scores.square().sum(-1)).sum(1)
    lost = (policy.square() - won).clamp(min=0.0)
    c, square_won, square_lost = (x.to(p) for x in advantage_moments(p.double().cpu(), group))
    return {
        "reward": p,
        "room": (p * (1 - p)).sqrt(),
        "V": V,
        "kappa": c * V,
        "empirical": square_won * won + square_lost * lost,
        "spread": 1 - p**group - (1 - p) ** group,
    }


def of_completions(
    answer: AnswerPass,
    first: Int[Tensor, "prompts groups group"],
    rewards: Float[Tensor, "prompts groups group"],
    *,
    vocab: int,
) -> dict[str, PerPrompt]:
    """The columns of a task whose completions are rated: ``first`` are their first tokens, ``rewards`` their rewards.

    ``ValueError`` unless there are two groups of at least two completions.
    """
    if first.shape != rewards.shape or first.shape[1] != 2 or first.shape[2] < 2:
        raise ValueError(f"rewards: expected two groups of at least 2 a prompt, got {list(rewards.shape)}")
    policy = _policy(answer, vocab)
    scores, rewards = (
        policy.scores(first.flatten(1)).unflatten(1, first.shape[1:]),
        rewards.to(policy.probs.dtype),
    )
    rated, raw = (
        advantages(rewards.flatten(0, 1), kind=kind).view_as(rewards)[..., None]
        for kind in ("grpo", "leave_one_out")
    )
    ours, g = (rated * scores).mean(2), (raw * scores).mean(2)  # of E lambda^ and of g, a row a group
    return {
        "reward": rewards.mean((1, 2)),
        "room": rewards.flatten(1).std(1),
        "V": (g[:, 0] * g[:, 1]).sum(-1),
        "kappa": (ours * g.flip(1)).sum(-1).mean(1),
        "empirical": (rated * scores).square().sum(-1).mean((1, 2)),
        "spread": (rewards.amax(2) > rewards.amin(2)).to(rewards.dtype).mean(1),
    }


def advantage_moments(
    p: Float[Tensor, " prompts"], group: int
) -> tuple[Float[Tensor, " prompts"], Float[Tensor, " prompts"], Float[Tensor, " prompts"]]:
    """c = E[A | R = 1] - E[A | R = 0], E[A^2 | R = 1] and E[A^2 | R = 0] of GRPO's advantage of a 0/1 reward.

    ``p`` is the chance of a 1 for each of the ``group`` completions, independently.
    """
    others = torch.arange(group)  # successes among the others
    ones = (torch.arange(group - 1) < others[:, None]).to(p.dtype)
    won, lost = (
        advantages(torch.cat([torch.full_like(ones[:, :1], own), ones], dim=1), kind="grpo")[:, 0]
        for own in (1.0, 0.0)
    )
    chances = torch.from_numpy(binom.pmf(others.numpy(), group - 1, p.numpy()[:, None])).to(p.dtype)
    return chances @ (won - lost), chances @ won.square(), chances @ lost.square()


@dataclass(frozen=True)
class _Policy:
    """Probabilities of the tokens in use and their rows of the head, with rows counted from the likeliest token's: of a
    policy that is nearly sure the differences that remain would be lost in rows counted from zero. ``offset`` is the
    mean row less that one."""

    probs: Float[Tensor, "prompts vocab"]
    head: Float[Tensor, "vocab hidden"]
    top: Float[Tensor, "prompts hidden"]
    rest: Float[Tensor, "prompts vocab"]
    offset: Float[Tensor, "prompts hidden"]

    def scores(self, tokens: Int[Tensor, "prompts some"]) -> Float[Tensor, "prompts some hidden"]:
        """s_a = W_a - sum_b pi_b W_b, the derivative of log pi(a) in the final state."""
        return self.head[tokens] - self.top[:, None] - self.offset[:, None]

    def square(self) -> PerPrompt:
        """sum_a pi_a |s_a|^2."""
        far = self.head.square().sum(1) - 2 * self.top @ self.head.T + self.top.square().sum(1, keepdim=True)
        return (self.rest * far.clamp(min=0.0)).sum(1) - self.offset.square().sum(1)


def _policy(answer: AnswerPass, vocab: int) -> _Policy:
    probs = log_policy(answer.logits, vocab=vocab).exp()
    head, likeliest = answer.head[:vocab].to(probs.dtype), probs.argmax(1, keepdim=True)
    top, rest = head[likeliest[:, 0]], probs.scatter(1, likeliest, 0.0)
    return _Policy(probs, head, top, rest, rest @ head - rest.sum(1, keepdim=True) * top)
