"""A one-hidden-layer network whose parameters are one flat vector theta, as in the paper."""

import torch
from jaxtyping import Float
from torch import Tensor


def mlp_size(inputs: int, hidden: int, outputs: int) -> int:
    """Number of parameters of :func:`mlp`."""
    return (inputs + 1) * hidden + (hidden + 1) * outputs


def mlp_init(
    inputs: int, hidden: int, outputs: int, *, generator: torch.Generator, scale: float | int = 1.0
) -> Float[Tensor, " params"]:
    """Gaussian weights of variance scale^2 / fan-in (biases too: no symmetry, no zero derivative)."""
    first = torch.randn((inputs + 1) * hidden, generator=generator, dtype=torch.float64) / inputs**0.5
    second = torch.randn((hidden + 1) * outputs, generator=generator, dtype=torch.float64) / hidden**0.5
    return scale * torch.cat([first, second])


def mlp(
    x: Float[Tensor, "*batch inputs"], theta: Float[Tensor, " params"], *, hidden: int, outputs: int
) -> Float[Tensor, "*batch outputs"]:
    """W2 tanh(W1 x + b1) + b2 with theta = (W1, b1, W2, b2), each row by row.

    Raises ``ValueError`` if ``theta`` does not have the :func:`mlp_size` entries that the sizes ask for.
    """
    inputs = x.shape[-1]
    if theta.shape[-1] != mlp_size(inputs, hidden, outputs):
        raise ValueError(
            f"theta: expected {mlp_size(inputs, hidden, outputs)} parameters, got {theta.shape[-1]}"
        )
    w1, b1, w2, b2 = theta.split([inputs * hidden, hidden, hidden * outputs, outputs])
    h = torch.tanh(x @ w1.view(hidden, inputs).T + b1)
    return h @ w2.view(outputs, hidden).T + b2
