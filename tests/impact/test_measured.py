"""V, Delta, kappa, headroom and scores against enumeration, finite differences and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.impact.headrooms import expected_best, headroom, tilted_gain
from replicate.impact.measured import _means, advantages, components, components_by_advantage, expected_gain
from replicate.impact.samples import Noise, draw
from replicate.models.answer import answer_pass, pull_back
from replicate.models.fresh import tiny_olmo2
from replicate.models.hooks import blocks
from replicate.models.logits import log_policy
from replicate.models.precision import full_precision

VOCAB = 9


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


KINDS = ("leave_one_out", "mean", "grpo", "reward")


@pytest.fixture(scope="module")
def model():
    made = tiny_olmo2(
        layers=2, hidden=8, heads=2, context=16, vocab=VOCAB, generator=torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():
        made.lm_head.weight.mul_(40)  # far from uniform, so that nothing is small by accident
    return made.eval()


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCAB, (3, 5), generator=generator), torch.tensor([1, 4, 7])


def measured(model, prompts, **options):
    tokens, labels = prompts
    options = {
        "layer": -1,
        "group_size": 16,
        "vocab": VOCAB,
        "generator": torch.Generator().manual_seed(0),
        **options,
    }
    return components(model, tokens, labels, **options)


def soft_reward(model, tokens, labels, layer, bump=None):
    """pi_y as a function of a bump added to the state at ``layer``: the value whose gradient is g."""

    def add(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden + bump if not isinstance(output, tuple) else (hidden + bump, *output[1:])

    if layer == -1:
        hook = model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: (inputs[0] + bump[:, -1:],)
        )
    else:
        module = model.get_input_embeddings() if layer == 0 else blocks(model)[layer - 1]
        hook = module.register_forward_hook(add)
    try:
        logits = model(input_ids=tokens, logits_to_keep=1).logits[:, -1]
    finally:
        hook.remove()
    return log_policy(logits, vocab=VOCAB).exp().gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
def test_value_gradient_against_finite_differences(model, prompts, layer):
    """V per prompt is |d pi_y/ds|^2 by central differences over every coordinate of the state."""
    tokens, labels = prompts
    found = measured(model, prompts, layer=layer).per_prompt["V"]
    length = 1 if layer == -1 else tokens.shape[1]
    total = torch.zeros(len(labels), dtype=torch.float64)
    for position in range(length):
        for feature in range(8):
            bump = torch.zeros(1, length, 8, dtype=torch.float64)
            bump[0, position, feature] = 1e-5
            with torch.no_grad():
                up = soft_reward(model, tokens, labels, layer, bump)
                down = soft_reward(model, tokens, labels, layer, -bump)
            total += ((up - down) / 2e-5) ** 2
    assert torch.allclose(found, total, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, 1])
def test_expected_costate_by_enumeration(model, prompts, kind, layer):
    """E[lambda^ | q] over all groups of two tokens is expected_gain x g, and Delta, kappa follow."""
    tokens, labels = prompts
    answer = answer_pass(model, tokens, layer=layer)
    probs, head = log_policy(answer.logits, vocab=VOCAB).exp(), answer.head[:VOCAB]
    rows = head[None] - (probs @ head)[:, None]
    scores = pull_back(answer, rows.transpose(0, 1))  # [vocab, prompts, state]
    p = probs.gather(1, labels[:, None])[:, 0]
    g = p[:, None] * scores[labels, torch.arange(len(labels))]
    expected = torch.zeros_like(g)
    for a in range(VOCAB):
        for b in range(VOCAB):
            rewards = torch.stack([labels == a, labels == b], dim=1).double()
            weight = advantages(rewards, kind=kind)
            both = (weight[:, 0, None] * scores[a] + weight[:, 1, None] * scores[b]) / 2
            expected += (probs[:, a] * probs[:, b])[:, None] * both
    strength = expected_gain(p, 2, kind=kind)
    assert torch.allclose(expected, strength[:, None] * g, atol=1e-10)
    found = measured(model, prompts, layer=layer, group_size=2, advantage=kind).per_prompt
    assert torch.allclose(found["delta_mean"], ((expected - g) ** 2).sum(1), atol=1e-12)
    assert torch.allclose(found["kappa_mean"], (expected * g).sum(1), atol=1e-12)


def test_the_four_conventions_differ():
    """What the enumeration above would not notice if all conventions were the same."""
    p = torch.tensor([0.3], dtype=torch.float64)
    gains = {kind: expected_gain(p, 4, kind=kind).item() for kind in KINDS}
    assert gains["leave_one_out"] == gains["reward"] == 1.0
    assert gains["mean"] == 0.75
    assert gains["grpo"] > 1.2


@pytest.mark.parametrize("policy", ["categorical", "gumbel", "shift"])
@pytest.mark.parametrize("layer", [-1, 0])
def test_polarisation_and_bound_25(model, prompts, policy, layer):
    """2 kappa = V + E|lambda^|^2 - Delta on matched samples, so kappa >= (V - Delta)/2."""
    found = measured(model, prompts, policy=policy, layer=layer)
    assert 2 * found.kappa == pytest.approx(found.V + found.empirical - found.delta, rel=1e-10)
    assert found.kappa >= (found.V - found.delta) / 2
    other = measured(model, prompts, policy=policy, layer=layer, generator=torch.Generator().manual_seed(1))
    assert 2 * found.kappa != pytest.approx(found.V + found.empirical - other.delta, rel=1e-3)


def test_samples_scatter_about_the_conditional_means(model, prompts):
    """Sampled kappa against its closed form with 20000 samples; z from the scatter between 50 repetitions."""
    draws = torch.tensor(
        [
            measured(model, prompts, group_size=400, generator=torch.Generator().manual_seed(s)).kappa
            for s in range(50)
        ]
    )
    exact = measured(model, prompts, group_size=400).kappa_mean
    z = (draws.mean() - exact) / (draws.std() / 50**0.5)
    assert abs(z) < 4
    wrong = (draws.mean() - 0.5 * exact) / (draws.std() / 50**0.5)
    assert abs(wrong) > 4


def test_lemma_1_for_the_shift_policy(model, prompts):
    """E lambda^ = c E lambda under the shift policy: kappa_mean estimates c |g|^2, and delta_mean (1 - c)^2 |g|^2."""
    group, repeats = 16, 200
    runs = [
        components_by_advantage(
            model, *prompts, layer=-1, group_size=group, policy="shift", vocab=VOCAB, noise=Noise(sigma=0.7),
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(repeats)
    ]  # fmt: skip
    for kind, c in (("leave_one_out", 1.0), ("mean", 1 - 1 / group), ("reward", 1.0)):
        for name, factor in (("kappa_mean", c), ("delta_mean", (1 - c) ** 2)):
            for r in runs:
                assert getattr(r[kind], name) == pytest.approx(factor * r[kind].V_mean, rel=1e-12), (
                    kind,
                    name,
                )
        kappa = torch.tensor([r[kind].kappa_mean for r in runs])
        assert kappa.mean() / (kappa.std() / repeats**0.5) > 5  # a flipped sign would be seen


def test_pathwise_costate_of_the_shift_policy_against_autograd(model, prompts):
    """lambda_i = dR(a_i)/dh with the noise held fixed."""
    tokens, labels = prompts
    answer = answer_pass(model, tokens, layer=-1)
    samples = draw(
        answer, labels, policy="shift", vocab=VOCAB, group=2, noise=Noise(sigma=0.7),
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    h = answer.final.clone().requires_grad_()
    xi = torch.randn(len(labels), 4, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits = (h @ answer.head[:VOCAB].T)[:, None] + 0.7 * xi
    for i in range(4):
        reward = logits[:, i].softmax(-1).gather(1, labels[:, None]).sum()
        (grad,) = torch.autograd.grad(reward, h, retain_graph=True)
        assert torch.allclose(samples.pathwise[i], grad, atol=1e-12)


@pytest.mark.parametrize("policy", ["categorical", "gumbel", "shift"])
@pytest.mark.parametrize("kind", KINDS)
def test_means_are_the_components_of_many_averaged_costates(model, prompts, policy, kind):
    """V, Delta, kappa of the means against those of the two averages over half a million samples, whose Delta/n is less
    than a hundredth of what is looked for. The wrong answer, a single costate's, is far away."""
    tokens, labels = prompts
    answer = answer_pass(model, tokens)
    G, rounds = 4, 2000
    total = {name: torch.zeros(len(labels), 8, dtype=torch.float64) for name in ("pathwise", "empirical")}
    generator = torch.Generator().manual_seed(5)
    runs = []
    for _ in range(rounds):
        samples = draw(
            answer, labels, policy=policy, vocab=VOCAB, group=G, noise=Noise(0.7, 0.8), generator=generator
        )
        weights = advantages(samples.rewards.flatten(0, 1), kind=kind).view_as(samples.rewards)
        empirical = weights.flatten(1).T[..., None] * samples.scores
        total["pathwise"] += samples.pathwise.mean(0) / rounds
        total["empirical"] += empirical.mean(0) / rounds
        runs.append(_means(samples, empirical, kind))
    lam, hat = total["pathwise"], total["empirical"]
    wanted = {
        "V_mean": lam.square().sum(-1),
        "kappa_mean": (lam * hat).sum(-1),
        "delta_mean": (hat - lam).square().sum(-1),
    }
    scale = (wanted["V_mean"] + hat.square().sum(-1)).sum()
    for name, value in wanted.items():
        found = torch.stack([run[name] for run in runs])
        error = found.std(0) / rounds**0.5
        assert ((found.mean(0) - value).abs() < 5 * error + 0.03 * scale).all(), name


def test_the_relaxed_costate_against_autograd(model, prompts):
    """lambda_i = d softmax((z + G)/tau)_y / dh at fixed Gumbel noise, and its token is the largest entry."""
    tokens, labels = prompts
    answer = answer_pass(model, tokens)
    noise = {"generator": torch.Generator().manual_seed(2), "dtype": torch.float64}
    samples = draw(
        answer, labels, policy="gumbel", vocab=VOCAB, group=2, noise=Noise(temperature=0.6),
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    gumbel = -(-torch.rand(len(labels), 4, VOCAB, **noise).log()).log()
    h = answer.final.clone().requires_grad_()
    x = (h @ answer.head[:VOCAB].T).log_softmax(-1)[:, None] + gumbel
    hit = (x.argmax(-1) == labels[:, None]).double()
    assert torch.equal(samples.rewards.flatten(1), hit)
    for i in range(4):
        reward = (x[:, i] / 0.6).softmax(-1).gather(1, labels[:, None]).sum()
        (grad,) = torch.autograd.grad(reward, h, retain_graph=True)
        assert torch.allclose(samples.pathwise[i], grad, atol=1e-12)


def test_gumbel_tokens_have_the_policys_probabilities(model, prompts):
    tokens, labels = prompts
    answer = answer_pass(model, tokens)
    samples = draw(
        answer, labels, policy="gumbel", vocab=VOCAB, group=20_000, noise=Noise(),
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    p, hits = samples.p, samples.rewards.flatten(1)
    z = (hits.mean(1) - p) / (p * (1 - p) / hits.shape[1]).sqrt()
    assert z.abs().max() < 4.5


def test_samples_are_matched_across_layers(model, prompts):
    """The reward and headroom of the shift samples do not change with the layer at which costates are taken."""
    final, first = (measured(model, prompts, policy="shift", layer=layer) for layer in (-1, 0))
    assert final.reward == first.reward
    assert final.headroom == first.headroom
    assert final.V != first.V


def test_measuring_leaves_no_gradient_on_parameters(model, prompts):
    measured(model, prompts, layer=0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0.001, 2.0))
def test_kl_headroom_lies_on_the_ball(p, delta):
    """The reached probability is at KL delta from p, or at 1 where that is closer; never below p."""
    gain = headroom(torch.tensor([p], dtype=torch.float64), kind="kl", delta=delta).item()
    reached = min(p + gain, 1.0)
    assert -1e-12 <= gain <= 1 - p + 1e-12
    if p > 1e-9 and 1 - reached > 1e-9:
        kl = reached * math.log(reached / p) + (1 - reached) * math.log((1 - reached) / (1 - p))
        assert kl == pytest.approx(delta, rel=1e-6)


def test_headroom_closed_forms():
    p = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert headroom(p).tolist() == pytest.approx([0, math.sqrt(3) / 4, 0])
    assert headroom(p, kind="variance").tolist() == pytest.approx([0, 3 / 16, 0])
    assert headroom(p, kind="best_of_n", n=2).tolist() == pytest.approx([0, 1 - 0.75**2 - 0.25, 0])
    assert headroom(p, kind="kl").tolist()[::2] == [0, 0]


def test_sampled_headrooms_approach_the_closed_forms():
    """Rewards that are 0 or 1 in exact shares have the closed forms of a Bernoulli."""
    rewards = (torch.arange(2000) < 500).double()[None]
    assert tilted_gain(rewards, 0.1).item() == pytest.approx(
        headroom(torch.tensor([0.25]).double(), kind="kl").item(), abs=1e-5
    )
    assert expected_best(rewards, 4).item() == pytest.approx(1 - 0.75**4, abs=2e-3)
    assert expected_best(torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64), 3).item() == pytest.approx(3.0)
    assert expected_best(torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64), 1).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"kind": "range"}, "kind"),
        ({"kind": "std", "n": 3}, "options"),
        ({"kind": "kl", "delta": -1.0}, "options"),
    ],
)
def test_headroom_refuses(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        headroom(torch.tensor([0.5]), **options)


def test_headroom_refuses_what_is_no_probability():
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="probs_correct"):
            headroom(torch.tensor([bad]))


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"group_size": 1}, "group_size"),
        ({"policy": "gaussian"}, "policy"),
        ({"advantage": "median"}, "advantage"),
        ({"layer": 3}, "layer"),
        ({"sigma": 0.0, "policy": "shift"}, "sigma"),
        ({"temperature": -1.0, "policy": "gumbel"}, "temperature"),
        ({"vocab": 99}, "vocab"),
    ],
)
def test_components_refuses(model, prompts, options, culprit):
    with pytest.raises(ValueError, match=culprit):
        measured(model, prompts, **options)


def test_a_model_with_capped_logits_is_refused(model, prompts):
    class Capped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = model, model.config
            self.get_output_embeddings = model.get_output_embeddings
            self.get_input_embeddings = model.get_input_embeddings

        def forward(self, **kwargs):
            out = model(**kwargs)
            out.logits = torch.tanh(out.logits)
            return out

    with pytest.raises(ValueError, match="head"):
        measured(Capped(), prompts)


def test_one_costate_is_pulled_back_as_many_are(model, prompts):
    answer = answer_pass(model, prompts[0], layer=0)
    costates = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = pull_back(answer, costates)
    alone = torch.cat([pull_back(answer, one[None]) for one in costates])
    assert torch.allclose(together, alone, atol=1e-12)
    assert not torch.allclose(together[0], together[1])
