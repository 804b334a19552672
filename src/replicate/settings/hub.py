"""Checkpoints on the Hugging Face hub: which of them, and how many lie on disk at a time."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import MOST, Section, Text


class Hub(Section):
    """Only read where LADDER names a hub.

    ``lock`` is the file that says which checkpoints, by commit and SHA-256 (``replicate hub lock`` writes it by the
    rules ``steps``, one for all repositories or one each; :mod:`replicate.ladder.hub.rules` has them). At most
    ``on_disk`` checkpoints that were fetched lie on disk at a time; with ``keep`` all of them stay.
    """

    prefix: ClassVar[str] = "HUB_"
    about: ClassVar[str] = (
        'A ladder on the hub (LADDER: "hub:org/name" or "hub:org/name,org/other"): its lock file, which steps '
        "`replicate hub lock` chooses, how many fetched checkpoints lie on disk, whether they stay."
    )

    lock: Text = "hub.lock.json"
    steps: list[Text] = Field(["all"], min_length=1)
    on_disk: int = Field(2, ge=1, le=MOST)
    keep: bool = False
