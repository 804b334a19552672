"""Alarms: each goes off on a run that was made to deserve it, is silent on an ordinary one, and counts right."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch

from replicate.ladder import corpus
from replicate.models.fresh import tiny_olmo2
from replicate.models.precision import full_precision
from replicate.rl import alarms
from replicate.rl.policies import StackedPolicy
from replicate.rl.prompts import exact_match
from replicate.rl.tasks.label_copying import label_copying
from replicate.rl.trainer import train
from replicate.runs.params import ScaleParameters
from replicate.settings.grpo import GRPO

RIGHT, WRONG, SETTLED = (
    f"groups without spread, {which}" for which in ("all right", "all wrong", "each settled")
)
NAMES = [rule.name for rule in alarms.RULES]


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


def task(seed):
    return label_copying(corpus.tokenizer(), 64, labels=4, filler=4, rng=np.random.default_rng(seed))


def fresh(gain=1.0):
    """A policy that knows nothing; with a ``gain`` its answers are the more certain."""
    model = tiny_olmo2(
        layers=1, hidden=16, heads=2, context=16, vocab=len(corpus.tokenizer()),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model.lm_head.weight.mul_(gain)
    return StackedPolicy(model, 2)


def run(policy=None, reference=None, *, updates=6, reward=exact_match, **config):
    """A run's curve and its settings: a few updates of two lanes, of which the first is looked at."""
    config = GRPO(**{"prompts": 8, "group_size": 8, "learning_rate": 1e-3, **config})
    policy = policy or fresh()
    options = {"seeds": [0, 1], "budgets": [updates // 2, updates], "reward": reward}
    curves = train(policy, reference or policy, task(0), task(1), config, **options)
    return curves[0], config


def raised(curve, config):
    """The alarms of a run, by name."""
    found = alarms.rung(curve.updates, config, curve.budgets)
    assert len({row["alarm"] for row in found}) == len(found)  # said once
    return {row["alarm"]: row for row in found}


def by_label(tokens, labels):
    """Right or wrong by the prompt alone."""
    return (labels % 2 == 0).double()[:, None].expand(tokens.shape[:2])


# What provokes each alarm, and how an update that counts is told without the package's rules.
PROVOKED = {
    RIGHT: (
        {"reward": lambda tokens, labels: torch.ones(tokens.shape[:2])},
        lambda row, before: row["null_groups"] > 0.5,
    ),
    WRONG: (
        {"reward": lambda tokens, labels: torch.zeros(tokens.shape[:2])},
        lambda row, before: row["null_groups"] > 0.5,
    ),
    SETTLED: (
        {"reward": by_label, "prompts": 16},
        lambda row, before: row["null_groups"] > 0.5,
    ),
    "null update": (
        {"prompts": 2, "group_size": 64},
        lambda row, before: row["grad_norm"] == 0 or row["null_groups"] == 1,
    ),
    "ratio far from 1": (
        {"learning_rate": 100.0, "iterations": 4},
        lambda row, before: row["ratio_max"] > 10 or row["ratio_min"] < 0.1 or row["clip_fraction"] > 0.5,
    ),
    "KL blows up": (
        {"learning_rate": 0.1, "kl_coef": 1e-4, "group_size": 64},
        lambda row, before: row["kl"] > 3 or (before and row["kl"] > max(0.3, 10 * before[-1]["kl"])),
    ),
    "entropy collapsed": (
        {"learning_rate": 100.0, "iterations": 4},
        lambda row, before: before and row["entropy"] < before[0]["entropy"] / 50 and row["reward"] < 0.9,
    ),
}  # fmt: skip


def test_every_alarm_of_updates_is_provoked_below():
    assert [rule.name for rule in alarms.RULES if rule.of == "updates"] == list(PROVOKED)


@pytest.mark.parametrize("name", PROVOKED)
def test_an_alarm_goes_off_on_a_run_that_deserves_it_and_counts_as_a_plain_recount_does(name):
    how, counts = PROVOKED[name]
    how = dict(how)
    reference = fresh() if how.get("kl_coef") else None
    curve, config = run(reference=reference, **how)
    found = raised(curve, config)[name]
    where = [i + 1 for i, row in enumerate(curve.updates) if counts(row, curve.updates[:i])]
    assert (found["updates"], found["first"]) == (len(where), where[0])
    assert found["share"] == len(where) / len(curve.updates)
    assert found["said"].startswith(f"in {len(where)} of 6 updates, first at {where[0]}, ")
    assert "\n" not in found["said"]


def test_a_reference_that_is_not_the_start_raises_the_kl_from_the_first_update_on():
    curve, config = run(reference=fresh(gain=60.0), kl_coef=1e-6)
    found = raised(curve, config)["KL blows up"]
    assert (found["updates"], found["first"]) == (6, 1)
    assert "whether the reference is the start" in found["said"]
    assert "KL blows up" not in raised(*run(reference=fresh(), kl_coef=1e-6))


def test_drift_that_buys_nothing_is_counted_in_evaluations():
    """At a rate of 100 the policy settles on one label, right or wrong, from the first evaluation on."""
    found = raised(*run(learning_rate=100.0, iterations=4))["far from the start"]
    assert (found["updates"], found["first"], found["share"]) == (2, 3, 1.0)
    assert found["said"].startswith("in 2 of 2 evaluations, first at 3, ")


@pytest.fixture(scope="module")
def learned():
    """The weights of a policy that knows which words are labels, and half of the answers."""
    policy = fresh()
    with full_precision():
        run(policy, updates=20, learning_rate=3e-3, iterations=4, prompts=16, group_size=32)
    return policy.flat.detach().clone()


def start_of(weights):
    policy = fresh()
    with torch.no_grad():
        policy.flat.copy_(weights)
    return policy


@pytest.mark.parametrize("how", [{}, {"iterations": 3}, {"kl_coef": 0.05}, {"credit": "to_go"}], ids=str)
def test_an_ordinary_run_raises_none(learned, how):
    """From a start that is neither hopeless nor solved; the same run without its rewards' spread is not silent."""
    curve, config = run(start_of(learned), start_of(learned), updates=10, prompts=16, group_size=16, **how)
    assert 0.1 < curve.updates[0]["reward"] < 0.9
    assert curve.budgets[-1]["kl_to_start"] > 0
    assert raised(curve, config) == {}
    equal = [{**row, "null_groups": 1.0} for row in curve.updates]
    assert alarms.rung(equal, config) != []


def test_alarms_are_json():
    curve, config = run(learning_rate=100.0, iterations=4)
    found = alarms.rung(curve.updates, config, curve.budgets)
    assert len(found) >= 3
    assert json.loads(json.dumps(found)) == found


def test_a_method_without_ratios_groups_or_kl_raises_no_alarm_about_them():
    rows = [{"reward": 0.5, "loss": 0.1, "grad_norm": 1.0, "entropy": 1.0}] * 4
    assert alarms.rung(rows, GRPO()) == []
    assert [row["alarm"] for row in alarms.rung([{**rows[0], "grad_norm": 0.0}] * 4, GRPO())] == [
        "null update"
    ]


def row(**changed):
    """One update that is as it should be."""
    fine = {
        "reward": 0.5,
        "grad_norm": 1.0,
        "entropy": 1.0,
        "clip_fraction": 0.0,
        "ratio_min": 1.0,
        "ratio_max": 1.0,
    }
    return {**fine, "null_groups": 0.1, **changed}


def test_one_unlucky_batch_of_many_is_no_alarm():
    """Of twenty updates one by luck is not said, two are; a ratio far from 1 is said at once."""
    unlucky = row(null_groups=1.0, reward=0.0)
    for count, expected in ((1, []), (2, [WRONG, "null update"])):
        found = alarms.rung([unlucky] * count + [row()] * (20 - count), GRPO())
        assert [alarm["alarm"] for alarm in found] == expected
    (found,) = alarms.rung([row()] * 19 + [row(ratio_max=11.0)], GRPO(iterations=2))
    assert (found["alarm"], found["updates"], found["first"]) == ("ratio far from 1", 1, 20)


@pytest.mark.parametrize(
    ("edge", "beyond", "name"),
    [
        ({"null_groups": 0.5}, {"null_groups": 0.51, "reward": 0.1}, WRONG),
        ({"null_groups": 0.5, "reward": 0.9}, {"null_groups": 0.51, "reward": 0.9}, RIGHT),
        ({"ratio_max": 10.0}, {"ratio_max": 10.1}, "ratio far from 1"),
        ({"ratio_min": 0.1}, {"ratio_min": 0.099}, "ratio far from 1"),
        ({"clip_fraction": 0.5}, {"clip_fraction": 0.51}, "ratio far from 1"),
        ({"kl": 3.0}, {"kl": 3.1}, "KL blows up"),
    ],
)
def test_a_bound_itself_is_still_allowed(edge, beyond, name):
    rows = [row(kl=2.0)]
    assert alarms.rung([*rows, row(**edge)], GRPO(iterations=2)) == []
    assert [a["alarm"] for a in alarms.rung([*rows, row(**beyond)], GRPO(iterations=2))] == [name]


def test_a_kl_that_grows_tenfold_in_one_update_is_an_alarm_unless_it_is_small():
    def found(*kls):
        return [a["first"] for a in alarms.rung([row(kl=kl) for kl in kls], GRPO(kl_coef=0.1))]

    assert found(0.001, 0.29) == found(0.1, 0.9) == found(0.5, 1.0, 2.0) == []
    assert found(0.05, 0.4, 0.03, 0.31) == [4]


def test_which_share_of_the_groups_without_spread_is_right():
    """Against groups that are written out: the estimate is exact where the other groups are half right."""
    for right, wrong, mixed in itertools.product(range(4), range(4), range(1, 4)):
        groups = np.repeat([[1, 1], [0, 0], [0, 1]], [right, wrong, mixed], axis=0)
        equal = groups.min(1) == groups.max(1)
        found = alarms.right_share([{"reward": groups.mean(), "null_groups": equal.mean()}])
        if not equal.any():
            assert found is None
        else:
            assert found == pytest.approx(groups[equal].mean())
    assert alarms.right_share([{"reward": -1.0, "null_groups": 1.0}]) is None


def test_a_run_has_one_name_for_its_groups_whatever_chance_makes_of_single_updates():
    """Policies that answer each prompt in one way: what counts is what is right over all updates together."""
    for rewards, name in (((0.1, 0.9, 0.5), SETTLED), ((0.1, 0.5, 0.0), WRONG), ((0.9, 0.5, 1.0), RIGHT)):
        (found,) = alarms.rung([row(null_groups=0.99, reward=r) for r in rewards], GRPO())
        assert (found["alarm"], found["updates"]) == (name, 3)
    (found,) = alarms.rung([row(null_groups=0.99, reward=-2.0)], GRPO())
    assert found["alarm"] == SETTLED


@pytest.mark.parametrize(
    ("reward", "size", "said"),
    [
        (0.1, 6, "groups of 6 (about 7 would do)"),
        (0.1, 7, "most prompts are hopeless; ask"),
        (0.0, 8, "groups of 8, ask"),
    ],
)
def test_a_group_size_is_named_if_it_would_help(reward, size, said):
    """Seven answers hold a right one as often as not where one in ten is right, six do not."""
    (found,) = alarms.rung([row(null_groups=0.9, reward=reward)], GRPO(group_size=size))
    assert found["alarm"] == WRONG
    assert said in found["said"]
    assert 1 - 0.9**7 > 0.5 > 1 - 0.9**6


def probabilities(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).softmax(-1)


def test_no_policy_wastes_less_than_nothing():
    """The KL of two random policies, term by term, is never below what their events need, and is all of it if only the
    event's odds moved; a wrong least (the difference of rewards, squared) is neither."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        start, now = probabilities(generator, 5, 7), probabilities(generator, 5, 7)
        kl = torch.distributions.kl_divergence(*map(torch.distributions.Categorical, (now, start))).mean()
        rows = [
            {"reward": p[:, 0].mean().item(), "label_mass": p[:, :3].sum(1).mean().item()}
            for p in (start, now)
        ]
        assert alarms.wasted({**rows[1], "kl_to_start": kl.item()}, rows[0]) >= -1e-12
    tilted = start[:1].clone()
    tilted[:, 0] *= 9
    tilted /= tilted.sum()
    kl = (tilted * (tilted / start[:1]).log()).sum().item()
    moved = {"reward": tilted[0, 0].item(), "kl_to_start": kl}
    assert alarms.wasted(moved, {"reward": start[0, 0].item()}) == pytest.approx(0, abs=1e-12)
    assert kl > 0.1


def test_of_longer_answers_only_single_tokens_bound_the_kl():
    """The product over an answer's tokens moves by more than the KL of one token allows."""
    start = {"reward": 0.5**4, "each_right": 0.5}
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    now = {"reward": 0.9**4, "each_right": 0.9, "kl_to_start": kl}
    assert alarms.wasted(now, start) == pytest.approx(0, abs=1e-12)
    assert alarms.wasted({**now, "each_right": 1.0, "kl_to_start": math.log(2)}, start) == pytest.approx(0)


def test_the_settings_that_a_remedy_names_are_there():
    """Under the names that parameter files have for them."""
    budgets = [{"budget": n, "reward": 0.5, "kl_to_start": 5.0 * n} for n in (0, 1)]
    found = []
    for reward in (0.0, 0.5, 1.0):
        rows = [
            row(null_groups=1.0, reward=reward, kl=9.0, ratio_max=99.0),
            row(grad_norm=0.0),
            row(entropy=1e-4),
        ]
        found += alarms.rung(rows, GRPO(iterations=2), budgets)
    assert {a["alarm"] for a in found} == set(NAMES)
    said = " ".join(a["said"] for a in found) + " ".join(alarms._CAUSES.values())
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b|\bITERATIONS\b", said))
    assert {"LEARNING_RATE", "KL_COEF", "ITERATIONS"} <= named <= set(ScaleParameters.model_fields)


def test_every_alarm_stands_in_the_modules_table():
    table = " ".join(re.split(r"  +|\n", alarms.__doc__))
    for name in NAMES:
        assert all(part in table for part in name.split(", ")), name


def test_with_one_step_a_batch_a_ratio_far_from_1_is_the_methods_fault():
    (found,) = alarms.rung([row(ratio_max=20.0)], GRPO(iterations=1))
    assert "samples from another policy" in found["said"]
    assert "LEARNING_RATE" not in found["said"]


# --- What is not finite -----------------------------------------------------------------------------------------------


def broken():
    policy = fresh()
    with torch.no_grad():
        policy.flat.fill_(math.nan)
    return policy


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"policy": broken}, r"update 1 of .*, first its entropy \(nan\): the start's weights .* checkpoint"),
        (
            {"optimizer": "sgd", "learning_rate": 1e38, "max_grad_norm": 0.0},
            r"update 2 of .*, first its entropy \(nan\): the update before broke the weights; lower LEARNING_RATE",
        ),
        (
            {"optimizer": "sgd", "learning_rate": 1e38, "max_grad_norm": 0.0, "iterations": 2},
            r"update 1 of .*, first its ratio_max \(nan\): the steps on one batch broke the weights",
        ),
        ({"reference": broken, "kl_coef": 0.1}, r"update 1 of .*, first its kl \(nan\): the reference "),
    ],
)  # fmt: skip
def test_a_run_that_is_not_finite_is_refused_with_the_cause(how, said):
    how = {name: value() if callable(value) else value for name, value in how.items()}
    with pytest.raises(ValueError, match=rf"^seed 0: {said}") as refused:
        run(**how)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value).partition("; {")[0]) < 300  # a failed row keeps that much


@pytest.mark.parametrize(
    ("wrong", "first", "said"),
    [
        ({"loss": math.nan, "grad_norm": math.nan}, "loss", "REWARD_SCALE"),
        ({"grad_norm": math.inf}, "grad_norm", "backward"),
        ({"ratio_max": math.inf, "loss": math.nan}, "ratio_max", "overflows"),
        ({"reward": math.nan, "loss": math.nan, "entropy": math.nan}, "reward", "task's reward"),
        ({"value_loss": math.inf}, "value_loss", "overflow"),
        ({"value_loss": math.inf, "loss": math.inf}, "loss", "overflow"),
    ],
)
def test_what_is_computed_first_is_named_first(wrong, first, said):
    found = alarms.not_finite({**row(loss=0.0), **wrong}, 3, 7)
    assert found.startswith(f"seed 7: update 3 of GRPO is not finite, first its {first} ({wrong[first]}): ")
    assert said in found.partition("; {")[0]
