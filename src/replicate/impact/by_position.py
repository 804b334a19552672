r"""Costates of longer answers at the prompt's embeddings, by scored token and by position: signal and noise.

A prompt's embeddings e_j (j a position of the prompt) are a continuous state that every token of the answer reads, so
by A4 the costate of one sampled completion,

    lambda^ = sum_t lambda^_t,    lambda^_t = A_t dlog pi(o_t | q, o_<t) / de,

is an unbiased value gradient when the advantages A_t are (leave-one-out, or nothing taken off), with outcome and with
per-token rewards. Its signal is |E lambda^|^2 given the prompt, its noise the rest of E|lambda^|^2. Both are taken
block by block: of all terms together, of the term of each token t, and at each position j. The ratio of the two does
not change when a block is rescaled.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.models.logits import log_policy

Costates = Float[Tensor, "prompts group T length d"]


def prompt_costates(
    model: nn.Module,
    prompts: Int[Tensor, "prompts length"],
    tokens: Int[Tensor, "prompts group T"],
    advantages: Float[Tensor, "prompts group T"],
    *,
    vocab: int,
) -> Costates:
    """lambda^_t of every completion at its prompt's embeddings, a backward pass for each of the T tokens.

    Each completion is run behind a copy of its prompt, so that its gradient is its own.
    """
    group, horizon = tokens.shape[1:]
    rows = torch.cat([prompts[:, None].expand(-1, group, -1), tokens[..., :-1]], -1).flatten(0, 1)
    embedded = model.get_input_embeddings()(rows).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, logits_to_keep=horizon, use_cache=False).logits
    logp = log_policy(logits, vocab=vocab).gather(-1, tokens.flatten(0, 1)[..., None])[..., 0]
    terms = (logp * advantages.flatten(0, 1)).sum(0)
    found = [torch.autograd.grad(term, embedded, retain_graph=True)[0] for term in terms]
    by_term = torch.stack(found, 1)[:, :, : prompts.shape[1]]
    return by_term.unflatten(0, (len(prompts), group))


def signal_and_noise(
    samples: Float[Tensor, "prompts group ... d"],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """|E x|^2 and E|x - E x|^2 given the prompt, averaged over prompts, from independent samples of a group.

    The first is estimated without bias from pairs of different samples, and may come out below zero.
    """
    group = samples.shape[1]
    if group < 2:
        raise ValueError(f"samples: expected a group of at least 2, got {group}")
    square = samples.square().sum(-1)
    pairs = (samples.sum(1).square().sum(-1) - square.sum(1)) / (group * (group - 1))
    return pairs.mean(0), (square.mean(1) - pairs).mean(0)


def rows_of(costates: Costates, labels_at: Int[Tensor, " labels"]) -> Iterator[dict[str, float | int | str]]:
    """Signal and noise of all terms at all positions together, of each term, and at each of the positions ``labels_at``
    (in the prompt, those that say what is asked for)."""
    whole = costates.flatten(3)
    yield {"block": "all", "index": 0, **_pair(whole.sum(2))}
    for t in range(costates.shape[2]):
        yield {"block": "token", "index": t, **_pair(whole[:, :, t])}
    by_position = costates.sum(2)
    for k, at in enumerate(labels_at.tolist()):
        yield {"block": "label", "index": k, **_pair(by_position[:, :, at])}


def _pair(samples: Float[Tensor, "prompts group d"]) -> dict[str, float]:
    signal, noise = signal_and_noise(samples)
    return {"signal": signal.item(), "noise": noise.item()}
