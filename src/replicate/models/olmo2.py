r"""OLMo-2 and its adjoint, block by block, written out: the backward pass through activations without autograd.

A block maps its input h [T, d] to y [T, d] in two halves, each with its norm *behind* the sublayer:

    q = rot(n_q(h W_q^T)),  k = rot(n_k(h W_k^T)),  v = h W_v^T
    o = alpha v,  alpha = softmax(q k^T / sqrt(d_head)) over j <= t
    u = h + n_a(o W_o^T)
    y = u + n_m((silu(u W_g^T) * u W_u^T) W_d^T)

with n(x) = w * x r, r = (mean x^2 + eps)^(-1/2) over the features, and rot the rotation of positions. Given a costate
y' = dJ/dy, the costate of the input follows line by line from below to above; what is not obvious is

    n:        x' = r (z - x r mean(z * x r)),  z = w * y'
    softmax:  s' = alpha * (alpha' - sum(alpha' * alpha))
    rot:      the inverse rotation

No gradient of a parameter is formed, several costates go back at once, and what nobody reads is not computed: behind
the last block's keys and values only the positions that the head reads. That is what makes a measurement cost about two
forward passes in seconds and not only in multiplications. The same by autograd, for any architecture, is in
:mod:`replicate.models.answer`; the tests hold the two against each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Olmo2ForCausalLM
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from replicate.models.compilation import compiled
from replicate.models.hooks import FINAL, layer_number
from replicate.models.precision import precision_of


@dataclass(frozen=True)
class Normed:
    """An RMS norm that has run: ``unit`` [..., features] = x r, ``rate`` [..., 1] = r, ``weight`` [features] = w."""

    unit: Tensor
    rate: Tensor
    weight: Tensor


@dataclass(frozen=True)
class BlockTape:
    """What one block's adjoint needs. P prompts of T positions, of which the last R are read above; H heads."""

    q: Float[Tensor, "P H R head_dim"]
    k: Float[Tensor, "P H T head_dim"]
    v: Float[Tensor, "P H T head_dim"]
    alpha: Float[Tensor, "P H R T"]
    norm_q: Normed
    norm_k: Normed
    norm_a: Normed
    norm_m: Normed
    gate: Float[Tensor, "P R ff"]
    silu: Float[Tensor, "P R ff"]
    up: Float[Tensor, "P R ff"]


@dataclass(frozen=True)
class Tape:
    """A forward pass: ``state`` [P, T, d] the output of layer ``start``, ``final`` [P, R, d] the final state at the
    last R positions (``state`` too, where ``start`` is FINAL), and what the adjoint needs of the blocks above."""

    model: Olmo2ForCausalLM
    start: int
    state: Float[Tensor, "P positions d"]
    final: Float[Tensor, "P R d"]
    blocks: list[BlockTape]
    norm: Normed
    turn: tuple[Tensor, Tensor]


def supports(model: nn.Module) -> bool:
    """Whether the formulas above are the whole of ``model``: OLMo-2 as the library builds it, its linear maps and norms
    not replaced by others (adapters, quantised ones), without shared key heads and dropout."""
    if not isinstance(model, Olmo2ForCausalLM):
        return False
    config = model.config
    return (
        config.num_key_value_heads == config.num_attention_heads
        and config.hidden_act == "silu"
        and not (model.training and config.attention_dropout)
        and all(type(part) in (nn.Linear, Olmo2RMSNorm) for part in _parts(model))
    )


def chosen(model: nn.Module, by_hand: bool | None) -> bool:
    """Whether to use the written-out passes: as asked for, or (None) wherever :func:`supports` allows them.

    Raises ``ValueError`` where they are asked for and are not the whole of the model.
    """
    written = supports(model)
    if by_hand and not written:
        raise ValueError(f"by_hand: expected a plain OLMo-2, got {type(model).__name__}")
    return written if by_hand is None else by_hand


@torch.no_grad()
def forward(model: Olmo2ForCausalLM, tokens: Int[Tensor, "P T"], *, start: int = 0, read: int = 1) -> Tape:
    """Runs ``model`` on prompts of one length; the head reads the last ``read`` positions.

    ``start`` is the layer whose output is the state, numbered as :data:`~replicate.models.hooks.FINAL` says; nothing
    below it is kept. Raises ``ValueError`` for a layer or a number of positions out of range.
    """
    decoder, depth, length = model.model, len(model.model.layers), tokens.shape[1]
    layer_number(model, start)
    if not 1 <= read <= length:
        raise ValueError(f"read: expected 1 to {length} positions, got {read}")
    h = state = decoder.embed_tokens(tokens)
    turn, tapes, run = _turn(model, h), [], compiled(_forward, model)
    for number, block in enumerate(decoder.layers, start=1):
        # The head reads the last block's output at the last positions only; its state is asked for at all of them.
        kept = 0 <= start < number
        h, tape = run(block, h, turn, read if number == depth != start else length, kept)
        if number == start:
            state = h
        elif kept:
            tapes.append(tape)
    final, norm = _norm(h[:, -read:], decoder.norm)
    state = final if start == FINAL else state
    return Tape(model, start, state, final, tapes, norm, turn)


@torch.no_grad()
def pull_back(
    tape: Tape, costates: Float[Tensor, "S P R d"]
) -> Iterator[tuple[int, Float[Tensor, "S P positions d"]]]:
    """Costates at the final state, carried down: (layer, costates at its output) from the last block's to ``start``'s.

    S of them go back at once. At the last block's output only the R positions that were read are given, see
    :func:`padded`; layers below that have all T positions. From the final state there is nowhere to go.
    """
    if tape.start == FINAL:
        return
    layers, run = tape.model.model.layers, compiled(adjoint, tape.model)
    back = norm_adjoint(costates.transpose(0, 1), tape.norm)  # [P, S, R, d]
    yield len(layers), back.transpose(0, 1)
    for number in range(len(layers), tape.start, -1):
        back = run(layers[number - 1], tape.blocks[number - 1 - tape.start], back, tape.turn)
        yield number - 1, back.transpose(0, 1)


def padded(costates: Float[Tensor, "*S P positions d"], length: int) -> Float[Tensor, "*S P T d"]:
    """Costates at the last positions, with zeros at the ones before, which nothing above reads (A3)."""
    missing = length - costates.shape[-2]
    return F.pad(costates, (0, 0, missing, 0)) if missing else costates


def _forward(
    block: nn.Module, h: Tensor, turn: tuple[Tensor, Tensor], read: int, kept: bool
) -> tuple[Tensor, BlockTape | None]:
    """The block's output, and its tape if that is ``kept``."""
    attention, mlp = block.self_attn, block.mlp
    top, scale = h[:, -read:], attention.scaling
    q, norm_q = _norm(attention.q_proj(top), attention.q_norm)
    k, norm_k = _norm(attention.k_proj(h), attention.k_norm)
    q = _rotate(_heads(q, attention.head_dim), *(x[-read:] * scale for x in turn)).transpose(1, 2)
    k = _rotate(_heads(k, attention.head_dim), *turn).transpose(1, 2)
    v = _heads(attention.v_proj(h), attention.head_dim).transpose(1, 2)
    scores = q @ k.transpose(2, 3)
    future = torch.ones(read, h.shape[1], dtype=torch.bool, device=h.device).triu(h.shape[1] - read + 1)
    alpha = scores.masked_fill_(future, float("-inf")).softmax(-1, dtype=_wide(h.dtype)).to(h.dtype)  # (22)
    mixed = (alpha @ v).transpose(1, 2).flatten(2)
    a, norm_a = _norm(attention.o_proj(mixed), block.post_attention_layernorm)
    u = a.add_(top)
    gate, up = mlp.gate_proj(u), mlp.up_proj(u)
    silu = F.silu(gate)
    m, norm_m = _norm(mlp.down_proj(silu * up), block.post_feedforward_layernorm)
    tape = BlockTape(q, k, v, alpha, norm_q, norm_k, norm_a, norm_m, gate, silu, up) if kept else None
    return m.add_(u), tape


def adjoint(block: nn.Module, tape: BlockTape, back: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Costates [P, S, R, d] at the block's output to those [P, S, T, d] at its input."""
    attention = block.self_attn
    read, length = tape.alpha.shape[2:]
    back, mixed = to_heads(block, tape, back)
    dq, dk, dv = _attention_adjoint(tape, mixed)
    cos, sin = turn
    scale = attention.scaling
    dq = _rotate(dq, cos[-read:] * scale, sin[-read:] * -scale).flatten(3)
    dk = _rotate(dk, cos, -sin).flatten(3)
    out = dv.flatten(3) @ attention.v_proj.weight
    out = _accumulate(out, norm_adjoint(dk, tape.norm_k), attention.k_proj.weight)
    top = _accumulate(back, norm_adjoint(dq, tape.norm_q), attention.q_proj.weight)
    if read == length:
        return out.add_(top)
    out[:, :, -read:] += top
    return out


def to_heads(
    block: nn.Module, tape: BlockTape, back: Float[Tensor, "P S R d"]
) -> tuple[Float[Tensor, "P S R d"], Float[Tensor, "P S R H head_dim"]]:
    """The first half of a block's adjoint, from its output y to the costates of u and of what each head mixes."""
    attention, mlp = block.self_attn, block.mlp
    # y = u + n_m(m): down, gate and up
    inner = norm_adjoint(back, tape.norm_m) @ mlp.down_proj.weight
    slope = torch.ops.aten.silu_backward(tape.up, tape.gate)  # up * silu'(gate)
    back = _accumulate(back, inner * slope[:, None], mlp.gate_proj.weight)
    back = _accumulate(back, inner.mul_(tape.silu[:, None]), mlp.up_proj.weight)
    # u = h + n_a(a)
    mixed = norm_adjoint(back, tape.norm_a) @ attention.o_proj.weight
    return back, _heads(mixed, attention.head_dim)


def _attention_adjoint(
    tape: BlockTape, back: Float[Tensor, "P S R H head_dim"]
) -> tuple[Tensor, Tensor, Tensor]:
    """dq [P, S, R, H, head_dim], dk and dv [P, S, T, H, head_dim]."""
    samples = back.shape[1]
    back = back.permute(0, 3, 1, 2, 4)  # [P, H, S, R, head_dim]
    alpha = tape.alpha[:, :, None]
    # alpha' [P, H, S, R, T], then s' in its place
    slopes = (back.flatten(2, 3) @ tape.v.transpose(2, 3)).unflatten(2, (samples, -1))
    slopes -= (slopes * alpha).sum(-1, keepdim=True)
    slopes *= alpha
    dq = (slopes.flatten(2, 3) @ tape.k).unflatten(2, (samples, -1))
    dk = (slopes.transpose(3, 4).flatten(2, 3) @ tape.q).unflatten(2, (samples, -1))
    if samples == 1:
        dv = (tape.alpha.transpose(2, 3) @ back[:, :, 0])[:, :, None]
    else:
        dv = tape.alpha.transpose(2, 3) @ back.transpose(2, 3).flatten(3)  # [P, H, T, S head_dim]
        dv = dv.unflatten(3, (samples, -1)).transpose(2, 3)
    return tuple(x.permute(0, 2, 3, 1, 4) for x in (dq, dk, dv))


def _norm(x: Tensor, module: nn.Module) -> tuple[Tensor, Normed]:
    wide = x.to(_wide(x.dtype))
    rate = (wide.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt_()
    unit = wide * rate
    return (unit * module.weight).to(x.dtype), Normed(unit, rate, module.weight)


def norm_adjoint(back: Float[Tensor, "P S positions d"], norm: Normed) -> Float[Tensor, "P S positions d"]:
    unit, rate = norm.unit[:, None], norm.rate[:, None]
    z = back * norm.weight
    along = (z * unit).mean(-1, keepdim=True)
    return torch.addcmul(z, unit, along, value=-1).mul_(rate).to(back.dtype)


def _accumulate(total: Tensor, back: Tensor, weight: Float[Tensor, "out in"]) -> Tensor:
    """total + back @ weight, through the adjoint of y = x W^T."""
    return torch.addmm(total.flatten(0, 2), back.flatten(0, 2), weight).view(total.shape)


def _rotate(x: Float[Tensor, "... T H head_dim"], cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; ``cos``, ``sin`` [T, 1, head_dim / 2]. With -sin it is the inverse and the adjoint."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _heads(x: Tensor, size: int) -> Tensor:
    return x.unflatten(-1, (-1, size))


def _turn(model: Olmo2ForCausalLM, h: Float[Tensor, "P T d"]) -> tuple[Tensor, Tensor]:
    """cos and sin of the model's own rotary embedding, [T, 1, head_dim / 2]; both halves of a head share them."""
    positions = torch.arange(h.shape[1], device=h.device)[None]
    with precision_of(model):
        turn = model.model.rotary_emb(h, positions)
    half = turn[0].shape[-1] // 2
    return tuple(x[0, :, None, :half].to(_wide(h.dtype)) for x in turn)


def _parts(model: Olmo2ForCausalLM) -> Iterator[nn.Module]:
    """Every linear map and norm that the formulas name."""
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        yield from (attention.q_norm, attention.k_norm)
        yield from (block.post_attention_layernorm, block.post_feedforward_layernorm)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Norms, rotations and softmax of half-precision models run in float32."""
    return torch.promote_types(dtype, torch.float32)
