"""Questions put: a notebook says ``verdict("key", value)``, and the row stands in its table and under its cell."""

from collections.abc import Callable
from typing import Any

from replicate.report.ledger.questions import Ledger, Question
from replicate.report.rows import Verdict
from replicate.report.verdicts import Verdicts, cell_number

# What a row says when its criterion is met and when it is missed, where its polarity decides it.
_WORDS = {
    "refutes": ("not reproduced", "reproduced"),
    "empties": ("true but vacuous here", "reproduced"),
}


class Asked:
    """The questions of ``ledger``, answered into ``table``; ``show`` displays a row where it was measured."""

    def __init__(
        self, table: Verdicts, ledger: Ledger, *, show: Callable[[Verdict], None] | None = None
    ) -> None:
        self.table, self.ledger, self._show = table, ledger, show or _display
        self._answered: set[tuple[str, str]] = set()

    def __call__(
        self,
        key: str,
        value: float | None,
        *,
        because: str | None = None,
        source: str | None = None,
        **fill: Any,
    ) -> None:
        """Answers the question ``key`` with ``value``, or with the reason ``because`` it cannot be tested here.

        ``fill`` fills the names in braces of the claim, the quantity and the bounds. Raises ``ValueError`` for a key
        that the ledger does not have, for a claim that was answered already, and for a name in braces left unfilled.
        """
        question = self.question(key)
        claim, quantity = (self._filled(question, text, fill) for text in (question.claim, question.quantity))
        if (key, claim) in self._answered:
            raise ValueError(f"{key}: expected one answer, got a second to {claim!r}")
        self._answered.add((key, claim))
        of = {"key": key, "statement": question.statement, "routes": question.routes}
        if value is None:
            row = {"kind": question.whose, "where": question.where, "because": because or "no number", **of}
            self.table.untestable(claim, **row, source=source)
        else:
            bounds = question.bounds(fill)
            words = _WORDS.get(question.polarity, (question.if_true, question.if_false))
            words = ("-", "-") if question.whose == "control" else words
            row = (claim, question.whose, question.where, quantity, value, bounds["below"], bounds["above"])
            self.table.judge(*row, words, source, polarity=question.polarity, **of)
        self._show(self.table.rows[-1])

    def question(self, key: str) -> Question:
        """The question ``key``; ``ValueError`` naming those there are where there is none."""
        if key in self.ledger.rows:
            return self.ledger.rows[key]
        known = ", ".join(self.ledger.rows) or "none"
        raise ValueError(f"{key}: expected a row of {self.table.notebook}.toml ({known})")

    def require_all(self) -> None:
        """Raises ``ValueError`` naming every declared row that was not measured."""
        missing = [key for key in self.ledger.rows if key not in {asked for asked, _ in self._answered}]
        if missing:
            raise ValueError(f"{self.table.notebook}: declared but not measured: {', '.join(missing)}")

    @staticmethod
    def _filled(question: Question, text: str, fill: dict[str, Any]) -> str:
        try:
            return text.format(**fill)
        except (KeyError, IndexError) as error:
            raise ValueError(f"{question.key}: expected a value for {error} in {text!r}") from None


def _display(row: Verdict) -> None:
    if cell_number() is not None:
        from IPython.display import display

        display(row)
