"""The two paths of (20) at one state of a recurrence: through attention and through the token, which Prop. 2 bounds."""

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm.gap import entropy_bound
from replicate.lm.paths import Paths, paths, soft_tokens
from replicate.lm.recurrence import OneState, Recurrence
from replicate.lm.relaxed import relaxed_rollout, soft_token
from replicate.lm.spectra import operator_norm


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
    seen = 0.0 if noise is None or matched else noise

    def step(s: Tensor) -> Tensor:
        p = soft_token(recurrence.logits(s) * scale + seen, tau, None, False)
        return recurrence.advance(s, fed + (p - now) @ recurrence.embeddings)[:, kept:]

    parts = [part.square().mean().sqrt().expand(part.shape[1]) for part in (state[:, :kept], state[:, kept:])]
    steps = 1e-3 * min(1.0, tau) * torch.cat(parts)
    nudge = torch.diag(steps)
    with torch.no_grad():
        far, near = (step(state + k * nudge) - step(state - k * nudge) for k in (2, 1))
    return ((8 * near - far) / (12 * steps[:, None])).T, steps


def factors(found: Paths) -> float:
    """The norms of F's Jacobian, embeddings and head, multiplied."""
    return found.advance_norm * operator_norm(found.embed) * operator_norm(found.head)


def entropy_side(found: Paths) -> float:
    """The right side of (21) with the least C that its proof allows: the factors' norms times H / (2 ln 2) / tau."""
    return factors(found) * entropy_bound(found.soft, temperature=found.tau).item()


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
