"""Objective (1) and its conventions against plain loops, finite differences, and planted mistakes."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.rl.grpo import group_advantages, k3, surrogate_loss

TOLERANCE = 1e-12  # float64, sums of at most a few dozen terms of order 1

BASELINES = ("mean", "leave_one_out")
SCALES = ("std", "none")
LENGTHS = ("sequence", "token", "constant")


# The advantages --------------------------------------------------------------------------------


def advantages_by_loops(rewards, *, baseline, scale, eps, wrong=None):
    """(1) group by group in plain Python; ``wrong`` plants one mistake."""
    table = []
    for group in rewards:
        n, mean = len(group), sum(group) / len(group)
        ddof = 0 if wrong == "ddof 0" else 1
        variance = sum((r - mean) ** 2 for r in group) / (n - ddof)
        root = math.sqrt(variance + eps) if wrong == "eps inside the root" else math.sqrt(variance) + eps
        row = []
        for r in group:
            others = (sum(group) - r) / (n - 1)
            leave_out = (baseline == "leave_one_out") != (wrong == "other baseline")
            a = r - (others if leave_out else mean)
            divide = (scale == "std") != (wrong == "other scale")
            row.append(a / root if divide else a)
        table.append(row)
    return torch.tensor(table, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.integers(1, 5),
    group=st.integers(2, 9),
    baseline=st.sampled_from(BASELINES),
    scale=st.sampled_from(SCALES),
    eps=st.sampled_from((1e-4, 0.3)),
    seed=st.integers(0, 2**31),
)
def test_advantages_equal_plain_loops(prompts, group, baseline, scale, eps, seed):
    """Every convention: (R_i - baseline) / (std + eps), std with ddof 1, eps outside the root."""
    rewards = torch.randn(prompts, group, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = group_advantages(rewards, baseline=baseline, scale=scale, eps=eps)
    expected = advantages_by_loops(rewards.tolist(), baseline=baseline, scale=scale, eps=eps)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wrong", ["ddof 0", "eps inside the root", "other baseline", "other scale"])
def test_advantages_with_a_planted_mistake_differ(wrong):
    """The comparison above rejects each of these by at least a hundredth of an advantage."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.9, 0.4]], dtype=torch.float64)
    options = {"baseline": "mean", "scale": "std", "eps": 0.1}
    found = group_advantages(rewards, **options)
    assert (found - advantages_by_loops(rewards.tolist(), **options)).abs().max() < TOLERANCE
    assert (found - advantages_by_loops(rewards.tolist(), **options, wrong=wrong)).abs().max() > 1e-2


def test_advantages_by_hand():
    """Two of four right: mean 1/2, sample std sqrt(1/3), leave-one-out means 1/3 and 2/3."""
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    std = math.sqrt(1 / 3)
    grpo = group_advantages(rewards)[0].tolist()
    assert grpo == pytest.approx([0.5 / (std + 1e-4)] * 2 + [-0.5 / (std + 1e-4)] * 2, abs=TOLERANCE)
    rloo = group_advantages(rewards, baseline="leave_one_out", scale="none")[0].tolist()
    assert rloo == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3], abs=TOLERANCE)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e30, -7.7])
@pytest.mark.parametrize("group", [2, 3, 7])
def test_equal_rewards_give_exact_zeros(baseline, scale, value, group):
    """Zeros, not round-off divided by a tiny std: 0.1 has no exact mean over 3 or 7 in float32."""
    rewards = torch.full((2, group), value)
    assert torch.equal(group_advantages(rewards, baseline=baseline, scale=scale), torch.zeros(2, group))


def test_the_usual_formula_would_not_give_exact_zeros():
    """What the test above guards against: the mean of equal numbers, subtracted, leaves round-off behind."""
    rewards = torch.full((1, 7), 0.1)
    naive = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert naive.abs().max() > 0


def test_advantages_know_their_own_group_only():
    """Changing another prompt's rewards changes nothing here, bit for bit."""
    one = torch.tensor([[1.0, 0.0, 0.3], [0.0, 0.5, 1.0]])
    two = torch.tensor([[1.0, 0.0, 0.3], [9.0, 9.5, -4.0]])
    assert torch.equal(group_advantages(one)[0], group_advantages(two)[0])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_group_of_one_needs_neither_baseline_nor_std(baseline, scale):
    """Only the mean without a scale is defined for one completion, and it is 0."""
    one = torch.ones(3, 1)
    if (baseline, scale) == ("mean", "none"):
        assert torch.equal(group_advantages(one, baseline=baseline, scale=scale), torch.zeros(3, 1))
    else:
        with pytest.raises(ValueError, match=r"rewards: .* at least 2, got 1"):
            group_advantages(one, baseline=baseline, scale=scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_advantages_refuse_what_is_not_finite(bad):
    with pytest.raises(ValueError, match="rewards: expected finite"):
        group_advantages(torch.tensor([[0.0, bad, 1.0]]))


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (torch.zeros(0, 4), {}, r"rewards: .*got \[0, 4\]"),
        (torch.zeros(4, 0), {}, r"rewards: .*got \[4, 0\]"),
        (torch.zeros(4), {}, r"rewards: .*got \[4\]"),
        (torch.zeros(2, 2), {"baseline": "median"}, "baseline: .*'median'"),
        (torch.zeros(2, 2), {"scale": "range"}, "scale: .*'range'"),
    ],
)
def test_advantages_refuse_bad_input(rewards, options, message):
    """With the type checker of the tests off, as users run it."""
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(group_advantages)(rewards, **options)


# The surrogate ---------------------------------------------------------------------------------


def loss_by_loops(
    logp, logp_old, logp_ref, advantages, mask, *, clip, kl_coef, length, max_length=None, wrong=None
):
    """Minus (1) in plain Python floats, token by token; ``wrong`` plants one mistake."""
    per_completion, total = [], 0.0
    for i, a in enumerate(advantages):
        terms = []
        for t, here in enumerate(mask[i]):
            if not here:
                continue
            ratio = math.exp(logp[i][t] - logp_old[i][t])
            if wrong == "ratio inverted":
                ratio = 1 / ratio
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            term = min(ratio * a, clipped * a)
            if wrong == "no clip":
                term = ratio * a
            if wrong == "clip without min":
                term = clipped * a
            if wrong == "max for min":
                term = max(ratio * a, clipped * a)
            if kl_coef:
                u = logp_ref[i][t] - logp[i][t]
                penalty = math.exp(u) - u - 1
                if wrong == "k3 of the other direction":
                    penalty = math.exp(-u) + u - 1
                if wrong == "k1":
                    penalty = -u
                term += kl_coef * penalty if wrong == "kl sign flipped" else -kl_coef * penalty
            terms.append(term)
        total += sum(terms)
        per_completion.append(sum(terms) / max(len(terms), 1))
    if length == "sequence":
        return -sum(per_completion) / len(per_completion)
    if length == "token":
        return -total / max(sum(map(sum, mask)), 1)
    longest = max(map(sum, mask)) if wrong == "longest in the batch" else max_length
    return -total / (len(mask) * longest)


def batch(completions, tokens, seed, *, spread=0.3):
    """Ragged, float64: logp, logp_old, logp_ref, advantages, mask; log-ratios of ``spread`` or so."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    logp = -normal(completions, tokens).abs() - 0.1
    lengths = torch.randint(0, tokens + 1, (completions,), generator=g)
    mask = torch.arange(tokens) < lengths[:, None]
    old, ref = (logp + spread * normal(completions, tokens) for _ in range(2))
    return logp, old, ref, normal(completions), mask


def as_lists(logp, old, ref, advantages, mask):
    return logp.tolist(), old.tolist(), ref.tolist(), advantages.tolist(), mask.long().tolist()


@settings(max_examples=150, deadline=None)
@given(
    completions=st.integers(1, 6),
    tokens=st.integers(1, 7),
    length=st.sampled_from(LENGTHS),
    clip=st.sampled_from((0.05, 0.2, 0.9)),
    kl_coef=st.sampled_from((0.0, 0.04, 1.0)),
    mask_dtype=st.sampled_from((torch.bool, torch.float64)),
    seed=st.integers(0, 2**31),
)
def test_loss_equals_plain_loops(completions, tokens, length, clip, kl_coef, mask_dtype, seed):
    """All conventions at ragged random shapes, completions without a token included."""
    logp, old, ref, advantages, mask = batch(completions, tokens, seed)
    options = {"clip": clip, "kl_coef": kl_coef, "length": length, "max_length": tokens + 3}
    found = surrogate_loss(logp, old, ref, advantages, mask.to(mask_dtype), **options)
    expected = loss_by_loops(*as_lists(logp, old, ref, advantages, mask), **options)
    assert found.item() == pytest.approx(expected, rel=1e-11, abs=1e-12)


MISTAKES = {
    "no clip": {},
    "clip without min": {},
    "max for min": {},
    "ratio inverted": {},
    "kl sign flipped": {},
    "k3 of the other direction": {},
    "k1": {},
    "longest in the batch": {"length": "constant"},
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_loss_with_a_planted_mistake_differs(wrong):
    """The comparison above would see each of these: the loss moves by more than a thousandth."""
    tensors = batch(6, 5, seed=3)
    options = {"clip": 0.2, "kl_coef": 0.5, "length": "sequence", "max_length": 8} | MISTAKES[wrong]
    found = surrogate_loss(*tensors, **options).item()
    assert found == pytest.approx(loss_by_loops(*as_lists(*tensors), **options), abs=TOLERANCE)
    assert abs(found - loss_by_loops(*as_lists(*tensors), **options, wrong=wrong)) > 1e-3


def test_length_conventions_agree_on_full_batches_and_differ_on_ragged_ones():
    """With equal lengths of max_length tokens the three are one; on a ragged batch no two of them are."""
    logp, old, ref, advantages, _ = batch(4, 5, seed=1)
    full = torch.ones(4, 5, dtype=torch.bool)
    ragged = torch.arange(5) < torch.tensor([5, 1, 2, 4])[:, None]

    def losses(mask):
        return [
            surrogate_loss(logp, old, ref, advantages, mask, kl_coef=0.1, length=name, max_length=5).item()
            for name in LENGTHS
        ]

    assert max(losses(full)) - min(losses(full)) < TOLERANCE
    one, two, three = losses(ragged)
    assert min(abs(one - two), abs(two - three), abs(one - three)) > 1e-3


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gradient_equals_finite_differences(length, kl_coef):
    """gradcheck in float64, on a batch where some ratios are clipped and none is within 1e-3 of the kink."""
    logp, old, ref, advantages, mask = batch(5, 4, seed=11)
    ratio = (logp - old).exp()[mask]
    assert ((ratio - 1).abs() > 0.2).any()
    assert ((ratio - 1).abs() - 0.2).abs().min() > 1e-3

    def loss(x):
        return surrogate_loss(x, old, ref, advantages, mask, kl_coef=kl_coef, length=length, max_length=6)

    assert torch.autograd.gradcheck(loss, (logp.requires_grad_(),), eps=1e-6, atol=1e-9)


def test_on_policy_gradient_is_the_score_function_weighted_by_the_advantage():
    """At ratio 1 and without KL, d loss / d logp_it = -A_i / (completions * tokens of i): (11) for GRPO."""
    logp, _, _, advantages, mask = batch(5, 4, seed=2)
    logp.requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate_loss(logp, logp, None, advantages, mask), logp)
    expected = -advantages[:, None] * mask / mask.sum(1, keepdim=True).clamp(min=1) / 5
    torch.testing.assert_close(gradient, expected, rtol=0, atol=TOLERANCE)


def test_no_gradient_reaches_the_old_and_the_reference_policy():
    """They are constants of the objective even if they come with a graph."""
    logp, old, ref, advantages, mask = batch(3, 4, seed=5)
    for tensor in (logp, old, ref):
        tensor.requires_grad_()
    loss = surrogate_loss(logp, old, ref, advantages, mask, kl_coef=0.3)
    of_old, of_ref = torch.autograd.grad(loss, (old, ref), allow_unused=True)
    assert of_old is None
    assert of_ref is None


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e4])
@pytest.mark.parametrize("length", LENGTHS)
def test_what_stands_beyond_a_completion_is_ignored(rubbish, length):
    """NaN, infinity or an overflowing ratio where the mask is 0: same loss and gradient, bit for bit."""
    logp, old, ref, advantages, mask = batch(6, 5, seed=4)
    options = {"kl_coef": 0.2, "length": length, "max_length": 5}

    def loss_and_gradient(*tensors):
        x = tensors[0].clone().requires_grad_()
        loss = surrogate_loss(x, *tensors[1:], advantages, mask, **options)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    clean = loss_and_gradient(logp, old, ref)
    assert not mask.all()
    for which in ((0,), (1,), (2,), (0, 1, 2)):
        dirty = [t.masked_fill(~mask, rubbish) if i in which else t for i, t in enumerate((logp, old, ref))]
        loss, gradient = loss_and_gradient(*dirty)
        assert torch.equal(loss, clean[0])
        assert torch.equal(gradient, clean[1])


def test_multiplying_by_the_mask_would_not_ignore_nan():
    """What the test above guards against: 0 * NaN is NaN."""
    assert math.isnan((torch.tensor([math.nan, 1.0]) * torch.tensor([0.0, 1.0])).sum().item())


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "moves"),
    [
        (1.0, 0.5, False),  # already more likely than the trust interval allows: no further push
        (1.0, -0.5, True),  # the good token lost mass: pushed back
        (-1.0, -0.5, False),  # already less likely than the interval allows
        (-1.0, 0.5, True),  # the bad token gained mass: pushed down
        (1.0, 0.1, True),
        (-1.0, -0.1, True),
    ],
)
def test_clip_acts_on_the_side_that_the_advantage_pushes_to(advantage, log_ratio, moves):
    """min(rho A, clip(rho) A) is flat for A > 0 above 1 + clip and for A < 0 below 1 - clip, nowhere else."""
    logp = torch.tensor([[-1.0 + log_ratio]], dtype=torch.float64, requires_grad=True)
    old, mask = torch.full((1, 1), -1.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    loss = surrogate_loss(logp, old, None, torch.tensor([advantage], dtype=torch.float64), mask, clip=0.2)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient.item() == pytest.approx(-advantage * math.exp(log_ratio) if moves else 0.0, abs=TOLERANCE)


def test_k3_is_nonnegative_zero_at_the_reference_and_unbiased():
    """E_pi k3 = KL(pi, ref) exactly, summed over a categorical; k3 >= 0; k3 = 0 at pi = ref."""
    g = torch.Generator().manual_seed(0)
    pi, ref = torch.randn(2, 1, 7, generator=g, dtype=torch.float64).log_softmax(-1)
    everywhere = torch.ones(1, 7, dtype=torch.bool)
    values = k3(pi, ref, everywhere)
    assert (values >= 0).all()
    assert (pi.exp() * values).sum().item() == pytest.approx((pi.exp() * (pi - ref)).sum().item(), abs=1e-14)
    assert torch.equal(k3(pi, pi, everywhere), torch.zeros_like(pi))
    assert k3(pi, ref.masked_fill(everywhere, math.nan), ~everywhere).abs().max() == 0


def test_a_batch_without_any_token_costs_nothing():
    """All completions empty: loss 0 and gradient 0 in every convention, no 0 / 0."""
    logp, old, ref, advantages, mask = batch(3, 4, seed=6)
    logp.requires_grad_()
    for length in LENGTHS:
        loss = surrogate_loss(
            logp, old, ref, advantages, mask & False, kl_coef=0.1, length=length, max_length=4
        )
        assert loss.item() == 0
        assert torch.autograd.grad(loss, logp)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef": 0.1, "logp_ref": None}, "logp_ref: needed"),
        ({"length": "constant"}, "max_length: .*got None"),
        ({"length": "constant", "max_length": 0}, "max_length: .*got 0"),
        ({"length": "word"}, "length: .*'word'"),
        ({"clip": 0.0}, "clip: .*got 0.0"),
        ({"clip": math.nan}, "clip: .*got nan"),
        ({"logp": torch.zeros(0, 3), "mask": torch.ones(0, 3, dtype=torch.bool)}, r"logp: .*\[0, 3\]"),
        ({"logp": torch.zeros(2, 0), "mask": torch.ones(2, 0, dtype=torch.bool)}, r"logp: .*\[2, 0\]"),
    ],
)
def test_loss_refuses_bad_input(options, message):
    """A ValueError that names the argument, with the type checker of the tests off."""
    arguments = {
        "logp": torch.zeros(2, 3),
        "logp_old": torch.zeros(2, 3),
        "logp_ref": torch.zeros(2, 3),
        "advantages": torch.ones(2),
        "mask": torch.ones(2, 3, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(surrogate_loss)(**(arguments | options))


def test_reference_is_not_needed_without_its_weight():
    """logp_ref may be None, and is not looked at, when kl_coef is 0."""
    logp, old, ref, advantages, mask = batch(3, 4, seed=7)
    without = surrogate_loss(logp, old, None, advantages, mask)
    assert torch.equal(without, surrogate_loss(logp, old, ref * math.nan, advantages, mask))
