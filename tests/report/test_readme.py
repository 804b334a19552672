"""The README's generated blocks: what ran where and how long, and nothing outside the markers."""

import json

import pytest

from replicate.report import readme

PROVENANCE = {
    "ladder": "tiny ladder",
    "checkpoints": {"a": "1", "b": "2"},
    "seeds": {"rl": [0, 1]},
    "parameters": {"BUDGETS": [5]},
    "notebooks": {
        "cores": 2, "processor": "P", "kernels": "pinned avx2", "versions": {"torch": "T", "transformers": "F"}
    },
    "wall_seconds": {"ladder": 60.2, "jobs": 90.0, "notebooks": 30.0},
    "notebook_seconds": {"01_a": 4.0, "06_gap": 26.4},
    "mixed": [],
}  # fmt: skip


@pytest.mark.parametrize(("mixed", "said"), [([], False), (["commit"], True)])
def test_what_ran_where_and_how_long(tmp_path, mixed, said):
    """Mixed origins are said aloud."""
    (tmp_path / "provenance.json").write_text(json.dumps(PROVENANCE | {"mixed": mixed}))
    text = readme.run_block(tmp_path)
    for piece in ("2 checkpoints", "3.0 minutes on 2 cores", "kernels pinned avx2", "06_gap, took 26 s"):
        assert piece in text
    assert ("Mixed origins: commit." in text) is said


def test_only_what_stands_between_markers_changes():
    text = "before <!-- run:start -->\nold\n<!-- run:end --> after"
    assert (
        readme.fill(text, {"run": r"new \1"}) == "before <!-- run:start -->\nnew \\1\n<!-- run:end --> after"
    )
    with pytest.raises(ValueError, match="no block named claims"):
        readme.fill(text, {"claims": "x"})
