"""Compiled decoder blocks: norms, rotations and gates of a large model fused, which else wait for memory.

All blocks share one graph, so that it is compiled once for each shape of input, in half a minute or so. That pays for a
model of a billion parameters and for no tiny one. The last bits are other ones than without.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import nn

from replicate.models.hooks import blocks

_BACKENDS: WeakKeyDictionary[nn.Module, str | Callable] = WeakKeyDictionary()


def compile_blocks(model: nn.Module, *, backend: str | Callable = "inductor") -> None:
    """From now on ``model`` runs compiled blocks, and so do the passes that are written out for it."""
    for block in blocks(model):
        block.compile(dynamic=False, backend=backend)
    _BACKENDS[model] = backend


def is_compiled(model: nn.Module) -> bool:
    """Whether :func:`compile_blocks` was called for ``model``."""
    return model in _BACKENDS


def compiled(function: Callable, model: nn.Module) -> Callable:
    """``function`` of a block of ``model``, compiled if the model's blocks are."""
    backend = _BACKENDS.get(model)
    return function if backend is None else _made(function, backend)


def uncompiled(model: nn.Module) -> AbstractContextManager:
    """Inside, ``model`` runs as it was written: where each call has another shape, as when a cache grows."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


@cache
def _made(function: Callable, backend: str | Callable) -> Callable:
    return torch.compile(function, dynamic=False, backend=backend)
