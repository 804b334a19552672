r"""Costates of what later tokens read, the keys and values of every layer, in one written-out backward pass of OLMo-2.

A key or value of position j in some layer acts on the future through the rows r of that layer's attention that read it:

    o_r = sum_j alpha_rj v_j,    alpha_rj = softmax_j(q_r . k_j)

so with the costates o'_r that one backward pass brings to every row, and s' as :mod:`replicate.models.olmo2` has it,

    lambda^_t(v_j) = sum_{r >= r_t} alpha_rj o'_r,    lambda^_t(k_j) = sum_{r >= r_t} s'_rj q_r

where r_t is the row that reads token o_t: what is in the cache when o_t is drawn is read by o_t and later tokens only.
One pass serves every t, and no transition Jacobian is formed. That the sums for t and t + 1 differ by one row is
recursion (15), the identity block of ds_{t+1}/ds_t being what they share.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.models.olmo2 import BlockTape, Tape, adjoint, norm_adjoint, to_heads


@torch.no_grad()
def cache_costates(tape: Tape, costates: Float[Tensor, "P R d"]) -> list[Float[Tensor, "P columns"]]:
    """Costates of the cache after the prompt and the first t - 1 tokens, for t = 1..R.

    ``tape`` is a pass from the embeddings over a prompt and the tokens behind it, all but the last of R; ``costates``
    are those at the R final states that the tokens are drawn from. Each entry of the result is flattened position by
    position, and within one by layer, keys before values, and head, as a state of
    :func:`replicate.lm.recurrence.transformer` is. Raises ``ValueError`` for a pass that starts above the embeddings.
    """
    if tape.start != 0:
        raise ValueError(f"tape: expected a pass that starts at layer 0, got one at {tape.start}")
    steps, length = tape.final.shape[1], tape.state.shape[1]
    back = norm_adjoint(costates[:, None], tape.norm)  # [P, 1, R, d]
    layers: list[list[Tensor]] = []
    for block, kept in zip(reversed(tape.model.model.layers), reversed(tape.blocks), strict=True):
        mixed = to_heads(block, kept, back)[1][:, 0].transpose(1, 2)  # [P, H, rows, head_dim]
        first = length - steps + 1  # the prompt's length
        layers.append([_read_from(kept, mixed, first + t) for t in range(steps)])
        back = adjoint(block, kept, back, tape.turn)
    per_step = zip(*reversed(layers), strict=True)
    return [torch.stack(step, dim=2).flatten(1) for step in per_step]


def _read_from(
    tape: BlockTape, mixed: Float[Tensor, "P H rows head_dim"], position: int
) -> Float[Tensor, "P position two H head_dim"]:
    """Costates of the keys and values before ``position`` from the rows that read the tokens from there on."""
    rows = slice(tape.alpha.shape[2] - (tape.alpha.shape[3] - position), None)
    back, alpha = mixed[:, :, rows], tape.alpha[:, :, rows]
    slopes = back @ tape.v.transpose(2, 3)
    slopes = alpha * (slopes - (slopes * alpha).sum(-1, keepdim=True))
    keys, values = slopes.transpose(2, 3) @ tape.q[:, :, rows], alpha.transpose(2, 3) @ back
    return torch.stack([keys, values], dim=3)[:, :, :position].permute(0, 2, 3, 1, 4)
