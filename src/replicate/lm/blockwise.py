r"""Theorem 1 where rescaling a model cannot move it: block by block of the state, and at the prompt's embeddings.

A transformer's state is its cache c and its final state h. Dividing the final norm's weight and multiplying the head by
one number changes no output, but stretches h against c, and with it every norm that mixes the two. So (23) is read in
two blocks. In J_t only the cache is read, in K_t only h; with the new column's rows c', the final state's rows h',

    |e^c_t| <= (1 + |J_{c'c}|^2)^{1/2} |e^c_{t+1}| + |J_{h'c}| |e^h_{t+1}|
    |e^h_t| <= |K_{c'h}| |lambda^c_{t+1}| + |K_{h'h}| |lambda^h_{t+1}|          e_t = lambda^cut_t - lambda_t

and at the embeddings of the prompt, P = ds_1/de, |P^T e_1| <= |P_c| |e^c_1| + |P_h| |e^h_1|. Every product on the right
is the same in all units of h.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.lm import recurrence, relaxed
from replicate.lm.gap import entropy_bound
from replicate.lm.paths import Paths
from replicate.lm.recurrence import OneState, Recurrence
from replicate.lm.relaxed import SoftReward
from replicate.lm.spectra import operator_norm, operator_norm_of
from replicate.lm.token_path import paths_along
from replicate.models.fresh import rescaled, tiny_model
from replicate.models.jacobians import columns, products

ENUMERATED = 2**26
"""Entries of the largest batch of states, one a token of the vocabulary, that is run through."""


@dataclass(frozen=True)
class Start:
    """A transformer after a prompt: the model, the prompt's tokens, the recurrence F and its state s_1 [1, n]."""

    model: nn.Module
    prompt: Int[Tensor, "1 length"]
    F: Recurrence
    state: OneState

    @cached_property
    def view(self) -> Float[Tensor, "n m"]:
        """P = ds_1/de as a matrix, for small models: costates times it are gradients at the embeddings."""
        embedded = self.model.get_input_embeddings()(self.prompt).detach().flatten(1).requires_grad_()
        with torch.enable_grad():
            state = recurrence.read_prompt(self.model, embedded.unflatten(1, (self.prompt.shape[1], -1)))
            return columns(state, embedded).detach()


def fresh_prompt(
    family: str = "olmo2", *, vocab: int, rescale: float = 1.0, generator: torch.Generator, **size
) -> Start:
    """A model with fresh weights after a random prompt of four tokens.

    ``rescale`` divides its final norm's weight and multiplies its head, which changes no output; a head that is tied
    to the embeddings (GPT-2) is left as it is.
    """
    model = tiny_model(family, vocab=vocab, generator=generator, **size)
    if rescale != 1 and family != "gpt2":
        rescaled(model, by=rescale)
    prompt = torch.randint(vocab, (1, 4), generator=generator)
    return Start(model, prompt, recurrence.transformer(model), recurrence.prompt_state(model, prompt))


@dataclass(frozen=True)
class Blockwise:
    """Theorem 1 at the prompt's embeddings, soft tokens: the ``error`` of the cut costate, the ``signal`` |P^T lambda|,
    and the right side with each token path's own norm (``sharp``) and with entropies (``entropy``). ``final`` and
    ``cache`` are the errors of the two blocks of s_1 relative to the costate's. ``spread`` is the mean entropy (nats)
    of the tokens in between."""

    error: float
    signal: float
    sharp: float
    entropy: float
    final: float
    cache: float
    spread: float


def sides(
    start: Start, reward: SoftReward, *, horizon: int, scale: Float[Tensor, " T"] | None = None
) -> Blockwise:
    """Both sides of (23) in blocks, along the rollout of ``horizon`` soft tokens after the prompt."""
    F, how = start.F, {"horizon": horizon, "scale": scale}
    lam, cut = (relaxed.relaxed_costates(F, start.state, reward, cut=c, **how) for c in (False, True))
    gap = cut[0] - lam[0]
    error, signal = pulled_back(start.model, start.prompt, torch.cat([gap, lam[0]])).norm(dim=1).tolist()
    steps = paths_along(F, start.state, **how)
    width = lam[0].shape[1] - F.kept(lam[0].shape[1])
    norms = [block_norms(step, width) for step in steps]
    later = [block_lengths(x[0], width) for x in lam[1:]]
    prompt = prompt_norms(start.model, start.prompt, width)
    rights = {
        name: right_side([n["attention"] for n in norms], [n[name] for n in norms], later)
        for name in ("sharp", "entropy")
    }
    own, whole = block_lengths(gap[0], width), block_lengths(lam[0][0], width)
    with torch.no_grad():
        spread = relaxed.relaxed_rollout(F, start.state, **how).entropy[0, :-1].mean()
    return Blockwise(
        error=error,
        signal=signal,
        sharp=sum(p * r for p, r in zip(prompt, rights["sharp"], strict=True)),
        entropy=sum(p * r for p, r in zip(prompt, rights["entropy"], strict=True)),
        cache=own[0] / whole[0] if whole[0] else 0.0,
        final=own[1] / whole[1],
        spread=float(spread),
    )


def right_side(
    attention: list[tuple[float, float]], token: list[tuple[float, float]], later: list[tuple[float, float]]
) -> tuple[float, float]:
    """The two right sides at t = 1, cache and final state, unrolled from the end as the module's text says.

    Per step t = 1..T-1: norms of the attention path into cache and final state, of the token path, and the lengths of
    lambda_{t+1} in cache and final state.
    """
    cache = final = 0.0
    for (kept, fresh), (column, last), (lam_c, lam_h) in reversed(
        list(zip(attention, token, later, strict=True))
    ):
        cache, final = kept * cache + fresh * final, column * lam_c + last * lam_h
    return cache, final


def block_lengths(costate: Float[Tensor, " n"], width: int) -> tuple[float, float]:
    """Norms of a costate's two blocks: cache, final state."""
    return float(costate[:-width].norm()), float(costate[-width:].norm())


def block_norms(found: Paths, width: int) -> dict[str, tuple[float, float]]:
    """Norms into (cache, final state) of one step: ``attention`` (identity block included), the token path itself
    (``sharp``), and its bound with the entropy (``entropy``)."""
    rows = found.new.shape[1]
    parts = (slice(0, rows - width), slice(rows - width, rows))
    column, last = (_norm_of_rows(found, part, "state") for part in parts)
    middle = found.softened @ found.head
    most = float(entropy_bound(found.soft, temperature=found.tau))
    factor = operator_norm(found.embed) * operator_norm(found.head) * most
    sharp = tuple(_norm_of_rows(found, part, "token", middle) for part in parts)
    entropy = tuple(factor * _norm_of_rows(found, part, "token") for part in parts)
    return {"attention": (math.hypot(1.0, column), last), "sharp": sharp, "entropy": entropy}


def _norm_of_rows(found: Paths, part: slice, leaf: str, after: Tensor | None = None) -> float:
    """Operator norm of some new rows of dF/ds or dF/de (times ``after``), formed or by products."""
    index = 0 if leaf == "state" else 1
    if found.formed:
        matrix = (found.attention if leaf == "state" else found.advance)[part]
        return operator_norm(matrix if after is None else matrix @ after)
    forward, transposed = products(found.new[:, part], found.leaves[index])
    size = found.leaves[index].shape[1]
    if after is not None:
        through = lambda w: forward(w @ after.T), lambda u: transposed(u) @ after
        return operator_norm_of(*through, after.shape[1])
    return operator_norm_of(forward, transposed, size)


def prompt_norms(model: nn.Module, prompt: Int[Tensor, "1 length"], width: int) -> tuple[float, float]:
    """|P_c| and |P_h|, norms of the Jacobians of cache and final state in the prompt's embeddings."""
    embedded = model.get_input_embeddings()(prompt).detach().flatten(1).requires_grad_()
    with torch.enable_grad():
        state = recurrence.read_prompt(model, embedded.unflatten(1, (prompt.shape[1], -1)))
        parts = state[:, :-width], state[:, -width:]
    return tuple(operator_norm_of(*products(part, embedded), embedded.shape[1]) for part in parts)


def pulled_back(
    model: nn.Module, prompt: Int[Tensor, "1 length"], costates: Float[Tensor, "k n"]
) -> Float[Tensor, "k m"]:
    """P^T x of each costate x at the state after ``prompt``: gradients at the embeddings of its tokens."""
    embedded = model.get_input_embeddings()(prompt).detach().requires_grad_()
    with torch.enable_grad():
        state = recurrence.read_prompt(model, embedded)
        (back,) = torch.autograd.grad(state, embedded, costates[:, None], is_grads_batched=True)
    return back.flatten(1)


def sent_distance(start: Start, label: int) -> float:
    """|P^T (g - lambda_1)|: how far what a score function sends in expectation is from the soft rollout's costate.

    For two tokens of which the last is rewarded by pi(``label``): g is the gradient of sum_v pi(v) pi(label | v), by
    running through all tokens v in between; not a number where that would take too much memory.
    """
    F = start.F
    if len(F.embeddings) * start.state.shape[1] > ENUMERATED:
        return math.nan
    lam = relaxed.relaxed_costates(F, start.state, lambda soft: soft[:, -1, label], horizon=2)[0]
    leaf = start.state.clone().requires_grad_()
    with torch.enable_grad():
        later = F.advance(leaf.expand(len(F.embeddings), -1), F.embeddings)
        value = F.logits(leaf).softmax(-1)[0] @ F.logits(later).softmax(-1)[:, label]
        (g,) = torch.autograd.grad(value, leaf)
    return float(pulled_back(start.model, start.prompt, g - lam).norm())
