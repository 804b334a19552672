"""The generated parts of the README: tables of verdicts and numbers from ``results/``, between markers."""

import json
import re
from pathlib import Path

from replicate.report import claims, claims_page, elsewhere, first_screen, statements
from replicate.report.verdicts import Verdicts


def _verdicts(folder: Path) -> list[Verdicts]:
    if tables := claims.load(folder / "verdicts"):
        return tables
    raise ValueError(f"{folder}: no verdicts in this folder")


def claims_block(folder: Path, elsewhere_folder: Path) -> str:
    """The verdicts counted by whose claim it is, and where they are."""
    tables = _verdicts(folder)
    agreement = claims_page.agreement(tables, elsewhere.load(elsewhere_folder))
    return (
        f"{statements.tally(tables)} [CLAIMS.md](CLAIMS.md) lists them. Counted by rows, of which a statement that was "
        f"tested in several readings has several:\n\n{claims.whose(tables)}\n\nEvery row with "
        "its number and the range of that number on other ladders and under other kernels: [CLAIMS.md](CLAIMS.md). "
        f"{agreement}"
    )


def run_block(folder: Path) -> str:
    """One sentence on where the numbers come from."""
    data = json.loads((folder / "provenance.json").read_text())
    machine, stages, notebooks = data["notebooks"], data["wall_seconds"], data["notebook_seconds"]
    versions, slowest = machine["versions"], max(notebooks, key=notebooks.get)
    seconds, mixed = (
        sum(stages.values()),
        f" Mixed origins: {', '.join(data['mixed'])}." if data["mixed"] else "",
    )
    return (
        f"Ladder: {data['ladder']}, {len(data['checkpoints'])} checkpoints; RL seeds {data['seeds']['rl']}, budgets "
        f"{data['parameters']['BUDGETS']}. Run in {seconds / 60:.1f} minutes on {machine['cores']} cores "
        f"({machine['processor']}, kernels {machine['kernels']}): "
        f"{', '.join(f'{name} {spent:.0f} s' for name, spent in stages.items())}; "
        f"the slowest notebook, {slowest}, took {notebooks[slowest]:.0f} s. "
        f"torch {versions['torch']}, transformers {versions['transformers']}.{mixed}"
    )


def benchmark_block(folder: Path) -> str:
    """The benchmark tables, one per file in ``folder/benchmarks``."""
    parts = []
    for path in sorted((folder / "benchmarks").glob("*.json")):
        data = json.loads(path.read_text())
        head = "| " + " | ".join(data["columns"]) + " |\n" + "|---" * len(data["columns"]) + "|\n"
        body = "\n".join("| " + " | ".join(row) + " |" for row in data["rows"])
        parts.append(f"{data['title']}\n\n{head}{body}")
    return "\n\n".join(parts)


def fill(text: str, blocks: dict[str, str]) -> str:
    """``text`` with the contents between ``<!-- NAME:start -->`` and ``<!-- NAME:end -->`` replaced.

    ``ValueError`` names a block that ``text`` has no place for, and a place that nobody fills.
    """
    if unknown := sorted(set(re.findall(r"<!-- (\w+):(?:start|end) -->", text)) - set(blocks)):
        raise ValueError(f"README: expected blocks out of {tuple(blocks)}, got {unknown[0]}")
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README: no block named {name}")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def render(readme: Path, results: Path) -> str:
    """The README's text with its generated blocks made anew from ``results`` (the folder of one published run)."""
    tables = _verdicts(results)
    blocks = {
        "answer": first_screen.answer(tables),
        "rows": first_screen.rows(tables),
        "claims": claims_block(results, results.parent / "elsewhere"),
        "run": run_block(results),
        "benchmarks": benchmark_block(results.parent),
    }
    return fill(readme.read_text(), blocks)
