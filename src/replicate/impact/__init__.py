"""Section 5: what is measured at a checkpoint, its headroom, its score, and the choice of a start for RL."""

from replicate.impact.measured import components, headroom

__all__ = ["components", "headroom"]
