"""Snapshots in a local folder: ``folder:PATH``, or just the path."""

from replicate.ladder.checkpoints import Ladder, open_folder
from replicate.ladder.sources import Request
from replicate.ladder.stream import There


def open(request: Request) -> Ladder:
    """See :func:`replicate.ladder.checkpoints.open_folder`."""
    return open_folder(request.spec.removeprefix("folder:"), spec=request.spec)


def stream(request: Request, ladder: Ladder | None = None) -> There:
    """All of it is there."""
    return There(ladder or open(request))
