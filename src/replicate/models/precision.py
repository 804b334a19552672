"""Switches on what torch computes inside a model of ``transformers``, for as long as a ``with`` block lasts.

:func:`full_precision`: OLMo-2 and Llama take their norms, and all eager attention its softmax, in float32 whatever
the dtype of the weights. Values are then off by 1e-8 and so are gradients, so that no identity holds to 1e-10 and
finite differences see a staircase. The switch keeps float64 tensors in float64.

:func:`held_attention`: attention weights are taken as constants, which leaves the value term of an attention
Jacobian and drops the derivative of the scores.

:func:`attention_operands`: collects queries, keys and values as they enter the two products of eager attention, after
rotation and after key heads are repeated for their queries.

They act on the calls themselves, so they work for every architecture that is written in plain torch functions.

And what half precision means where weights are trained: :func:`trained_dtype` and :class:`Casts`.
"""

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CASTS = (Tensor.to, Tensor.float, Tensor.type)
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_SOFTMAX = (torch.nn.functional.softmax, torch.softmax, Tensor.softmax)


class full_precision(TorchFunctionMode):
    """Inside, a float64 tensor is not cast to float32, neither outright nor by a softmax; others are left alone.

    A product whose operands would have met in float32 is taken in float64.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _PRODUCTS and {a.dtype for a in args} == {torch.float32, torch.float64}:
            args = tuple(a.to(torch.float64) for a in args)
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func in _CASTS and _asks_float32(func, args, kwargs):
                return args[0]
            if func in _SOFTMAX and kwargs.get("dtype") == torch.float32:
                kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **kwargs)


class held_attention(TorchFunctionMode):
    """Inside, no gradient flows through any softmax. Meant around one attention module, which has exactly one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out.detach() if func in _SOFTMAX else out


class attention_operands(TorchFunctionMode):
    """Collects the operands of products of two four-dimensional tensors: (q, k^T), then (alpha, v), per attention."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _PRODUCTS and len(args) == 2 and args[0].ndim == args[1].ndim == 4:
            self.products.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))


def precision_of(model: nn.Module) -> AbstractContextManager:
    """:class:`full_precision` around a float64 model, nothing (and no cost) around another."""
    return full_precision() if next(model.parameters()).dtype == torch.float64 else nullcontext()


def trained_dtype(dtype: torch.dtype) -> torch.dtype:
    """How weights that are trained are kept if a model computes in ``dtype``: in float32 at least.

    An update of RL moves a weight by a millionth of itself; bfloat16 has three digits and would forget it.
    """
    return torch.promote_types(dtype, torch.float32)


class Casts:
    """Copies of ``weights`` in ``dtype``, as passes of a model read them, with the graph that leads back to them.

    They are made once for all passes between two updates: anew when a weight has changed in place, or has been given a
    gradient, since fused optimisers move weights without counting it. Gradients come back in the weights' precision.
    """

    def __init__(self, weights: Iterable[Tensor], dtype: torch.dtype) -> None:
        self.weights, self.dtype = list(weights), dtype
        self._made: list[Tensor] = []
        self._of: list[int] = []
        me = weakref.ref(
            self
        )  # a weight that held this object, which holds it, would outlive the last to use it
        for weight in self.weights:
            if weight.requires_grad and weight.dtype != dtype:
                weight.register_post_accumulate_grad_hook(lambda _: (casts := me()) and casts._drop())

    def __call__(self) -> list[Tensor]:
        """The copies; they carry the graph also where they are asked for without gradients, to serve both."""
        versions = [weight._version for weight in self.weights]
        if versions != self._of:
            self._drop()  # before the new ones are there: two sets of them would be a waste of memory
            with torch.enable_grad():
                self._made = [weight.to(self.dtype) for weight in self.weights]
            self._of = versions
        return self._made

    def _drop(self) -> None:
        self._made, self._of = [], []


def _asks_float32(func, args, kwargs) -> bool:
    return func is Tensor.float or torch.float32 in args[1:] or kwargs.get("dtype") == torch.float32
