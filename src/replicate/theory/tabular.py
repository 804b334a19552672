"""A tabular task with a softmax policy: the discrete contrast, where everything is a finite sum.

States and actions are indices; a state has no gradient and an action no pathwise derivative. What can be differentiated
is the policy's table and the *distribution* over states: its costate is the value function itself.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from torch.func import grad

from replicate.theory.rollout import check_gamma


class Tabular(NamedTuple):
    """P(s' given s, a) as [state, action, state], r(s, a) as [state, action], logits theta as [state, action]."""

    P: Float[Tensor, "state action state"]
    r: Float[Tensor, "state action"]
    theta: Float[Tensor, "state action"]

    @property
    def pi(self) -> Float[Tensor, "state action"]:
        """pi(a given s) = softmax(theta_s)_a."""
        return torch.softmax(self.theta, -1)


def random_tabular(states: int, actions: int, *, generator: torch.Generator) -> Tabular:
    """A random task: P from softmaxes of Gaussian logits, rewards and policy logits standard normal."""
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    P = torch.softmax(2 * draw(states, actions, states), -1)
    return Tabular(P, draw(states, actions), draw(states, actions))


def values(task: Tabular, *, horizon: int, gamma: float | int) -> Float[Tensor, "{horizon}+1 state"]:
    """V_t(s) for t = 0..T by dynamic programming, V_T = 0; differentiable in the task's tables."""
    check_gamma(gamma)
    V = [task.r.new_zeros(len(task.r))]
    for _ in range(horizon):
        V.append((task.pi * (task.r + gamma * task.P @ V[-1])).sum(-1))
    return torch.stack(V[::-1])


def belief_return(
    task: Tabular, belief: Float[Tensor, " state"], *, steps: int, gamma: float | int
) -> Float[Tensor, ""]:
    """Return over ``steps`` steps when the *distribution* over states is the state: b' = P_pi^T b, r = b . r_pi.

    This relaxed rollout is deterministic and linear in b, so dG_t/db_t is V_t: the adjoint recursion (6) on beliefs is
    Bellman's equation.
    """
    r_pi = (task.pi * task.r).sum(-1)
    P_pi = torch.einsum("sa,sax->sx", task.pi, task.P)
    total = belief.new_zeros(())
    for t in range(steps):
        total = total + gamma**t * belief @ r_pi
        belief = belief @ P_pi
    return total


def exact_gradient(
    task: Tabular, start: Float[Tensor, " state"], *, horizon: int, gamma: float | int
) -> Float[Tensor, "state action"]:
    """dJ/dtheta by the policy-gradient theorem, all sums taken: sum_t gamma^t d_t(s) pi(a) (Q_t(s, a) - V_t(s))."""
    V = values(task, horizon=horizon, gamma=gamma)
    P_pi = torch.einsum("sa,sax->sx", task.pi, task.P)
    total, occupancy = torch.zeros_like(task.theta), start
    for t in range(horizon):
        Q = task.r + gamma * task.P @ V[t + 1]
        total = total + gamma**t * occupancy[:, None] * task.pi * (Q - V[t][:, None])
        occupancy = occupancy @ P_pi
    return total


def sample(
    task: Tabular, s0: Int[Tensor, " batch"], uniforms: Float[Tensor, "batch horizon two"]
) -> tuple[Int[Tensor, "batch times"], Int[Tensor, "batch horizon"], Float[Tensor, "batch horizon"]]:
    """T+1 states, T actions and rewards by inverse CDFs from uniforms drawn outside.

    Column 0 picks a_t, column 1 s_{t+1}.
    """
    states, actions = [s0], []
    for u in uniforms.unbind(1):
        s = states[-1]
        a = _pick(task.pi[s], u[:, 0])
        states.append(_pick(task.P[s, a], u[:, 1]))
        actions.append(a)
    s, a = torch.stack(states, 1), torch.stack(actions, 1)
    return s, a, task.r[s[:, :-1], a]


def _pick(probabilities: Tensor, u: Tensor) -> Tensor:
    last = probabilities.shape[-1] - 1
    return (probabilities.cumsum(-1) < u[:, None]).sum(-1).clamp(max=last)


def score_function_gradients(
    task: Tabular,
    states: Int[Tensor, "batch times"],
    actions: Int[Tensor, "batch horizon"],
    rewards: Float[Tensor, "batch horizon"],
    *,
    gamma: float | int,
) -> Float[Tensor, "batch state action"]:
    """sum_t gamma^t G_t dlog pi(a_t given s_t)/dtheta per trajectory (its states at T+1 times).

    dlog pi/dtheta_s = onehot(a) - pi(s).
    """
    gradient = rewards.new_zeros(len(rewards), *task.theta.shape)
    G = torch.zeros_like(rewards[:, 0])
    rows = torch.arange(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        G = rewards[:, t] + gamma * G
        onehot = torch.nn.functional.one_hot(actions[:, t], task.theta.shape[1])
        score = onehot - task.pi[states[:, t]]
        gradient.index_put_((rows, states[:, t]), gamma**t * G[:, None] * score, accumulate=True)
    return gradient


def expected_group_factor(
    p: float, *, group: int, baseline: str = "mean", scale: str = "std", eps: float = 1e-4
) -> float:
    """E[group gradient] / grad p for rewards that are 1 with probability p and 0 otherwise: an exact finite sum.

    The group holds k ~ Binomial(G, p) successes; given its reward a completion's mean score is grad p / p or
    -grad p / (1 - p), so E = grad p sum_k P(k) [A_1(k) (k/G) / p - A_0(k) (1 - k/G) / (1 - p)], A_1 and A_0
    being the advantages of a success and a failure. Raises ``ValueError`` unless 0 < p < 1 and the group has
    two members.
    """
    if not 0 < p < 1:
        raise ValueError(f"p: expected a probability strictly between 0 and 1, got {p}")
    if group < 2:
        raise ValueError(f"group: expected at least 2, got {group}")
    from replicate.theory.policy_gradients import group_advantages

    k = torch.arange(group + 1)
    rewards = (torch.arange(group) < k[:, None]).to(torch.float64)
    A = group_advantages(rewards, baseline=baseline, scale=scale, eps=eps)
    signed = rewards / p - (1 - rewards) / (1 - p)
    weight = torch.from_numpy(stats.binom.pmf(k.numpy(), group, p))
    return (weight * (A * signed).mean(-1)).sum().item()


def kl_divergence(p: Float[Tensor, " action"], q: Float[Tensor, " action"]) -> Float[Tensor, ""]:
    """KL(p, q) in nats."""
    return (p * (p.log() - q.log())).sum()


def expected_k3_gradient(
    logits: Float[Tensor, " action"], reference: Float[Tensor, " action"]
) -> Float[Tensor, " action"]:
    """E_{a ~ pi}[grad k3(a)] over the logits: the gradient a policy-gradient loss really takes of its KL term.

    The samples' law is not differentiated. All actions are summed over. k3 = x - 1 - log x with x = pi_ref / pi.
    """
    sampling = torch.softmax(logits, -1).detach()

    def expected_k3(logits: Tensor) -> Tensor:
        log_x = torch.log_softmax(reference, -1) - torch.log_softmax(logits, -1)
        return (sampling * (log_x.exp() - 1 - log_x)).sum()

    return grad(expected_k3)(logits)
