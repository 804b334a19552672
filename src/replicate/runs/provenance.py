"""Where results come from, said beside them.

Every record carries its own origin. A run's provenance is gathered from its records, so that numbers which were found
finished keep the commit, the machine and the time that they were made with; what executed the notebooks is said apart.
"""

import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from replicate import __version__, kernels
from replicate.files import write_text
from replicate.ladder.checkpoints import Ladder
from replicate.threads import THREADS

_MATTER = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
_OTHERS = (
    *("scipy", "pandas", "statsmodels", "seaborn", "matplotlib", "pydantic", "pyarrow", "papermill"),
    *("jupyterlab", "ray"),
)

ASPECTS = ("commit", "versions", "kernels", "processor", "cores", "accelerator", "threads")
"""In what two origins may differ so that it matters to numbers or times."""


class Clock:
    """Wall time by stage, for the provenance file."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to stage ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 1)


def origin(device: str, seconds: float) -> dict[str, Any]:
    """Who is computing here and now, for a record: on which ``device``, in how many ``seconds``."""
    return {**environment(device), "wall_seconds": round(seconds, 3), "finished": _now()}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Commit, versions, kernels and hardware of this process, whose numbers come from ``device``."""
    return {
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "replicate": __version__,
            **dict(_versions(_MATTER)),
        },
        "kernels": kernels.name(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory(),
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "threads": THREADS,
    }


def write(folder: Path, described: Mapping[str, Any]) -> Path:
    """Writes ``provenance.json`` into ``folder``."""
    path = folder / "provenance.json"
    write_text(path, json.dumps(described, indent=1) + "\n")
    return path


def describe(
    parameters: Mapping[str, Any],
    seeds: Mapping[str, Sequence[int]],
    ladder: Ladder,
    records: Sequence[Mapping[str, Any]],
    clock: Clock,
) -> dict[str, Any]:
    """Everything needed to say what the results beside it are results of.

    ``jobs`` counts the records by what made them, ``ladder_origin`` is what trained the ladder (None for somebody
    else's), ``notebooks`` what executed the notebooks, ``mixed`` what is not the same for all of these.
    """
    origins = [record["origin"] for record in records]
    trained, executed = _ladder_origin(ladder), environment(parameters.get("DEVICE", "cpu"))
    return {
        "gathered": _now(),
        "ladder": ladder.kind,
        "ladder_origin": trained,
        "parameters": dict(parameters),
        "seeds": dict(seeds),
        "checkpoints": {checkpoint.name: checkpoint.sha for checkpoint in ladder},
        "jobs": gather(origins),
        "notebooks": {**executed, "packages": dict(_versions(_OTHERS))},
        "mixed": mixed([*origins, executed, *([trained] if trained else [])]),
        "wall_seconds": clock.seconds,
    }


def gather(origins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many of the records have which origin, aspect by aspect, and what they took together."""
    return {
        "records": len(origins),
        "wall_seconds": round(sum(origin["wall_seconds"] for origin in origins), 1),
        "finished": [pick(origin["finished"] for origin in origins) for pick in (min, max)]
        if origins
        else [],
        **{aspect: dict(Counter(_words(origin[aspect]) for origin in origins)) for aspect in ASPECTS},
    }


def mixed(origins: Sequence[Mapping[str, Any]]) -> list[str]:
    """The aspects in which the origins differ."""
    return [aspect for aspect in ASPECTS if len({_words(origin[aspect]) for origin in origins}) > 1]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {said}" for name, said in sorted(value.items()) if said is not None)
    return str(value)


def _ladder_origin(ladder: Ladder) -> dict[str, Any] | None:
    """What the tiny ladder's folder says of its training."""
    try:
        said = json.loads((ladder.checkpoints[0].where.parent / "parameters.json").read_text())
    except (OSError, ValueError):
        return None
    return said.get("origin") if isinstance(said, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _memory() -> float:
    """The machine's memory in GiB, 0 where it cannot be asked."""
    if not hasattr(os, "sysconf"):
        return 0.0
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


@cache
def _commit() -> str | None:
    """The source tree's commit, with ``+`` if the tree has changes; None outside a checkout.

    Asked once in a process: what it computes comes from the code that it imported, whatever is committed later.
    """
    tree = Path(__file__).resolve().parents[3]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=tree,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
