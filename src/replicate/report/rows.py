"""One row of a verdict table: whose claim, what was measured and asked, the verdict; and how it is shown."""

from dataclasses import dataclass
from typing import Literal

from replicate.report import markdown

VOCABULARY = (
    "reproduced",
    "reproduced with a repair",
    "true but vacuous here",
    "not reproduced",
    "not testable here",
)

Kind = Literal["paper", "background", "ours", "control"]
Polarity = Literal["supports", "refutes", "empties"]

WHOSE: dict[Kind, str] = {
    "paper": "the paper's",
    "background": "background",
    "ours": "ours",
    "control": "control",
}

# What the column "met" says when the criterion is met, and when it is missed.
_MET: dict[Polarity, tuple[str, str]] = {
    "supports": ("PASS", "FAIL"),
    "refutes": ("refuted", "not refuted"),
    "empties": ("says nothing", "binds"),
}

# And what stands before the criterion.
_ASKED: dict[Polarity, str] = {"supports": "", "refutes": "refuted if ", "empties": "says nothing if "}


@dataclass(frozen=True, repr=False)
class Verdict:
    """One claim: whose it is, the quantity that tests it, what was measured, what was asked of it, the verdict.

    ``source`` says what was measured (toy MDPs, which ladder); ``cell`` is the number of the notebook's code cell;
    ``passed`` whether the criterion is met, which for a row that ``refutes`` speaks against the claim. ``statement`` is
    the key of the paper's statement that a row of kind ``paper`` judges, ``routes`` the independent routes that met,
    and ``key`` the row's name in the notebook's ledger.
    """

    claim: str
    kind: Kind
    where: str
    quantity: str
    value: float | None
    criterion: str
    passed: bool
    verdict: str
    source: str
    polarity: Polarity = "supports"
    cell: int | None = None
    statement: str | None = None
    routes: str | None = None
    key: str | None = None

    def __repr__(self) -> str:
        """Short, and without digits: nbval compares it between machines."""
        return f"<{WHOSE[self.kind]}: {self.verdict}>"

    def _repr_markdown_(self) -> str:
        """One line for the cell that asked: whose claim, what was measured and asked, the verdict."""
        asked = f"{self.quantity}: {number(self)} ({asked_criterion(self)})"
        found = self.quantity if self.criterion == "-" else asked
        said = (
            f"**{self.verdict}**"
            if self.kind != "control"
            else f"**{'rejected' if self.passed else 'NOT REJECTED'}**"
        )
        return f"{said} · *{WHOSE[self.kind]}* · {self.claim} · {found}"


def table_row(r: Verdict) -> str:
    """The row of a Markdown table."""
    met = "-" if r.value is None and r.passed else _MET[r.polarity][0 if r.passed else 1]
    verdict = r.verdict if r.kind == "control" else f"**{r.verdict}**"
    return markdown.row(
        WHOSE[r.kind], r.claim, r.where, r.quantity, number(r), asked_criterion(r), met, verdict
    )


def asked_criterion(r: Verdict) -> str:
    """What was asked of the number; of a row that speaks against its claim, when it does so."""
    return r.criterion if r.criterion == "-" else _ASKED[r.polarity] + r.criterion


def criterion(above: float | None, below: float | None) -> str:
    """What is asked of a number, in words: both bounds or the one there is."""
    bounds = ((">", above), ("<", below))
    return " and ".join(f"{sign} {_bound(bound)}" for sign, bound in bounds if bound is not None)


def _bound(bound: float) -> str:
    """A bound in few digits; a tolerance beside a round number is said, not rounded away."""
    text = f"{bound:.4g}"
    excess = bound - float(text)
    return f"{text} {'+' if excess > 0 else '-'} {abs(excess):.0e}" if 1e-15 < abs(excess) < 1e-6 else text


def number(r: Verdict) -> str:
    """What was measured, in the backquotes that nbval passes over; a dash where nothing was asked of a number."""
    if r.criterion == "-":
        return "-"
    return "not finite" if r.value is None else f"`{r.value:.3g}`"
