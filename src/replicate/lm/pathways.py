"""What Prop. 3 says of attention pathways, measured: ranks and why they are bounded, effective ranks, sizes.

Positions are written j < t as in the paper; Jacobians are those of :mod:`replicate.lm.attention`, exact and for all
pairs of positions at once, and what one head does is measured after its share of the output projection
(:func:`in_output_coordinates`). Tables have one row a model, or one a head and position, to be grouped.
Heads and positions of one prompt are not independent: :mod:`replicate.statistics.summaries` averages over prompts,
whose spread makes a standard error.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.lm import attention, spectra
from replicate.lm.shapes import shape_of
from replicate.lm.spectra import spectral_gap


def against_autograd(model: nn.Module, tokens: Int[Tensor, " length"]) -> pd.DataFrame:
    """The closed form of :mod:`replicate.lm.attention` against differentiating every output, all pairs of positions.

    One row a layer and part and one for the whole model (layer 0): ``error`` is the largest absolute difference,
    ``planted`` that of the full Jacobian without its score term (NaN in the other rows).
    """
    rows = []
    for layer, block in enumerate(attention.anatomy(model, tokens), start=1):
        slow = {
            part: attention.layer_jacobians_by_autograd(model, tokens, layer=layer, part=part)
            for part in attention.PARTS
        }
        quick = {part: attention.layer_jacobians(block, part=part) for part in attention.PARTS}
        planted = {"full": _distance(quick["value"], slow["full"])}
        rows += [
            {
                "layer": layer,
                "part": part,
                "error": _distance(quick[part], slow[part]),
                "planted": planted.get(part, float("nan")),
            }
            for part in attention.PARTS
        ]
    whole = attention.model_jacobians(model, tokens)
    error = _distance(whole, attention.model_jacobians_by_autograd(model, tokens))
    rows.append({"layer": 0, "part": "all layers", "error": error, "planted": float("nan")})
    return pd.DataFrame(rows)


def with_norm_epsilon(model: nn.Module, epsilon: float) -> nn.Module:
    """``model`` with the epsilon of its RMS norms, x / sqrt(mean x^2 + epsilon), set in place.

    Raises ``ValueError`` for a negative epsilon and for a model without such norms.
    """
    if epsilon < 0:
        raise ValueError(f"epsilon: expected a number >= 0, got {epsilon}")
    norms = [m for m in model.modules() if hasattr(m, "variance_epsilon")]
    if not norms:
        raise ValueError(
            f"model: expected RMS norms with a variance_epsilon, got {type(model).__name__} without"
        )
    for norm in norms:
        norm.variance_epsilon = epsilon
    return model


def ranks(model: nn.Module, tokens: Int[Tensor, " length"], *, rtol: float = 1e-10) -> dict[str, int | float]:
    """Numerical ranks of all Jacobians with j < t on one sequence, beside the bounds of Prop. 3, as one row.

    ``rank`` is the largest and ``least rank`` the smallest of da_t/dx_j over layers and pairs, ``total`` and ``least
    total`` those of dh_t^L/dh_j^0; ``bound`` = min(d, heads x d_head), ``input bound`` what the input side allows
    (:class:`replicate.lm.shapes.Shape`), ``total bound`` = min(d, layers x heads x d_head). ``gap`` and ``total
    gap`` are :func:`spectral_gap` at the bound; ``total at t`` the smallest rank of dh_t^L/dh_t^0, where the skip
    connection joins in.
    """
    shape = shape_of(model)
    one = torch.cat(
        [attention.earlier(attention.layer_jacobians(b)) for b in attention.anatomy(model, tokens)]
    )
    whole = attention.model_jacobians(model, tokens)
    through, at = attention.earlier(whole), torch.arange(len(tokens))
    one_rank, through_rank, own_rank = (
        spectra.numerical_rank(x, rtol=rtol) for x in (one, through, whole[at, at])
    )
    return {
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "d_head": shape.head_dim,
        "d": shape.hidden,
        "rank": int(one_rank.max()),
        "least rank": int(one_rank.min()),
        "bound": shape.layer_bound,
        "input bound": shape.input_bound,
        "gap": spectral_gap(one, shape.layer_bound),
        "total": int(through_rank.max()),
        "least total": int(through_rank.min()),
        "total bound": shape.total_bound,
        "total gap": spectral_gap(through, shape.total_bound),
        "total at t": int(own_rank.min()),
    }


def sublayer_ranks(
    model: nn.Module,
    tokens: Int[Tensor, " length"],
    *,
    rtol: float = 1e-10,
    layers: Sequence[int] | None = None,
) -> dict[str, int]:
    """The columns ``d_head``, ``d``, ``input bound``, ``rank`` and ``least rank`` of :func:`ranks` alone, of ``layers``
    (1 is the first; default: all), which takes no other part of a block than its attention."""
    shape, found = shape_of(model), []
    for block in attention.anatomy(model, tokens, layers=layers, sublayer=True):
        found.append(spectra.numerical_rank(attention.earlier(attention.layer_jacobians(block)), rtol=rtol))
    each = torch.stack(found)
    bounds = {"d_head": shape.head_dim, "d": shape.hidden, "input bound": shape.input_bound}
    return bounds | {"rank": int(each.max()), "least rank": int(each.min())}


def head_ranks(
    model: nn.Module,
    tokens: Int[Tensor, " length"],
    *,
    rtol: float = 1e-10,
    layers: Sequence[int] | None = None,
) -> Int[Tensor, "layers heads"]:
    """Largest numerical rank, over j before the last position t, of what each head contributes to da_t/dx_j.

    That is its share of the output projection times do_t/dx_j, a matrix [hidden, hidden] of rank d_head at most. Of
    ``layers`` (1 is the first; default: all).
    """
    found = []
    for block in attention.anatomy(model, tokens, layers=layers, sublayer=True):
        project = block.project.unflatten(1, (len(block.alpha), -1)).transpose(
            0, 1
        )  # [heads, hidden, d_head]
        last = attention.head_jacobians(block)[:, -1, :-1]  # [heads, j, d_head, hidden]
        each = [spectra.numerical_rank(p @ x, rtol=rtol).max() for p, x in zip(project, last, strict=True)]
        found.append(torch.stack(each))
    return torch.stack(found)


def layer_terms(
    model: nn.Module, tokens: Int[Tensor, " length"]
) -> Float[Tensor, "layers length length hidden hidden"]:
    """dh_t^L/dh_j^0 split by the last layer whose attention hands it to position t, indexed [layer, t, j, out, in].

    Term l is dh_t^L/da_t^l at fixed other a_t (skip connections and what else a block does at t) times the total
    derivative da_t^l/dh_j^0, whatever the positions in between. For j < t the terms add up to
    :func:`replicate.lm.attention.model_jacobians` and each has rank at most heads x d_head: the total bound of Prop. 3.
    For j = t the sum leaves out the way along the skip connections alone.
    """
    length, hidden = len(tokens), shape_of(model).hidden
    at = torch.arange(length)
    so_far = torch.zeros(length, length, hidden, hidden, dtype=torch.float64)  # dh_t/dh_j^0, [t, j, out, in]
    so_far[at, at] = torch.eye(hidden, dtype=torch.float64)
    terms: list[Tensor] = []
    for block in attention.anatomy(model, tokens):
        handed = torch.einsum("tiab,ijbc->tjac", _through_attention(block), so_far)
        skip = block.skip[:, None]
        terms = [skip @ term for term in terms] + [handed]
        so_far = skip @ so_far + handed
    return torch.stack(terms)


def path_terms(
    model: nn.Module, tokens: Int[Tensor, " length"], *, t: int, j: int
) -> Float[Tensor, "paths hidden hidden"]:
    """dh_t^L/dh_j^0 split into single paths j <= i_1 <= ... <= t, one position after each block; they add up to it.

    There are (t - j + L - 1 choose L - 1) of them. Raises ``ValueError`` unless 0 <= j < t < length.
    """
    if not 0 <= j < t < len(tokens):
        raise ValueError(f"t, j: expected 0 <= j < t < {len(tokens)}, got t = {t} and j = {j}")
    steps, at = [], torch.arange(len(tokens))
    for block in attention.anatomy(model, tokens):
        steps.append(_through_attention(block))
        steps[-1][at, at] += block.skip
    paths = []
    for middle in itertools.combinations_with_replacement(range(j, t + 1), len(steps) - 1):
        path = torch.eye(steps[0].shape[-1], dtype=torch.float64)
        for step, (here, there) in zip(steps, itertools.pairwise((j, *middle, t)), strict=True):
            path = step[there, here] @ path
        paths.append(path)
    return torch.stack(paths)


def effective_ranks(
    model: nn.Module,
    prompts: Int[Tensor, "prompts length"],
    *,
    last: int = 3,
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Breadth of attention and effective ranks of every head at the last ``last`` positions of every prompt.

    One row a prompt, layer (1 is the first), head and position t. ``breadth`` is that of alpha_t over j < t, ``reach``
    that of the squared norms of do_t/dx_j, both in positions; ``participation`` and ``entropy rank`` are effective
    ranks of do_t/dx_{<t} [d_head, t x d], ``value only`` the participation ratio of its value term. Raises
    ``ValueError`` unless 1 <= last < length. ``layers`` (1 is the first; default: all) are those measured.
    """
    length = prompts.shape[1]
    if not 1 <= last < length:
        raise ValueError(f"last: expected 1 to {length - 1}, got {last}")
    tables = [
        _effective_ranks_at(block, full, value, t).assign(prompt=i, layer=layer, t=t)
        for i, tokens in enumerate(prompts)
        for layer, block, full, value in _heads(model, tokens, layers)
        for t in range(length - last, length)
    ]
    return pd.concat(tables, ignore_index=True)


def term_sizes(
    model: nn.Module, prompts: Int[Tensor, "prompts length"], *, layers: Sequence[int] | None = None
) -> pd.DataFrame:
    """Frobenius norms of do_t/dx_j and of its two terms for every head and every pair j < t, beside the weight.

    One row a prompt, layer (1 is the first), head and pair: ``alpha``, ``full``, ``value``, ``score``; ``value factor``
    |dv_j/dx_j| and ``score factor`` |v_j - m| |q_t^T dk_j/dx_j| / sqrt(d_head), where m is the mean of the other values
    under the other weights, so that value = alpha x factor and score = alpha (1 - alpha) x factor; ``others``, the
    sum 1 - alpha of the other weights; and ``constant``, which bounds full / alpha over all pairs of a head in one
    prompt by the largest norms of its states and weights. ``layers`` as in :func:`effective_ranks`.
    """
    tables = [
        _term_sizes_of(block, full, value).assign(prompt=i, layer=layer)
        for i, tokens in enumerate(prompts)
        for layer, block, full, value in _heads(model, tokens, layers)
    ]
    return pd.concat(tables, ignore_index=True)


def _through_attention(block: attention.Anatomy) -> Float[Tensor, "length length hidden hidden"]:
    """What the block's output at t owes to its input at i by way of attention, [t, i, out, in]."""
    return block.after[:, None] @ attention.layer_jacobians(block) @ block.below


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def in_output_coordinates(block: attention.Anatomy) -> attention.Anatomy:
    """``block`` with each head's values as the output projection hands them on, in an orthonormal basis of its range.

    A head's own coordinates are a convention: an invertible matrix on its values and the inverse on its share of the
    output projection change nothing that anyone sees, but every norm and every effective rank of do_t/dx_j. What is
    left after the projection W_O = QR is Q (R v): R in place of W_O keeps all singular values and the small shape.
    """
    project = block.project.unflatten(1, (len(block.alpha), -1)).transpose(0, 1)  # [heads, hidden, d_head]
    R = torch.linalg.qr(project).R
    return replace(block, v=block.v @ R.mT, dv=R[:, None] @ block.dv)


def _heads(
    model: nn.Module, tokens: Tensor, layers: Sequence[int] | None
) -> Iterator[tuple[int, attention.Anatomy, Tensor, Tensor]]:
    """Every layer's number, anatomy and Jacobians per head, full and value term, in output coordinates."""
    numbers = layers or range(1, shape_of(model).layers + 1)
    parts = attention.anatomy(model, tokens, layers=layers, sublayer=True)
    for layer, block in zip(numbers, map(in_output_coordinates, parts), strict=True):
        yield (
            layer,
            block,
            attention.head_jacobians(block),
            attention.head_jacobians(block, part="value"),
        )


def _effective_ranks_at(block: attention.Anatomy, full: Tensor, value: Tensor, t: int) -> pd.DataFrame:
    stacked, value_only = (
        x[:, t, :t].transpose(1, 2).flatten(2) for x in (full, value)
    )  # [heads, d_head, t x d]
    columns = {
        "breadth": spectra.breadth(block.alpha[:, t, :t]),
        "reach": spectra.breadth(full[:, t, :t].square().sum((2, 3))),
        "participation": spectra.participation_ratio(stacked),
        "entropy rank": spectra.entropy_rank(stacked),
        "value only": spectra.participation_ratio(value_only),
        "head": torch.arange(len(full)),
    }
    return pd.DataFrame({name: x.numpy() for name, x in columns.items()})


def _term_sizes_of(block: attention.Anatomy, full: Tensor, value: Tensor) -> pd.DataFrame:
    heads, length = block.alpha.shape[:2]
    t, j = torch.tril_indices(length, length, -1)
    norm, alpha = torch.linalg.matrix_norm, block.alpha
    # The others' weights, summed without j rather than taken from 1: exact where alpha_tj is close to 1.
    others = alpha[:, :, None, :] * (1 - torch.eye(length, dtype=alpha.dtype))  # [heads, t, j, i]
    mean = (others @ block.v[:, None]) / others.sum(-1, keepdim=True).clamp_min(1e-300)
    slope = block.scaling * torch.einsum("htc,hjci->htji", block.q, block.dk).norm(dim=-1)
    bound = norm(block.dv).amax(1) + 2 * block.scaling * (
        block.v.norm(dim=-1).amax(1) * block.q.norm(dim=-1).amax(1) * norm(block.dk, ord=2).amax(1)
    )
    columns = {
        "alpha": alpha[:, t, j],
        "full": norm(full[:, t, j]),
        "value": norm(value[:, t, j]),
        "score": norm((full - value)[:, t, j]),
        "value factor": norm(block.dv)[:, j],
        "score factor": ((block.v[:, None] - mean).norm(dim=-1) * slope)[:, t, j],
        "others": others.sum(-1)[:, t, j],
        "constant": bound[:, None].expand(heads, len(t)),
        "head": torch.arange(heads)[:, None].expand(heads, len(t)),
        "t": t.expand(heads, -1),
        "j": j.expand(heads, -1),
    }
    return pd.DataFrame({name: x.flatten().numpy() for name, x in columns.items()})
