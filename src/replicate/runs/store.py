"""The record store: one small JSON file per finished job, written in one step, found by the hash of its inputs."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replicate.files import write_text

FORMAT = 1
"""Goes into every key: a change of what records mean makes old ones invisible instead of wrong."""


def key_of(inputs: Mapping[str, Any]) -> str:
    """The hash of a job's inputs (plain JSON values); equal inputs, equal key, on any machine."""
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Store:
    """Records under ``folder``, by experiment and key. Reading and writing need no lock: files appear whole."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def path(self, experiment: str, key: str) -> Path:
        """Where the record of that experiment and key stands, or would stand."""
        return self.folder / experiment / f"{key}.json"

    def get(self, experiment: str, key: str) -> dict[str, Any] | None:
        """The record, or None. ``ValueError`` names a file that is damaged."""
        path = self.path(experiment, key)
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: damaged record ({error})") from None

    def put(self, experiment: str, key: str, record: Mapping[str, Any]) -> None:
        """Writes a record whole or not at all. NaN is refused: a job that yields it has failed."""
        write_text(
            self.path(experiment, key), json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
        )
