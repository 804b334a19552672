"""The ladder that is trained here: what decides the weights of its checkpoints."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from replicate.settings.section import LABELS, MOST, SEED, Says, Section, Seed, Text


class Mixture(Section):
    """Shares of the corpus' kinds of sequences (prose has the rest) and what its label documents look like.

    ``sequence_documents`` ask for several labels in a row. ``noise`` is the probability that a document's answer has a
    random label instead of its own; each label of several has it on its own.
    """

    prefix: ClassVar[str] = "TINY_"

    records: float = Field(0.5, ge=0, le=1)
    label_documents: float = Field(0.5, ge=0, le=1)
    sequence_documents: float = Field(0.0, ge=0, le=1)
    noise: float = Field(0.0, ge=0, le=1)
    labels: int = LABELS

    def complaints(self, says: Says) -> Iterator[str]:
        """Shares that exceed the whole."""
        if self.records + self.label_documents + self.sequence_documents > 1 + 1e-9:
            names = f"{says('records')}, {says('label_documents')} and {says('sequence_documents')}"
            got = f"{self.records}, {self.label_documents} and {self.sequence_documents}"
            yield f"{names} are shares and must not exceed 1 together, got {got}"


class TinyLadder(Mixture):
    """Training of the tiny OLMo-2: ``steps`` updates of ``batch`` x ``context`` tokens, a checkpoint every ``every``.

    ``layers`` blocks of width ``hidden`` with ``heads`` heads; AdamW with a linear ``warmup`` (updates) to
    ``learning_rate`` and a constant rate from there. With a ``cooldown`` every checkpoint is the end of a branch of its
    own: so many updates more, in which the rate falls to zero. ``seed`` decides the first weights and the data.
    ``device`` and ``dtype`` say what trains it: in bfloat16 passes read copies of weights that stay in float32.
    """

    about: ClassVar[str] = "The tiny ladder: its corpus, its model, its training, and what trains it."

    seed: Seed = SEED
    steps: int = Field(300, ge=1, le=MOST)
    every: int = Field(30, ge=1, le=MOST)
    layers: int = Field(2, ge=1, le=MOST)
    hidden: int = Field(64, ge=4, le=MOST)
    heads: int = Field(4, ge=1, le=MOST)
    context: int = Field(32, ge=12, le=MOST)
    batch: int = Field(64, ge=1, le=MOST)
    learning_rate: float = Field(6.0e-3, gt=0)
    warmup: int = Field(50, ge=1, le=MOST)
    cooldown: int = Field(0, ge=0, le=MOST)
    device: Text = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def complaints(self, says: Says) -> Iterator[str]:
        """A number of steps without a last checkpoint, heads that cannot be rotated, and the mixture's."""
        if self.steps % self.every:
            yield f"{says('steps')} must be a multiple of {says('every')} ({self.every}), got {self.steps}"
        if self.hidden % (2 * self.heads):
            wanted = f"a multiple of 2 x {says('heads')} ({2 * self.heads})"
            yield f"{says('hidden')} must be {wanted}, got {self.hidden}"
        yield from super().complaints(says)
