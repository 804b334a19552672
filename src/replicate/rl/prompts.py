"""A batch of prompts with their right answers, what a model answers to them, and how an answer is rewarded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from replicate.models.logits import entropy, log_policy

Reward = Callable[[Int[Tensor, "rows group T"], Int[Tensor, "rows ..."]], Float[Tensor, "rows group ..."]]
"""From sampled tokens and the right ones, [rows] or [rows, T], to one reward a completion or one a token."""


def exact_match(
    tokens: Int[Tensor, "rows group T"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, "rows group"]:
    """R = 1 if the (one) sampled token is the label, else 0."""
    return (tokens[..., 0] == labels[:, None]).float()


def all_right(
    tokens: Int[Tensor, "rows group T"], labels: Int[Tensor, "rows ..."]
) -> Float[Tensor, "rows group"]:
    """R = 1 if each of the T tokens is the right one at its place, else 0: prod_t 1[o_t = y_t].

    ``labels`` are [rows, T], or [rows] for one token; ``ValueError`` if they are not as many as the tokens.
    """
    return _hits(tokens, labels).all(-1).float()


def each_right(
    tokens: Int[Tensor, "rows group T"], labels: Int[Tensor, "rows ..."]
) -> Float[Tensor, "rows group T"]:
    """r_t = 1[o_t = y_t] / T, whose sum over t is the share of right tokens.

    ``labels`` are [rows, T], or [rows] for one token; ``ValueError`` if they are not as many as the tokens.
    """
    return _hits(tokens, labels).float() / tokens.shape[-1]


def _hits(
    tokens: Int[Tensor, "rows group T"], labels: Int[Tensor, "rows ..."]
) -> Bool[Tensor, "rows group T"]:
    right = labels.reshape(len(labels), 1, -1)
    if right.shape[2] != tokens.shape[2]:  # one label would be compared with every token, without a word
        raise ValueError(
            f"labels: expected a right token for each of {tokens.shape[2]}, got {list(labels.shape)}"
        )
    return tokens == right


def added_tokens(tokenizer, before: str, after: str, *, special: bool = False) -> list[int] | None:
    """The token ids by which ``after`` is longer than ``before``; None where its tokens do not begin with those.

    ``special`` has the tokenizer put its special tokens in front of both.
    """
    start, whole = (tokenizer.encode(text, add_special_tokens=special) for text in (before, after))
    return whole[len(start) :] if whole[: len(start)] == start else None


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts of one length.

    ``tokens`` [prompts, length] is the prompt, ``labels`` the token ids of the right answer, [prompts] for answers of
    one token and [prompts, T] for longer ones, ``label_set`` [labels] the token ids of all labels, ``vocab`` the number
    of token ids in use (rows from there on are padding).
    """

    text: tuple[str, ...]
    tokens: Int[Tensor, "prompts length"]
    labels: Int[Tensor, "prompts ..."]
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
    """Reads J and its companions off the log-probabilities at the answer position.

    ``ValueError`` for prompts whose answers have more than one token.
    """
    if prompts.labels.ndim != 1:
        raise ValueError(f"labels: expected one right token a prompt, got {list(prompts.labels.shape)}")
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
        parts.append(answers(log_policy(logits, vocab=prompts.vocab), chunk))
    names = ("correct", "label_mass", "entropy", "top")
    return Answers(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
