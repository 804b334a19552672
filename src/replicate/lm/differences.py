r"""Second routes to a costate: differences of the objective as a state is moved, without any backward pass.

A state is moved by h v, and the slope of the objective along v is taken by central differences of fourth order,

    (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h = <lambda^, v> + O(h^4)

No entry of v exceeds the state's root mean square (:func:`direction`), so that h is a relative step: how good a slope
is depends neither on the state's units, which a rescaling of norm and head would change, nor on how few entries v has.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from replicate.lm import costate
from replicate.lm.recurrence import Recurrence, prompt_state, transformer, unroll
from replicate.models import olmo2
from replicate.models.hooks import FINAL, blocks, first_of, hidden_states, layer_number
from replicate.models.precision import precision_of

STEP = 1e-3
"""Of the state's rms; the error of a slope is then about 1e-12 of what curves there, and so is round-off."""


NARROW = 1e-4
"""The step through a whole rollout of a trained model, whose attention can bend within a thousandth of a state."""


def slope(f: Callable[[float], Tensor], *, step: float = STEP) -> Tensor:
    """df/dh at h = 0 by central differences of fourth order, entry by entry of what ``f`` returns."""
    near, far = f(step) - f(-step), f(2 * step) - f(-2 * step)
    return (8 * near - far) / (12 * step)


def direction(
    state: Float[Tensor, "*state"], generator: torch.Generator, *, near: Float[Tensor, "*state"] | None = None
) -> Float[Tensor, "*state"]:
    """A random direction, half of it along ``near`` if that is given; its largest entry is the state's rms."""
    v = torch.randn(state.shape, generator=generator, dtype=state.dtype)
    if near is not None and near.any():
        v = v / v.norm() + near / near.norm()
    return v * (state.square().mean().sqrt() / v.abs().max())


def gradient(
    f: Callable[[Tensor], Tensor], state: Float[Tensor, "*state"], *, step: float = STEP
) -> Float[Tensor, "*state"]:
    """The whole gradient of a scalar function, coordinate by coordinate, steps relative to the state's rms."""
    size = state.square().mean().sqrt()
    basis = torch.eye(state.numel(), dtype=state.dtype).unflatten(1, state.shape) * size
    return (
        torch.stack([slope(lambda h, e=e: f(state + h * e), step=step) for e in basis]).view(state.shape)
        / size
    )


@torch.no_grad()
def moved(
    model: nn.Module,
    tokens: Int[Tensor, "batch length"],
    *,
    layer: int,
    by: Float[Tensor, "batch length hidden"] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Hidden states of all layers, and the logits, with ``by`` (if given) added to the output of ``layer``.

    Layers are numbered as :data:`~replicate.models.hooks.FINAL` says; raises ``ValueError`` for one out of range.
    """
    layer, by = layer_number(model, layer), torch.zeros(()) if by is None else by
    if layer in (0, FINAL):
        module = model.get_output_embeddings() if layer == FINAL else blocks(model)[0]
        hook = module.register_forward_pre_hook(_adding_in(by), with_kwargs=True)
    else:
        hook = blocks(model)[layer - 1].register_forward_hook(_adding_out(by))
    try:
        with precision_of(model):
            hidden, logits = hidden_states(model, tokens)
    finally:
        hook.remove()
    return [x.detach() for x in hidden], logits


def log_probs_moved(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    completions: Int[Tensor, "batch T"],
    *,
    vocab: int,
    layer: int,
    by: Float[Tensor, "batch positions hidden"],
) -> Float[Tensor, "batch T"]:
    """log pi(o_t) of given completions with the output of ``layer`` moved, at the positions of prompt and o_<T."""
    tokens = torch.cat([prompts, completions[:, :-1]], dim=1)
    _, logits = moved(model, tokens, layer=layer, by=by)
    return costate.taken(logits[:, prompts.shape[1] - 1 :], completions, vocab)


def credit(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    completions: Int[Tensor, "batch T"],
    weights: Float[Tensor, "batch T"],
    *,
    vocab: int,
    layer: int,
    along: Float[Tensor, "batch positions hidden"],
) -> Float[Tensor, "batch T T"]:
    """A_k <dlog pi(o_k)/dh_k, (dh_k/dh_t^l) v_t>, indexed [k, t]: the terms of Def. 2's sum over k, v = ``along``.

    Local scores come in closed form at the final states h_k, and what reaches h_k from the output of ``layer`` at token
    t's position comes from forward passes: no backward pass has a part in it.
    """
    tokens, first = torch.cat([prompts, completions[:, :-1]], dim=1), prompts.shape[1] - 1
    still, _ = moved(model, tokens, layer=FINAL)
    scores = weights[..., None] * costate.local_scores(
        model, still[FINAL][:, first:], completions, vocab=vocab
    )
    columns = []
    for t in range(first, tokens.shape[1]):
        v = torch.zeros_like(along)
        v[:, t] = along[:, t]
        arrived = slope(lambda h, v=v: moved(model, tokens, layer=layer, by=h * v)[0][FINAL])
        columns.append((scores * arrived[:, first:]).sum(-1))
    return torch.stack(columns, dim=2)


def along_states(
    recurrence: Recurrence,
    states: Sequence[Tensor],
    completions: Int[Tensor, "batch T"],
    weights: Float[Tensor, "batch T"],
    costates: Sequence[Tensor],
    *,
    generator: torch.Generator,
) -> list[float]:
    """Distance of <lambda^_t, v> from the slope of minus (13) as s_t is moved along v, over the norms, for t = 1..T.

    States and costates are [batch, state], the state growing with t.

    What the next state repeats (a cache) and the rest (h_t) have units of their own: v is taken relative to the state
    in either block, half along the costate, and the norms are products taken block by block.
    """
    found = []
    for t, (state, now) in enumerate(zip(states, costates, strict=True)):
        state = state.detach()
        blocks = [slice(0, recurrence.kept(state.shape[1])), slice(recurrence.kept(state.shape[1]), None)]
        v, size = torch.zeros_like(state), 0.0
        for block in blocks:
            if now[:, block].any():
                v[:, block] = direction(state[:, block], generator, near=now[:, block])
                size += float(now[:, block].norm() * v[:, block].norm())

        def objective(h, t=t, state=state, v=v):
            with torch.no_grad():
                run = unroll(recurrence, state + h * v, completions[:, t:])
            return (weights[:, t:] * run.logp).sum()

        found.append(float((slope(objective, step=NARROW) - (now * v).sum()).abs() / size))
    return found


def recursion_errors(
    model: PreTrainedModel,
    prompts: Int[Tensor, "batch length"],
    completions: Int[Tensor, "batch T"],
    weights: Float[Tensor, "batch T"],
    *,
    vocab: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """How far recursion (15) on the cache is from its other routes, and two wrong recursions from it, over norms.

    ``differences``: of the loss, worst step; ``one pass``: the written-out backward pass, worst step (NaN where it is
    not written out). At s_1, ``no identity block``: the cache's costate if older columns are taken as constants after
    each step; ``newest column``: the error of that recursion in the one column that it keeps.
    """
    F, start = transformer(model, vocab=vocab), prompt_state(model, prompts)
    with torch.no_grad():
        states = unroll(F, start, completions).states
    right = costate.costates_by_recursion(F, start, completions, weights)
    wrong = costate.costates_by_recursion(F, start, completions, weights, newest_only=True)
    once = [torch.full_like(x, torch.nan) for x in right]
    if olmo2.supports(model):
        once = costate.cache_costates(model, prompts, completions, weights, vocab=vocab)
    kept, column = F.kept(right[0].shape[1]), right[1].shape[1] - right[0].shape[1]
    off = along_states(F, states, completions, weights, right, generator=generator)
    return {
        "differences": max(off),
        "one pass": max(float((a - b).norm() / b.norm()) for a, b in zip(once, right, strict=True)),
        "no identity block": _relative(wrong[0][:, :kept], right[0][:, :kept]),
        "newest column": _relative(wrong[0][:, kept - column : kept], right[0][:, kept - column : kept]),
    }


def credit_at_tokens(
    recurrence: Recurrence,
    state: Float[Tensor, "batch state"],
    completions: Int[Tensor, "batch T"],
) -> tuple[Float[Tensor, "batch fed"], Float[Tensor, "batch fed"]]:
    """|dlog pi(o_T)/de| at the embeddings of o_{T-1}, o_{T-2}, .., o_1, tokens fixed: by backpropagation and by moving
    each embedding along that gradient (along its own direction where the gradient is zero)."""
    last = torch.zeros(completions.shape, dtype=state.dtype)
    last[:, -1] = 1.0
    grads = costate.costates_at_tokens(recurrence, state, completions, last)
    embedded, by_slope = recurrence.embeddings[completions[:, :-1]], []
    for t in range(embedded.shape[1]):
        along = torch.where(grads[:, t].any(1, keepdim=True), grads[:, t], embedded[:, t])
        v = torch.zeros_like(embedded)
        v[:, t] = along / along.norm(dim=1, keepdim=True)

        def scored(h: float, v=v) -> Tensor:
            with torch.no_grad():
                return costate.log_probs_fed(recurrence, state, completions, embedded + h * v)[:, -1]

        by_slope.append(slope(scored).abs())
    return grads.norm(dim=-1).flip(1), torch.stack(by_slope, dim=1).flip(1)


def reward_at_ends(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    labels: Int[Tensor, "batch 1"],
    costates: Float[Tensor, "batch length dim"],
    *,
    vocab: int,
) -> Float[Tensor, "two batch"]:
    """Slopes of pi(y) as the embedding at the first and at the last position moves along its costate, by unit length:
    what the norms of ``costates`` there should be."""
    found = []
    for position in (0, -1):
        v = torch.zeros_like(costates)
        v[:, position] = costates[:, position] / costates[:, position].norm(dim=1, keepdim=True)
        pi = partial(log_probs_moved, model, prompts, labels, vocab=vocab, layer=0)
        found.append(slope(lambda h, v=v, pi=pi: pi(by=h * v).exp()[:, 0]))
    return torch.stack(found)


def reach(
    model: nn.Module,
    tokens: Int[Tensor, " length"],
    *,
    layers: Sequence[int] | None = None,
    generator: torch.Generator,
) -> Float[Tensor, "layers length layers length"]:
    """How far each state moves, in units of its own length, when one state is moved in a random direction by a
    thousandth of its length; indexed [l, t, l', k] as :func:`replicate.lm.costate.layer_influence` is. Zeros are exact.
    """
    numbers = costate.layer_numbers(model, layers)
    rows = tokens.expand(len(tokens), -1)
    still, _ = moved(model, rows, layer=FINAL)
    picked = [still[layer] for layer in numbers]
    found = []
    for layer in numbers:
        state = still[layer]
        v = torch.randn(state.shape[1:], generator=generator, dtype=state.dtype)
        v = v * (state[0].norm(dim=-1) / v.norm(dim=-1))[:, None]
        by = STEP * torch.diag_embed(v.T, dim1=0, dim2=1)  # row t moves position t alone
        after, _ = moved(model, rows, layer=layer, by=by)
        change = [(after[n] - x).norm(dim=-1) / x.norm(dim=-1) for n, x in zip(numbers, picked, strict=True)]
        found.append(torch.stack(change, dim=1))  # [t, l', k]
    return torch.stack(found)


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


def _adding_in(by: Tensor):
    def add(_, args, kwargs):
        if args:
            return (args[0] + by, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] + by}

    return add


def _adding_out(by: Tensor):
    def add(_, __, output):
        found = first_of(output) + by
        return (found, *output[1:]) if isinstance(output, tuple) else found

    return add
