"""Where checkpoints come from: local snapshot folders, and the tiny OLMo-2 ladder that is trained here."""

from replicate.ladder.checkpoints import open_ladder

__all__ = ["open_ladder"]
