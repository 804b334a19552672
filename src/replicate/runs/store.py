"""The record store: one small JSON file per finished job, written in one step, found by the hash of its inputs.

A record holds its key, the inputs that the key is a hash of, the result, under ``origin`` who computed it where and
when, and a checksum of all that. Two records are *equal in content* if all but origin and checksum agree: origin says
which machine took how long, and differs between two runs that computed the same to the last bit.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from replicate.files import write_text

FORMAT = 2
"""Goes into every key: a change of what records mean makes old ones invisible instead of wrong."""


class Damaged(ValueError):
    """A record that is not what was written: empty, cut short, changed, or under another job's name."""


def key_of(inputs: Mapping[str, Any]) -> str:
    """The hash of a job's inputs (plain JSON values); equal inputs, equal key, on any machine."""
    return _hash({"format": FORMAT, **inputs})[:20]


def content(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says: key, inputs and result, without who computed it and without the checksum.

    The same command with the same seed gives equal contents, whatever was interrupted and whoever did the work.
    """
    return {name: value for name, value in record.items() if name not in ("origin", "checksum")}


def not_finite(value: Any, where: str = "result") -> Iterator[str]:
    """Where in a result of nested mappings and lists there is a NaN or an infinity, and which."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from not_finite(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from not_finite(item, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}"


class Store:
    """Records under ``folder``, by experiment and key. Reading and writing need no lock: files appear whole."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def path(self, experiment: str, key: str) -> Path:
        """Where the record of that experiment and key stands, or would stand."""
        return self.folder / experiment / f"{key}.json"

    def get(self, experiment: str, key: str) -> dict[str, Any] | None:
        """The record, or None. :class:`Damaged` names a file that is not the record that was put there."""
        path = self.path(experiment, key)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _checked(text, experiment, key)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{path}: damaged record ({error})") from None

    def put(self, experiment: str, key: str, record: Mapping[str, Any]) -> None:
        """Writes a record whole or not at all. ``ValueError`` says where it holds a number that is not finite."""
        if wrong := list(not_finite(record.get("result"))):
            raise ValueError(f"{wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}")
        whole = {"key": key, "experiment": experiment, **record}
        whole["checksum"] = _hash(whole)
        write_text(
            self.path(experiment, key), json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n"
        )


def _checked(text: bytes, experiment: str, key: str) -> dict[str, Any]:
    if not text:
        raise ValueError("it is empty")
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("it is no mapping")
    if record.get("checksum") != _hash({name: value for name, value in record.items() if name != "checksum"}):
        raise ValueError("its content does not have its checksum")
    if (found := (record.get("experiment"), record.get("key"))) != (experiment, key):
        raise ValueError(f"it is the record of {found[0]} {found[1]}")
    return record


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
