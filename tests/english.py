"""Tokenizers of OLMo-2's kind, small and made here."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from replicate.rl.tasks.label_copying import LABELS, WORDS, prompt_text


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE of OLMo-2's kind over plain English: the blank belongs to the word that follows it.

    It knows "silver" and "gold" only in pieces with a blank before them, and the word "ocean" not at all as one token.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = [
        word for word in (*LABELS, *WORDS, "label", "is", "answer") if word not in ("silver", "gold", "ocean")
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|pad|>"],
        show_progress=False,
    )
    core.train_from_iterator(
        [" " + " ".join(words), "gold:gold", "=red", "label", " ; : = . The answer is"] * 20, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|pad|>")


def whole_words() -> PreTrainedTokenizerFast:
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
