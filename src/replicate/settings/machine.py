"""What computes, and in which precision."""

from typing import ClassVar, Literal

from replicate.settings.section import Section, Text


class Machine(Section):
    """Torch's name of the ``device`` and of the ``dtype`` of weights and activations."""

    about: ClassVar[str] = "The machine."

    device: Text = "cpu"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
