"""Label copying: the paper's controlled task, as text, with its expected reward in closed form.

A prompt names a label y among a few, then come filler words, and the answer position must put mass on y's token::

    label is green ; water often early ... answer :

With the reward R(a) = 1[a = y] of a sampled token a, the objective J = E_q pi(y | q) needs no sampling: it is read
off the logits, over the whole vocabulary. Rows of the embedding that no token uses (padding rows) are masked first.

The words are common English ones, so that the same text is one token a word both for the word-level tokenizer of the
tiny ladder and for a byte-pair tokenizer such as OLMo-2's; :func:`label_copying` refuses a tokenizer where the label
is not exactly one more token, or where prompts differ in length.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_LABELS = """
    red green blue black white brown gold silver gray pink orange purple yellow cream copper rose
"""
LABELS = tuple(_LABELS.split())

_WORDS = """
    able above after again air also always among animal area army art away back bank base bed before
    begin below best better big body book both box boy bread bring build business call car carry
    case cause center chance change child choice church city class clear close cold common company
    cost country course cover current dark day deal dear deep different door down dry early earth
    east easy edge energy even every eye face fact fall family far farm fast field figure final fire
    first fish floor food foot force form free friend full game garden girl give glass good great
    ground group hand hard head heart heat heavy high hill home horse hour house idea inside island
    job join keep kind king land large last late law lead learn leave left letter level life light
    line list little live local long look low main man map market matter mile mind money month moon
    more morning mother mountain move music name nature near need never new night north note number
    ocean often old once open order other page paper part
"""
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Prompts:
    """A batch of label-copying prompts of one length.

    ``tokens`` [prompts, length] is the prompt, ``labels`` [prompts] the token id of the right answer, ``label_set``
    [labels] the token ids of all labels, ``vocab`` the number of token ids in use (rows from there on are padding).
    """

    text: tuple[str, ...]
    tokens: Int[Tensor, "prompts length"]
    labels: Int[Tensor, " prompts"]
    label_set: Int[Tensor, " labels"]
    vocab: int

    def __len__(self) -> int:
        return len(self.text)

    def select(self, index: Int[Tensor, " chosen"]) -> "Prompts":
        """The prompts at ``index`` (repeats allowed), in that order."""
        text = tuple(self.text[i] for i in index.tolist())
        return Prompts(text, self.tokens[index], self.labels[index], self.label_set, self.vocab)

    def to(self, device: torch.device | str) -> "Prompts":
        """The same prompts with their tensors on ``device``."""
        move = (t.to(device) for t in (self.tokens, self.labels, self.label_set))
        return Prompts(self.text, *move, self.vocab)


def prompt_text(label: str, filler: list[str]) -> str:
    """The text of one prompt, up to and including the colon after which the label is due."""
    return " ".join(["label", "is", label, ";", *filler, "answer", ":"])


def label_copying(tokenizer, prompts: int, *, labels: int, filler: int, rng: np.random.Generator) -> Prompts:
    """Draws ``prompts`` label-copying prompts with ``filler`` filler words each, labels in equal shares.

    Raises ``ValueError`` if the tokenizer splits a label into several tokens or the prompts differ in length.
    """
    if not 2 <= labels <= len(LABELS):
        raise ValueError(f"labels: expected 2 to {len(LABELS)}, got {labels}")
    if prompts < 1 or filler < 0:
        raise ValueError(f"prompts, filler: expected at least 1 and 0, got {prompts} and {filler}")
    chosen = rng.permutation(np.arange(prompts) % labels)
    words = rng.integers(len(WORDS), size=(prompts, filler))
    text = tuple(
        prompt_text(LABELS[y], [WORDS[w] for w in row]) for y, row in zip(chosen, words, strict=True)
    )
    label_ids = torch.tensor([_answer_id(tokenizer, text[0], name) for name in LABELS[:labels]])
    rows = [tokenizer.encode(line, add_special_tokens=False) for line in text]
    if len(lengths := {len(row) for row in rows}) > 1:
        raise ValueError(
            f"tokenizer: expected prompts of one length in tokens, got lengths {sorted(lengths)}"
        )
    return Prompts(text, torch.tensor(rows), label_ids[torch.from_numpy(chosen)], label_ids, len(tokenizer))


def _answer_id(tokenizer, prompt: str, label: str) -> int:
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(f"{prompt} {label}", add_special_tokens=False)
    if after[:-1] != before:
        raise ValueError(f"tokenizer: expected label {label!r} to be exactly one more token after the prompt")
    if after[-1] == getattr(tokenizer, "unk_token_id", None):
        raise ValueError(f"tokenizer: label {label!r} is not in its vocabulary")
    return after[-1]


def log_policy(logits: Float[Tensor, "*batch rows"], *, vocab: int) -> Float[Tensor, "*batch vocab"]:
    """log pi over the ``vocab`` token ids in use; padding rows are left out before normalising."""
    if not 1 <= vocab <= logits.shape[-1]:
        raise ValueError(f"vocab: expected 1 to {logits.shape[-1]} (the model's rows), got {vocab}")
    return logits[..., :vocab].log_softmax(-1)


def entropy(log_probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats of distributions given by their logarithms (0 log 0 = 0)."""
    return torch.special.entr(log_probs.exp()).sum(-1)


@dataclass(frozen=True)
class Answers:
    """What a model does at the answer position, per prompt.

    ``correct`` [prompts] is pi(y | q), whose mean is J; ``label_mass`` [prompts] the mass on all labels;
    ``entropy`` [prompts] in nats over the whole vocabulary; ``top`` [prompts] whether y is the most likely token.
    """

    correct: Float[Tensor, " prompts"]
    label_mass: Float[Tensor, " prompts"]
    entropy: Float[Tensor, " prompts"]
    top: Float[Tensor, " prompts"]


def answers(log_probs: Float[Tensor, "prompts vocab"], prompts: Prompts) -> Answers:
    """Reads J and its companions off the log-probabilities at the answer position."""
    probs = log_probs.exp()
    return Answers(
        correct=probs.gather(-1, prompts.labels[:, None]).squeeze(-1),
        label_mass=probs[:, prompts.label_set].sum(-1),
        entropy=entropy(log_probs),
        top=(probs.argmax(-1) == prompts.labels).to(probs.dtype),
    )


@torch.no_grad()
def evaluate(model: nn.Module, prompts: Prompts, *, batch: int = 256) -> Answers:
    """:func:`answers` of ``model`` on ``prompts``, in batches; only the answer position's logits are computed."""
    parts = []
    for start in range(0, len(prompts), batch):
        chunk = prompts.select(torch.arange(start, min(start + batch, len(prompts))))
        logits = model(input_ids=chunk.tokens, logits_to_keep=1, use_cache=False).logits[:, -1]
        # A softmax in bfloat16 would lose J's third digit; float64 models keep their precision.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(answers(log_policy(logits, vocab=prompts.vocab), chunk))
    names = ("correct", "label_mass", "entropy", "top")
    return Answers(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
