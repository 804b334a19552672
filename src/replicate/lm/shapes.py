"""The shape of a transformer as Prop. 3 counts it, and where it keeps the weights of its values."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replicate.lm.attention import attention_module


@dataclass(frozen=True)
class Shape:
    """What Prop. 3 counts: blocks, heads, key-value heads, their width and the model's width."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int

    @property
    def layer_bound(self) -> int:
        """Rank bound of one sublayer's cross-position Jacobian, min(d_model, heads x d_head)."""
        return min(self.hidden, self.heads * self.head_dim)

    @property
    def input_bound(self) -> int:
        """What the input side allows besides: x_j enters through the keys and values of the key-value heads only,
        and of the keys only one direction per query head."""
        return min(
            self.layer_bound, self.kv_heads * self.head_dim + min(self.heads, self.kv_heads * self.head_dim)
        )

    @property
    def total_bound(self) -> int:
        """Rank bound of the whole model's, min(d_model, layers x heads x d_head)."""
        return min(self.hidden, self.layers * self.heads * self.head_dim)


def shape_of(model: nn.Module) -> Shape:
    """Reads a model's shape from its configuration and its attention modules."""
    config = model.config
    heads = config.num_attention_heads
    size = getattr(attention_module(model, 0), "head_dim", config.hidden_size // heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Shape(config.num_hidden_layers, heads, kv_heads, size, config.hidden_size)


def value_weights(model: nn.Module) -> Float[Tensor, "layers heads head_dim hidden"]:
    """W_V of every layer and query head, as its attention weighs them (shared ones repeated), from the weights.

    Raises ``ValueError`` for an attention module that has neither ``v_proj`` nor GPT-2's ``c_attn``.
    """
    shape = shape_of(model)
    found = [_values_of(attention_module(model, layer), shape) for layer in range(shape.layers)]
    return torch.stack(found).repeat_interleave(shape.heads // shape.kv_heads, dim=1)


def _values_of(module: nn.Module, shape: Shape) -> Float[Tensor, "kv_heads head_dim hidden"]:
    if hasattr(module, "v_proj"):
        weight = module.v_proj.weight
    elif hasattr(module, "c_attn"):  # queries, keys and values side by side, stored [in, out]
        weight = module.c_attn.weight.T[-shape.heads * shape.head_dim :]
    else:
        raise ValueError(f"model: expected v_proj or c_attn in its attention, got {type(module).__name__}")
    return weight.detach().unflatten(0, (shape.kv_heads, shape.head_dim))


def value_path_weights(model: nn.Module) -> Float[Tensor, "layers heads hidden hidden"]:
    """W_O W_V of every layer and query head, from the weights: what a head writes of a position's value path.

    Raises ``ValueError`` as :func:`value_weights`.
    """
    shape, values = shape_of(model), value_weights(model)
    outputs = [_outputs_of(attention_module(model, layer), shape) for layer in range(shape.layers)]
    return torch.stack(outputs) @ values


def _outputs_of(module: nn.Module, shape: Shape) -> Float[Tensor, "heads hidden head_dim"]:
    weight = (
        module.o_proj.weight if hasattr(module, "o_proj") else module.c_proj.weight.T
    )  # c_proj: [in, out]
    return weight.detach().unflatten(1, (shape.heads, shape.head_dim)).transpose(0, 1)
