"""Where checkpoints come from: local snapshot folders, the hub, and the tiny OLMo-2 ladder that is trained here."""

from replicate.ladder.sources import open_ladder

__all__ = ["open_ladder"]
