"""When RL without a critic is enough: two sentences in plain words, made from notebook 15's verdicts.

The claims stand here, so that the notebook's rows and what is said of them cannot part.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from replicate.report.rows import Verdict
from replicate.report.verdicts import Verdicts
from replicate.statistics.over_ladders import OverLadders

EARLY = "For answers of one or two tokens a learned critic does not pay"
LATE = "With one reward at the end of 16 tokens a learned critic pays"
FAILS = "Reading 6: and so, with one reward at the end of 16 tokens, RL without a critic fails"
DENSE = "Where tokens are paid and reward-to-go is used, a learned critic does not pay"

_WHERE = {
    EARLY: "for answers of one or two tokens",
    DENSE: "wherever each right token is paid and a token is credited with what is still to come",
}

_NOTHING = (
    "With one reward at the end of 16 tokens nothing is gained here with or without a critic: hardly an answer is ever "
    "right from which either could learn."
)


def not_above(
    verdicts: Verdicts,
    claim: str,
    found: Mapping[Any, OverLadders],
    *,
    margin: float,
    quantity: str,
    **row: Any,
) -> None:
    """A row on ``claim``, that none of several numbers is above 0: every interval must end below ``margin``, which
    counts as nothing.

    One interval that begins above 0 refutes it. Otherwise one that reaches beyond the margin decides nothing.
    """
    worst = max(found, key=lambda name: found[name].high)
    above = [name for name, one in found.items() if one.low > 0]
    said = f"{quantity}, worst at {above[0] if above else worst}"
    if above:
        one = found[above[0]]
        verdicts.check(claim, quantity=f"{said}: {one.text(3)}; lower end", value=one.low, below=0.0, **row)
    elif found[worst].high >= margin:
        because = f"undecided at {margin:g}; {said}: {found[worst].text(3)}"
        verdicts.untestable(claim, because=because, **row)
    else:
        one = found[worst]
        verdicts.check(
            claim, quantity=f"{said}: {one.text(3)}; upper end", value=one.high, below=margin, **row
        )


def sentences(rows: Iterable[Verdict]) -> tuple[str, str]:
    """Where RL without a critic is enough, and whether it is where theory would have it fail, on the study's tasks.

    Where the row on :data:`FAILS` could not be tested, nobody gains there, and no difference says anything. Raises
    ``ValueError`` if one of the other three claims has no row.
    """
    by_claim = {row.claim: row for row in rows}
    if missing := [claim for claim in (EARLY, LATE, DENSE) if claim not in by_claim]:
        raise ValueError(f"rows: expected one on {missing[0]!r}, got none")
    fails = by_claim.get(FAILS)
    if fails is not None and fails.verdict == "not testable here":
        return _enough(by_claim), _NOTHING
    return _enough(by_claim), _late(by_claim[LATE])


def _enough(by_claim: Mapping[str, Verdict]) -> str:
    by_word: dict[str, list[str]] = {}
    for claim, where in _WHERE.items():
        by_word.setdefault(by_claim[claim].verdict, []).append(where)
    said = []
    if where := by_word.get("reproduced"):
        said.append(f"RL without a critic is enough {_joined(where)}")
    if where := by_word.get("not reproduced"):
        said.append(f"a learned critic gains more {_joined(where)}")
    if where := by_word.get("not testable here"):
        said.append(
            f"four ladders do not decide whether RL without a critic is enough {_joined(where, 'or')}"
        )
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _late(row: Verdict) -> str:
    number = _interval(row)
    if row.verdict == "reproduced":
        return (
            f"With one reward at the end of 16 tokens it is not: PPO's learned critic gains more, {number}."
        )
    if row.verdict == "not reproduced":
        return (
            "Nor does a learned critic help with one reward at the end of 16 tokens, where theory asks for it: from "
            f"the same samples it gains less, {number}."
        )
    return (
        "With one reward at the end of 16 tokens four ladders do not tell PPO's learned critic from the better method "
        f"without one, {number}."
    )


def _interval(row: Verdict) -> str:
    """As in "+0.10 [+0.05, +0.15] of reward"."""
    before, _, behind = row.quantity.rpartition(" [")
    mean, ends = before.rpartition(": ")[2], behind.partition("]")[0]
    return f"{mean} [{ends}] of reward"


def _joined(parts: list[str], word: str = "and") -> str:
    return f" {word} ".join(parts)
