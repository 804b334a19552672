"""Section 5: what is measured at a checkpoint, its headroom, its score, and the choice of a start for RL."""

from replicate.impact.headrooms import headroom
from replicate.impact.measured import components

__all__ = ["components", "headroom"]
