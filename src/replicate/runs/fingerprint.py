"""Does this machine compute the same bits as the one that published the results?

A fingerprint is the hashes of a few operations, one per library and kind, and of the three checkpoints of a ladder that
takes some seconds to train. If it equals :data:`REFERENCE`, records of this machine should equal the published ones bit
for bit; if not, the operations that differ say where to look. Verdicts must be the same either way.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.linalg
import torch

from replicate import kernels
from replicate.ladder.pretrain import train
from replicate.settings.tiny_ladder import TinyLadder
from replicate.threads import fixed_threads

LADDER = TinyLadder(
    seed=0, steps=150, every=75, layers=2, hidden=64, heads=4, context=32, batch=64, learning_rate=6e-3,
    warmup=50, records=0.5, label_documents=0.5, noise=0.0, labels=4,
)  # fmt: skip

REFERENCE: Mapping[str, str] = {
    "torch randn float32": "fed4c7a9",
    "torch randn float64": "7a32c010",
    "torch exp": "15d81b31",
    "torch softmax": "18970b7d",
    "torch sum": "a271a34c",
    "torch product float32": "28ab76bd",
    "torch product float64": "a00084a6",
    "torch product bfloat16": "964c293a",
    "torch attention": "0f46df24",
    "torch singular values": "bf0e1ebd",
    "numpy normal": "abab9917",
    "numpy exp": "244b01fb",
    "numpy product": "333afbbb",
    "numpy solve": "a7e035d1",
    "scipy eigenvalues": "43d80c6e",
    "weights at step 0": "854eab8941",
    "weights at step 75": "c5b6b8ad63",
    "weights at step 150": "0dfa18b690",
}
"""The fingerprint with pinned kernels, from torch 2.13, transformers 5.23, numpy 2.4 and scipy 1.17 on x86."""


def operations() -> dict[str, str]:
    """The first eight digits of the hash of each operation's result, in well under a second."""
    with fixed_threads():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 200, generator=generator)
        x64 = torch.randn(200, 200, generator=generator, dtype=torch.float64)
        query = x[None, None, :, :32]
        y = np.random.default_rng(0).standard_normal((200, 200))
        results = {
            "torch randn float32": x,
            "torch randn float64": x64,
            "torch exp": x.exp(),
            "torch softmax": x.softmax(-1),
            "torch sum": x.sum(0),
            "torch product float32": x @ x,
            "torch product float64": x64 @ x64,
            "torch product bfloat16": (x.bfloat16() @ x.bfloat16()).float(),
            "torch attention": torch.nn.functional.scaled_dot_product_attention(
                query, query, query, is_causal=True
            ),
            "torch singular values": torch.linalg.svdvals(x64),
            "numpy normal": y,
            "numpy exp": np.exp(y),
            "numpy product": y @ y,
            # Larger systems are solved on several threads where there are several, with other last bits.
            "numpy solve": np.linalg.solve(y[:60, :60], y[0, :60]),
            "scipy eigenvalues": scipy.linalg.eigh(y + y.T)[0],
        }
    return {name: _hash(np.asarray(value)) for name, value in results.items()}


def weights() -> dict[str, str]:
    """The first ten digits of the content hash of each checkpoint of :data:`LADDER`, trained anew."""
    with tempfile.TemporaryDirectory() as folder:
        return {f"weights at step {c.step}": c.sha[:10] for c in train(LADDER, folder, progress=False)}


def fingerprint() -> dict[str, str]:
    """:func:`operations` and :func:`weights`."""
    return operations() | weights()


def differences(found: Mapping[str, str]) -> list[str]:
    """The entries of ``found`` that are not the reference's."""
    return [name for name, value in found.items() if REFERENCE.get(name) != value]


def summary(found: Mapping[str, str]) -> dict[str, Any]:
    """What provenance says of it: the kernels in force and the entries that differ from the reference."""
    return {"kernels": kernels.name(), "differs_from_reference": differences(found)}


def _hash(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:8]
