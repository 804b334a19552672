"""Revisions on the Hugging Face hub: ``hub:org/name``, or several repositories of one run, ``hub:org/a,org/b``.

Which revisions, the lock file says (:mod:`replicate.ladder.hub.lock`); with it and what was fetched before, no network
is needed.
"""

from pathlib import Path

from replicate.ladder.checkpoints import Ladder, in_order
from replicate.ladder.hub import client, fetch, lock, preflight
from replicate.ladder.sources import Request
from replicate.ladder.stream import Fetching


def open(request: Request) -> Ladder:
    """The checkpoints of the lock but those that :mod:`~replicate.ladder.hub.preflight` refuses, fetched when used."""
    repos = client.names_of(request.spec)
    try:
        locked = lock.load(Path(request.hub.lock), repos)
    except ValueError as error:
        raise ValueError(f"ladder {request.spec}: {error}") from None
    reasons, kept, refused = preflight.refusals(locked), [], []
    for one in locked.checkpoints:
        rung = fetch.checkpoint(one, request.folder / "hub")
        reason = reasons.get((one.repo, one.branch))
        if reason:
            refused.append((rung, f"{one.repo}@{one.branch}: {reason}"))
        else:
            kept.append(rung)
    if not kept:
        raise ValueError(
            f"ladder {request.spec}: no checkpoint of {request.hub.lock} can be used, {refused[0][1]}"
        )
    return Ladder(request.spec, client.kind(repos), in_order(kept, request.spec), tuple(refused))


def stream(request: Request, ladder: Ladder | None = None) -> Fetching:
    """Its rungs are fetched one after another while others are in work."""
    return Fetching(ladder or open(request), on_disk=request.hub.on_disk, keep=request.hub.keep)
