"""Where ladders come from besides local folders: one module a source, whose name is the prefix, as in ``hub:org/name``.

A source module has ``open(spec) -> Ladder``, which is given the whole name, prefix included, and raises ``ValueError``
where it cannot be opened. What it gives are checkpoints in step order, each of them a local snapshot folder.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def names() -> tuple[str, ...]:
    """The prefixes there are."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def of(spec: str) -> ModuleType | None:
    """The source that ``spec`` names by its prefix; None for a folder."""
    prefix, colon, _ = spec.partition(":")
    return import_module(f"{__name__}.{prefix}") if colon and prefix in names() else None
