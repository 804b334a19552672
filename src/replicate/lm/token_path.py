"""The two paths of (20) at one state of a recurrence: through attention and through the token, which Prop. 2 bounds."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm.gap import (
    entropy_bound,
    normalised_constant,
    softmax_jacobian_norm,
    trace_bound,
)
from replicate.lm.paths import Paths, head_jacobian, one_step, paths, paths_at, soft_tokens, step_jacobians
from replicate.lm.recurrence import OneState, Recurrence
from replicate.lm.relaxed import relaxed_rollout, soft_token
from replicate.lm.spectra import operator_norm
from replicate.models.jacobians import jacobian

_ENTRIES = 2**22  # of the Jacobians that path_norms holds at once


def relaxed_jacobian(
    recurrence: Recurrence,
    state: OneState,
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "1 vocab"] | None = None,
    straight_through: bool = False,
) -> Float[Tensor, "m n"]:
    """The new rows of ds_{t+1}/ds_t of the relaxed step, differentiated as a whole: the left side of (20)."""
    kept = recurrence.kept(state.shape[1])

    def step(s: Tensor) -> Tensor:
        token = soft_token(recurrence.logits(s) * scale, tau, noise, straight_through)
        return recurrence.advance(s, token @ recurrence.embeddings)[:, kept:]

    return jacobian(step, state)[0]


def path_norms(
    recurrence: Recurrence,
    state: OneState,
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "draws vocab"] | None = None,
    straight_through: bool = False,
) -> tuple[Float[Tensor, " draws"], Float[Tensor, " draws"]]:
    """Operator norms of both paths of (20), one per row of ``noise`` (one without); options are those of :func:`paths`.

    The first are those of the attention path's new rows, the second those of the path through the token. F is
    differentiated once per distinct embedding that is fed, so straight-through costs no more than the tokens it meets.
    """
    soft, fed = soft_tokens(recurrence, state, scale, tau, noise, straight_through)
    head = scale * head_jacobian(recurrence, state)
    distinct, which = fed.unique(dim=0, return_inverse=True)
    first = paths_at(recurrence, state, fed[:1], soft[0], head, tau)
    attention, token = [], []
    if first.formed:
        advance, chunk = [], max(1, _ENTRIES // (first.new.shape[1] * state.shape[1]))
        for e in distinct.split(chunk):
            from_state, from_token = step_jacobians(*one_step(recurrence, state.expand(len(e), -1), e))
            attention += [operator_norm(matrix) for matrix in from_state]
            advance += from_token
        for i, p in zip(which.tolist(), soft, strict=True):
            token.append(operator_norm(advance[i] @ (replace(first, soft=p).softened @ head)))
    else:
        steps = [paths_at(recurrence, state, e[None], soft[0], head, tau) for e in distinct]
        attention = [step.attention_new_norm for step in steps]
        token = [replace(steps[i], soft=p).token_norm for i, p in zip(which.tolist(), soft, strict=True)]
    return torch.tensor(attention, dtype=torch.float64)[which], torch.tensor(token, dtype=torch.float64)


def relaxations(noise: Float[Tensor, "draws vocab"]) -> dict[str, dict]:
    """The three ways to soften a token, as options of :func:`paths`; the two noisy ones share ``noise``."""
    return {
        "no noise": {},
        "Gumbel-softmax": {"noise": noise},
        "straight-through": {"noise": noise, "straight_through": True},
    }


def path_quantiles(
    recurrence: Recurrence,
    state: OneState,
    noise: Float[Tensor, "draws vocab"],
    *,
    taus: Sequence[float],
    tail: float = 0.1,
) -> list[dict]:
    """Median and the quantiles ``tail`` and 1 - ``tail`` over the noise of :func:`path_norms`: one row per relaxation,
    temperature and path, with the keys ``path, way, tau, low, median, high``."""
    levels = torch.tensor([tail, 0.5, 1 - tail], dtype=torch.float64)
    rows = []
    for (way, options), tau in itertools.product(relaxations(noise).items(), taus):
        norms = path_norms(recurrence, state, tau=tau, **options)
        for path, x in zip(("attention", "token"), norms, strict=True):
            low, median, high = x.quantile(levels).tolist()
            rows.append({"path": path, "way": way, "tau": tau, "low": low, "median": median, "high": high})
    return rows


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
