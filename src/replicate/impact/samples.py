r"""The action models of section 5: what is sampled at an answer position, and its two costates at a state.

Two independent groups of G samples are drawn for every prompt, so that a mean over samples can be squared without bias:
what one group says times what the other says.

- ``"categorical"``: a ~ pi(. | s), R = 1[a = y]. A sampled token has no pathwise derivative; the pathwise costate is
  that of the soft token, d pi_y/ds, which is the value gradient g itself, the same for all samples.
- ``"gumbel"``: the same token, drawn as argmax(z + G) with Gumbel noise G, and on the same noise the relaxed one,
  softmax((z + G)/tau). Pathwise, its derivative takes the place of the token's (matched straight-through: the sampled
  token forward, the softmax Jacobian backward). Its mean is no value gradient; how far off it is depends on tau.
- ``"shift"``: a = z + sigma xi on the logits, R = softmax(a)_y, the shift policy of Lemma 1; g = E lambda.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.checks import one_of
from replicate.models.answer import AnswerPass, pull_back
from replicate.models.logits import log_policy

PolicyName = Literal["categorical", "gumbel", "shift"]

GROUPS = 2


@dataclass(frozen=True)
class Noise:
    """How much an action model blurs: ``sigma`` of the shift policy in logits, ``temperature`` of the relaxation."""

    sigma: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class Samples:
    """Costates of one batch of prompts, the groups one after another.

    ``pathwise`` and ``scores`` are [samples, prompts, state] (one pathwise row if it is the same for all samples),
    ``rewards`` [prompts, groups, group]; ``p`` [prompts] pi(y | q) and ``gradient`` [prompts, state] its slope g where
    the reward is that of a sampled token, None for the shift policy.
    """

    pathwise: Float[Tensor, "some prompts state"]
    scores: Float[Tensor, "samples prompts state"]
    rewards: Float[Tensor, "prompts groups group"]
    log_probs: Float[Tensor, "prompts vocab"]
    p: Float[Tensor, " prompts"] | None
    gradient: Float[Tensor, "prompts state"] | None


def draw(
    answer: AnswerPass,
    labels: Int[Tensor, " prompts"],
    *,
    policy: str,
    vocab: int | None,
    group: int,
    noise: Noise,
    generator: torch.Generator,
) -> Samples:
    """Samples of an action model at the answer positions of ``answer`` and their costates at its state.

    ``vocab`` is the number of token ids in use (default: all rows of the head). Raises ``ValueError`` for an unknown
    action model.
    """
    one_of("policy", policy, get_args(PolicyName))
    rows = vocab or answer.head.shape[0]
    log_probs = log_policy(answer.logits, vocab=rows)
    head = answer.head[:rows].to(log_probs.dtype)
    shape, draws = (len(labels), GROUPS * group), {"generator": generator, "device": generator.device}
    if policy == "shift":
        xi = torch.randn(*shape, rows, **draws, dtype=log_probs.dtype)
        return _shift(answer, labels, log_probs, head, xi, noise.sigma)
    if policy == "categorical":
        uniforms = torch.rand(shape, **draws, dtype=torch.float64)
        return _tokens(answer, labels, log_probs, head, _inverted(log_probs, uniforms))
    uniforms = torch.rand(*shape, rows, **draws, dtype=log_probs.dtype)
    noisy = log_probs[:, None] - (-uniforms.clamp(min=1e-30).log()).log()
    soft = (noisy / noise.temperature).softmax(-1)
    return _tokens(answer, labels, log_probs, head, noisy.argmax(-1), soft, noise.temperature)


def _inverted(log_probs, uniforms) -> Int[Tensor, "prompts samples"]:
    cumulated = log_probs.exp().double().cumsum(-1)
    drawn = torch.searchsorted(cumulated, uniforms * cumulated[:, -1:], right=True)
    return drawn.clamp(max=log_probs.shape[-1] - 1)


def _tokens(answer, labels, log_probs, head, drawn, soft=None, temperature=1.0) -> Samples:
    """The costates of sampled tokens; with ``soft`` the pathwise ones are those of the relaxed tokens."""
    probs = log_probs.exp()
    mean_row, correct = probs @ head, probs.gather(1, labels[:, None])
    scores = head[drawn] - mean_row[:, None]  # dlog pi(a)/dh = W_a - sum_b pi_b W_b at the final state
    gradient = correct * (head[labels] - mean_row)  # d pi_y / dh
    parts = [gradient[None], scores.transpose(0, 1)]
    if soft is not None:
        parts.append(_soft_slope(soft, labels, head, temperature).transpose(0, 1))
    pulled = pull_back(answer, torch.cat(parts))
    count = drawn.shape[1]
    rewards = (drawn == labels[:, None]).to(probs.dtype).unflatten(1, (GROUPS, -1))
    pathwise = pulled[:1] if soft is None else pulled[1 + count :]
    return Samples(pathwise, pulled[1 : 1 + count], rewards, log_probs, correct[:, 0], pulled[0])


def _soft_slope(soft, labels, head, temperature) -> Float[Tensor, "prompts samples hidden"]:
    """d softmax(x / tau)_y / dh with x the logits and the noise."""
    y = soft.gather(-1, labels[:, None, None].expand(-1, soft.shape[1], 1))
    return y * (head[labels][:, None] - soft @ head) / temperature


def _shift(answer, labels, log_probs, head, xi, sigma) -> Samples:
    soft = (log_probs[:, None] + sigma * xi).softmax(-1)  # softmax(a); log pi and z differ by a constant
    pathwise = _soft_slope(soft, labels, head, 1.0)  # dR(a)/dh
    scores = xi @ head / sigma  # dlog p(a | z)/dh = W^T xi / sigma
    both = pull_back(answer, torch.cat([pathwise, scores], dim=1).transpose(0, 1))
    rewards = soft.gather(-1, labels[:, None, None].expand(-1, xi.shape[1], 1)).squeeze(-1)
    count = xi.shape[1]
    return Samples(both[:count], both[count:], rewards.unflatten(1, (GROUPS, -1)), log_probs, None, None)
