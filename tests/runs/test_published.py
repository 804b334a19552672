"""A published study of cells is read as it was written, and what is not one is named in one line."""

import pytest

import horizons_records as made
from replicate.runs import published

HOW = {"what": "longer answers", "parameters": "params/horizons.yaml"}


def test_a_setting_of_a_tenth_is_a_tenth_again(tmp_path):
    """Written as float32, which is 0.10000000149 when it is only widened."""
    made.write(tmp_path)
    found, said = published.read(tmp_path, ["cells", "gains"], **HOW)
    assert set(found["cells"].KL_COEF) == {0.0, 0.001}
    assert set(found["cells"].LEARNING_RATE) == {2.0e-4}
    assert published.records_made(said) == ("2026-01-01T12:00:00+00:00", "2026-01-02T12:00:00+00:00")


def test_a_folder_that_is_none_and_gains_of_other_cells_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"no published study of longer answers .*-f params/horizons.yaml --publish"
    ):
        published.read(tmp_path, ["cells"], **HOW)
    made.write(tmp_path)
    made.cells()[1:].to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match=r"expected gains of exactly its cells, got \['rungs T1 all'\]"):
        published.read(tmp_path, ["cells", "gains"], **HOW)
