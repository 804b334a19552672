"""What ``replicate score`` says: a row per checkpoint, what cannot be told apart, and what the score was validated on.

Every number about the score's worth comes from the published study's records, through its calibration.
"""

from collections.abc import Iterator

import pandas as pd

from replicate.impact.calibration import BASELINE, Calibration


def page(
    rungs: pd.DataFrame,
    pairs: pd.DataFrame,
    calibration: Calibration,
    *,
    budget: int,
    samples: int,
    rated: bool,
    prompts: int,
) -> str:
    """The whole page, without the checkpoints that failed; ``rated`` if a verifier rates sampled completions."""
    how = (
        f"two groups of {samples} sampled completions a prompt"
        if rated
        else "one-token answers, in closed form"
    )
    parts = [
        f"{prompts} prompts, {how}; GRPO in groups of {samples}. Intervals: 95% over prompts.",
        table(rungs, budget=budget),
        *_marked(rungs),
        *_best(rungs, budget),
        *_apart(rungs, pairs),
        *_worth(calibration, budget, samples),
    ]
    return "\n".join(parts)


def table(rungs: pd.DataFrame, *, budget: int) -> str:
    """A row per checkpoint: J_0, the score, the predicted gain, where it ends, and the cost in forward passes."""
    heads = ["checkpoint", "J_0", "score", f"gain, {budget} updates", "ends at", "passes"]
    rows = [heads]
    for _, rung in rungs.iterrows():
        told = [_between(rung, name) for name in ("J0", "score", "gain", "end")]
        rows.append([str(rung["name"]), *told, f"{rung.passes:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _between(rung: pd.Series, name: str) -> str:
    if pd.isna(rung[name]):
        return "-"
    return f"{rung[name]:.4g} [{rung[f'{name}_low']:.3g}, {rung[f'{name}_high']:.3g}]"


def _marked(rungs: pd.DataFrame) -> Iterator[str]:
    for _, rung in rungs[rungs.note != ""].iterrows():
        remedy = "easier prompts or more --samples" if rung.J0 < 0.5 else "harder prompts"
        yield f"{rung['name']}: {rung.note}, so it has no score; give {remedy}."


def _best(rungs: pd.DataFrame, budget: int) -> Iterator[str]:
    scored = rungs[rungs.note == ""]
    unsure = scored["name"][(scored.score_low <= 0) & (scored.score_high >= 0)]
    if len(unsure):
        yield f"Scores that may be 0: {', '.join(unsure)}; give more prompts or --samples."
    gains, ends = (scored["name"][scored[what].idxmax()] for what in ("gain", "end"))
    yield f"Largest predicted gain: {gains}. Highest predicted reward after {budget} updates: {ends}."
    yield "Start RL where it ends highest, not where it gains most; going on with pretraining is the rival to beat."


def _apart(rungs: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[str]:
    """From the best in each respect: which could as well be it. All pairs are in the file."""
    for what, said in (("score", "the largest score"), ("end", "the highest end")):
        own = pairs[pairs["what"] == what]
        if own.empty:
            continue
        best = rungs["name"][rungs[what].idxmax()]
        close = own[~own.apart & ((own.one == best) | (own.other == best))]
        names = [row.other if row.one == best else row.one for row in close.itertuples()]
        yield (
            f"Not told apart from {best}, {said}: {', '.join(names) or 'none'}. Of all {len(own)} pairs "
            f"{own.apart.sum()} are told apart (paired over prompts, 5% over all pairs by Holm)."
        )


def _worth(calibration: Calibration, budget: int, samples: int) -> Iterator[str]:
    of, rl = calibration.ladders, calibration.conditions
    n, most = calibration.nearest(budget), max(calibration.budgets)
    own = calibration.skill[calibration.skill.n == n]
    order, size = calibration.rank.low > calibration.rank_bound, calibration.r2.low > calibration.r2_bound
    both = "" if order and size else ", so that the hypothesis, which has both, was not"
    yield (
        "The score is kappa / sqrt(E|lambda^|^2) under GRPO's own advantages at the final state, fixed before "
        f"{of['locked']} locked ladders were trained."
    )
    yield (
        f"There its rank correlation with the gain was {calibration.rank.text()} ({_word(order)}: lower end above "
        f"{calibration.rank_bound:g} was asked), and the R^2 of predicted sizes {calibration.r2.text()} "
        f"({_word(size)}: above {calibration.r2_bound:g}){both}. Its lead in rank over {BASELINE}, which needs no "
        f"costates: {calibration.ahead.text()}."
    )
    yield (
        f"The gain is the law's, {calibration.law.form}, c = {calibration.law.c:.3g} fitted on {of['development']} "
        f"development ladders; on the locked ones at {n} updates its error was {_range(own.rmse)} (root mean square, "
        f"by ladder) and its R^2 {_range(own.r2)}. Trust the order, not the size."
    )
    yield (
        f"Validated on: tiny OLMo-2 architectures trained here, {rl['TASK'].replace('_', ' ')} (one rewarded token), "
        f"{min(calibration.budgets)} to {most} updates of {rl['PROMPTS']} prompts x {rl['GROUP_SIZE']}, learning rate "
        f"{rl['LEARNING_RATE']:g}. Nothing else: no other architecture, size, task, longer completion or optimiser. "
        "The score has the unit of the head's rows: compare checkpoints of one run, not two models."
    )
    if budget > most:
        yield f"{budget} updates are beyond the {most} that were ever run: that gain is extrapolated."
    if samples != rl["GROUP_SIZE"]:
        yield f"The constant belongs to groups of {rl['GROUP_SIZE']}, these are of {samples}: sizes are off by more."


def _word(confirmed: bool) -> str:
    return "confirmed" if confirmed else "not confirmed"


def _range(values: pd.Series) -> str:
    return f"{values.min():.2g} to {values.max():.2g}"
