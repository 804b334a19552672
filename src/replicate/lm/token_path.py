"""The two paths of (20) at one state of a recurrence: through attention and through the token, which Prop. 2 bounds."""

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm.gap import (
    entropy_bound,
    normalised_constant,
    softmax_jacobian_norm,
    trace_bound,
)
from replicate.lm.paths import Paths, paths, soft_tokens
from replicate.lm.recurrence import OneState, Recurrence
from replicate.lm.relaxed import relaxed_rollout, soft_token
from replicate.lm.spectra import operator_norm
from replicate.models.jacobians import jacobian


def relaxed_jacobian(
    recurrence: Recurrence,
    state: OneState,
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "1 vocab"] | None = None,
    straight_through: bool = False,
) -> Float[Tensor, "m n"]:
    """The new rows of ds_{t+1}/ds_t of the relaxed step, differentiated as a whole by autograd: the left of (20)."""
    kept = recurrence.kept(state.shape[1])

    def step(s: Tensor) -> Tensor:
        token = soft_token(recurrence.logits(s) * scale, tau, noise, straight_through)
        return recurrence.advance(s, token @ recurrence.embeddings)[:, kept:]

    return jacobian(step, state)[0]


def relaxations(noise: Float[Tensor, "draws vocab"]) -> dict[str, dict]:
    """Four ways to soften a token, as options of :func:`paths`; the three noisy ones share ``noise``.

    What is fed, and whose softmax Jacobian goes back: a *soft token* and a *Gumbel-softmax* sample feed what they
    differentiate; *straight-through* feeds the largest entry of the Gumbel-softmax sample and differentiates that
    sample; *matched straight-through* feeds the same token, which is a sample of the policy, and differentiates the
    policy. All four at temperature tau, so that the Jacobian is (1/tau)(diag(p) - p p^T) with one p or another.
    """
    return {
        "soft token": {},
        "Gumbel-softmax": {"noise": noise},
        "straight-through": {"noise": noise, "straight_through": True},
        "matched straight-through": {"noise": noise, "matched": True},
    }


def finite_differences(
    recurrence: Recurrence,
    state: OneState,
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "1 vocab"] | None = None,
    straight_through: bool = False,
    matched: bool = False,
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " n"]]:
    """The left side of (20) without autograd: the new rows of ds_{t+1}/ds_t by central differences of forward passes.

    A hard token has no derivative of its own; a straight-through step is by definition the derivative of

        s -> F(s, E^T (token fed at s_t + p(s) - p(s_t))),

    which is what is differenced (for soft tokens it is the relaxed step itself). Also returns the step of each entry,
    in proportion to the size of its block, so that entries of any unit can be compared: J diag(steps). The error is of
    fourth order in the steps.
    """
    kept = recurrence.kept(state.shape[1])
    now, fed = soft_tokens(recurrence, state, scale, tau, noise, straight_through, matched)
    seen = None if matched else noise

    def step(s: Tensor) -> Tensor:
        p = soft_token(recurrence.logits(s) * scale, tau, seen, False)
        return recurrence.advance(s, fed + (p - now) @ recurrence.embeddings)[:, kept:]

    parts = [part.square().mean().sqrt().expand(part.shape[1]) for part in (state[:, :kept], state[:, kept:])]
    steps = 1e-3 * min(1.0, tau) * torch.cat(parts)
    nudge = torch.diag(steps)
    with torch.no_grad():
        far, near = (step(state + k * nudge) - step(state - k * nudge) for k in (2, 1))
    return ((8 * near - far) / (12 * steps[:, None])).T, steps


def constant(found: Paths) -> float:
    """C of (21): the norms of F's Jacobian, embeddings and head, times log|V| / (2 ln 2) / tau.

    The smallest constant that the proof of Prop. 2 gives at this state: C H / log|V| is the last of :func:`chain`.
    """
    return factors(found) * normalised_constant(len(found.soft)) / found.tau


def factors(found: Paths) -> float:
    """The norms of F's Jacobian, embeddings and head, multiplied."""
    return found.advance_norm * operator_norm(found.embed) * operator_norm(found.head)


def entropy_side(found: Paths) -> float:
    """The last of :func:`chain` alone: the factors' norms times H / (2 ln 2) / tau."""
    return factors(found) * entropy_bound(found.soft, temperature=found.tau).item()


def worst_coin(found: Paths, *, among: int | None = None) -> float:
    """Norm of the path through the token if the policy were a fair coin between the worst two tokens:

        max over v, w of |a_v - a_w| |W_v - W_w| / (4 tau),    a_v = (dF/de) e(v), W_v the rows of the head

    It is the unit in which a small path is small. D_p = sum_{v<w} p_v p_w (e_v - e_w)(e_v - e_w)^T, so that at every
    policy

        norm of the token path <= 2 (1 - sum p^2) x worst coin <= H / ln 2 x worst coin,

    the entropy in bits: (21) with pairs of tokens in the place of a product of norms. The fair coin itself attains it.
    The other factors are held as they are in ``found``. All pairs of tokens are tried, or those ``among`` the so many
    likeliest, which gives at most as much.
    """
    tokens = found.soft.argsort(descending=True)[:among].sort().values
    moved, head = (found.advance @ found.embed[:, tokens]).T, found.head[tokens]
    return float((torch.cdist(moved, moved) * torch.cdist(head, head)).max() / (4 * found.tau))


def chain(found: Paths) -> dict[str, float]:
    """Prop. 2's bound built up from the token path's exact norm, one step a name, each at least the one before.

    ``exact``: norm of the product; ``embedding seen by F``: the norm of F's Jacobian split off; ``head``: the head
    split off; ``embeddings``: the embedding matrix split off, which leaves the softmax Jacobian alone; ``trace``: its
    norm replaced by 1 - sum p^2; ``entropy``: by H / (2 ln 2). The last is the paper's right side with the smallest
    constant its proof allows.
    """
    lipschitz, head = found.advance_norm, operator_norm(found.head)
    middle, product = found.softened, lipschitz * operator_norm(found.embed) * head
    norm = softmax_jacobian_norm(found.soft, temperature=found.tau).item()
    return {
        "exact": found.token_norm,
        "embedding seen by F": lipschitz * operator_norm(middle @ found.head),
        "head": lipschitz * head * operator_norm(middle),
        "embeddings": product * norm,
        "trace": product * trace_bound(found.soft, temperature=found.tau).item(),
        "entropy": product * entropy_bound(found.soft, temperature=found.tau).item(),
    }


def paths_along(
    recurrence: Recurrence,
    state: OneState,
    *,
    horizon: int,
    scale: Float[Tensor, " T"] | None = None,
    tau: float = 1.0,
    noise: Float[Tensor, "1 T vocab"] | None = None,
) -> list[Paths]:
    """J_t and K_t of (20) at the states s_1..s_{T-1} of the relaxed rollout from ``state``."""
    with torch.no_grad():
        run = relaxed_rollout(recurrence, state, horizon=horizon, scale=scale, tau=tau, noise=noise)
    return [
        paths(
            recurrence,
            s,
            scale=1.0 if scale is None else float(scale[t]),
            tau=tau,
            noise=None if noise is None else noise[:, t],
        )
        for t, s in enumerate(run.states[:-1])
    ]
