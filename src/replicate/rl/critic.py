"""PPO's critic: a language model of its own that says what a completion is still going to earn.

The value v_t = v(q, o_<t) is the expected sum of the rewards of token t and of all that follow, before t is drawn. The
critic is what PPO for language models usually has, a copy of the policy's network as it is at first, with parameters of
its own that all learn, in which one number takes the place of the logits: v = w . h + b of the final state h that the
head reads. w and b are 0 at first, so that a critic which has seen nothing says nothing.

Such a copy is a policy like any other, whose head has one row: the lanes, the shared passes over the prompts and the
norms of the gradient are the policy's own.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.rl.batch import Lesson
from replicate.rl.policies import Policy, SinglePolicy, StackedPolicy
from replicate.rl.rollout import outputs_of
from replicate.settings.grpo import GRPO

STEPS = 1
"""The critic's steps for each of the policy's: PPO takes both in the same sweeps over the batch.

More of them need no more samples, but each costs a pass forth and back, so a method with a critic would have more
computation than the others. A critic that lags behind wants a higher ``critic_rate`` first.
"""


class Critic:
    """The value model of ``policy``, made from its present weights, and its AdamW at ``config.critic_rate``.

    Nothing pulls its weights to zero; ``config.weight_decay`` is the policy's. In bfloat16 its values have bfloat16's
    three digits.
    """

    def __init__(self, policy: Policy, config: GRPO) -> None:
        self.model = with_value_head(policy)
        self.steps, self._limit = STEPS * config.iterations, config.max_grad_norm or None
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.critic_rate, weight_decay=0.0, fused=True
        )

    def values(
        self,
        prompts: Int[Tensor, "lanes prompts length"],
        tokens: Int[Tensor, "lanes prompts group T"],
    ) -> Float[Tensor, "lanes prompts group T"]:
        """v_t of every token of given completions, with its graph; a group shares the first.

        That graph is kept through the policy's steps, until :meth:`fit` has used it.
        """
        found = outputs_of(self.model, prompts, tokens)[..., 0]
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def fit(self, lesson: Lesson) -> dict[str, Float[Tensor, " lanes"]]:
        """:attr:`steps` steps down the squared error to the lesson's targets; how far off the values were before.

        The first step uses the graph of the values that the advantages were made from, so a lesson serves once.
        ``critic_loss`` is the mean squared error per token, ``explained_variance`` 1 - Var(targets - v) / Var(targets)
        over a lane's tokens; 0 where the targets are all the same.
        """
        for step in range(self.steps):
            values = self.values(lesson.prompts, lesson.tokens) if step else lesson.values
            losses = (values - lesson.targets).square().flatten(1).mean(1)
            self._optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            self.model.clip_gradients(self._limit)
            self._optimizer.step()
        return _accuracy(lesson)


def with_value_head(policy: Policy) -> Policy:
    """A copy of ``policy``, with parameters of its own, whose logits are one number: a linear head that is 0 at first.

    Raises ``ValueError`` for a policy of a kind of its own.
    """
    if not isinstance(policy, StackedPolicy | SinglePolicy):
        raise ValueError(
            f"policy: expected a StackedPolicy or a SinglePolicy to copy, got a {type(policy).__name__}"
        )
    model, old = copy.deepcopy(policy.model), policy.model.get_output_embeddings().weight
    head = nn.Linear(old.shape[1], 1, dtype=old.dtype, device=old.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    if isinstance(policy, SinglePolicy):
        return SinglePolicy(model, dtype=policy.dtype)
    copied = StackedPolicy(model, policy.lanes, dtype=policy.dtype)
    with torch.no_grad():
        theirs = policy.weights()  # the model itself still has the weights that all lanes began with
        ours = [
            theirs[name].flatten(1)
            if name in theirs and theirs[name].shape[1:] == weight.shape
            else weight.flatten().expand(policy.lanes, -1)
            for name, weight in model.named_parameters()
        ]
        copied.flat.copy_(torch.cat(ours, dim=1))
    return copied


@torch.no_grad()
def _accuracy(lesson: Lesson) -> dict[str, Float[Tensor, " lanes"]]:
    """How good the lesson's values were."""
    targets = lesson.targets.double().flatten(1)
    missing = targets - lesson.values.double().flatten(1)
    spread = targets.var(1, unbiased=False)
    explained = 1 - missing.var(1, unbiased=False) / spread
    return {
        "critic_loss": missing.square().mean(1),
        "explained_variance": torch.where(spread > 0, explained, 0.0),
    }
