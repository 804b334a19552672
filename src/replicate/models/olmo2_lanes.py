r"""OLMo-2 on groups of completions, written out for many copies of the model at once, with gradients of its weights.

A tiny model's update is a long row of small operations. Here it has fewer of them: every copy (lane) is a slice of one
batched product instead of a call under ``vmap``, queries, keys and values come from one product, and norms and gates go
back in one step each. The formulas are those of :mod:`replicate.models.olmo2`.

G completions of T tokens stand behind each prompt of L. A row's attention has two parts, alpha = softmax([s^q, s^o]):
s^q over the prompt, whose keys are kept once for the whole group, and s^o over the row's own completion. So no key is
copied when completions are scored, and no score is computed that a mask would hide, whatever G and T are. Completions
that are being drawn have their prompt's keys and values before their own instead, in one buffer that is laid out once:
a step with few scores is over sooner with one product than with two.

This is for a CPU and full precision, where the small operations are the bound (:func:`supports`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Olmo2ForCausalLM

from replicate.models import olmo2
from replicate.models.compilation import is_compiled
from replicate.models.precision import precision_of

Weights = Mapping[str, Float[Tensor, "lanes ..."]]
"""By parameter name, of all lanes."""

Cache = list[tuple[Float[Tensor, "prompt_heads L head_dim"], Float[Tensor, "prompt_heads L head_dim"]]]
"""Keys and values of the prompts per block; one row for each head of each prompt of each lane."""

Turn = tuple[Float[Tensor, "S 2 1 head_dim"], Float[Tensor, "S 2 1 head_dim"]]
"""cos and sin of the positions of S tokens, for queries (with the scale of attention) and keys."""

TOGETHER = 2048
"""The most tokens of a lane that all lanes are scored for together: with more, what a block keeps leaves the caches of
the processor, and a lane alone is over sooner."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Block number, then q, k, v [sequences, S, heads, head_dim]: what the heads mix, laid out the same way."""


@dataclass(frozen=True)
class Block:
    """One block's weights in all lanes, queries', keys' and values' in one tensor: e is the width of all heads,
    ``triple`` 3 e, f the width of the MLP. Gate and up stay apart: halves of one tensor's rows cost each operation on
    them more than the second product does."""

    qkv: Float[Tensor, "lanes triple d"]
    norm_qk: Float[Tensor, "lanes 1 2 e"]
    out: Float[Tensor, "lanes d e"]
    norm_a: Float[Tensor, "lanes 1 d"]
    gate: Float[Tensor, "lanes f d"]
    up: Float[Tensor, "lanes f d"]
    down: Float[Tensor, "lanes d f"]
    norm_m: Float[Tensor, "lanes 1 d"]


@dataclass(frozen=True)
class Net:
    """A model's weights in all lanes, with the graph that they come with, and its form."""

    model: Olmo2ForCausalLM
    embed: Float[Tensor, "lanes rows d"]
    blocks: tuple[Block, ...]
    norm: Float[Tensor, "lanes 1 d"]
    head: Float[Tensor, "lanes vocab d"]

    def detach(self) -> "Net":
        """The same without a graph."""
        blocks = tuple(Block(*(x.detach() for x in _weights_of(b))) for b in self.blocks)
        return replace(self, blocks=blocks, **{name: getattr(self, name).detach() for name in _OUTSIDE})

    def lanes(self) -> list["Net"]:
        """One for each lane; every weight is split once, so that going back is one concatenation."""
        blocks = zip(
            *(
                [Block(*one) for one in zip(*(x.split(1) for x in _weights_of(b)), strict=True)]
                for b in self.blocks
            ),
            strict=True,
        )
        outside = zip(*(getattr(self, name).split(1) for name in _OUTSIDE), strict=True)
        return [
            replace(self, blocks=own, **dict(zip(_OUTSIDE, ends, strict=True)))
            for own, ends in zip(blocks, outside, strict=True)
        ]


_OUTSIDE = ("embed", "norm", "head")


def _weights_of(block: Block) -> list[Tensor]:
    return [getattr(block, f.name) for f in fields(Block)]


def supports(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether these passes serve ``model`` in passes of ``dtype``: a plain OLMo-2 (see its own ``supports``) whose
    weights are its own, without biases and compiled blocks, with one eps, on a CPU, in full precision."""
    if not olmo2.supports(model) or is_compiled(model) or model.device.type != "cpu":
        return False
    eps = {part.variance_epsilon for part in model.modules() if hasattr(part, "variance_epsilon")}
    plain = not (model.config.attention_bias or model.config.tie_word_embeddings) and len(eps) == 1
    return (
        plain and type(model.lm_head) is nn.Linear and model.dtype == dtype in (torch.float32, torch.float64)
    )


def net_of(model: Olmo2ForCausalLM, weights: Weights, *, vocab: int) -> Net:
    """``model`` with these ``weights`` instead of its own, one set for each lane; logits of ``vocab`` tokens only."""
    return Net(
        model,
        weights["model.embed_tokens.weight"],
        tuple(_block(weights, f"model.layers.{i}.") for i in range(len(model.model.layers))),
        weights["model.norm.weight"][:, None],
        weights["lm_head.weight"][:, :vocab],
    )


def prompt_pass(
    net: Net, tokens: Int[Tensor, "lanes prompts L"]
) -> tuple[Float[Tensor, "lanes prompts vocab"], Cache]:
    """Logits behind each prompt, and the prompts' keys and values; with graph.

    The last block's output is computed at the last position only, where it is read.
    """
    lanes, prompts, length = tokens.shape
    cache: Cache = []

    def attend(_, q, k, v):
        q, k, v = (_by_head(x, 1) for x in (q, k, v))
        cache.append((k, v))
        alpha = torch.baddbmm(_future(length, q)[-q.shape[1] :], q, k.transpose(1, 2)).softmax(-1)
        return _by_position(torch.bmm(alpha, v), net, 1)

    final = _run(net, tokens, _turn(net, 0, length), attend, read=1)
    return _logits(net, final).view(lanes, prompts, -1), cache


@torch.no_grad()
def steps(
    net: Net, cache: Cache, group: int, more: int
) -> Callable[[Int[Tensor, "lanes prompts group"]], Float[Tensor, "lanes prompts group vocab"]]:
    """A function of each completion's newest token that gives the logits behind it: no graph, ``more`` calls."""
    net, length, done = net.detach(), cache[0][0].shape[1], 0
    heads = _attention(net).config.num_attention_heads
    buffers = [tuple(_laid_out(x, heads, group, more) for x in layer) for layer in cache]
    cos, sin = _turn(net, length, more)

    @torch.no_grad()
    def step(tokens):
        nonlocal done
        now = length + done

        def attend(number, q, k, v):
            rows, size = q.shape[0] * q.shape[2], q.shape[3]
            keys, values = buffers[number]
            keys[:, now], values[:, now] = k.reshape(rows, size), v.reshape(rows, size)
            scores = torch.bmm(q.reshape(rows, 1, size), keys[:, : now + 1].transpose(1, 2))
            return torch.bmm(scores.softmax(-1), values[:, : now + 1])

        turn = cos[done : done + 1], sin[done : done + 1]
        logits = _logits(net, _run(net, tokens[..., None], turn, attend))
        done += 1
        return logits.view(*tokens.shape, -1)

    return step


def score(
    net: Net, cache: Cache, tokens: Int[Tensor, "lanes prompts group S"]
) -> Float[Tensor, "lanes prompts group S vocab"]:
    """Logits behind every one of the tokens, which stand behind the prompts of ``cache``; with graph."""
    group, new = tokens.shape[2:]
    if len(tokens) > 1 and tokens[0].numel() > TOGETHER:
        shares = [(keys.chunk(len(tokens)), values.chunk(len(tokens))) for keys, values in cache]
        alone = [
            score(one, [(keys[i], values[i]) for keys, values in shares], tokens[i : i + 1])
            for i, one in enumerate(net.lanes())
        ]
        return torch.cat(alone)
    length = cache[0][0].shape[1]

    def attend(number, q, k, v):
        q, k, v = (
            _by_head(x, group) for x in (q, k, v)
        )  # [sequences * heads, S, head_dim], prompt by prompt
        keys, values = cache[number]
        own = torch.baddbmm(_future(new, q), q, k.transpose(1, 2))
        shared = torch.bmm(q.view(len(keys), group * new, -1), keys.transpose(1, 2))
        alpha = torch.cat([shared.view(len(q), new, length), own], -1).softmax(-1)
        seen, said = alpha.split([length, new], dim=-1)
        mixed = torch.bmm(seen.reshape(shared.shape), values).view(q.shape)
        return _by_position(torch.baddbmm(mixed, said, v), net, group)

    final = _run(net, tokens, _turn(net, length, new), attend)
    return _logits(net, final).view(*tokens.shape, -1)


def _run(
    net: Net, tokens: Int[Tensor, "lanes ... S"], turn: Turn, attend: Attend, *, read: int | None = None
):
    """The last block's output [lanes, sequences * S, d], or at the last ``read`` positions of each sequence only."""
    lanes, new = len(tokens), tokens.shape[-1]
    first = torch.arange(lanes, device=tokens.device)[:, None] * net.embed.shape[1]
    h = F.embedding(tokens.flatten(1) + first, net.embed.flatten(0, 1))
    size, eps = _attention(net).head_dim, _eps(net)
    for number, block in enumerate(net.blocks):
        width = block.out.shape[2]
        qk, v = _linear(h, block.qkv).split([2 * width, width], dim=-1)
        qk = _norm(qk.unflatten(-1, (2, width)), block.norm_qk, eps).view(-1, new, 2, width // size, size)
        q, k = torch.addcmul(qk * turn[0], qk.roll(size // 2, -1), turn[1]).unbind(2)
        if read is not None and number == len(net.blocks) - 1:
            q, h = q[:, -read:], h.unflatten(1, (-1, new))[:, :, -read:].flatten(1, 2)
        mixed = attend(number, q, k, v.reshape(k.shape)).reshape(*h.shape[:2], width)
        u = h + _norm(_linear(mixed, block.out), block.norm_a, eps)
        inner = _gated(_linear(u, block.gate), _linear(u, block.up))
        h = u + _norm(_linear(inner, block.down), block.norm_m, eps)
    return h


def _logits(net: Net, final: Float[Tensor, "lanes N d"]) -> Float[Tensor, "lanes N vocab"]:
    return _linear(_norm(final, net.norm, _eps(net)), net.head)


def _linear(x: Float[Tensor, "lanes N inputs"], weight: Float[Tensor, "lanes out inputs"]):
    # One lane is no batch: the plain product has the faster kernel.
    return F.linear(x[0], weight[0])[None] if len(weight) == 1 else torch.bmm(x, weight.transpose(1, 2))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w x (mean x^2 + eps)^(-1/2) over the features."""
    return _Norm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def _gated(gate: Float[Tensor, "lanes N f"], up: Float[Tensor, "lanes N f"]) -> Float[Tensor, "lanes N f"]:
    """silu(gate) * up."""
    return _Gated.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate).mul_(up)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    rate = torch.addcmul(x.new_full((), eps), length, length, value=1 / x.shape[-1]).rsqrt_()
    unit = x * rate
    return unit * weight, unit, rate


class _Norm(torch.autograd.Function):
    """The norm and its adjoint, x' = r (z - x r mean(z * x r)) with z = w * y', in the fewest operations."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        out, unit, rate = _normed(x, weight, eps)
        ctx.save_for_backward(unit, rate, weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, back):
        unit, rate, weight = ctx.saved_tensors
        z, slope = back * weight, (back * unit).sum_to_size(weight.shape)
        along = (z * unit).mean(-1, keepdim=True)
        return z.addcmul_(unit, along, value=-1).mul_(rate), slope, None


class _Gated(torch.autograd.Function):
    """silu(gate) * up and its adjoint."""

    @staticmethod
    def forward(ctx, gate, up):
        silu = F.silu(gate)
        ctx.save_for_backward(gate, up, silu)
        return silu * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, back):
        gate, up, silu = ctx.saved_tensors
        return torch.ops.aten.silu_backward(back * up, gate), back * silu


def _block(weights: Weights, name: str) -> Block:
    def read(*names):
        return [weights[f"{name}{n}.weight"] for n in names]

    q, k, v, out = read(*(f"self_attn.{x}_proj" for x in "qkvo"))
    return Block(
        torch.cat([q, k, v], 1),
        torch.stack(read("self_attn.q_norm", "self_attn.k_norm"), 1)[:, None],
        out,
        *(x[:, None] for x in read("post_attention_layernorm")),
        *read("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        *(x[:, None] for x in read("post_feedforward_layernorm")),
    )


def _turn(net: Net, start: int, count: int) -> Turn:
    """Both halves of a head share an angle; the sign of the first half's sine goes with it, for a roll of the head is
    then all that the rotation needs."""
    with precision_of(net.model):
        cos, sin = net.model.model.rotary_emb(net.embed, torch.arange(start, start + count)[None])
    scales = cos.new_tensor([_attention(net).scaling, 1.0])[:, None, None]
    half = cos.shape[-1] // 2
    signs = torch.cat([cos.new_full((half,), -1.0), cos.new_ones(half)])
    return cos[0, :, None, None] * scales, (sin[0] * signs)[:, None, None] * scales


def _future(new: int, like: Tensor) -> Float[Tensor, "new new"]:
    """What is added to the scores of tokens that follow each other."""
    return like.new_full((new, new), -math.inf).triu(1)


def _by_head(x: Float[Tensor, "sequences S heads head_dim"], group: int) -> Tensor:
    """[prompts * heads * group, S, head_dim]: head by head within a prompt, completion by completion within a head."""
    return x.unflatten(0, (-1, group)).permute(0, 3, 1, 2, 4).flatten(0, 2)


def _by_position(x: Float[Tensor, "some S head_dim"], net: Net, group: int) -> Tensor:
    """The inverse of :func:`_by_head`."""
    heads = net.blocks[0].out.shape[2] // x.shape[2]
    return x.unflatten(0, (-1, heads, group)).permute(0, 2, 3, 1, 4).flatten(0, 1)


def _laid_out(
    x: Float[Tensor, "prompt_heads L head_dim"], heads: int, group: int, more: int
) -> Float[Tensor, "sequence_heads buffer head_dim"]:
    """A prompt's keys for each of its completions, with room for more."""
    buffer = x.new_empty(len(x) // heads, group, heads, x.shape[1] + more, x.shape[2])
    buffer[:, :, :, : x.shape[1]] = x.detach().unflatten(0, (-1, heads))[:, None]
    return buffer.flatten(0, 2)


def _attention(net: Net) -> nn.Module:
    return net.model.model.layers[0].self_attn


def _eps(net: Net) -> float:
    return net.model.model.norm.variance_epsilon
