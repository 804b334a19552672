"""Which of the steps there are: the rules of ``HUB_STEPS``.

==================================  =====================================================================
``all``                             every step
``every N [from A] [to B]``         the steps nearest to the multiples of N
``log N [from A] [to B]``           the steps nearest to N that grow by a constant factor
``at S S ...``                      these
==================================  =====================================================================

Numbers may end in k or M. ``stage2: every 1k`` or ``stage2-ingredient1: all`` takes another stage than the first. A
wanted step counts as there if one is nearer to it than half the way to the next wanted one; else it is a hole, which is
reported and not filled.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RULE = re.compile(
    r"^(?:stage(?P<stage>[12])(?:-ingredient(?P<ingredient>\d))?\s*:\s*)?"
    r"(?:(?P<all>all)|at(?P<at>(?:\s+\d+[kM]?)+)"
    r"|(?P<kind>every|log)\s+(?P<n>\d+[kM]?)(?:\s+from\s+(?P<low>\d+[kM]?))?(?:\s+to\s+(?P<high>\d+[kM]?))?)$"
)
_GRAMMAR = "all, every N [from A] [to B], log N [from A] [to B], or at S S ..., behind stage2: if need be"


@dataclass(frozen=True)
class Rule:
    """One rule, parsed: of which stage and ingredient, and what is wanted of it."""

    text: str
    stage: int
    ingredient: int
    kind: str
    n: int
    low: int | None
    high: int | None
    at: tuple[int, ...]


def parse(text: str) -> Rule:
    """A rule as it is written; ``ValueError`` shows the grammar."""
    found = _RULE.match(text.strip())
    if not found:
        raise ValueError(f"HUB_STEPS: expected {_GRAMMAR}, got {text!r}")
    kind = found["kind"] or ("all" if found["all"] else "at")
    n, low, high = (_number(found[name]) for name in ("n", "low", "high"))
    if (kind in ("every", "log") and not n) or (kind == "log" and n == 1):
        raise ValueError(f"HUB_STEPS: expected a larger number behind {kind}, got {text!r}")
    if low is not None and high is not None and low > high:
        raise ValueError(f"HUB_STEPS: from {low} to {high} is empty, got {text!r}")
    at = tuple(_number(step) or 0 for step in (found["at"] or "").split())
    return Rule(text, int(found["stage"] or 1), int(found["ingredient"] or 0), kind, n or 0, low, high, at)


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    return int(text.rstrip("kM")) * {"k": 1000, "M": 10**6}.get(text[-1], 1)


def choose(rule: Rule, steps: Sequence[int]) -> tuple[list[int], list[int]]:
    """The steps that the rule takes of those there are, in order, and the wanted ones to which none is near enough."""
    there = np.unique(np.asarray(steps, dtype=np.int64))
    if rule.kind == "all" or not len(there):
        return there.tolist(), list(rule.at)
    wanted = _wanted(rule, int(there[0]), int(there[-1]))
    if rule.kind == "at":
        return [s for s in wanted if s in there], [s for s in wanted if s not in there]
    chosen, holes = [], []
    reach = np.diff(wanted, append=2 * wanted[-1] - wanted[-2] if len(wanted) > 1 else wanted[-1] + rule.n)
    before = np.concatenate([reach[:1], reach[:-1]])
    for step, left, right in zip(wanted, before, reach, strict=True):
        near = int(there[np.abs(there - step).argmin()])
        if near == step or -left < 2 * (near - step) < right:
            chosen.append(near)
        else:
            holes.append(step)
    return sorted(set(chosen)), holes


def _wanted(rule: Rule, first: int, last: int) -> list[int]:
    low, high = rule.low if rule.low is not None else first, rule.high if rule.high is not None else last
    if rule.kind == "at":
        return sorted(set(rule.at))
    if rule.kind == "every":
        return list(range(-(-low // rule.n) * rule.n, high + 1, rule.n))
    return sorted(set(np.geomspace(max(low, 1), max(high, 1), rule.n).round().astype(int).tolist()))


def holes(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Where steps are missing: the ends of each gap that is longer than the usual one, which is the most frequent."""
    there = np.unique(np.asarray(steps, dtype=np.int64))
    gaps = np.diff(there)
    if not len(gaps):
        return []
    values, counts = np.unique(gaps, return_counts=True)
    usual = values[counts.argmax()]
    return [(int(a), int(b)) for a, b, gap in zip(there[:-1], there[1:], gaps, strict=True) if gap > usual]
