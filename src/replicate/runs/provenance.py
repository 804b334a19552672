"""Where results come from: parameters, versions, seeds, checkpoint hashes, hardware and wall time, beside them."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from replicate.files import write_text
from replicate.ladder.checkpoints import Ladder
from replicate.ladder.pretrain import THREADS
from replicate.runs import jobs
from replicate.runs.params import ScaleParameters

_PACKAGES = (
    *(
        "replicate",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "pandas",
        "statsmodels",
    ),
    *("arch", "seaborn", "matplotlib", "pydantic", "pyarrow", "papermill", "jupyterlab", "ray"),
)


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


def write(folder: Path, params: ScaleParameters, ladder: Ladder, clock: Clock) -> Path:
    """Writes ``provenance.json`` into ``folder``."""
    path = folder / "provenance.json"
    write_text(path, json.dumps(describe(params, ladder, clock), indent=1) + "\n")
    return path


def describe(params: ScaleParameters, ladder: Ladder, clock: Clock) -> dict[str, Any]:
    """Everything needed to say what the results beside it are results of."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "ladder": ladder.kind,
        "parameters": params.model_dump(),
        "seeds": {experiment: jobs.seeds(params, experiment) for experiment in jobs.EXPERIMENTS},
        "checkpoints": {checkpoint.name: checkpoint.sha for checkpoint in ladder},
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "commit": _commit(),
        "hardware": hardware(),
        "wall_seconds": clock.seconds,
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, and the accelerators' names if there are any."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "job_threads": THREADS,
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _commit() -> str | None:
    """The source tree's commit, with ``+`` if the tree has changes; None outside a checkout."""
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
