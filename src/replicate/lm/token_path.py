"""The two paths of (20) at one state of a recurrence: through attention and through the token, which Prop. 2 bounds."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm.gap import (
    entropy_bound,
    normalised_constant,
    softmax_jacobian,
    softmax_jacobian_norm,
    trace_bound,
)
from replicate.lm.recurrence import Embedded, OneState, Recurrence, State
from replicate.lm.relaxed import relaxed_rollout, soft_token
from replicate.lm.spectra import operator_norm
from replicate.models.jacobians import jacobian

_ENTRIES = 2**22  # of the Jacobians that path_norms holds at once


@dataclass(frozen=True)
class Paths:
    """The two summands of (20) at one state s_t [1, n], for the m entries of s_{t+1} that are new.

    ``attention`` [m, n] at a fixed token; the path through the token is the product of ``advance`` [m, dim],
    ``embed`` [dim, vocab], ``soften`` [vocab, vocab] (the softmax Jacobian) and ``head`` [vocab, n]. The other ``kept``
    entries of s_{t+1} repeat the first entries of s_t: identity on the attention path, zero on the other.
    """

    attention: Float[Tensor, "m n"]
    advance: Float[Tensor, "m dim"]
    embed: Float[Tensor, "dim vocab"]
    soften: Float[Tensor, "vocab vocab"]
    head: Float[Tensor, "vocab n"]
    soft: Float[Tensor, " vocab"]
    kept: int
    tau: float

    @property
    def token(self) -> Float[Tensor, "m n"]:
        """The product of the four factors, formed where the head reads the state at all."""
        product, read = self.head.new_zeros(len(self.advance), self.head.shape[1]), self.head.any(0)
        product[:, read] = self.advance @ (self.embed @ (self.soften @ self.head[:, read]))
        return product

    @property
    def attention_norm(self) -> float:
        """Operator norm of the whole attention path, the identity block included."""
        if self.kept == 0:
            return operator_norm(self.attention)
        if not self.attention[:, self.kept :].any():  # [[I, 0], [A, 0]]: the kept entries are all it reads
            return math.sqrt(1.0 + operator_norm(self.attention) ** 2)
        return operator_norm(
            torch.cat([torch.eye(self.kept, self.attention.shape[1]).double(), self.attention])
        )


def paths(
    recurrence: Recurrence,
    state: OneState,
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "1 vocab"] | None = None,
    straight_through: bool = False,
) -> Paths:
    """Both paths of (20) at ``state``, each factor on its own; options as in a relaxed rollout."""
    kept = recurrence.kept(state.shape[1])
    p, fed = _softened(recurrence, state, scale, tau, noise, straight_through)
    attention, advance = _step_jacobians(recurrence, state, fed)
    return Paths(
        attention=attention[0],
        advance=advance[0],
        embed=recurrence.embeddings.T,
        soften=softmax_jacobian(p[0], temperature=tau),
        head=scale * jacobian(recurrence.logits, state)[0],
        soft=p[0],
        kept=kept,
        tau=tau,
    )


def _step_jacobians(
    recurrence: Recurrence, states: State, fed: Embedded
) -> tuple[Float[Tensor, "batch m n"], Float[Tensor, "batch m dim"]]:
    """d/ds and d/de of the new entries of F(s, e): one batched backward pass gives both."""
    leaves = states.detach().requires_grad_(), fed.detach().requires_grad_()
    with torch.enable_grad():
        new = recurrence.advance(*leaves)[:, recurrence.kept(states.shape[1]) :]
    batch, out = new.shape
    basis = torch.eye(out, dtype=new.dtype)[:, None].expand(-1, batch, -1)
    found = torch.autograd.grad(new, leaves, basis, is_grads_batched=True, allow_unused=True)
    # A bigram model does not read its state.
    filled = [
        x.new_zeros(out, *x.shape) if part is None else part for x, part in zip(leaves, found, strict=True)
    ]
    return filled[0].transpose(0, 1), filled[1].transpose(0, 1)


def _softened(
    recurrence: Recurrence,
    state: State,
    scale: float,
    tau: float,
    noise: Tensor | None,
    straight_through: bool,
) -> tuple[Float[Tensor, "draws vocab"], Float[Tensor, "draws dim"]]:
    """The soft token at one state and what is fed in its place, for each row of ``noise`` (one without noise)."""
    if len(state) != 1:
        raise ValueError(f"state: expected one state [1, n], got {list(state.shape)}")
    with torch.no_grad():
        logits = (recurrence.logits(state) * scale).expand(1 if noise is None else len(noise), -1)
        fed = soft_token(logits, tau, noise, straight_through) @ recurrence.embeddings
        return soft_token(logits, tau, noise, False), fed


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
    soft, fed = _softened(recurrence, state, scale, tau, noise, straight_through)
    head = scale * jacobian(recurrence.logits, state)[0]
    head = head[:, head.any(0)]  # columns of zeros do not change a norm
    distinct, which = fed.unique(dim=0, return_inverse=True)
    chunk = max(1, _ENTRIES // (recurrence.advance(state, fed[:1]).shape[1] * state.shape[1]))
    attention, advance = [], []
    for e in distinct.split(chunk):
        from_state, from_token = _step_jacobians(recurrence, state.expand(len(e), -1), e)
        attention += [operator_norm(matrix) for matrix in from_state]
        advance += from_token
    token = [
        operator_norm(advance[i] @ recurrence.embeddings.T @ (softmax_jacobian(p, temperature=tau) @ head))
        for i, p in zip(which.tolist(), soft, strict=True)
    ]
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
    factors = operator_norm(found.advance) * operator_norm(found.embed) * operator_norm(found.head)
    return factors * normalised_constant(len(found.soft)) / found.tau


def worst_coin(found: Paths) -> float:
    """Norm of the path through the token if the policy were a fair coin between the worst two tokens:

        max over v, w of |a_v - a_w| |W_v - W_w| / (4 tau),    a_v = (dF/de) e(v), W_v the rows of the head

    It is the unit in which a small path is small. D_p = sum_{v<w} p_v p_w (e_v - e_w)(e_v - e_w)^T, so that at every
    policy

        norm of the token path <= 2 (1 - sum p^2) x worst coin <= H / ln 2 x worst coin,

    the entropy in bits: (21) with pairs of tokens in the place of a product of norms. The fair coin itself attains it.
    The other factors are held as they are in ``found``.
    """
    moved = (found.advance @ found.embed).T
    return float((torch.cdist(moved, moved) * torch.cdist(found.head, found.head)).max() / (4 * found.tau))


def chain(found: Paths) -> dict[str, float]:
    """Prop. 2's bound built up from the token path's exact norm, one step a name, each at least the one before.

    ``exact``: norm of the product; ``embedding seen by F``: the norm of F's Jacobian split off; ``head``: the head
    split off; ``embeddings``: the embedding matrix split off, which leaves the softmax Jacobian alone; ``trace``: its
    norm replaced by 1 - sum p^2; ``entropy``: by H / (2 ln 2). The last is the paper's right side with the smallest
    constant its proof allows.
    """
    lipschitz, head = operator_norm(found.advance), operator_norm(found.head)
    embed = operator_norm(found.embed)
    middle = found.embed @ found.soften
    norm = softmax_jacobian_norm(found.soft, temperature=found.tau).item()
    factors = lipschitz * head * embed
    return {
        "exact": operator_norm(found.token),
        "embedding seen by F": lipschitz * operator_norm(middle @ found.head),
        "head": lipschitz * head * operator_norm(middle),
        "embeddings": factors * norm,
        "trace": factors * trace_bound(found.soft, temperature=found.tau).item(),
        "entropy": factors * entropy_bound(found.soft, temperature=found.tau).item(),
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
