"""A study: several ladders under one command, some of them locked until what is asked of them has been written down.

A study file is a parameter file with two keys more: ``LADDERS``, a list with a name, a role and the parameters in which
each ladder differs from the rest of the file, and ``PREREGISTRATION``, the page on which hypotheses, thresholds and
statistics stand. Development ladders may be looked at as one likes. Locked ones are trained only in a clean checkout
whose history holds that page, and their records name the commit.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from replicate.files import replacing, write_text
from replicate.runs import jobs, provenance, strict_yaml, tables
from replicate.runs.params import ScaleParameters, located, read_mapping
from replicate.runs.store import content
from replicate.runs.strict_yaml import shown
from replicate.runs.sweep import Plan, sweep_all
from replicate.runs.units import records
from replicate.settings.task import Task
from replicate.settings.tiny_ladder import TinyLadder

Role = Literal["development", "locked"]
ROLES: tuple[Role, ...] = get_args(Role)

_OWN = ("LADDERS", "PREREGISTRATION")
_LISTS = ("INTERVENTIONS", "CELLS", "FACTORS")


@dataclass(frozen=True)
class Entry:
    """One ladder of a study: what it is called, whether it is locked, and all its parameters."""

    name: str
    role: Role
    params: ScaleParameters
    experiments: tuple[jobs.Experiment, ...] = jobs.EXPERIMENTS


@dataclass(frozen=True)
class Study:
    """The ladders of a study in the order of its file, the file itself and the page that locks some of them."""

    path: Path
    preregistration: Path
    entries: tuple[Entry, ...]
    interventions: tuple[Any, ...] = ()
    cells: tuple[Any, ...] = ()
    factors: tuple[Any, ...] = ()
    generators: Mapping[str, str] = field(default_factory=dict)
    rungs: int | None = None
    rungs_by: str = "ranks"

    def of(self, roles: Sequence[str], names: Sequence[str] = ()) -> list[Entry]:
        """The ladders of these roles, of these names only if any are given; ``ValueError`` for an unknown name, and if
        there is none."""
        known = [entry.name for entry in self.entries]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"--only {shown(unknown[0])}: no such ladder; there are {', '.join(known)}")
        chosen = [e for e in self.entries if e.role in roles and (not names or e.name in names)]
        if not chosen:
            among = f" among {', '.join(names)}" if names else ""
            raise ValueError(f"--role: {self.path} has no {' or '.join(roles)} ladder{among}")
        return chosen


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Reads and checks a study file; ``overrides`` are parameters that win over the file for every ladder.

    Raises ``ValueError`` with one line that names the file, the ladder and the key at fault; two ladders that would be
    the same one are refused, too.
    """
    values = read_mapping(path)
    if missing := [key for key in _OWN if key not in values]:
        raise ValueError(located(str(path), f"expected a study file with {missing[0]}, got none"))
    listed, page = (values.pop(key) for key in _OWN)
    lists = {name.lower(): values.pop(name, []) for name in _LISTS}
    for name, value in lists.items():
        if not isinstance(value, list):
            raise ValueError(located(str(path), f"expected {name.upper()} to be a list, got {shown(value)}"))
    more = {"generators": values.pop("GENERATORS", {}), "rungs": values.pop("RUNGS_OF_EACH", None)}
    more["rungs_by"] = values.pop("RUNGS_BY", "ranks")
    if not isinstance(page, str) or not isinstance(listed, list) or not listed:
        raise ValueError(
            located(
                str(path),
                "expected PREREGISTRATION to be a file's name and LADDERS a list of mappings with NAME and ROLE",
            )
        )
    entries = tuple(_entry(path, values, item, overrides or {}) for item in listed)
    _refuse_equal(path, entries)
    parts = {name: tuple(value) for name, value in lists.items()}
    return Study(path, path.parent / page, entries, **parts, **more)


def _entry(path: Path, common: Mapping[str, Any], item: Any, overrides: Mapping[str, Any]) -> Entry:
    if not isinstance(item, dict) or not isinstance(item.get("NAME"), str) or item.get("ROLE") not in ROLES:
        expected = f"a NAME and a ROLE out of {', '.join(ROLES)} for every ladder"
        raise ValueError(located(str(path), f"expected {expected}, got {shown(item)}"))
    own = {key: value for key, value in item.items() if key not in ("NAME", "ROLE")}
    where = f"{path}, ladder {item['NAME']}"
    return Entry(
        item["NAME"], item["ROLE"], ScaleParameters.parse({**common, **own, **overrides}, where=where)
    )


def _refuse_equal(path: Path, entries: Sequence[Entry]) -> None:
    names, made = {}, {}
    for entry in entries:
        what = (str(entry.params.section(TinyLadder)), str(entry.params.section(Task)), entry.params.LADDER)
        for seen, key, said in (
            (names, entry.name, "two ladders of one name"),
            (made, what, "equal ladders"),
        ):
            if key in seen:
                raise ValueError(
                    located(str(path), f"{said}: {seen[key]} and {entry.name}; change SEED or remove one")
                )
            seen[key] = entry.name


def require_registered(study: Study) -> str:
    """The commit at which locked ladders are opened.

    Raises ``ValueError`` with one line unless the preregistration and the study file are committed as they are and no
    tracked file has changes: what is run on locked ladders must be what was written down before.
    """
    remedy = "commit it first, or leave the locked ladders alone with --role development"
    tree = study.path.resolve().parent
    for page in (study.preregistration, study.path):
        if not page.is_file():
            raise ValueError(f"{page}: no such file; locked ladders stay closed without it")
        if _git(tree, "ls-files", "--error-unmatch", str(page.resolve())) is None:
            raise ValueError(f"{page}: not committed, so locked ladders stay closed; {remedy}")
    changed = _git(tree, "status", "--porcelain", "--untracked-files=no")
    if changed is None:
        raise ValueError(f"{tree}: git cannot tell whether it is as committed; locked ladders stay closed")
    if changed:
        first = changed.splitlines()[0].split(maxsplit=1)[-1]
        raise ValueError(
            f"{first}: has changes that are not committed, so locked ladders stay closed; {remedy}"
        )
    return _git(tree, "rev-parse", "HEAD") or ""


def registered(study: Study) -> dict[str, Any]:
    """The preregistration as it is: its digest, the numbers it fixes, the commit that last changed it and when (None
    outside a checkout)."""
    page = study.preregistration.resolve()
    said = _git(study.path.resolve().parent, "log", "-1", "--format=%H %cI", "--", str(page))
    commit, when = said.split() if said else (None, None)
    return {"sha256": digest(page), "commit": commit, "committed": when, "thresholds": thresholds(page)}


def _git(tree: Path, *arguments: str) -> str | None:
    """What git says in ``tree``; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def train(study: Study, entries: Sequence[Entry], *, workers: int) -> None:
    """Trains the ladders of ``entries`` and runs nothing on them; refuses what :func:`run` refuses."""
    run(study, [replace(entry, experiments=()) for entry in entries], workers=workers)


def run(study: Study, entries: Sequence[Entry], *, workers: int, progress: bool = True) -> list[Plan]:
    """Trains the ladders of ``entries`` and runs all their jobs; what is there already is not done again.

    Raises ``ValueError`` before any work if one of them is locked and :func:`require_registered` refuses.
    """
    if any(entry.role == "locked" for entry in entries):
        require_registered(study)
    plans = [Plan(entry.params, entry.experiments, name=entry.name) for entry in entries]
    sweep_all(plans, workers=workers, progress=progress)
    return plans


_TABLES = ("checkpoints", "components", "gains", "forecast")


def publish(study: Study, entries: Sequence[Entry], folder: Path) -> None:
    """Writes the tables of finished ladders into ``folder``, with ``study.json``, which says where they come from.

    Numbers are rounded to float32. ``ValueError`` names the first ladder that is not trained or of which jobs are
    missing.
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in _TABLES}
    said = {}
    for entry in entries:
        if not jobs.is_there(entry.params):
            raise ValueError(f"ladder {entry.name}: not trained; run the study first")
        ladder = jobs.ladder(entry.params)
        found = {e: records(entry.params, e, ladder) for e in jobs.EXPERIMENTS}
        for experiment, rows in found.items():
            wanted = len(ladder) * len(jobs.seeds(entry.params, experiment))
            if len(rows) < wanted:
                missing = f"{wanted - len(rows)} of {wanted} jobs of {experiment} are missing"
                raise ValueError(f"ladder {entry.name}: {missing}; run the study first")
        said[entry.name] = _described(entry, ladder, [r for rows in found.values() for r in rows])
        loaded = tables.load(entry.params, ladder)
        for name in _TABLES:
            table = getattr(loaded, name)
            table.insert(0, "ladder", entry.name)
            parts[name].append(table)
    for name, tables_of in parts.items():
        whole = pd.concat(tables_of, ignore_index=True)
        floats = whole.select_dtypes("float64").columns
        with replacing(folder / f"{name}.parquet") as handle:
            whole.astype(dict.fromkeys(floats, "float32")).to_parquet(handle, index=False)
    described = {
        "preregistration": registered(study),
        "study": {"sha256": digest(study.path)},
        "ladders": said,
    }
    write_text(folder / "study.json", json.dumps(described, indent=1) + "\n")


def _described(entry: Entry, ladder, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``study.json`` says of a ladder; ``records`` is a digest of what its records say, equal for an equal run."""
    contents = sorted(json.dumps(content(record), sort_keys=True) for record in found)
    return {
        "role": entry.role,
        "kind": ladder.kind,
        "parameters": entry.params.model_dump(),
        "checkpoints": hashlib.sha256("".join(c.sha for c in ladder).encode()).hexdigest(),
        "records": hashlib.sha256("".join(contents).encode()).hexdigest(),
        "made": provenance.gather([record["origin"] for record in found]),
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def thresholds(page: Path) -> dict[str, Any]:
    """The numbers that a preregistration fixes: its one block of YAML, so that text and code cannot part.

    ``ValueError`` with one line that names the page unless there is exactly one, and a mapping in it.
    """
    blocks = list(_yaml_blocks(page.read_text(encoding="utf-8")))
    if len(blocks) != 1:
        raise ValueError(f"{page}: expected one block of YAML, got {len(blocks)}")
    try:
        found = strict_yaml.read(blocks[0])
    except ValueError as error:
        raise ValueError(located(str(page), str(error))) from None
    if not isinstance(found, dict):
        raise ValueError(located(str(page), f"expected a mapping in its block of YAML, got {shown(found)}"))
    return found


def _yaml_blocks(text: str) -> Iterator[str]:
    for part in text.split("```yaml\n")[1:]:
        yield part.split("```")[0]
