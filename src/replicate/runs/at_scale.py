"""What is known of a run at OLMo-2-1B's size: a lock's revisions, costs by formula, records that a GPU left."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicate.ladder.hub import preflight
from replicate.ladder.hub.lock import Lock
from replicate.models import costs
from replicate.runs import params as schemas
from replicate.runs import paths
from replicate.runs.params import ScaleParameters

if TYPE_CHECKING:
    import pandas as pd

PIECES = {
    "measure": "measurement at the true shape",
    "grpo-1": "GRPO with answers of 1 token",
    "grpo-8": "GRPO with answers of 8 tokens",
    "grpo-64": "GRPO with answers of 64 tokens",
    "checkpoint": "one checkpoint, opening included",
    "trl": "GRPO against TRL's trainer",
    "ladder": "the ladder of params/gpu.yaml",
}
"""What ``benchmarks/gpu.py`` leaves records of, and what each is."""


def suite() -> Path:
    """The suite's folder, which has ``params`` and ``results``."""
    return paths.notebooks().parent


def olmo2() -> ScaleParameters:
    """The parameters of the run on AI2's checkpoints."""
    return schemas.load(suite() / "params" / "olmo2-1b.yaml")


def lock() -> tuple[Lock, bool]:
    """AI2's lock and True, if somebody has made it; else that of the rehearsal and False."""
    real, rehearsed = suite() / olmo2().HUB_LOCK, suite() / "results" / "rehearsal" / "lock.json"
    path = real if real.is_file() else rehearsed
    return Lock.model_validate_json(path.read_text()), real.is_file()


def revisions(locked: Lock) -> "pd.DataFrame":
    """A row per revision: ``repository, revision, step, tokens, bytes``, and why it is ``refused``, if it is."""
    import pandas as pd

    why = preflight.refusals(locked)
    return pd.DataFrame(
        [
            {
                "repository": one.repo,
                "revision": one.branch,
                "step": one.step,
                "tokens": one.tokens,
                "bytes": one.size(),
                "refused": why.get((one.repo, one.branch), ""),
            }
            for one in locked.checkpoints
        ]
    )


def rehearsal() -> tuple["pd.DataFrame", dict[str, Any]]:
    """What became of each revision of the rehearsal's hub, and the whole record."""
    import pandas as pd

    record = json.loads((suite() / "results" / "rehearsal" / "rehearsal.json").read_text())
    return pd.DataFrame(record["revisions"]), record


def work(params: ScaleParameters, shape: costs.Shape, length: int) -> "pd.DataFrame":
    """Operations that one checkpoint costs, by kind of job: a row each, ``job, what, operations``.

    Prompts of ``length`` tokens, answers of one. A reading of a hidden layer is counted as if it were the embeddings.
    """
    import pandas as pd

    def ahead(prompts: int) -> int:
        return costs.forward(shape, prompts, length, prompts)

    readings = [k for k in params.MEASURE_LAYERS for _ in range(3)]  # an action model each
    measured = [costs.measurement(shape, params.MEASURE_PROMPTS, length, pulled=k != -1) for k in readings]
    update = costs.grpo(shape, params.PROMPTS, length, params.GROUP_SIZE, 1)
    evaluations = (len(params.BUDGETS) + 1) * ahead(params.EVAL_PROMPTS)
    seeds, most = len(params.RL_SEEDS), max(params.BUDGETS)
    first, gradient = ahead(params.MEASURE_PROMPTS), 3 * ahead(params.MEASURE_PROMPTS)
    # A forward derivative is two passes, and the moved weights are run once more.
    forecasts = gradient + params.MEASURE_BATCHES * update + len(params.BUDGETS) * 3 * first
    rows = [
        (
            "measure",
            f"{params.MEASURE_PROMPTS} prompts, {len(readings)} readings",
            first + gradient + sum(measured),
        ),
        ("forecast", f"{params.MEASURE_BATCHES} batches, {len(params.BUDGETS)} budgets", forecasts),
        ("rl", f"{seeds} seeds of {most} updates", seeds * (most * update + evaluations)),
    ]
    return pd.DataFrame(rows, columns=["job", "what", "operations"])


def gpu() -> dict[str, dict[str, Any]]:
    """The records of ``make gpu``, by piece, at the true shape; none where nobody has run it."""
    found = {}
    for name in PIECES:
        path = suite() / "results" / "gpu" / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text())
            if record["shape"] == "1b" and record["device"].startswith("cuda"):
                found[name] = record
    return found


def standing(locked: bool, records: dict[str, dict[str, Any]]) -> "pd.DataFrame":
    """What has been run and what has not: ``piece, run, where, command``."""
    import pandas as pd

    rows = [
        ("the path of params/olmo2-1b.yaml", "yes", "a small hub, 16-block stand-ins", "python tests/rehearsal.py"),
        ("the list of AI2's revisions", "yes" if locked else "no", "the public hub", "replicate hub lock"),
        *(
            (said, "yes" if name in records else "no", _machine(records.get(name)), "make gpu")
            for name, said in PIECES.items()
        ),
        ("the paper's experiment on AI2's checkpoints", "no", "one GPU, the public hub",
         "replicate sweep -f params/olmo2-1b.yaml"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["piece", "run", "where", "command"])


def _machine(record: dict[str, Any] | None) -> str:
    return record["origin"]["accelerator"] if record else "one GPU"
