"""What computes, and in which precision."""

from typing import ClassVar, Literal

from replicate.settings.section import Section, Text


class Machine(Section):
    """Torch's name of the ``device`` and of the ``dtype`` of weights and activations.

    In bfloat16 a measurement reads weights of that precision; RL and the forecast keep those they move in float32, and
    RL's passes read copies. Log-probabilities, advantages and objectives are in float32 at least, whatever this says.
    ``compile`` fuses what a large model does between its matrix products, in measurements and in RL of one seed at a
    time; compiling takes half a minute for each shape of input.
    """

    about: ClassVar[str] = "The machine."

    device: Text = "cpu"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    compile: bool = False
