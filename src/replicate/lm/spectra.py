"""Sizes and ranks of matrices from their singular values, and the breadth of a distribution of weights."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor


def operator_norm(matrix: Float[Tensor, "m n"]) -> float:
    """Largest singular value, from the smaller of the two Gram matrices."""
    matrix = matrix[:, matrix.any(0)]  # columns of zeros do not change it, and the token path has many
    if not matrix.numel():
        return 0.0
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0.0).sqrt())


def operator_norm_of(
    forward: Callable[[Tensor], Tensor],
    transposed: Callable[[Tensor], Tensor],
    size: int,
    *,
    tol: float = 1e-8,
) -> float:
    """Largest singular value of a map from ``size`` features that is known by its products with vectors alone.

    By Lanczos iteration on A^T A, whose largest eigenvalue comes to ``tol``, relatively; from a fixed start, so that
    the answer is one. ``forward`` and ``transposed`` take [1, features] and give [1, features].
    """

    def gram(w: np.ndarray) -> np.ndarray:
        row = torch.from_numpy(np.ascontiguousarray(w, dtype=np.float64)).reshape(1, -1)
        return transposed(forward(row))[0].numpy()

    start = np.random.default_rng(0).standard_normal(size)
    if not gram(start).any():
        return 0.0
    operator = LinearOperator((size, size), matvec=gram, dtype=np.float64)
    top = eigsh(operator, k=1, v0=start, ncv=min(size, 12), tol=tol, return_eigenvectors=False)
    return float(max(top[0], 0.0) ** 0.5)


def numerical_rank(matrices: Float[Tensor, "*batch out in"], *, rtol: float = 1e-10) -> Int[Tensor, "*batch"]:
    """Number of singular values above ``rtol`` times the largest; 0 for a matrix of zeros.

    The default stands between round-off in float64 (1e-15) and the smallest genuine singular values of a tiny model.
    """
    values = torch.linalg.svdvals(matrices)
    return ((values > rtol * values[..., :1]) & (values[..., :1] > 0)).sum(-1)


def participation_ratio(matrices: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """(sum s^2)^2 / sum s^4 over singular values s: how many directions carry the Jacobian; 0 for zeros."""
    gram = _gram(matrices)
    return torch.nan_to_num(_trace(gram).square() / gram.square().sum((-2, -1)), nan=0.0)


def entropy_rank(matrices: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of s^2 / sum s^2 over singular values s; 0 for zeros."""
    power = torch.linalg.eigvalsh(_gram(matrices)).clamp_min(0.0)
    total = power.sum(-1)
    spread = torch.special.entr(power / total.clamp_min(1e-300)[..., None]).sum(-1).exp()
    return torch.where(total > 0, spread, 0.0)


def breadth(alpha: Float[Tensor, "*batch context"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of attention weights over a context, after normalising them: a number of positions."""
    share = alpha / alpha.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def spectral_gap(matrices: Float[Tensor, "*batch out in"], count: int) -> float:
    """Largest ratio of the (count + 1)-th to the count-th singular value over the batch: round-off where ``count`` is
    the rank, whatever the tolerance. NaN where there is no (count + 1)-th. Raises ``ValueError`` for count < 1."""
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    values = torch.linalg.svdvals(matrices)
    if count >= values.shape[-1]:
        return float("nan")
    return float((values[..., count] / values[..., count - 1]).max())


def _gram(matrices: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch n n"]:
    """The smaller of the two Gram matrices; its eigenvalues are the squared singular values."""
    return matrices @ matrices.mT if matrices.shape[-2] < matrices.shape[-1] else matrices.mT @ matrices


def _trace(matrices: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
