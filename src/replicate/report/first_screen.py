"""The README's first screen: the answer in four lines and six rows, every number from a verdict of the published run.

Which row answers which question stands here; what it says comes from the results. A claim that is not among the
verdicts any more is an error, so that the page cannot go on saying it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from replicate.report import claims, markdown
from replicate.report.rows import Verdict, asked_criterion, number
from replicate.report.verdicts import Verdicts


@dataclass(frozen=True)
class Line:
    """One line of the page: in what words, which verdict (the notebook's two digits, and the claim or the row's key in
    its ledger) gives its number, and for a row what it depends on and what the number is."""

    words: str
    notebook: str
    claim: str = ""
    depends: str = ""
    number: str = ""
    key: str = ""


ANSWER = (
    Line(
        "**What discrete RL sends back is, in expectation, exactly the value gradient of whatever continuous state the "
        "policy reads**, with no relaxation and no entropy term: more than Theorem 1 claims; what it costs is variance;"
        " distance of enumeration from finite differences",
        "05",
        key="a4_exact",
    ),
    Line(
        "**A score measured at a checkpoint orders the gains of RL on pretraining runs nobody had looked at**, and no "
        "interval tells it from J_0 (1 - J_0) there; rank correlation",
        "13",
        "Fitted on development ladders, the law predicts locked ones (spearman)",
    ),
    Line(
        "**That it carries their size is not shown**: on three of those four runs it does, on one it fails; R^2 there",
        "13",
        "Fitted on development ladders, the law predicts locked ones (r2)",
    ),
    Line(
        "**The paper's own score, (V - Delta) H, falls where the gain rises if Delta is that of one sampled costate, "
        "and rises with it once costates are averaged**; rank correlation, averaged less single",
        "12",
        "(V - Delta) H orders the gains better once its costates are averaged",
    ),
)

ROWS = (
    Line(
        "GRPO's expected gradient is that of backpropagation through time (Corollary 1)",
        "04",
        key="cor_unbiased",
        depends="an unbiased baseline and no division by the std",
        number="largest abs z of two gradients",
    ),
    Line(
        "Its backward pass carries the costate (section 3)",
        "04",
        key="as_written",
        depends="it does where rewards read actions alone, as in a language model, or are in the graph",
        number="rewards that read states, as numbers: its mean's relative distance from the value gradient",
    ),
    Line(
        "The Jacobian through a sampled token is at most a constant times the entropy (Prop. 2)",
        "06",
        key="prop_2",
        depends="whose entropy: the policy's or the soft sample's own; no log of the vocabulary is needed",
        number="largest norm / bound",
    ),
    Line(
        "Entropies bound the costate's error (Theorem 1)",
        "08",
        key="sent_soft",
        depends="holds for a relaxed costate whose token path is cut, not for what GRPO sends",
        number="bound / distance, at least 1 if it held",
    ),
    Line(
        "Gain follows (V - Delta) H, (27) to (30)",
        "11",
        "RL gain grows with (V - Delta) H; the token, Delta of 128 averaged",
        "how many costates are averaged, and the unit of the advantages",
        "rank correlation, lower end over 12 ladders",
    ),
    Line(
        "The score is more than J_0, the reward before RL (A10)",
        "13",
        "The score knows more than J_0: a spline in J_0 taken out",
        "rank correlation; in R^2 neither J_0(1-J_0) nor a pilot of 5 updates is beaten",
        "rank correlation, a spline in J_0 taken out",
    ),
)


def answer(tables: Sequence[Verdicts]) -> str:
    """The lines, each with its number and interval."""
    return "\n".join(f"- {line.words} {_number(_found(tables, line)[1])}." for line in ANSWER)


def rows(tables: Sequence[Verdicts]) -> str:
    """The six rows as a Markdown table: claim, our verdict, number, what it depends on, link."""
    found = [(line, *_found(tables, line)) for line in ROWS]
    head = markdown.head("claim", "ours", "number", "depends on", "where")
    return head + "\n".join(
        markdown.row(
            line.words,
            f"**{row.verdict}**",
            f"{line.number}: {_number(row)}",
            line.depends,
            claims.link(table, row, "notebooks"),
        )
        for line, table, row in found
    )


def _found(tables: Sequence[Verdicts], line: Line) -> tuple[Verdicts, Verdict]:
    for table in tables:
        for row in table:
            known = row.key == line.key if line.key else row.claim == line.claim
            if table.notebook.startswith(f"{line.notebook}_") and known:
                return table, row
    where = f"none in notebook {line.notebook} on {line.key or line.claim!r}"
    raise ValueError(f"verdicts: {where}; the README's first screen needs it")


def _number(row: Verdict) -> str:
    """The interval over ladders where the row has one, else its value beside the criterion."""
    for piece in row.quantity.split(": ")[1:] + row.quantity.split("; "):
        if "[" in piece and "]" in piece:
            return piece.split("; ")[0].split(": ")[-1]
    return f"{number(row)} ({asked_criterion(row)})"
