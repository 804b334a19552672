"""Jacobians by batched backward passes: all rows of all samples at once.

One forward pass is shared by every row, and the rows of a chunk go through a single backward pass under ``vmap``.
Samples of a batch do not mix in anything differentiated here, so one cotangent serves all of them.

Where a matrix is too large to be formed, :func:`products` gives what it does to vectors, from either side.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1024


def rows(
    output: Float[Tensor, "batch out"], inputs: Float[Tensor, "batch ..."], *, chunk: int = CHUNK
) -> Float[Tensor, "batch out ..."]:
    """d output[b] / d inputs[b] for every sample b, from a graph that is already there (and is kept).

    ``inputs`` may be a leaf or any tensor on the way to ``output``; where there is no way, the answer is zeros.
    """
    batch, out = output.shape
    zeros = torch.zeros(batch, out, *inputs.shape[1:], dtype=output.dtype)
    if not output.requires_grad:
        return zeros
    parts = []
    for start in range(0, out, chunk):
        size = min(chunk, out - start)
        basis = torch.zeros(size, batch, out, dtype=output.dtype)
        basis[torch.arange(size), :, start + torch.arange(size)] = 1.0
        (part,) = torch.autograd.grad(
            output, inputs, basis, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        if part is None:
            return zeros
        parts.append(part)
    return torch.cat(parts).transpose(0, 1)


def positionwise(
    output: Float[Tensor, "1 length out"], inputs: Float[Tensor, "1 length in"]
) -> Float[Tensor, "length out in"]:
    """d output[t] / d inputs[t] at every position t, for an output that depends on its own position's input only.

    One backward pass then serves all positions: as many cotangents as features, not features x positions.
    """
    length, out = output.shape[1:]
    basis = torch.eye(out, dtype=output.dtype)[:, None, None].expand(-1, 1, length, -1)
    (grads,) = torch.autograd.grad(
        output, inputs, basis, is_grads_batched=True, retain_graph=True, materialize_grads=True
    )
    return grads[:, 0].transpose(0, 1)


def jacobian(
    function: Callable[[Tensor], Tensor], at: Float[Tensor, "batch features"], *, chunk: int = CHUNK
) -> Float[Tensor, "batch out features"]:
    """The Jacobian of a function that maps each row of [batch, features] on its own to a row of [batch, out]."""
    leaf = at.detach().requires_grad_()
    with torch.enable_grad():
        return rows(function(leaf), leaf, chunk=chunk)


def products(
    output: Float[Tensor, "1 out"], inputs: Float[Tensor, "1 features"]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """w [k, features] -> J w [k, out] and u [k, out] -> J^T u [k, features] for J = d output / d inputs, never formed.

    From a graph that is already there (and is kept). J^T u is linear in u, and its own transpose is J: both products
    are batched backward passes, the first through the graph of the second.
    """
    dummy = torch.zeros_like(output, requires_grad=True)
    with torch.enable_grad():
        (pulled,) = torch.autograd.grad(output, inputs, dummy, create_graph=True, allow_unused=True)
    if pulled is None:  # there is no way from the inputs to the output
        return (lambda w: w.new_zeros(len(w), output.shape[1])), (
            lambda u: u.new_zeros(len(u), inputs.shape[1])
        )

    def transposed(u: Tensor) -> Tensor:
        return _batched(output, inputs, u)

    def forward(w: Tensor) -> Tensor:
        return _batched(pulled, dummy, w)

    return forward, transposed


def columns(
    output: Float[Tensor, "1 out"], inputs: Float[Tensor, "1 features"], *, chunk: int = 128
) -> Float[Tensor, "out features"]:
    """d output / d inputs column by column, cheaper than row by row where there are fewer inputs than outputs."""
    forward, _ = products(output, inputs)
    basis = torch.eye(inputs.shape[1], dtype=output.dtype)
    return torch.cat([forward(part) for part in basis.split(chunk)]).T


def _batched(output: Tensor, inputs: Tensor, basis: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(
        output,
        inputs,
        basis[:, None],
        is_grads_batched=True,
        retain_graph=True,
        materialize_grads=True,
    )
    return found[:, 0]
