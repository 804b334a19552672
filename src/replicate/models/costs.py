r"""What OLMo-2's passes cost at least: multiplications and bytes, by formula.

A shape has width d, inner width f, L blocks, R rows of the head. Of P sequences of T tokens, a forward pass whose head
reads r positions multiplies

    F(P, T, r) = 2 P T L (4 d^2 + 3 d f) + 2 r R d + 4 d L pairs

times-and-adds, counted as two operations each: the seven matrices of a block, the head, and the two products of
attention, over the (query, key) pairs that causality leaves, T (T + 1) / 2 a sequence. A backward pass to all
parameters takes 2 F; one to the activations alone the matrices once more and the attention twice. Norms, rotations and
softmax are not counted: they are bytes, not operations. These are *model FLOPs*: what is recomputed or thrown away
counts for nothing.

The tests hold the formulas against ``torch.utils.flop_counter``. A counter cannot see a mask, so there ``masked=True``
counts the pairs that a mask hides as well.
"""

from dataclasses import asdict, dataclass

WEIGHT, COPY, GRADIENT, MOMENTA = 4, 2, 4, 8
"""Bytes a parameter in RL: float32, bfloat16 for the passes, float32, two float32 of AdamW."""
HALF = 2


@dataclass(frozen=True)
class Shape:
    """An OLMo-2: ``hidden`` d, ``intermediate`` f, ``layers`` L, ``heads``, ``rows`` R of the head, of which ``vocab``
    are in use."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    rows: int
    vocab: int

    @property
    def block(self) -> int:
        """Entries of a block's seven matrices."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All of them: blocks with their four norms, embeddings, head, final norm."""
        return self.layers * (self.block + 4 * self.hidden) + (2 * self.rows + 1) * self.hidden

    def describe(self) -> dict[str, int]:
        """The shape and its number of parameters, for a record."""
        return {**asdict(self), "parameters": self.parameters}


SHAPES = {"1b": Shape(2048, 8192, 16, 16, 100352, 100278), "tiny": Shape(64, 256, 3, 4, 288, 269)}


def forward(shape: Shape, sequences: int, length: int, read: int, *, masked: bool = False) -> int:
    """F: one forward pass; the head reads ``read`` positions in all."""
    pairs = shape.layers * _pairs(sequences, length, masked)
    return _dense(shape, sequences * length, read) + 4 * shape.hidden * pairs


def measurement(
    shape: Shape, prompts: int, length: int, *, pulled: bool = False, masked: bool = False
) -> int:
    """A pass to the answer position, and with ``pulled`` one costate a prompt carried back to the embeddings.

    Of the last block only keys and values are needed at every position; the rest, and its attention, at the answer.
    """
    d, below, tokens = shape.hidden, shape.layers - 1, prompts * length
    matrices = (below * shape.block + 2 * d**2) * tokens + (shape.block - 2 * d**2) * prompts
    pairs = below * _pairs(prompts, length, masked) + tokens
    forth, back = 2 * matrices + 4 * d * pairs, 2 * matrices + 8 * d * pairs
    return forth + _dense(shape, 0, prompts) + (back if pulled else 0)


def grpo(shape: Shape, prompts: int, length: int, group: int, horizon: int, *, masked: bool = False) -> int:
    """One update: the prompts forward and back, T - 1 sampling steps, and the drawn tokens forward and back.

    The last token of an answer is never read.
    """
    drawn = prompts * group * (horizon - 1)
    seen = drawn * length + prompts * group * (horizon - 1) * horizon // 2
    pairs = (seen, seen)
    if masked:  # side by side: a step computes all that stand so far, the scoring pass all of them
        width = group * (horizon - 1)
        stepwise = prompts * group * sum(length + group * t for t in range(1, horizon))
        pairs = (stepwise, prompts * width * (length + width))
    step = 4 * shape.hidden * shape.layers
    sampling, scoring = (_dense(shape, drawn, drawn) + step * found for found in pairs)
    return 3 * forward(shape, prompts, length, prompts, masked=masked) + sampling + 3 * scoring


def rl_floor(shape: Shape, prompts: int, length: int, group: int, horizon: int) -> dict[str, int]:
    """Bytes that an update with float32 weights and bfloat16 passes must hold at its peak, without running a matrix
    product twice: the state of training, and for each token of each block what no cheaper operation gives back.

    These are queries, keys and values, the mix of values, the outputs of both sublayers before their norms, and the
    two halves of the MLP: 6 d + 2 f numbers. A distribution over the vocabulary is kept in float32 for each scored
    position.
    """
    tokens = prompts * length + prompts * group * (horizon - 1)
    scored = prompts + prompts * group * (horizon - 1)
    return {
        "weights": (WEIGHT + COPY) * shape.parameters,
        "gradients": GRADIENT * shape.parameters,
        "optimizer": MOMENTA * shape.parameters,
        "activations": kept_per_token(shape) * shape.layers * tokens * HALF,
        "log_probabilities": 4 * scored * shape.vocab,
    }


def measurement_floor(shape: Shape, prompts: int, length: int, *, pulled: bool) -> dict[str, int]:
    """Bytes of a measurement: weights in bfloat16, and the residual stream or, to pull back, what each block keeps.

    The mix of values is not among it: no gradient of the matrix that reads it is taken.
    """
    kept = (kept_per_token(shape) - shape.hidden) * shape.layers if pulled else shape.hidden
    return {"weights": HALF * shape.parameters, "activations": kept * prompts * length * HALF}


def kept_per_token(shape: Shape) -> int:
    """Numbers that a block's backward pass needs of each token."""
    return 6 * shape.hidden + 2 * shape.intermediate


def _dense(shape: Shape, tokens: int, read: int) -> int:
    return 2 * (tokens * shape.layers * shape.block + read * shape.rows * shape.hidden)


def _pairs(sequences: int, length: int, masked: bool) -> int:
    return sequences * (length**2 if masked else length * (length + 1) // 2)
