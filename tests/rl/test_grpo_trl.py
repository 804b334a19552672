"""Objective (1) against TRL's trainers: advantages, loss and gradient, computed by TRL's own code.

Only the sampling is replaced: TRL's ``_generate_single_turn`` returns completions chosen here, of different
lengths, for prompts of different lengths. Everything after that is TRL's: padding, masks, rewards and
advantages, old and reference log-probabilities, loss, autograd through the model. Our log-probabilities come
from plain forward passes over one unpadded sequence at a time.

TRL's defaults are another objective. What makes ``GRPOTrainer`` objective (1): ``loss_type="grpo"``,
``use_bias_correction_kl=False``, ``scale_rewards="group"``, ``epsilon=0.2``, ``temperature=1``,
``importance_sampling_level="token"``, ``mask_truncated_completions=False``. Dr. GRPO is
``loss_type="dr_grpo"``, ``scale_rewards="none"``. Leave-one-out advantages are those of ``RLOOTrainer`` with
``beta=0`` and ``normalize_advantages=False``.

Weights are float64 on both sides; TRL rounds log-probabilities and advantages to float32. Attention is
"sdpa": the eager attention of transformers takes its softmax in float32, where a float64 mask overflows and
rows of padding become NaN.
"""

import dataclasses
import socket

import pytest
import torch
from transformers import AutoModelForCausalLM

from replicate.ladder import corpus
from replicate.models.fresh import tiny_olmo2
from replicate.rl.credit import gae, whitened
from replicate.rl.grpo import group_advantages, surrogate_loss

datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")

PROMPTS = ("label is red ;", "label is green ; water often answer :", "answer :")
LENGTHS = ((1, 6, 3, 2), (5, 5, 1, 4), (2, 6, 6, 1))  # of the completions, in tokens
# The middle group's rewards are equal; the others' are not 0/1, so that the scale matters.
REWARDS = ((1.0, 0.0, 0.25, 0.5), (0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 1.0, 0.1))
LONGEST, KL_COEF = 8, 0.3  # no completion reaches the longest length allowed

# float32 keeps 7 digits of a log-probability of order 5. Gradients are compared relative to TRL's norm,
# losses relative to the mean |A_i|, the size of their terms, which nearly cancel.
GRADIENT, LOSS = 2e-6, 1e-7
# What another objective changes in the gradient at the very least.
DIFFERENT = 1e-2

COMMON = {
    "num_generations": 4,
    "per_device_train_batch_size": 12,
    "gradient_accumulation_steps": 1,
    "max_completion_length": LONGEST,
    "temperature": 1.0,
    "epsilon": 0.2,
    "num_iterations": 2,  # makes GRPOTrainer record the old policy's log-probabilities
    "mask_truncated_completions": False,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "push_to_hub": False,
    "disable_tqdm": True,
    "seed": 0,
}
OBJECTIVE_1 = {
    "loss_type": "grpo",
    "scale_rewards": "group",
    "use_bias_correction_kl": False,
    "importance_sampling_level": "token",
    "beta": KL_COEF,
}
DR_GRPO = OBJECTIVE_1 | {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}


@dataclasses.dataclass(frozen=True)
class Played:
    """One batch gone through a trainer: its loss, gradient, advantages, and what ours needs for the same."""

    loss: float
    gradient: torch.Tensor
    advantages: torch.Tensor
    model: torch.nn.Module
    logp: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    mask: torch.Tensor

    def ours(self, *, baseline="mean", scale="std", kl_coef=KL_COEF, length="sequence", max_length=None):
        """Loss and gradient of our objective with the rewards above."""
        rewards = torch.tensor(REWARDS, dtype=torch.float64)
        advantages = group_advantages(rewards, baseline=baseline, scale=scale).flatten()
        loss = surrogate_loss(
            self.logp,
            self.old,
            self.ref,
            advantages,
            self.mask,
            clip=COMMON["epsilon"],
            kl_coef=kl_coef,
            length=length,
            max_length=max_length,
        )
        return loss.item(), flat_gradient(loss, self.model)

    def errors(self, **conventions):
        """Differences of ours from TRL's: of the loss in units of mean |A_i|, of the gradient in its norm."""
        loss, gradient = self.ours(**conventions)
        error = (gradient - self.gradient).norm() / self.gradient.norm()
        return abs(loss - self.loss) / self.advantages.abs().mean().item(), error.item()

    def agree(self, **conventions):
        """Loss and gradient are TRL's."""
        loss, gradient = self.errors(**conventions)
        return loss < LOSS and gradient < GRADIENT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny OLMo-2 in float64 and its tokenizer, where TRL can reload the reference from."""
    path = tmp_path_factory.mktemp("model")
    words = corpus.tokenizer()
    generator = torch.Generator().manual_seed(0)
    model = tiny_olmo2(layers=2, hidden=32, heads=2, context=48, vocab=len(words), generator=generator)
    _disturb(model, 0.1, seed=1)  # fresh weights give flat distributions
    model.double().save_pretrained(path)
    words.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No connection is opened and no file written outside the test's own folder."""

    def refuse(*_):
        raise AssertionError("a test tried to open a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def play(folder, tmp_path):
    """Runs one batch through a trainer of TRL with the options given."""

    def run(options, *, kind="grpo", lengths=LENGTHS, off_policy=0.02):
        trainer = _trainer(kind, options, folder, tmp_path)
        return _play(trainer, lengths, off_policy)

    return run


def _trainer(kind, options, folder, out):
    config, trainer = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}[
        kind
    ]
    known = {field.name for field in dataclasses.fields(config)}
    settings = {name: value for name, value in COMMON.items() if name in known} | options
    rewards = [r for group in REWARDS for r in group]

    def reward(completions, **_):
        return rewards

    return trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa"),
        reward_funcs=reward,
        args=config(output_dir=str(out / "trl"), **settings),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(PROMPTS)}),
        processing_class=corpus.tokenizer(),
    )


def _play(trainer, lengths, off_policy):
    words = corpus.tokenizer()
    rng = torch.Generator().manual_seed(2)
    completions = [torch.randint(3, len(words), (n,), generator=rng).tolist() for row in lengths for n in row]
    prompts = [words.encode(p, add_special_tokens=False) for p in PROMPTS for _ in range(4)]
    model = trainer.model
    model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by TRL's training loop, which is not run
    if trainer.ref_model is not None:
        _disturb(trainer.ref_model, 0.02, seed=3)
    reference = trainer.ref_model or model
    old, ref = (log_probs(m, prompts, completions).detach() for m in (model, reference))

    single = isinstance(
        trainer, trl.RLOOTrainer
    )  # which returns ids alone, GRPOTrainer ids and log-probabilities
    trainer._generate_single_turn = lambda *_, **__: completions if single else (completions, None)
    rows = [{"prompt": p} for p in PROMPTS for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    _disturb(model, off_policy, seed=4)  # an update in between: the ratio is no longer 1
    loss = trainer.compute_loss(model, batch)
    logp = log_probs(model, prompts, completions)
    return Played(
        loss.item(), flat_gradient(loss, model), batch["advantages"], model, logp, old, ref, ~logp.isnan()
    )


@torch.no_grad()
def _disturb(model, size, *, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight += size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


def flat_gradient(loss, model):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)]
    )


def log_probs(model, prompts, completions):
    """[completions, tokens], NaN behind each completion's end; one unpadded sequence at a time."""
    longest = max(map(len, completions))
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
        table = logits[len(prompt) - 1 : -1].log_softmax(-1)
        row = table[torch.arange(len(completion)), torch.tensor(completion)]
        rows.append(torch.nn.functional.pad(row, (0, longest - len(completion)), value=float("nan")))
    return torch.stack(rows)


def _clipped(played):
    """Numbers of tokens that the clip holds, for positive and for negative advantages."""
    ratio = (played.logp - played.old).exp()
    weight = played.advantages[:, None].expand_as(ratio)
    return ((ratio > 1.2) & (weight > 0)).sum().item(), ((ratio < 0.8) & (weight < 0)).sum().item()


def test_grpo_with_kl(play):
    """GRPO, reference policy included, off policy: the clip holds tokens on both sides."""
    played = play(OBJECTIVE_1)
    assert min(_clipped(played)) >= 2
    assert ((played.logp - played.ref).abs()[played.mask] > 0.1).any()
    assert played.agree(), played.errors()


def test_dr_grpo(play):
    """Dr. GRPO: no std, sum over tokens / (completions x the longest length allowed)."""
    played = play(DR_GRPO)
    assert min(_clipped(played)) >= 2
    conventions = {"scale": "none", "kl_coef": 0.0, "length": "constant"}
    assert played.agree(**conventions, max_length=LONGEST), played.errors(**conventions, max_length=LONGEST)
    in_batch = max(map(max, LENGTHS))
    assert in_batch != LONGEST
    assert played.errors(**conventions, max_length=in_batch)[1] > DIFFERENT


def test_token_mean(play):
    """TRL's default loss, "dapo", is ``length="token"`` once the KL correction is off."""
    assert play(OBJECTIVE_1 | {"loss_type": "dapo"}).agree(length="token")


@pytest.mark.parametrize("default", ["loss_type", "use_bias_correction_kl", "scale_rewards", "beta"])
def test_what_trl_does_by_default(play, default):
    """Each default left in place: loss type, KL correction and no KL at all are another gradient."""
    chosen = {name: value for name, value in OBJECTIVE_1.items() if name != default}
    value = next(f.default for f in dataclasses.fields(trl.GRPOConfig) if f.name == default)
    played = play(chosen | {default: value}, off_policy=0.02)
    _, gradient = played.errors()
    if default == "scale_rewards":  # the default is (1)'s
        assert value == "group"
        assert gradient < GRADIENT
    else:
        assert gradient > DIFFERENT


def test_kl_correction_hides_in_the_loss(play):
    """On policy the corrected KL has the same value but another gradient: the losses do not tell."""
    played = play(OBJECTIVE_1 | {"use_bias_correction_kl": True}, off_policy=0.0)
    loss, gradient = played.errors()
    assert loss < 10 * LOSS  # next to nothing, though with other kernels a little more than round-off
    assert gradient > DIFFERENT


@pytest.mark.parametrize(
    "other",
    [
        {"scale_rewards": "none"},
        {"scale_rewards": "batch"},
        {"importance_sampling_level": "sequence"},
        {"epsilon": 0.1},
        {"beta": KL_COEF / 2},
    ],
    ids=str,
)
def test_other_settings_are_told_apart(play, other):
    """The comparison rejects each of these settings of TRL."""
    assert play(OBJECTIVE_1 | other).errors()[1] > DIFFERENT


def test_masking_truncated_completions_silences_training(play):
    """None of the completions ends in <eos>: then TRL's loss and gradient are zero."""
    played = play(OBJECTIVE_1 | {"mask_truncated_completions": True})
    assert played.loss == 0
    assert played.gradient.abs().max() == 0
    assert played.ours()[1].norm() > 0


@pytest.mark.parametrize("scale", ["std", "none"])
def test_advantages(play, scale):
    """TRL's advantages are ours to float32, and exact zeros for the group of equal rewards."""
    found = play(OBJECTIVE_1 | {"scale_rewards": {"std": "group", "none": "none"}[scale]}).advantages
    expected = group_advantages(torch.tensor(REWARDS), scale=scale).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert found[4:8].abs().max() == 0


def test_leave_one_out_advantages(play):
    """RLOOTrainer's advantages are ``baseline="leave_one_out", scale="none"``, and not the group mean's."""
    found = play({"beta": 0.0, "normalize_advantages": False}, kind="rloo").advantages
    rewards = torch.tensor(REWARDS)
    expected = group_advantages(rewards, baseline="leave_one_out", scale="none").flatten()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (found - group_advantages(rewards, scale="none").flatten()).abs().max() > DIFFERENT


def test_leave_one_out_advantages_in_the_token_level_loss(folder, tmp_path):
    """RLOOTrainer's advantages put into GRPOTrainer's loss, ragged and off policy: all of it TRL's code."""
    rloo = _trainer("rloo", {"beta": 0.0, "normalize_advantages": False}, folder, tmp_path)
    advantages = _play(rloo, LENGTHS, 0.0).advantages
    grpo = _trainer("grpo", OBJECTIVE_1, folder, tmp_path)
    score = grpo._generate_and_score_completions
    grpo._generate_and_score_completions = lambda rows: score(rows) | {"advantages": advantages}
    played = _play(grpo, LENGTHS, 0.02)
    assert min(_clipped(played)) >= 2
    assert played.agree(baseline="leave_one_out", scale="none")
    assert played.errors(baseline="mean", scale="none")[1] > DIFFERENT


def test_advantages_of_every_token_in_the_token_level_loss(folder, tmp_path):
    """A critic's advantages put into GRPOTrainer's loss, which takes [completions, tokens], ragged and off policy.

    TRL has no GAE here, so the advantages are ours on both sides. Those of a completion's first token, given to all of
    its tokens, are another gradient.
    """
    rng = torch.Generator().manual_seed(5)
    rewards, values = (torch.randn(1, 3, 4, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    advantages = whitened(gae(rewards, values, 0.95).flatten(1, 2))[0]
    grpo = _trainer("grpo", OBJECTIVE_1, folder, tmp_path)
    score = grpo._generate_and_score_completions
    grpo._generate_and_score_completions = lambda rows: score(rows) | {"advantages": advantages}
    played = _play(grpo, LENGTHS, 0.02)
    args = (played.logp, played.old, played.ref)
    loss = surrogate_loss(*args, advantages, played.mask, clip=0.2, kl_coef=KL_COEF)
    assert abs(loss.item() - played.loss) / advantages.abs().mean() < LOSS
    whole = surrogate_loss(*args, advantages[:, 0], played.mask, clip=0.2, kl_coef=KL_COEF)
    errors = [(flat_gradient(found, played.model) - played.gradient).norm() for found in (loss, whole)]
    assert errors[0] < GRADIENT * played.gradient.norm()
    assert errors[1] > DIFFERENT * played.gradient.norm()


def test_rloo_trainer_with_one_token(play):
    """RLOOTrainer weighs whole completions; with one token each its loss is ours, clip included."""
    played = play(
        {"beta": 0.0, "normalize_advantages": False}, kind="rloo", lengths=((1,) * 4,) * 3, off_policy=0.06
    )
    assert min(_clipped(played)) >= 1
    assert played.agree(baseline="leave_one_out", scale="none", kl_coef=0.0)


def test_rloo_trainer_on_policy(play):
    """At ratio 1 RLOOTrainer's gradient on a ragged batch is ours with tokens summed, not averaged."""
    played = play({"beta": 0.0, "normalize_advantages": False}, kind="rloo", off_policy=0.0)
    rloo = {"baseline": "leave_one_out", "scale": "none", "kl_coef": 0.0}
    assert played.errors(**rloo, length="constant", max_length=1)[1] < GRADIENT
    assert played.errors(**rloo, length="sequence")[1] > DIFFERENT


def test_nothing_is_written(play, tmp_path):
    """A batch through TRL's code leaves no file behind in the folder it was given."""
    play(OBJECTIVE_1)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
