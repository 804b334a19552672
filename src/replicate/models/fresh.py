"""Small causal language models of ``transformers`` with fresh weights: the controls beside trained checkpoints.

They are in float64 with eager attention, because exact statements are asserted on them. The library's own
initialisation, N(0, 0.02), makes a narrow model almost linear and its policy almost uniform; here every matrix is
N(0, gain^2 / fan-in), which keeps activations of order one at any width.
"""

import math

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
)

from replicate.checks import one_of

FAMILIES = ("olmo2", "llama", "gpt2")


def tiny_model(
    family: str = "olmo2",
    *,
    layers: int = 2,
    hidden: int = 16,
    heads: int = 2,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    vocab: int = 5,
    context: int = 64,
    gain: float = 1.0,
    attention: str = "eager",
    generator: torch.Generator,
) -> PreTrainedModel:
    """A model of ``family`` in evaluation mode whose vocabulary has no padding rows.

    ``head_dim`` (default hidden / heads) and ``kv_heads`` (default heads) can be set for OLMo-2 and Llama; GPT-2
    has neither, and ties its head to its embeddings. Raises ``ValueError`` for an unknown family, for a shape the
    family cannot have, and for an odd head size where positions are rotated.
    """
    one_of("family", family, FAMILIES)
    if (head_dim is None or family == "llama") and hidden % heads:
        raise ValueError(f"hidden, heads: expected hidden a multiple of heads, got {hidden} and {heads}")
    if family == "gpt2" and (head_dim is not None or kv_heads is not None):
        raise ValueError(
            "head_dim, kv_heads: GPT-2 has hidden / heads and as many key heads as heads, got others"
        )
    size = hidden // heads if head_dim is None else head_dim
    if family != "gpt2" and size % 2:
        raise ValueError(f"head_dim: expected an even number for rotary positions, got {size}")
    build = _gpt2 if family == "gpt2" else _rotary
    model = build(family, layers, hidden, heads, size, kv_heads or heads, vocab, context)
    model.set_attn_implementation(attention)
    _draw(model, gain, generator)
    return model.double().eval()


def _rotary(family, layers, hidden, heads, head_dim, kv_heads, vocab, context) -> PreTrainedModel:
    config_class, model_class = {
        "olmo2": (Olmo2Config, Olmo2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = config_class(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return model_class(config)


def _gpt2(family, layers, hidden, heads, head_dim, kv_heads, vocab, context) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


@torch.no_grad()
def rescaled(model: PreTrainedModel, *, by: float) -> PreTrainedModel:
    """``model`` with its final norm's weight divided and its output head multiplied by ``by``, in place.

    No output changes (by a power of two not even in its last bit), but every hidden state behind the final norm does,
    and every gradient there: a comparison that this moves compares coordinates. Raises ``ValueError`` unless ``by``
    is positive, and for a model whose head is tied to its embeddings, whose inputs this would move.
    """
    head = model.get_output_embeddings().weight
    if not by > 0:
        raise ValueError(f"by: expected a positive number, got {by}")
    if head is model.get_input_embeddings().weight:
        raise ValueError("model: expected a head of its own, got one that is tied to the embeddings")
    norm = model.get_decoder().norm
    norm.weight.div_(by)
    head.mul_(by)
    return model


@torch.no_grad()
def _draw(model: nn.Module, gain: float, generator: torch.Generator) -> None:
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = id(model.get_output_embeddings().weight)
    for weight in model.parameters():
        if id(weight) in embeddings and id(weight) != head:
            weight.normal_(0.0, 1.0, generator=generator)
        elif weight.ndim == 2:
            weight.normal_(0.0, gain / math.sqrt(weight.shape[-1]), generator=generator)


def tiny_olmo2(
    *, layers: int, hidden: int, heads: int, context: int, vocab: int, generator: torch.Generator
) -> Olmo2ForCausalLM:
    """A small OLMo-2 with fresh weights drawn from ``generator``: every matrix N(0, 0.02), every norm scale 1.

    Like OLMo-2 it has untied embeddings and more rows than tokens (here: rounded up to a multiple of 32).
    """
    config = Olmo2Config(
        vocab_size=-(-(vocab + 1) // 32) * 32,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        dtype="float32",
    )
    model = Olmo2ForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, config.initializer_range, generator=generator)
            else:
                weight.fill_(1.0)
    return model
