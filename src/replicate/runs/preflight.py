"""What only the machine can tell about parameters, asked before any work: folders, device, ladder, prompts, Jupyter.

Each complaint is a line that names the parameter, what was expected, what was found and the remedy.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicate.checks import one_of
from replicate.files import require_writable
from replicate.runs import paths
from replicate.runs.params import ScaleParameters, layer_complaint, located, one_line, whole
from replicate.runs.strict_yaml import shown
from replicate.settings.task import Task

if TYPE_CHECKING:
    from replicate.ladder.checkpoints import Checkpoint, Ladder


def require(params: ScaleParameters, *, where: str, keep: bool = True) -> None:
    """Raises ``ValueError`` with one line, beginning with ``where``, if a run with these parameters must fail.

    The folders that it tries to write to stay, unless ``keep`` is false.
    """
    _raise(where, [*_folders(params, keep), *_device(params), *_ladder(params)])


def require_one_token(params: ScaleParameters, *, where: str) -> None:
    """Raises ``ValueError`` with one line, beginning with ``where``, if the task's answer is not one token that is
    right or wrong: off this all experiments but ``rl``, and the notebooks, read J."""
    from replicate.rl import tasks

    try:
        tasks.one_token(params.section(Task))
    except ValueError as error:
        raise ValueError(located(where, str(error))) from None


def require_folders(params: Any, *, where: str) -> None:
    """The same for a notebook that needs nothing but folders, for its figures and verdicts and for a small ladder, or
    another ladder's checkpoints instead."""
    tiny = getattr(params, "LADDER", "tiny") == "tiny"
    names = ("RUN_DIR", "LADDER_DIR") if tiny else ("RUN_DIR",)
    complaints = [line for name in names for line in _writable(name, getattr(params, name), keep=True)]
    _raise(where, complaints if tiny else [*complaints, *_rungs(params)])


def require_notebooks(only: Sequence[str] = ()) -> None:
    """Raises ``ValueError`` if the notebooks cannot be executed: none there, none of that name, or no Jupyter."""
    folder = paths.notebooks()
    found = [path.stem for path in paths.notebook_files(folder)]
    if not found:
        raise ValueError(
            f"notebooks: none in {folder}; set REPLICATE_HOME to the suite's folder, or use `replicate sweep`"
        )
    if none := [name for name in only if not any(stem.startswith(name) for stem in found)]:
        raise ValueError(f"--only {shown(none[0])}: no such notebook; there are {', '.join(found)}")
    if missing := [name for name in ("papermill", "ipykernel") if find_spec(name) is None]:
        raise ValueError(
            f"notebooks: {' and '.join(missing)} not installed; pip install {' '.join(missing)}, or use "
            "`replicate sweep`"
        )


def require_engine(engine: str) -> None:
    """Raises ``ValueError`` for an engine that does not exist or is not installed."""
    one_of("engine", engine, ("local", "ray"))
    if engine == "ray" and find_spec("ray") is None:
        raise ValueError("engine: expected one that is installed, got 'ray'; pip install ray, or use 'local'")


def _raise(where: str, complaints: Sequence[str] | Iterator[str]) -> None:
    if complaints := list(complaints):
        raise ValueError(located(where, "; ".join(complaints)))


def _folders(params: ScaleParameters, keep: bool) -> Iterator[str]:
    yield from _writable("RUN_DIR", params.RUN_DIR, keep)
    if params.LADDER == "tiny":
        yield from _writable("LADDER_DIR", params.LADDER_DIR, keep)


def _writable(name: str, folder: str, keep: bool) -> Iterator[str]:
    """Permissions, full disks and odd file systems show only when something is written."""
    try:
        path = paths.resolve(folder)
        made = [p for p in (path, *path.parents) if not p.exists()]
        require_writable(path)
        for empty in () if keep else made:
            empty.rmdir()
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) else error
        yield f"{name}: cannot write to {shown(folder, 100)} ({reason}); name a folder that can be written"


def _device(params: ScaleParameters) -> Iterator[str]:
    yield from _works("DEVICE", params.DEVICE, params.DTYPE)
    if params.LADDER == "tiny":
        yield from _works("TINY_DEVICE", params.TINY_DEVICE, params.TINY_DTYPE)


def _works(name: str, device: str, dtype: str) -> Iterator[str]:
    import torch

    try:
        probe = torch.ones(1, dtype=getattr(torch, dtype), device=device)
        torch.Generator(device=device)
        (probe + probe).item()  # a device such as meta holds no numbers
    # torch reports an unknown name, a missing driver and a missing kernel by whatever it has at hand.
    except Exception as error:
        reason = one_line(str(error).split("device type at")[0])[:90]
        yield f"{name}: {shown(device)} with {dtype} does not work here ({reason}); use {name}=cpu"


def _ladder(params: ScaleParameters) -> Iterator[str]:
    if params.LADDER == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            yield from _prompts(params, _tiny_checkpoint(Path(folder)), params.TINY_CONTEXT)
        return
    ladder, complaint = _opened(params)
    if ladder is None:
        yield complaint
        return
    yield from _model(params, ladder)


def _opened(params: Any) -> "tuple[Ladder | None, str]":
    """The ladder that the parameters name, or None and why not."""
    from replicate.ladder import sources
    from replicate.runs import jobs

    try:
        asked = jobs.request(whole(params))
        return sources.of(asked.spec).open(asked), ""
    except (ValueError, OSError) as error:
        remedy = "; give 'tiny' or a folder of snapshots" if sources.is_folder(params.LADDER) else ""
        return None, f"LADDER: {error}{remedy}"


def _rungs(params: Any) -> Iterator[str]:
    ladder, complaint = _opened(params)
    if ladder is None:
        yield complaint
        return
    steps = [checkpoint.step for checkpoint in ladder]
    if none := [step for step in params.RUNGS if step not in steps]:
        yield f"RUNGS: expected steps of {shown(params.LADDER, 100)}, which has {shown(steps, 100)}, got {none}"


def _model(params: ScaleParameters, ladder: "Ladder") -> Iterator[str]:
    """A damaged snapshot is a failed row of the sweep, not the end of it: the first that can be read is asked."""
    config = next(filter(None, map(_config, ladder)), None)
    if config is None:
        yield f"LADDER: no snapshot in {shown(params.LADDER, 100)} has a readable config.json"
        return
    if complaint := layer_complaint(params, config["num_hidden_layers"]):
        yield complaint
    length = config.get("max_position_embeddings", sys.maxsize)
    for checkpoint in ladder:
        try:
            checkpoint.tokenizer()
        except ValueError:
            continue
        return (yield from _prompts(params, checkpoint, length))
    yield f"LADDER: no snapshot in {shown(params.LADDER, 100)} has a usable tokenizer"


def _config(checkpoint: "Checkpoint") -> dict[str, Any] | None:
    try:
        config = checkpoint.config()
        return config if isinstance(config["num_hidden_layers"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tiny_checkpoint(folder: Path) -> "Checkpoint":
    """As much of a tiny ladder's checkpoint as prompts need, before there is any."""
    from replicate.ladder import checkpoints, corpus

    corpus.tokenizer().save_pretrained(folder)
    return checkpoints.Checkpoint("tiny", 1, 0, 0, 0, folder)


def _prompts(params: ScaleParameters, checkpoint: "Checkpoint", longest: int) -> Iterator[str]:
    """Draws the prompts that the jobs will draw."""
    from replicate.rl import tasks
    from replicate.runs import jobs

    here = params.model_copy(update={"DEVICE": "cpu"})
    try:
        length = jobs.held_out(here, checkpoint).tokens.shape[1]
    except ValueError as error:
        yield f"LABELS, FILLER: these prompts cannot be made with this ladder ({error})"
        return
    # The last token of an answer is sampled and never read.
    more = tasks.get(params.TASK).horizon(params.section(Task)) - 1
    if length + more > longest:
        fits = f"expected prompts that fit into the model's context of {longest} tokens with their answers"
        got = f"{length} tokens" if not more else f"{length} tokens and {more + 1} of the answer"
        yield f"FILLER: {fits}, got {got}; lower FILLER"
    try:
        jobs.pool(here, checkpoint)
    except ValueError as error:
        yield str(error)
