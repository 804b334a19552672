r"""A tiny language model whose answers can all be run through: exact values, value gradients and gradients of J.

With N = |V|^T completions o of a prompt q everything that RL estimates is a finite sum,

    J = mean over q of sum_o P(o | q) R(o),    v_t(q, o_<t) = E[r_t + .. + r_T | q, o_<t]

and a gradient is that of the sum itself: probabilities carry it, no score function is in sight.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.lm.enumeration import all_completions
from replicate.models.fresh import tiny_model
from replicate.models.logits import log_policy
from replicate.rl.credit import to_go

PerToken = Float[Tensor, "prompts completions T"]


@dataclass(frozen=True)
class Answers:
    """All completions ``tokens`` of ``prompts``; ``labels`` are the right answers, ``vocab`` tokens are in use."""

    model: nn.Module
    prompts: Int[Tensor, "prompts length"]
    labels: Int[Tensor, "prompts T"]
    tokens: Int[Tensor, "prompts completions T"]
    vocab: int


def answers(
    *,
    vocab: int,
    horizon: int,
    prompts: int = 2,
    hidden: int = 16,
    gain: float = 1.5,
    generator: torch.Generator,
) -> Answers:
    """A fresh OLMo-2 of one block in float64, with random prompts of four tokens and random right answers.

    ``gain`` is how far its matrices, and so its answers, are from nothing (:mod:`replicate.models.fresh`).
    """
    sizes = {"layers": 1, "hidden": hidden, "context": 16, "vocab": vocab}
    model = tiny_model("olmo2", **sizes, gain=gain, generator=generator)
    tokens = torch.randint(vocab, (prompts, 4), generator=generator)
    labels = torch.randint(vocab, (prompts, horizon), generator=generator)
    every = all_completions(vocab, horizon).expand(prompts, -1, -1)
    return Answers(model, tokens, labels, every, vocab)


def log_probs(asked: Answers, embedded: Float[Tensor, "prompts length d"] | None = None) -> PerToken:
    """log pi(o_t | q, o_<t) of every completion, whole sequences without a cache; with ``embedded`` the prompts are
    these states, and not those that the model would look up."""
    table = asked.model.get_input_embeddings()
    embedded = table(asked.prompts) if embedded is None else embedded
    count, horizon = asked.tokens.shape[1:]
    own = embedded[:, None].expand(-1, count, -1, -1).flatten(0, 1)
    # Constants to a slope in the prompt; in the parameters they are read like the rest.
    before = table(asked.tokens[..., :-1].flatten(0, 1))
    logits = asked.model(
        inputs_embeds=torch.cat([own, before], 1), logits_to_keep=horizon, use_cache=False
    ).logits
    logp = log_policy(logits, vocab=asked.vocab).gather(-1, asked.tokens.flatten(0, 1)[..., None])[..., 0]
    return logp.unflatten(0, (-1, count))


@torch.no_grad()
def probabilities(asked: Answers) -> Float[Tensor, "prompts completions"]:
    """P(o | q) of every completion; they add up to 1 for each prompt."""
    return log_probs(asked).sum(-1).exp()


@torch.no_grad()
def right_tokens(asked: Answers) -> Float[Tensor, "prompts T"]:
    """pi(y_t | q, y_<t), the probability of each right token along the right answer y."""
    found = (asked.tokens == asked.labels[:, None]).all(-1)
    return log_probs(asked)[found].exp()


def values(asked: Answers, chance: Float[Tensor, "prompts completions"], rewards: PerToken) -> PerToken:
    """v_t before each token of every completion: the mean of r_t + .. + r_T over the completions that begin alike."""
    to_come, found = to_go(rewards), []
    for t in range(rewards.shape[2]):
        before = asked.tokens[..., :t]
        alike = (before[:, :, None] == before[:, None]).all(-1).to(chance.dtype)
        weight = alike * chance[:, None]
        found.append((weight @ to_come[..., t : t + 1])[..., 0] / weight.sum(-1))
    return torch.stack(found, -1)


def value_slopes(
    asked: Answers, rewards: Float[Tensor, "prompts completions"]
) -> Float[Tensor, "prompts length d"]:
    """dV(q)/de at the embeddings e of each prompt, V(q) = sum_o P(o | q) R(o)."""
    embedded = asked.model.get_input_embeddings()(asked.prompts).detach().requires_grad_()
    value = (log_probs(asked, embedded).sum(-1).exp() * rewards).sum()
    return torch.autograd.grad(value, embedded)[0]


def objective_slope(asked: Answers, rewards: PerToken) -> Float[Tensor, " parameters"]:
    """grad J in the parameters, J the mean of V(q) over prompts."""
    value = (log_probs(asked).sum(-1).exp() * rewards.sum(-1)).sum(1).mean()
    return _flat(torch.autograd.grad(value, list(asked.model.parameters())))


def surrogate_slope(
    asked: Answers, chance: Float[Tensor, "prompts completions"], advantages: PerToken
) -> Float[Tensor, " parameters"]:
    """The expectation of what a sampled completion sends: sum_o P(o | q) sum_t A_t dlog pi(o_t | q, o_<t)/dtheta, the
    mean over prompts; advantages and probabilities are numbers to it."""
    sent = (chance[..., None] * advantages * log_probs(asked)).sum((1, 2)).mean()
    return _flat(torch.autograd.grad(sent, list(asked.model.parameters())))


def _flat(gradients: tuple[Tensor, ...]) -> Float[Tensor, " parameters"]:
    return torch.cat([gradient.flatten() for gradient in gradients])
