"""Where ladders come from: one module a source, whose name is the prefix, as in ``hub:org/name``.

``folder`` is what a name without a prefix means; ``tiny`` is named without anything behind it. A source module has

- ``open(request) -> Ladder``: the whole ladder, in step order, made or listed as need be. Files of its checkpoints may
  be elsewhere until :meth:`~replicate.ladder.checkpoints.Checkpoint.ready` brings them;
- ``stream(request, ladder=None) -> Stream``: the same ladder for work that begins while rungs are still to come;
  ``ladder`` is it where it is open already.

Both raise ``ValueError`` with one line where it cannot be opened. To add a source is to add such a module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from replicate.ladder.checkpoints import Ladder
from replicate.settings.hub import Hub
from replicate.settings.tiny_ladder import TinyLadder


@dataclass(frozen=True)
class Request:
    """What a source is told: the ladder's whole name ``spec``, prefix included, and what the sources are set to.

    ``folder`` is where a source keeps what it makes or fetches; paths in ``hub`` are from the working directory.
    ``origin`` says who asks, for the notes of a ladder that is made.
    """

    spec: str
    folder: Path = Path("runs/ladders")
    tiny: TinyLadder = field(default_factory=TinyLadder)
    hub: Hub = field(default_factory=Hub)
    origin: Mapping[str, Any] | None = None
    progress: bool = False


def names() -> tuple[str, ...]:
    """The sources there are."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def of(spec: str) -> ModuleType:
    """The source of a ladder's name: that of its prefix, ``tiny`` for ``"tiny"``, else ``folder``."""
    prefix, colon, _ = spec.partition(":")
    name = prefix if (colon and prefix in names()) or spec == "tiny" else "folder"
    return import_module(f"{__name__}.{name}")


def is_folder(spec: str) -> bool:
    """Whether ``spec`` is the name of a local folder, without a prefix."""
    return of(spec).__name__.endswith(".folder") and not spec.startswith("folder:")


def open_ladder(spec: str | Path, **told: Any) -> Ladder:
    """The ladder of that name, in step order; ``told`` are further fields of :class:`Request`."""
    return of(str(spec)).open(Request(str(spec), **told))
