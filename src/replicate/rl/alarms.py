"""Alarms: what is wrong with a run although it goes on, counted per update, said once with the likely cause.

=========================  ==================================================  =====================================
alarm                      an update counts if                                 likely cause; remedy
=========================  ==================================================  =====================================
groups without spread,     over ``SPREADLESS`` of the groups have equal        the task is solved; ask harder
all right                  rewards; these are, on average, mostly right        prompts, or stop
groups without spread,     the same; mostly wrong                              nothing right is sampled; enlarge
all wrong                                                                      groups, ask easier prompts
groups without spread,     the same; neither                                   prompts are solved or hopeless; ask
each settled                                                                   those in between
null update                the gradient's norm is 0, or no group has spread    as above; or all is clipped, or the
                                                                               policy is certain
ratio far from 1           a ratio is over ``FAR`` or below its inverse, or    the steps on one batch are too large
                           over ``CLIPPED`` of them leave the trust interval   or too many
KL blows up                the KL to the reference is over ``KL_MOST``, or     steps too large, KL too light, or
                           ``KL_RISES`` times that of the update before        another reference
entropy collapsed          the entropy is below ``ENTROPY_LEFT`` of the first  certain before it is right; take
                           update's, the mean reward below ``SOLVED``          smaller steps
far from the start         (an evaluation) ``kl_to_start`` is ``KL_WASTED``    drift that buys no reward; smaller
                           more than the change of reward needs                steps, or a KL
=========================  ==================================================  =====================================

A mean reward is read as a share of right answers: rewards are 0 or 1. A metric that a method does not have counts for
nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from replicate.settings.grpo import GRPO

Row = Mapping[str, float | int]

SPREADLESS = 0.5
"""Share of groups without spread: beyond it most of what is sampled teaches nothing."""

LASTING = 0.1
"""From which share of updates on it is no longer luck: of 16 groups, each without spread with probability 0.3, more
than half are so in one update of forty."""

MOSTLY = 2 / 3
"""Share of the groups without spread that must be right (or wrong) for them to be called so, over all updates that
count: update by update chance would sort the groups of one policy under several names."""

FAR = 10.0
"""Ratio of a token: where the advantage is negative nothing clips it, and one sample weighs as much as ten."""

CLIPPED = 0.5
"""Share of tokens outside the trust interval: beyond it further steps on the batch act on its lesser half."""

KL_MOST = 3.0
"""Nats a token; to choose one of eight labels where there was no preference takes ln 8 = 2.1."""

KL_RISES, KL_NOTICED = 10.0, 0.3
"""Factor within one update, among values of at least so many nats: below that, a factor is the noise of k3."""

KL_WASTED = 1.0
"""Nats a token beyond what the change of reward needs: of the study's 8784 evaluations 6 have so much, and at most
1.5; a policy that settles on one of eight labels, right or wrong, wastes up to 2.1."""

ENTROPY_LEFT, SOLVED = 0.02, 0.9
"""Share of the first update's entropy (5.6 nats leave 0.1: one token has 98%) that is no loss only where the task is
solved."""


class Rule(NamedTuple):
    """``counts(now, earlier, config)`` says of a row, given those before it, whether it counts; ``said(rows, config)``
    names the cause for the rows that did. ``of`` is which rows; a share below ``lasting`` of them is no alarm, nor is
    what another rule names if ``own`` says so of the rows that count."""

    name: str
    counts: Callable[[Row, Sequence[Row], GRPO], bool]
    said: Callable[[Sequence[Row], GRPO], str]
    lasting: float = 0.0
    of: str = "updates"
    own: Callable[[Sequence[Row]], bool] = bool


def rung(updates: Sequence[Row], config: GRPO, budgets: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """The alarms of one seed's run: ``alarm``, ``updates`` (how many count), ``first``, ``share``, ``said``.

    ``updates`` are the metrics of every update, ``budgets`` the evaluations with that before the first update; where an
    alarm is about these, they are what is counted, and ``first`` is a number of updates all the same.
    """
    rows = {"updates": list(updates), "budgets": list(budgets)}
    return [alarm for rule in RULES if (alarm := _alarm(rule, rows[rule.of], config))]


def _alarm(rule: Rule, rows: Sequence[Row], config: GRPO) -> dict[str, Any] | None:
    where = [i for i, row in enumerate(rows) if rule.counts(row, rows[:i], config)]
    counted = [rows[i] for i in where]
    total = sum(
        row.get("budget") != 0 for row in rows
    )  # the start is judged too, but nothing has happened yet
    if not where or len(where) < rule.lasting * total or not rule.own(counted):
        return None
    first = int(rows[where[0]].get("budget", where[0] + 1))
    said = rule.said(counted, config)
    return {
        "alarm": rule.name,
        "updates": len(where),
        "first": first,
        "share": len(where) / total,
        "said": f"in {len(where)} of {total} {_NAMES[rule.of]}, first at {first}, {said}",
    }


_NAMES = {"updates": "updates", "budgets": "evaluations"}


# --- Groups without spread, null updates ------------------------------------------------------------------------------


def _is_spreadless(now: Row, earlier: Sequence[Row], config: GRPO) -> bool:
    return now.get("null_groups", 0.0) > SPREADLESS


def right_share(rows: Sequence[Row]) -> float | None:
    """Which share of the groups without spread is right, about; None where there is none or the reward is no share.

    Of n such groups a share q is right, and the others have a mean reward of about 1/2, so the mean reward is
    n q + (1 - n) / 2.
    """
    share, reward = _mean(rows, "null_groups"), _mean(rows, "reward")
    if share == 0 or not 0 <= reward <= 1:
        return None
    return (reward - (1 - share) / 2) / share


def _are_right(rows: Sequence[Row]) -> bool:
    q = right_share(rows)
    return q is not None and q >= MOSTLY


def _are_wrong(rows: Sequence[Row]) -> bool:
    q = right_share(rows)
    return q is not None and q <= 1 - MOSTLY


def _are_settled(rows: Sequence[Row]) -> bool:
    return not (_are_right(rows) or _are_wrong(rows))


def _said_right(rows: Sequence[Row], config: GRPO) -> str:
    return f"{_equal(rows)}, mostly all right: little is left to learn here; ask harder prompts, start earlier, or stop"


def _said_wrong(rows: Sequence[Row], config: GRPO) -> str:
    reward = _mean(rows, "reward")
    # A group of G has something right as often as not where (1 - reward)^G = 1/2, if prompts are equally hard.
    need = math.ceil(math.log(2) / -math.log1p(-reward)) if reward > 0 else math.inf
    if need <= config.group_size:
        return f"{_equal(rows)}, mostly all wrong: most prompts are hopeless; ask easier ones, or start later"
    larger = f" (about {need} would do)" if reward > 0 else ""
    return (
        f"{_equal(rows)}, mostly all wrong: nothing right is sampled to learn from; enlarge groups of "
        f"{config.group_size}{larger}, ask easier prompts, or start later"
    )


def _said_settled(rows: Sequence[Row], config: GRPO) -> str:
    return (
        f"{_equal(rows)}, some all right and some all wrong: the policy answers each prompt in one way only; ask "
        "prompts between the solved and the hopeless, or start where it is less certain"
    )


def _equal(rows: Sequence[Row]) -> str:
    share, reward = _mean(rows, "null_groups"), _mean(rows, "reward")
    return f"{share:.0%} of the groups had equal rewards (mean reward {reward:.2g})"


def _is_null(now: Row, earlier: Sequence[Row], config: GRPO) -> bool:
    return now.get("grad_norm") == 0 or now.get("null_groups") == 1


def _said_null(rows: Sequence[Row], config: GRPO) -> str:
    equal = sum(row.get("null_groups") == 1 for row in rows)
    causes = [f"no group had spread ({equal} times)"] if equal else []
    if other := len(rows) - equal:
        causes.append(
            f"the gradient was 0 although rewards differed ({other} times), as when every ratio is clipped or the "
            f"policy is certain: lower LEARNING_RATE ({config.learning_rate:g})"
        )
    momentum = "; AdamW's momentum may move the weights all the same" if config.optimizer == "adamw" else ""
    pull = "; only the KL pulled" if equal and config.kl_coef else ""
    return f"there was nothing to learn: {' and '.join(causes)}{pull}{momentum}"


# --- Steps that are too large -----------------------------------------------------------------------------------------


def _is_far(now: Row, earlier: Sequence[Row], config: GRPO) -> bool:
    outside = now.get("ratio_max", 1.0) > FAR or now.get("ratio_min", 1.0) < 1 / FAR
    return outside or now.get("clip_fraction", 0.0) > CLIPPED


def _said_far(rows: Sequence[Row], config: GRPO) -> str:
    low = min(row.get("ratio_min", 1.0) for row in rows)
    high = max(row.get("ratio_max", 1.0) for row in rows)
    clipped = max(row.get("clip_fraction", 0.0) for row in rows)
    seen = (
        f"ratios went from {low:.2g} to {high:.2g}, with up to {clipped:.0%} outside 1 +- {config.clip:g}: "
    )
    if config.iterations == 1:
        return f"{seen}with one step a batch they must be 1, so the method samples from another policy than it scores"
    return (
        f"{seen}the {config.iterations} steps on one batch go too far; lower LEARNING_RATE ({config.learning_rate:g}) "
        "or ITERATIONS"
    )


def _kl_blows_up(now: Row, earlier: Sequence[Row], config: GRPO) -> bool:
    kl = now.get("kl", 0.0)
    before = earlier[-1].get("kl", 0.0) if earlier else kl
    return kl > KL_MOST or (kl > KL_NOTICED and kl > KL_RISES * before)


def _said_kl(rows: Sequence[Row], config: GRPO) -> str:
    return (
        f"the KL to the reference rose to {max(row['kl'] for row in rows):.2g} nats a token: lower LEARNING_RATE "
        f"({config.learning_rate:g}), raise KL_COEF ({config.kl_coef:g}), or see whether the reference is the start"
    )


def _is_certain(now: Row, earlier: Sequence[Row], config: GRPO) -> bool:
    return bool(earlier) and now["entropy"] < ENTROPY_LEFT * earlier[0]["entropy"] and now["reward"] < SOLVED


def _said_certain(rows: Sequence[Row], config: GRPO) -> str:
    return (
        f"the entropy fell to {min(row['entropy'] for row in rows):.2g} nats at a mean reward of "
        f"{_mean(rows, 'reward'):.2g}: the policy is certain before it is right and tries nothing else; lower "
        f"LEARNING_RATE ({config.learning_rate:g}) or hold it by KL_COEF ({config.kl_coef:g})"
    )


def wasted(now: Row, start: Row) -> float:
    """``kl_to_start`` beyond the least that has the probabilities of what is right change as they did, in nats a token.

    KL(pi_n, pi_0) is at least that of any event, and at least that of its mean probabilities, KL being jointly convex:
    p ln(p / p_0) + (1 - p) ln((1 - p) / (1 - p_0)). Of an answer's tokens the event is that a token is right; of a
    single one also that it is a label.
    """
    events = ("each_right",) if "each_right" in now else ("reward", "label_mass")
    least = max((_event_kl(now[name], start[name]) for name in events if name in now), default=0.0)
    return now["kl_to_start"] - least


def _event_kl(p: float, start: float) -> float:
    pairs = ((p, start), (1 - p, 1 - start))
    # Probabilities summed in float32 may exceed 1 by a rounding: what is left of the complement then says nothing.
    return sum(a * math.log(a / b) for a, b in pairs if a > 0 and b > 0)


def _is_lost(now: Row, earlier: Sequence[Row], config: GRPO) -> bool:
    return bool(earlier) and wasted(now, earlier[0]) > KL_WASTED


def _said_lost(rows: Sequence[Row], config: GRPO) -> str:
    return (
        f"the policy was up to {max(row['kl_to_start'] for row in rows):.2g} nats a token from its start, over "
        f"{KL_WASTED:g} more than its change of reward needs: lower LEARNING_RATE ({config.learning_rate:g}) or raise "
        f"KL_COEF ({config.kl_coef:g})"
    )


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


RULES = (
    Rule("groups without spread, all right", _is_spreadless, _said_right, LASTING, own=_are_right),
    Rule("groups without spread, all wrong", _is_spreadless, _said_wrong, LASTING, own=_are_wrong),
    Rule("groups without spread, each settled", _is_spreadless, _said_settled, LASTING, own=_are_settled),
    Rule("null update", _is_null, _said_null, LASTING),
    Rule("ratio far from 1", _is_far, _said_far),
    Rule("KL blows up", _kl_blows_up, _said_kl),
    Rule("entropy collapsed", _is_certain, _said_certain),
    Rule("far from the start", _is_lost, _said_lost, of="budgets"),
)


# --- What is not finite -----------------------------------------------------------------------------------------------

_ORDER = ("reward", "entropy", "ratio_max", "ratio_min", "kl", "loss", "grad_norm")
"""In which order an update computes them: the first that is not finite is where it began."""

_CAUSES = {
    "reward": "the task's reward is at fault",
    "ratio_max": "the steps on one batch broke the weights; lower LEARNING_RATE or ITERATIONS",
    "kl": "the reference all but excludes a sampled token; lower LEARNING_RATE, look at the reference",
    "loss": "an overflow; lower REWARD_SCALE, compute in float32",
    "grad_norm": "the backward pass overflows; compute in float32, lower REWARD_SCALE",
}


def not_finite(metrics: Row, update: int, seed: int) -> str:
    """One line on an update of which something is NaN or infinite: which came first, and the likely cause."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    first = min(wrong, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    found = f"seed {seed}: update {update} of GRPO is not finite, first its {first} ({metrics[first]})"
    return f"{found}: {_cause(first, metrics[first], update)}; {dict(metrics)}"


def _cause(first: str, value: float, update: int) -> str:
    if first == "entropy":  # of the policy that sampled: it came broken into this update
        if update == 1:
            return "the start's weights or activations are; look at the checkpoint, compute in float32"
        return (
            "the update before broke the weights; lower LEARNING_RATE, set MAX_GRAD_NORM, compute in float32"
        )
    if first == "ratio_max" and value == math.inf:
        return "the ratio overflows, the steps on one batch go too far; lower LEARNING_RATE or ITERATIONS"
    return _CAUSES.get(first, "an overflow; lower LEARNING_RATE, compute in float32")
