"""Scoring the checkpoints of any ladder on a task of one's own: where would RL gain, how much, and how sure is that.

Each rung is opened, measured (:mod:`replicate.impact.by_prompt`) and let go. All rungs answer the same prompts, so two
of them are compared by their differences prompt by prompt, with Holm's correction for the number of pairs. A rung that
fails is one line, and the others are scored.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from replicate.files import write_text
from replicate.impact.by_prompt import COLUMNS, of_answers, of_completions
from replicate.impact.calibration import Calibration, calibrate
from replicate.impact.law import SATURATIONS
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.models.answer import answer_pass
from replicate.report.figures import score as figures
from replicate.report.figures.style import save, use_style
from replicate.rl.policies import SinglePolicy
from replicate.rl.rollout import sample
from replicate.runs import paths, provenance, study_tables
from replicate.runs.text_tasks import Encoded, TextTask, encoded
from replicate.runs.workers import attempt
from replicate.settings.machine import Machine
from replicate.settings.scoring import Scoring
from replicate.statistics.jackknife import influence, interval
from replicate.statistics.over_ladders import holm, over_ladders
from replicate.streams import generator
from replicate.threads import fixed_threads

MEASURED = ("J0", "score", "gain", "end")
"""What a rung gets with an interval: the reward before RL, the law's score, the predicted gain, and where it ends."""

COMPARED = ("score", "end")
"""In what two rungs are compared."""


@dataclass(frozen=True)
class Scores:
    """``rungs``: a row per rung that could be measured; ``pairs``: two of them each; ``prompts``: a row per rung and
    prompt; ``failed``: a line per rung that could not be measured."""

    rungs: pd.DataFrame
    pairs: pd.DataFrame
    prompts: pd.DataFrame
    failed: list[str]


def calibration(folder: str) -> Calibration:
    """The law as the published study in ``folder`` has it, from here or from the suite's own tree."""
    places = [paths.resolve(folder), paths.notebooks().parent / folder]
    where = next((place for place in places if (place / "study.json").is_file()), places[0])
    tables = study_tables.load(where)
    first = next(iter(tables.said["ladders"].values()))["parameters"]
    kept = ("TASK", "PROMPTS", "GROUP_SIZE", "LEARNING_RATE")
    thresholds = tables.said["preregistration"]["thresholds"]
    return calibrate(study_tables.frame(tables), thresholds, {name: first[name] for name in kept})


def score(
    ladder: Ladder, task: TextTask, scoring: Scoring, machine: Machine, calibration: Calibration
) -> Scores:
    """Measures every rung and compares them. ``ValueError`` if none can be measured, or on none do rewards differ."""
    _require_device(machine)
    task = task.limited(scoring.prompts, seed=scoring.seed)
    found, failed = [], [f"{checkpoint.name}: {reason}" for checkpoint, reason in ladder.refused]
    for checkpoint in tqdm(ladder, desc="scoring", unit="rung", disable=None):
        table, error = attempt(measure, (checkpoint, task, scoring, machine))
        checkpoint.discard()  # of what is fetched, one is on disk at a time
        if error is None:
            found.append((checkpoint, table))
        else:
            failed.append(f"{checkpoint.name}: {error}")
    if not found:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ValueError(f"ladder {ladder.spec}: no checkpoint can be scored: {failed[0]}{more}")
    return compared(found, failed, task, scoring, calibration)


def measure(checkpoint: Checkpoint, task: TextTask, scoring: Scoring, machine: Machine) -> pd.DataFrame:
    """What each prompt contributes at one rung: ``line``, ``length`` in tokens, the columns of ``by_prompt``, and
    ``read``, how many tokens went through the model for it."""
    tokenizer = checkpoint.tokenizer()
    model = checkpoint.model(dtype=getattr(torch, machine.dtype), device=machine.device)
    # Of rows without a token and of tokens without a row, neither is ever said.
    vocab = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    horizon = scoring.max_tokens if task.verifier else 1
    longest = getattr(model.config, "max_position_embeddings", None) or 2**31
    items = encoded(task, tokenizer, vocab=vocab, longest=longest - horizon + 1)
    with fixed_threads(), torch.no_grad():
        parts = [
            _measured(model, tokenizer, checkpoint, batch, task, scoring, vocab)
            for batch in _batches(items, scoring.batch)
        ]
    table = pd.concat(parts).sort_values("line", ignore_index=True)
    if not np.isfinite(table[list(COLUMNS)].to_numpy()).all():
        raise ValueError("the measurement is not finite: its weights or its activations are not")
    return table


def _batches(items: Iterable[Encoded], size: int) -> Iterator[list[Encoded]]:
    """Prompts of one length together, at most ``size`` of them: nothing is padded."""
    ordered = sorted(items, key=lambda item: len(item.tokens))
    for _, group in itertools.groupby(ordered, key=lambda item: len(item.tokens)):
        alike = list(group)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _measured(
    model, tokenizer, checkpoint, batch: list[Encoded], task, scoring: Scoring, vocab: int
) -> pd.DataFrame:
    tokens = torch.tensor([item.tokens for item in batch], device=model.device)
    answer, length = answer_pass(model, tokens), tokens.shape[1]
    if task.verifier is None:
        width = max(len(item.right) for item in batch)
        right = [[*item.right, *[-1] * (width - len(item.right))] for item in batch]
        columns = of_answers(answer, tokens.new_tensor(right), vocab=vocab, group=scoring.samples)
        read = length
    else:
        drawn = _completions(model, checkpoint, batch, tokens, scoring, vocab)
        rewards = _rated(tokenizer, _ends(model, tokenizer), batch, drawn, task.verifier)
        groups = drawn[..., 0].unflatten(1, (2, -1))
        rewards = torch.tensor(rewards, dtype=torch.float64, device=tokens.device).view(groups.shape)
        columns = of_completions(answer, groups, rewards, vocab=vocab)
        read = 2 * length + drawn.shape[1] * (scoring.max_tokens - 1)
    numbers = {name: columns[name].double().cpu().numpy() for name in COLUMNS}
    return pd.DataFrame(
        {"line": [item.item.line for item in batch], "length": length, **numbers, "read": read}
    )


def _completions(model, checkpoint, batch, tokens, scoring: Scoring, vocab: int):
    """Two groups of completions a prompt, [prompts, 2 x samples, max_tokens].

    A prompt's random numbers are its own and the rung's: they depend on no batch, no order and no other prompt.
    """
    shape = (2 * scoring.samples, scoring.max_tokens)
    streams = [generator(scoring.seed, checkpoint.sha, item.item.prompt, "score") for item in batch]
    uniforms = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in streams])
    drawn = sample(SinglePolicy(model), tokens[None], uniforms[None].to(tokens.device), vocab=vocab)
    return drawn.tokens[0]


def _ends(model, tokenizer) -> set[int]:
    """Tokens that end a completion."""
    said = getattr(model.generation_config, "eos_token_id", None)
    found = said if isinstance(said, list) else [said]
    return {token for token in [tokenizer.eos_token_id, *found] if token is not None}


def _rated(tokenizer, ends: set[int], batch: list[Encoded], drawn, verifier) -> list[float]:
    """Rewards of completions, prompt by prompt; a text that was drawn several times is rated once."""
    rewards = []
    for item, rows in zip(batch, drawn.tolist(), strict=True):
        known: dict[str, float] = {}
        for row in rows:
            cut = list(itertools.takewhile(lambda token: token not in ends, row))
            text = tokenizer.decode(cut, skip_special_tokens=True)
            if text not in known:
                known[text] = verifier.rate(item.item, text)
            rewards.append(known[text])
    return rewards


def compared(
    found: Sequence[tuple[Checkpoint, pd.DataFrame]],
    failed: list[str],
    task: TextTask,
    scoring: Scoring,
    calibration: Calibration,
) -> Scores:
    """Scores, intervals and comparisons from the tables of :func:`measure`."""
    rows, values = [], {}
    for checkpoint, table in found:
        each = _influences(table, scoring, calibration)
        note = _without_spread(table, scoring, task, calibration)
        if not note:
            values[checkpoint.name] = each
        rows.append(_row(checkpoint, table, each, note))
    rungs = pd.DataFrame(rows)
    if not values:
        raise ValueError(f"rewards: {rungs.note.iloc[0]}, at every checkpoint; {_remedy(rungs)}")
    prompts = pd.concat({rung.name: table for rung, table in found}, names=["name"])
    return Scores(rungs, _pairs(values), prompts.reset_index(level=0), failed)


def _influences(table: pd.DataFrame, scoring: Scoring, calibration: Calibration) -> dict[str, np.ndarray]:
    """What each prompt does to :data:`MEASURED`, by name."""
    law = calibration.law

    def scores(means):
        return np.where(
            means[:, 2] > 0, means[:, 1] / np.sqrt(np.where(means[:, 2] > 0, means[:, 2], 1.0)), 0.0
        )

    def gains(means):
        return SATURATIONS[law.form](scores(means), means[:, 0], scoring.budget**law.b, law.c)

    columns = table[["reward", "kappa", "empirical"]].to_numpy(float)
    statistics = (lambda m: m[:, 0], scores, gains, lambda m: m[:, 0] + gains(m))
    return {name: influence(columns, found) for name, found in zip(MEASURED, statistics, strict=True)}


def _without_spread(table: pd.DataFrame, scoring: Scoring, task: TextTask, calibration: Calibration) -> str:
    """Why there is no score here, or nothing to say: of all of RL's groups not one is expected to have rewards that
    differ; or of sampled completions fewer than two prompts have it in both groups, which kappa needs."""
    mean = f"no spread in the rewards, whose mean is {table.reward.mean():.3g}"
    if task.verifier is None:
        groups = scoring.budget * calibration.conditions["PROMPTS"]
        return "" if table.spread.mean() * groups >= 1 else mean
    if table.spread.max() == 0:
        return mean
    return "" if (table.spread == 1).sum() >= 2 else f"too little {mean.removeprefix('no ')}"


def _remedy(rungs: pd.DataFrame) -> str:
    if rungs.J0.max() < 0.05:
        return "give easier prompts (with worked examples, say), or more --samples"
    if rungs.J0.min() > 0.95:
        return "give harder prompts, there is nothing left to gain"
    return "give prompts that are sometimes answered right, more --samples, or a verifier that tells completions apart"


def _row(
    checkpoint: Checkpoint, table: pd.DataFrame, values: dict[str, np.ndarray], note: str
) -> dict[str, Any]:
    row = {name: getattr(checkpoint, name) for name in ("name", "stage", "step", "tokens")}
    row["tokens"] = float("nan") if checkpoint.tokens is None else checkpoint.tokens
    for name in MEASURED:
        least, most = (0.0, 1.0) if name in ("J0", "end") else (-np.inf, np.inf)  # where a reward can be
        mean, low, high = interval(values[name])
        ends = {name: mean, f"{name}_low": max(low, least), f"{name}_high": min(high, most)}
        row |= ends if name == "J0" or not note else dict.fromkeys(ends, float("nan"))
    means = table[["V", "kappa", "empirical", "room", "spread"]].mean()
    row |= {**means, "delta": means.V - 2 * means.kappa + means.empirical}
    return row | {"passes": table.read.sum() / table.length.sum(), "note": note, "sha": checkpoint.sha}


def _pairs(values: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Differences of all pairs of rungs in each of :data:`COMPARED`, the second's less the first's.

    ``p`` is Student's, over prompts, after Holm for the pairs of one kind; ``apart`` says whether it is below 0.05.
    """
    rows = []
    for what in COMPARED:
        pairs = list(itertools.combinations(values, 2))
        family = {f"{i}": over_ladders(values[b][what] - values[a][what]) for i, (a, b) in enumerate(pairs)}
        corrected = holm(family) if family else []
        for (one, other), found, p in zip(pairs, family.values(), corrected, strict=True):
            ends = {"difference": found.mean, "low": found.low, "high": found.high}
            rows.append({"what": what, "one": one, "other": other, **ends, "p": p, "apart": bool(p < 0.05)})
    return pd.DataFrame(rows, columns=["what", "one", "other", "difference", "low", "high", "p", "apart"])


def write(
    folder: Path,
    scores: Scores,
    *,
    ladder: Ladder,
    task: TextTask,
    scoring: Scoring,
    machine: Machine,
    law: Calibration,
) -> None:
    """Leaves ``score.csv``, its figure (PNG, PDF), ``pairs.csv``, ``prompts.csv`` and all of it in ``score.json``."""
    use_style()
    save(figures.ladder(scores.rungs, budget=scoring.budget), "score", scores.rungs, folder)
    for name in ("pairs", "prompts"):
        write_text(folder / f"{name}.csv", getattr(scores, name).to_csv(index=False, float_format="%.9g"))
    verifier = task.verifier and task.verifier.name
    said = {
        "ladder": {"spec": ladder.spec, "kind": ladder.kind},
        "task": {"path": task.path, "sha256": task.sha, "verifier": verifier},
        "settings": {**scoring.model_dump(), **machine.model_dump()},
        "law": law.record(),
        "checkpoints": _records(scores.rungs),
        "pairs": _records(scores.pairs),
        "failed": scores.failed,
        "made": provenance.environment(machine.device),
    }
    write_text(folder / "score.json", json.dumps(said, indent=1, default=_plain) + "\n")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: what is not a number is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"not JSON: {value!r}")


def _require_device(machine: Machine) -> None:
    try:
        torch.ones(1, dtype=getattr(torch, machine.dtype), device=machine.device).sum().item()
    # torch reports an unknown name and a missing driver by whatever it has at hand.
    except Exception as error:
        reason = " ".join(str(error).split())[:90]
        raise ValueError(
            f"--device {machine.device}: does not work here ({reason}); use --device cpu"
        ) from None
