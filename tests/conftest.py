"""Shared by all tests: an address for a hub, a fixed thread count, a home of their own, one tiny ladder a session."""

import os
import socket

# No test asks the public hub: each process has a small one of its own, see hub_server.py. The client reads
# the address when it is imported.
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{free.getsockname()[1]}"

# The package before torch, which then finds its kernels pinned.
# isort: off
import replicate  # noqa: F401
import torch

# isort: on
import pytest

from replicate.ladder.pretrain import train
from replicate.settings.tiny_ladder import TinyLadder


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Small, and quick to learn where the labels stand: three checkpoints that differ.
SPEC = TinyLadder(
    steps=40, every=20, layers=2, hidden=32, heads=2, context=32, batch=16, learning_rate=6e-3,
    records=0.3, label_documents=0.6, labels=4,
)  # fmt: skip


@pytest.fixture(scope="session")
def spec():
    """The parameters of the session's ladder."""
    return SPEC


@pytest.fixture(scope="session")
def ladder(tmp_path_factory):
    """A trained ladder of three checkpoints."""
    return train(SPEC, tmp_path_factory.mktemp("ladders"), progress=False)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A scratch folder that all relative paths of parameters mean."""
    monkeypatch.setenv("REPLICATE_HOME", str(tmp_path))
    return tmp_path
