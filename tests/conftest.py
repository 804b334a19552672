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

from english import byte_level, whole_words
from replicate.ladder import corpus
from replicate.ladder.pretrain import train
from replicate.models.fresh import tiny_model
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


@pytest.fixture(scope="session")
def bpe():
    """See :func:`english.byte_level`."""
    return byte_level()


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def strangers(request, bpe, tmp_path_factory):
    """A folder with two rungs of somebody else's model, float64, as a trainer saves them; more rows than tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    for step in (100, 200):
        generator = torch.Generator().manual_seed(step)
        model = tiny_model(request.param, vocab=len(bpe) + 10, gain=1 + step / 200, generator=generator)
        for target in (model, bpe):
            target.save_pretrained(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture(scope="session")
def whole_bpe():
    """See :func:`english.whole_words`."""
    return whole_words()


@pytest.fixture(scope="session")
def snapshots_of():
    """Makes a folder of snapshots ``checkpoint-STEP`` of fresh models of a family, other weights at every step.

    ``words`` is the tokenizer (default: the corpus' words), ``padding`` the number of embedding rows behind its tokens.
    """

    def folder(root, family, *, steps=(0, 100, 200), words=None, padding=0, **shape):
        words = words or corpus.tokenizer()
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            model = tiny_model(family, vocab=len(words) + padding, generator=generator, **shape)
            where = root / f"checkpoint-{step}"
            model.float().save_pretrained(where)
            words.save_pretrained(where)
        return root

    return folder
