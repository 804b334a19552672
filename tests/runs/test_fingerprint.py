"""The fingerprint reports what a machine computes: the same twice, other bits under other kernels."""

import json
import os
import subprocess
import sys
import warnings

import pytest

from replicate import kernels
from replicate.runs import fingerprint


def in_a_fresh_process(expression, setting="pinned"):
    """There the package is imported first; here pytest's plugins have imported numpy before."""
    code = f"import json; from replicate.runs import fingerprint; print(json.dumps(fingerprint.{expression}))"
    clean = {k: v for k, v in os.environ.items() if k not in kernels.PINS}
    text = subprocess.check_output(
        [sys.executable, "-c", code], env={**clean, "REPLICATE_KERNELS": setting}, text=True
    )
    return json.loads(text)


def test_this_machine_against_the_reference_is_reported():
    """Another machine may differ, and then this says in what; a machine differs from itself never."""
    found = in_a_fresh_process("fingerprint()")
    assert in_a_fresh_process("operations()").items() <= found.items()
    assert found.keys() == fingerprint.REFERENCE.keys()
    if differs := fingerprint.differences(found):
        warnings.warn(
            f"kernels {kernels.name()}: other bits than the published run's in {differs}; verdicts must not depend on "
            "it, records may",
            stacklevel=1,
        )


def test_a_difference_is_found():
    changed = {**fingerprint.REFERENCE, "torch exp": "00000000"}
    assert fingerprint.differences(fingerprint.REFERENCE) == []
    assert fingerprint.differences(changed) == ["torch exp"]


@pytest.mark.skipif("avx2" not in kernels.processor_features(), reason="one kind of kernels only")
def test_the_stand_in_computes_other_bits():
    """Else a test under it would say nothing about another machine."""
    found = {setting: in_a_fresh_process("operations()", setting) for setting in ("pinned", "stand-in")}
    differs = {name for name, value in found["pinned"].items() if found["stand-in"][name] != value}
    assert {"torch randn float32", "torch softmax", "torch product float32", "numpy product"} <= differs
