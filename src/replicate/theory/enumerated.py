"""Expected updates with nothing sampled: every group of every completion, weighted by its probability.

A policy is a function from theta to the log probabilities of all its completions' tokens. Advantages and loss are
arguments, so that a trainer's own are put to the test. Shapes: C completions of at most `tokens` tokens, C^N groups.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vmap

LogPolicy = Callable[[Tensor], Float[Tensor, "completions tokens"]]
"""Log probabilities in nats from theta; 0 where a completion has ended."""


def all_groups(completions: int, group: int) -> Int[Tensor, "groups {group}"]:
    """Every ordered group of ``group`` completions out of ``completions``, with repetition: their indices."""
    members = torch.arange(completions)
    return torch.cartesian_prod(*[members] * group).view(-1, group)


def expected_update(
    log_policy: LogPolicy,
    theta: Float[Tensor, " params"],
    rewards: Float[Tensor, " completions"],
    mask: Float[Tensor, "completions tokens"],
    *,
    group: int,
    advantages: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Float[Tensor, " params"]:
    """Minus the expected gradient of ``loss`` at theta_old = ``theta``, over all groups of ``group`` completions.

    ``advantages`` maps rewards [groups, group] to that shape, ``loss`` maps (logp, logp_old, advantages, mask) of one
    group to a scalar to minimise. The groups' probabilities are not differentiated: they are the sampling.
    """
    members = all_groups(len(rewards), group)
    old = log_policy(theta).detach()
    weight = old.sum(1)[members].sum(1).exp()
    A = advantages(rewards[members])

    def expected_loss(theta: Tensor) -> Tensor:
        return weight @ vmap(loss)(log_policy(theta)[members], old[members], A, mask[members])

    return -grad(expected_loss)(theta)


def objective_gradient(
    log_policy: LogPolicy, theta: Float[Tensor, " params"], rewards: Float[Tensor, " completions"]
) -> Float[Tensor, " params"]:
    """grad J, with J = sum over completions of probability times reward."""
    return grad(lambda theta: log_policy(theta).sum(1).exp() @ rewards)(theta)


def one_token(theta: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens 1"]:
    """A policy of one token: its log softmax, a completion a token."""
    return torch.log_softmax(theta, 0)[:, None]


def answer_then_filler(longest: int) -> tuple[LogPolicy, Tensor, Tensor]:
    """(policy, mask, rewards): a token that is right or wrong, then filler up to a stop or to ``longest`` tokens.

    theta has three logits: of the right answer, of stopping after a right one, of stopping after a wrong one. The
    reward is that of the first token, so that J knows nothing of lengths. For each answer, right first, there are
    ``longest`` completions: a stop as token 2, ..., as token ``longest``, and none. Raises ``ValueError`` for fewer
    than two tokens.
    """
    if longest < 2:
        raise ValueError(f"longest: expected at least 2 tokens, got {longest}")
    place, end = (
        torch.arange(longest),
        torch.arange(1, longest + 1)[:, None],
    )  # of the stop; the last has none
    stops = (place == end).to(torch.float64)  # [completions of one answer, tokens]
    fills = ((place > 0) & (place < end)).to(torch.float64)

    def log_policy(theta: Tensor) -> Tensor:
        answer, stop = torch.nn.functional.logsigmoid, theta[1:]
        halves = []
        for k, sign in enumerate((1.0, -1.0)):
            first = (place == 0) * answer(sign * theta[0])
            halves.append(first + stops * answer(stop[k]) + fills * answer(-stop[k]))
        return torch.cat(halves)

    mask = ((place == 0) + stops + fills).repeat(2, 1)
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat_interleave(longest)
    return log_policy, mask, rewards
