"""RL with graded rewards: the shift policy of Lemma 1 on the logits."""

import pytest
import torch

from replicate import streams
from replicate.models.fresh import tiny_olmo2
from replicate.models.logits import log_policy
from replicate.rl import methods
from replicate.rl.batch import Actor, Asked
from replicate.rl.policies import SinglePolicy, StackedPolicy
from replicate.rl.prompts import exact_match
from replicate.settings.grpo import GRPO

VOCAB = 11


def model():
    made = tiny_olmo2(
        layers=1, hidden=8, heads=1, context=16, vocab=VOCAB, generator=torch.Generator().manual_seed(0)
    )
    made.set_attn_implementation("eager")
    return made.double().eval()


def asked(lanes=1, prompts=2, horizon=1):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (lanes, prompts, 4), generator=generator)
    labels = torch.randint(VOCAB, (lanes, prompts), generator=generator)
    return Asked(tokens, labels, VOCAB, horizon, exact_match)


def drawn(config, policy, question, seeds=(0,)):
    generators = [streams.generator(seed, "shift") for seed in seeds]
    return methods.get("shift").draw(Actor(policy, policy), question, config, generators)


def test_its_gradient_is_the_pathwise_one_in_expectation():
    """Lemma 1: the score-function gradient over 40000 actions is that of the mean reward, differentiated through the
    same actions: within 5 standard errors, every coordinate of the logits. Without the noise's scale it is not."""
    policy, question = SinglePolicy(model()), asked(prompts=1)
    config = GRPO(method="shift", group_size=40000, scale="none", baseline="leave_one_out", sigma=0.7)
    batch = drawn(config, policy, question)
    logits = policy.logits(question.tokens, keep=1)[0, 0, -1, :VOCAB].detach()
    noise = (batch.actions[0, 0] - logits) / config.sigma
    score = batch.advantages[0, :, 0, None] * noise / config.sigma
    actions = batch.actions[0, 0].detach().requires_grad_()
    reward = log_policy(actions, vocab=VOCAB)[:, question.labels[0, 0]].exp().sum()
    (pathwise,) = torch.autograd.grad(reward, actions)
    difference = score - pathwise
    z = difference.mean(0) / (difference.std(0) / len(difference) ** 0.5)
    assert z.abs().max() < 5
    wrong = score * config.sigma - pathwise
    assert (wrong.mean(0) / (wrong.std(0) / len(wrong) ** 0.5)).abs().max() > 5


def test_its_loss_has_the_gradient_of_the_score():
    """d loss / d logits = -mean A (a - z) / sigma^2, through the model to any parameter."""
    policy, question = SinglePolicy(model()), asked()
    config = GRPO(method="shift", group_size=4, sigma=0.5)
    batch = drawn(config, policy, question)
    loss = methods.get("shift").losses(batch.signal, batch, config).sum()
    head = policy.model.get_output_embeddings().weight
    (found,) = torch.autograd.grad(loss, head, retain_graph=True)
    logits = policy.logits(question.tokens, keep=1)[:, :, -1, :VOCAB]
    off = batch.actions - logits.detach()[:, :, None]
    weight = -(batch.advantages.view(1, 2, 4, 1) * off / config.sigma**2).sum(2) / 8
    (expected,) = torch.autograd.grad((weight * logits).sum(), head)
    assert torch.allclose(found, expected, atol=1e-12)
    again = methods.get("shift").again(Actor(policy, policy), batch, config)
    assert torch.equal(again.detach(), batch.old)


def test_rewards_are_graded_and_lanes_keep_to_themselves():
    question = asked(lanes=2)
    config = GRPO(method="shift", group_size=4)
    both = drawn(config, StackedPolicy(model(), 2), question, seeds=(0, 1))
    alone = drawn(
        config, StackedPolicy(model(), 1), Asked(question.tokens[1:], question.labels[1:], VOCAB, 1, exact_match), (1,)
    )  # fmt: skip
    assert torch.allclose(both.rewards[1], alone.rewards[0], atol=1e-12)
    assert both.rewards.min() > 0
    assert both.rewards.max() < 1


@pytest.mark.parametrize(("horizon", "credit"), [(2, "outcome"), (1, "gae")])
def test_longer_answers_and_critics_are_refused(horizon, credit):
    with pytest.raises(ValueError, match="method shift: expected answers of one token and no critic"):
        drawn(GRPO(method="shift", credit=credit), SinglePolicy(model()), asked(horizon=horizon))
