r"""Direct back-propagation through the relaxed rollout: the relaxed reward itself is what is differentiated.

No score function, no advantages and no ratio: the loss is minus the mean relaxed reward
(:func:`~replicate.rl.relaxed.relaxed_reward`) of Gumbel-softmax rollouts at ``config.temperature``. Its gradient is
that of another objective than E[R]; the two meet as the temperature goes to 0, where the variance of this one has no
bound. The ``rewards`` of the batch are the discrete ones of the hardened tokens, so that curves can be compared.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.rl.batch import Actor, Asked, Batch, Completions
from replicate.rl.relaxed import SoftRollout, gumbels, relaxed_reward, relaxed_rollout
from replicate.settings.grpo import GRPO


def draw(actor: Actor, asked: Asked, config: GRPO, generators: Sequence[torch.Generator]) -> Batch:
    """Relaxed rollouts in groups; ``ValueError`` for a KL or a credit other than "outcome", which have no meaning here,
    and for a reward whose relaxation is not known."""
    if config.kl_coef != 0 or config.credit != "outcome":
        raise ValueError(
            f"method bptt: expected kl_coef 0 and credit 'outcome', got {config.kl_coef} and {config.credit!r}"
        )
    shape = (asked.tokens.shape[1], config.group_size, asked.horizon, asked.vocab)
    noise = gumbels(generators, *shape)
    rollout = relaxed_rollout(actor.policy, asked.tokens, noise, temperature=config.temperature)
    rewards = asked.rated(rollout.tokens).sum(-1).flatten(1)
    return Batch(asked, rewards, rollout.entropy, _signal(asked, rollout), noise)


def again(actor: Actor, batch: Batch, config: GRPO) -> Completions:
    """The relaxed reward of the rollout that the present weights make of the same noise."""
    rollout = relaxed_rollout(actor.policy, batch.asked.tokens, batch.actions, temperature=config.temperature)
    return _signal(batch.asked, rollout)


def losses(signal: Completions, batch: Batch, config: GRPO) -> Float[Tensor, " lanes"]:
    """Minus the mean relaxed reward, lane by lane."""
    return -signal.mean((1, 2)) * config.reward_scale


def _signal(asked: Asked, rollout: SoftRollout) -> Completions:
    return relaxed_reward(asked, rollout).flatten(1)[..., None]
