"""Revisions of a model on the Hugging Face hub, ``hub:org/name``."""

from replicate.ladder.checkpoints import Ladder


def open(spec: str) -> Ladder:
    """Refuses: this version reads local folders."""
    raise ValueError(f"ladder {spec}: hub ladders are not supported in this version, give a local folder")
