"""Ladders of other makes for the tests: folders of Llama, GPT-2 and OLMo-2 snapshots with fresh weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from replicate.ladder import corpus
from replicate.models.fresh import tiny_model
from replicate.rl.tasks.label_copying import LABELS, WORDS, prompt_text


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE that has learnt the task's words, each of them one token with its blank, as GPT-2's has."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    lines = [f"{prompt_text(label, list(WORDS))} {label}" for label in LABELS]
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def folder(root: Path, family: str, *, steps=(0, 100, 200), words=None, padding: int = 0, **shape) -> Path:
    """Snapshots ``checkpoint-STEP`` of a fresh model of ``family``, with other weights at every step.

    ``words`` is the tokenizer (default: the corpus' words), ``padding`` the number of embedding rows behind its tokens.
    """
    words = words or corpus.tokenizer()
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model = tiny_model(family, vocab=len(words) + padding, generator=generator, **shape)
        where = root / f"checkpoint-{step}"
        model.float().save_pretrained(where)
        words.save_pretrained(where)
    return root
