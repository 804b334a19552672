"""Sizes, ranks and breadths from singular values, on matrices that have known ones."""

import math

import pytest
import torch

from replicate.lm import spectra

EXACT = 1e-10


def with_singular_values(values, *, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), generator=g, dtype=torch.float64)).Q
        for n in (rows, columns)
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7), (5, 5)])
def test_operator_norm_is_the_largest_singular_value_of_either_shape(rows, columns):
    matrix = with_singular_values([3.0, 2.0, 0.1], rows=rows, columns=columns)
    assert spectra.operator_norm(matrix) == pytest.approx(3.0, rel=EXACT)
    wide = torch.cat([torch.zeros(rows, 50, dtype=torch.float64), matrix], 1)
    assert spectra.operator_norm(wide) == pytest.approx(3.0, rel=EXACT)  # columns of zeros change nothing


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_operator_norm_of_nothing_is_zero(shape):
    assert spectra.operator_norm(torch.zeros(*shape, dtype=torch.float64)) == 0.0


def test_numerical_rank_counts_relative_to_the_largest():
    matrices = torch.stack(
        [
            with_singular_values(values, rows=6, columns=5)
            for values in ([5.0, 1.0, 1e-8], [5e20, 1e20, 1e12], [1.0, 1e-13, 1e-14])
        ]
        + [torch.zeros(6, 5, dtype=torch.float64)]
    )
    assert spectra.numerical_rank(matrices).tolist() == [3, 3, 1, 0]
    assert spectra.numerical_rank(matrices, rtol=1e-6).tolist() == [2, 2, 1, 0]


def test_effective_ranks_of_equal_and_of_unequal_singular_values():
    equal = with_singular_values([2.0] * 3, rows=6, columns=5)
    skewed = with_singular_values([2.0, 1.0], rows=6, columns=5)
    both = torch.stack([equal, skewed, torch.zeros_like(equal)])
    assert spectra.participation_ratio(both).tolist() == pytest.approx([3.0, 25 / 17, 0.0], rel=EXACT)
    nats = 0.8 * math.log(5 / 4) + 0.2 * math.log(5)
    assert spectra.entropy_rank(both).tolist() == pytest.approx([3.0, math.exp(nats), 0.0], rel=EXACT)


def test_breadth_counts_positions_whatever_the_weights_sum():
    alpha = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]]).double()
    assert spectra.breadth(0.1 * alpha).tolist() == pytest.approx([4.0, 1.0, 2.0], rel=EXACT)


def test_spectral_gap_is_round_off_at_the_rank_and_not_before():
    batch = torch.stack([with_singular_values(x, rows=6, columns=5) for x in ([4.0, 2.0], [4.0, 0.4])])
    assert spectra.spectral_gap(batch, 2) < 1e-14
    assert spectra.spectral_gap(batch, 1) == pytest.approx(0.5, rel=EXACT)  # the larger of the two
    assert math.isnan(spectra.spectral_gap(batch, 5))
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        spectra.spectral_gap(batch, 0)
