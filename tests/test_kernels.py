"""Pinned kernels: set before torch is there, giving way to what the environment says, named in keys."""

import os
import subprocess
import sys

import pytest

from replicate import kernels

X86 = pytest.mark.skipif(
    "avx2" not in kernels.processor_features(), reason="the pins are for x86 with AVX2 on Linux"
)


def in_a_fresh_process(code, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in {*kernels.PINS, "REPLICATE_KERNELS"}}
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=True,
    )
    return done.stdout.strip()


NAME = "import replicate; from replicate import kernels; print(kernels.name())"


@X86
def test_importing_the_package_pins_torch_to_avx2():
    assert in_a_fresh_process(NAME) == "pinned avx2"


@X86
def test_the_stand_in_is_another_machine_and_children_inherit_it():
    assert in_a_fresh_process(NAME, REPLICATE_KERNELS="stand-in").split()[0] == "default"
    child = (
        f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {NAME!r}], text=True))"
    )
    said = in_a_fresh_process(f"import replicate; {child}", REPLICATE_KERNELS="stand-in")
    assert said.startswith("default ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE")


@X86
def test_native_pins_nothing():
    code = "import replicate, os; from replicate import kernels; print(set(kernels.PINS) & set(os.environ))"
    assert in_a_fresh_process(code, REPLICATE_KERNELS="native") == "set()"


@X86
def test_what_the_environment_says_wins_over_a_pin():
    assert in_a_fresh_process(NAME, ATEN_CPU_CAPABILITY="default").startswith("default ")


@X86
def test_one_pin_less_is_no_longer_called_pinned():
    assert in_a_fresh_process(NAME, MKL_CBWR="COMPATIBLE").startswith(
        "avx2 ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMP"
    )


def test_without_avx2_nothing_is_pinned(monkeypatch):
    monkeypatch.setattr(kernels, "processor_features", lambda: frozenset({"sse4_2"}))
    environment = {}
    kernels.pin(environment)
    assert environment == {}


def test_numpy_is_not_told_of_features_that_are_not_there(monkeypatch):
    """It would warn at every import."""
    monkeypatch.setattr(kernels, "processor_features", lambda: frozenset({"avx2"}))
    environment = {}
    kernels.pin(environment)
    assert set(environment) == set(kernels.PINS) - {"NPY_DISABLE_CPU_FEATURES"}
    environment = {"REPLICATE_KERNELS": "stand-in"}
    kernels.pin(environment)
    assert environment["NPY_DISABLE_CPU_FEATURES"] == "X86_V3"


def test_an_unknown_setting_is_named():
    with pytest.raises(
        ValueError, match="REPLICATE_KERNELS: expected one of pinned, native, stand-in, got 'avx9'"
    ):
        kernels.setting({"REPLICATE_KERNELS": "avx9"})
    assert kernels.setting({}) == "pinned"
