"""The paper's statements, each judged from all rows that test it, in whichever notebooks they stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from replicate.report import markdown
from replicate.report.ledger.questions import statements
from replicate.report.rows import VOCABULARY, Verdict
from replicate.report.verdicts import Verdicts

OUTCOMES = {
    "holds": "in every reading and setting that was tested",
    "holds in part": "as it stands in some reading or setting, and in others not, or only after a repair",
    "holds repaired": "after a repair, in some reading or setting, and nowhere as it stands",
    "holds and says nothing": "true in some reading, and empty there",
    "fails": "in every reading that was tested",
    "not testable here": "by these parameters or records",
}


@dataclass(frozen=True)
class Judged:
    """A statement of the paper, where it stands, its ``outcome`` and the rows, with their notebooks, that decide it."""

    key: str
    where: str
    text: str
    outcome: str
    rows: tuple[tuple[str, Verdict], ...]


def judged(tables: Sequence[Verdicts]) -> list[Judged]:
    """Every statement in the paper's order. One that no row of ``tables`` names is not testable here."""
    found: dict[str, list[tuple[str, Verdict]]] = {key: [] for key in statements()}
    for table in tables:
        for row in table:
            if row.kind == "paper" and row.statement in found:
                found[row.statement].append((table.notebook, row))
    return [
        Judged(key, **said, outcome=outcome([row.verdict for _, row in found[key]]), rows=tuple(found[key]))
        for key, said in statements().items()
    ]


def outcome(verdicts: Sequence[str]) -> str:
    """What the verdicts of a statement's rows say together.

    A statement is read charitably: it fails only where every reading that can be tested fails, and it holds as it
    stands only where every one is reproduced without a repair. One that is true in an empty reading does not fail.
    """
    tested = set(verdicts) - {"not testable here"}
    if not tested:
        return "not testable here"
    if tested == {"reproduced"}:
        return "holds"
    if "reproduced" in tested:
        return "holds in part"
    if "reproduced with a repair" in tested:
        return "holds repaired"
    return "holds and says nothing" if "true but vacuous here" in tested else "fails"


def tally(tables: Sequence[Verdicts]) -> str:
    """One sentence: how many of the paper's statements came out how."""
    found = [statement.outcome for statement in judged(tables)]
    parts = [f"{found.count(word)} {_plural(word, found.count(word))}" for word in OUTCOMES if word in found]
    return f"Of the paper's {len(found)} statements {', '.join(parts[:-1])} and {parts[-1]}."


def _plural(word: str, number: int) -> str:
    many = {
        "holds": "hold as they stand",
        "holds in part": "hold in part",
        "holds repaired": "hold after a repair",
        "holds and says nothing": "hold and say nothing here",
        "fails": "fail wherever they could be tested",
        "not testable here": "cannot be tested here",
    }
    one = {
        "holds": "holds as it stands",
        "holds in part": "holds in part",
        "holds repaired": "holds after a repair",
        "holds and says nothing": "holds and says nothing here",
        "fails": "fails wherever it could be tested",
    }
    return one.get(word, many[word]) if number == 1 else many[word]


def table(tables: Sequence[Verdicts], *, notebooks: str = "") -> str:
    """A Markdown table: where, statement, outcome, the verdicts of its rows counted, the notebooks (linked)."""
    head = markdown.head("where", "the paper says", "outcome", "rows", "notebooks")
    return head + "\n".join(
        markdown.row(s.where, s.text, f"**{s.outcome}**", _counted(s), _links(s, notebooks))
        for s in judged(tables)
    )


def _counted(statement: Judged) -> str:
    found = [row.verdict for _, row in statement.rows]
    return ", ".join(f"{found.count(word)} {word}" for word in VOCABULARY if word in found) or "-"


def _links(statement: Judged, notebooks: str) -> str:
    names = dict.fromkeys(name for name, _ in statement.rows)
    folder = f"{notebooks}/" if notebooks else ""
    return ", ".join(f"[{name.partition('_')[0]}]({folder}{name}.ipynb)" for name in names)
