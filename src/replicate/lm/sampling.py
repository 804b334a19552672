"""Costates of completions that a model samples for itself, and what estimating a value gradient with them costs.

Everything is at the embeddings of the prompt. :func:`sampled_costates` and :func:`value_slopes` go through the model's
own forward pass; they share no code with :mod:`replicate.lm.recurrence` and :mod:`replicate.lm.enumeration`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm import enumeration, relaxed
from replicate.lm.blockwise import ENUMERATED, Start, pulled_back
from replicate.models.hooks import frozen
from replicate.models.precision import precision_of

H = 2e-4
"""Step of the central differences of fourth order, in embeddings of unit variance."""


def sampled_costates(
    start: Start, returns: Float[Tensor, " N"], *, horizon: int, samples: int, rng: torch.Generator
) -> Float[Tensor, "samples m"]:
    """R(o) dlog P(o)/de of ``samples`` completions drawn token by token, o in lexicographic order in ``returns``."""
    vocab, length = len(start.F.embeddings), start.prompt.shape[1]
    tokens = start.prompt.expand(samples, -1)
    with torch.no_grad(), precision_of(start.model):
        for _ in range(horizon):
            p = start.model(input_ids=tokens, use_cache=False).logits[:, -1, :vocab].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=rng)], 1)
    completions = tokens[:, length:]
    place = (completions * vocab ** torch.arange(horizon - 1, -1, -1)).sum(1)
    table = start.model.get_input_embeddings()
    leaf = table(start.prompt).detach().expand(samples, -1, -1).clone().requires_grad_()
    with torch.enable_grad(), frozen(start.model), precision_of(start.model):
        logp = _log_probs(start, leaf, completions)
        (grad,) = torch.autograd.grad((returns[place] * logp).sum(), leaf)
    return grad.flatten(1)


def value_slopes(
    start: Start, returns: Float[Tensor, " N"], directions: Float[Tensor, "k m"], *, horizon: int
) -> Float[Tensor, " k"]:
    """Slopes of V(e) = sum_o P(o given e) R(o) along ``directions``, by central differences of forward passes."""
    vocab = len(start.F.embeddings)
    every = enumeration.all_completions(vocab, horizon)
    embedded = start.model.get_input_embeddings()(start.prompt).detach()

    def value(step: Tensor) -> Tensor:
        moved = (embedded + step.view(embedded.shape)).expand(len(every), -1, -1)
        return _log_probs(start, moved, every).exp() @ returns

    with torch.no_grad(), precision_of(start.model):
        return torch.stack(
            [
                (8 * (value(H * u) - value(-H * u)) - value(2 * H * u) + value(-2 * H * u)) / (12 * H)
                for u in directions
            ]
        )


def _log_probs(start: Start, prompts: Tensor, completions: Tensor) -> Float[Tensor, " batch"]:
    """log P(o | prompt embeddings) of completions, one pass of the model over both."""
    rest = start.model.get_input_embeddings()(completions)
    logits = start.model(inputs_embeds=torch.cat([prompts, rest], 1), use_cache=False).logits
    logp = logits[:, prompts.shape[1] - 1 : -1, : len(start.F.embeddings)].log_softmax(-1)
    return logp.gather(2, completions[:, :, None]).squeeze(2).sum(1)


def answer_costs(start: Start, label: int) -> dict[str, float]:
    """Bias and variance where one token is sampled before an answer that is read as pi(``label``), as in section 6.

    ``signal`` is |g|, g the gradient of J = sum_v pi(v) pi(label | v); ``bias`` the soft rollout's squared distance
    from it, ``variance`` that of one sample of the score function with baseline J, both over |g|^2; ``crossing`` how
    many samples make the two equal. Exact, by running through the tokens; not numbers where that takes too much memory.
    """
    F, vocab = start.F, len(start.F.embeddings)
    if vocab * start.state.shape[1] > ENUMERATED:
        return dict.fromkeys(("signal", "bias", "variance", "crossing"), math.nan)
    leaf = start.state.expand(vocab, -1).clone().requires_grad_()
    with torch.enable_grad():
        log_pi = F.logits(leaf).log_softmax(-1).diagonal()
        answer = F.logits(F.advance(leaf, F.embeddings)).softmax(-1)[:, label]
        pi, reward = log_pi.detach().exp(), answer.detach()
        (each,) = torch.autograd.grad(((reward - pi @ reward) * log_pi + answer).sum(), leaf)
    lam = relaxed.relaxed_costates(F, start.state, lambda soft: soft[:, -1, label], horizon=2)[0]
    estimates = pulled_back(start.model, start.prompt, torch.cat([each, lam]))
    g = pi @ estimates[:-1]
    unit = g.square().sum()
    variance = float(pi @ (estimates[:-1] - g).square().sum(1) / unit)
    bias = float((estimates[-1] - g).square().sum() / unit)
    return {"signal": float(unit.sqrt()), "bias": bias, "variance": variance, "crossing": variance / bias}
