"""``CLAIMS.md``: every claim with its verdict, its number, the range of that number elsewhere, and a link."""

from pathlib import Path

from replicate.report import claims, elsewhere, statements, verdicts

AUDITS = Path(__file__).with_name("audits.md")
"""A1 to A10 and B1 to B15, one sentence each, as a Markdown table."""

_INTRODUCTION = """\
# Every claim and its verdict

Made by `replicate report` from the records of the main job; nothing here is typed by hand. The link leads to the
notebook, and the number in brackets is that of its code cell. Controls, wrong estimators that a check must reject,
stand in the notebooks only.

| verdict | means |
|---|---|
| reproduced | the criterion was met |
| reproduced with a repair | it was met after a change that the notebook names |
| true but vacuous here | it holds and says nothing in this setting |
| not reproduced | the criterion was missed, or a measurement refutes the claim |
| not testable here | these parameters, or the records at hand, cannot test it |

A statement of the paper that was tested in several readings or settings has several rows, and one outcome, read
charitably: {outcomes}.

The column *elsewhere* gives the smallest and the largest value of the same number over other runs, and how many: the
main job at other seeds, which train other ladders, and under other kernels, which give other weights at one seed as
another machine would. {elsewhere}"""

_AUDITS_INTRODUCTION = """\
What a claim means that cites A1 to A10 (where the paper needs a repair or a limit) or B1 to B15 (what building and
rereading the suite changed in our reading). One that no claim cites is a note on work to come, and no result."""

_KINDS = {
    "paper": "The paper's",
    "ours": "Ours: repairs, extensions, audits, counterexamples",
    "background": "Background: textbook knowledge that the argument rests on",
}


def render(results: Path, elsewhere_folder: Path) -> str:
    """The page's text, from the verdicts of the published run and of the runs elsewhere."""
    tables, runs = claims.load(results / "verdicts"), elsewhere.load(elsewhere_folder)
    if not tables:
        raise ValueError(f"{results}: no verdicts in this folder")
    seen = elsewhere.ranges(runs.values())
    outcomes = "; ".join(f"*{word}*: {meaning}" for word, meaning in statements.OUTCOMES.items())
    parts = [_INTRODUCTION.format(elsewhere=agreement(tables, runs), outcomes=outcomes)]
    parts += ["## The paper's statements, each from all its rows", statements.tally(tables)]
    parts += [statements.table(tables, notebooks="notebooks"), "## Rows", claims.whose(tables)]
    for kind, title in _KINDS.items():
        how = {"notebooks": "notebooks", "seen": seen, "routes": kind == "paper"}
        parts += [f"### {title}", claims.claims_map(tables, kinds=(kind,), **how)]
    parts += ["## Audits", _AUDITS_INTRODUCTION, AUDITS.read_text().strip()]
    return "\n\n".join(parts) + "\n"


def agreement(tables: list[verdicts.Verdicts], runs: dict[str, list[verdicts.Verdicts]]) -> str:
    """One sentence: in how many runs elsewhere the published verdicts came out the same, or which did not."""
    if not runs:
        return "No such run is recorded."
    differ = elsewhere.disagreements(tables, runs)
    covered = {table.notebook[:2] for found in runs.values() for table in found}
    which = f"{len(runs)} runs recorded (notebooks {', '.join(sorted(covered))})"
    if not differ:
        return f"In all {which} every verdict is the published one."
    return f"Over {which} {len(differ)} verdicts differ: " + "; ".join(differ) + "."
