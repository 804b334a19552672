"""Which machine code computes: the pins that make different x86 processors round alike.

torch, MKL, oneDNN, numpy and OpenBLAS look at the processor and choose among several kernels for one operation. The
kernels differ in their last bits, training multiplies the difference, and the same code then leaves other weights on
another machine. :func:`pin` asks all five for their AVX2 kernels, which every x86 processor since about 2015 has. It
runs when ``replicate`` is imported, before torch and numpy are; what the environment already says wins, and
``REPLICATE_KERNELS=native`` leaves everything alone.

What each pin holds still (found by switching them one at a time, torch 2.13, numpy 2.4):

- ``ATEN_CPU_CAPABILITY``: torch's own vector loops; softmax and fused attention differ between AVX2 and AVX-512;
- ``MKL_CBWR``: linear algebra of torch in float64 (singular values, eigenvalues);
- ``DNNL_MAX_CPU_ISA``: products in bfloat16;
- ``NPY_DISABLE_CPU_FEATURES``: numpy's exp and log, and what scipy builds on them;
- ``OPENBLAS_CORETYPE``: linear algebra of numpy and scipy.

Beyond reach are arm64, GPUs, other versions of the libraries and the C library's own functions. So no verdict may hang
on these bits: :data:`STAND_IN` selects kernels of another generation, which give other weights from the first step on,
and stand for another machine wherever the suite is tested.
"""

import os
import platform
from collections.abc import Mapping, MutableMapping
from functools import cache
from pathlib import Path

PINS: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2,STRICT",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
"""Environment variables, read by the libraries when they are first used."""

STAND_IN: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
}
"""Kernels without AVX: another machine's last bits, at about twice the time."""

SETTINGS: Mapping[str, Mapping[str, str]] = {"pinned": PINS, "native": {}, "stand-in": STAND_IN}
"""What ``REPLICATE_KERNELS`` may say: the pins (the default), whatever each library chooses by itself, the stand-in."""


def pin(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables of the setting that ``REPLICATE_KERNELS`` names; without AVX2 or off Linux nothing.

    By default these are the pins, each of which gives way to a value that is there already. The stand-in takes
    precedence. An unknown setting counts as the default here, so that no import fails; :func:`setting` names it.
    """
    setting, features = environment.get("REPLICATE_KERNELS", "pinned"), processor_features()
    for variable, value in SETTINGS.get(setting, PINS).items() if "avx2" in features else ():
        # numpy warns of features that the processor does not have anyway.
        if variable == "NPY_DISABLE_CPU_FEATURES" and "avx512f" not in features:
            value = value.replace("X86_V4 AVX512_ICL AVX512_SPR", "").strip()
        if value and setting == "stand-in":
            environment[variable] = value
        elif value:
            environment.setdefault(variable, value)


def setting(environment: Mapping[str, str] = os.environ) -> str:
    """What ``REPLICATE_KERNELS`` says; ``ValueError`` if that is none of :data:`SETTINGS`."""
    chosen = environment.get("REPLICATE_KERNELS", "pinned")
    if chosen not in SETTINGS:
        raise ValueError(f"REPLICATE_KERNELS: expected one of {', '.join(SETTINGS)}, got {chosen!r}")
    return chosen


@cache
def processor_features() -> frozenset[str]:
    """The instruction sets of an x86 processor as Linux lists them; empty elsewhere."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def name() -> str:
    """The kernels in force, for keys and provenance: ``pinned avx2``, or torch's choice and what the environment asks.

    numpy's variable does not count: it is needed on processors with AVX-512 only.
    """
    import torch

    chosen = torch.backends.cpu.get_cpu_capability().lower()
    counting = [variable for variable in PINS if variable != "NPY_DISABLE_CPU_FEATURES"]
    if chosen == "avx2" and all(os.environ.get(variable) == PINS[variable] for variable in counting):
        return "pinned avx2"
    asked = [f"{variable}={os.environ[variable]}" for variable in counting if os.environ.get(variable)]
    return " ".join([chosen, *asked])
