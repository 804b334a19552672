"""Shared by all tests: a fixed thread count, a home of their own, and one tiny ladder for the whole session."""

# The package before torch, which then finds its kernels pinned.
# isort: off
import replicate  # noqa: F401
import torch

# isort: on
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from replicate.ladder import corpus
from replicate.ladder.pretrain import train
from replicate.models.fresh import tiny_model
from replicate.rl.tasks.label_copying import LABELS, WORDS, prompt_text
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
def byte_level():
    """A byte-level BPE that has learnt the task's words, each of them one token with its blank, as GPT-2's has."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<pad>", "<eos>"], initial_alphabet=letters, show_progress=False
    )
    lines = [f"{prompt_text(label, list(WORDS))} {label}" for label in LABELS]
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def strangers():
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
