r"""The path through the token where no rescaling of the model moves it: from logits to the next logits.

A token is chosen from logits z [V], softened to p, and fed; z' are the next logits. With B = dz'/dp [V, V] the path
through the token is dz'/dz = B K, K = (1/tau)(diag(p) - p p^T), and

    |B K| <= H / (tau ln 2) x coin <= |B| H / (2 tau ln 2) <= |W| |dh'/de| |E| H / (2 tau ln 2)              (21)

the last being the paper's C H / log|V| with the least C that its proof allows. ``coin`` is |B K| for a fair coin
between the worst two tokens at tau = 1. Dividing the final norm's weight and multiplying the head by one number changes
neither side, and neither does one number that is added to all logits: W and E stand for head and embeddings less the
mean of their rows.

Seen from the prompt's embeddings x, dz'/dx is a sum of two matrices of one unit: the attention path at a fixed token,
and B K dz/dx. That is where the two paths of (20) can be compared.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.bisection import bisect
from replicate.lm.entropy_bound import centred, norms, triangle
from replicate.lm.gap import entropy_bound, softmax_jacobian_norm
from replicate.lm.paths import head_jacobian, soft_tokens
from replicate.lm.recurrence import OneState, Recurrence, read_prompt, transformer
from replicate.lm.spectra import operator_norm, operator_norm_of
from replicate.lm.token_path import relaxations
from replicate.models.jacobians import products, rows
from replicate.models.logits import entropy

FORMED = 2**21
"""Entries of the largest Jacobian from the prompt that is formed."""

_AT_ONCE = 64  # backward passes in one batch
_TOL = 1e-4  # of norms of matrices that are not formed

Draws = Float[Tensor, " draws"]


@dataclass(frozen=True)
class LogitPaths:
    """Sizes at one state, an entry for each draw: see the module's text.

    ``exact`` |B K|; ``softmax`` |K|; ``spread`` |B|; ``coin``; ``factors`` |W| |dh'/de| |E|; ``entropy`` H(p) in nats.
    """

    exact: Draws
    softmax: Draws
    spread: Draws
    coin: Draws
    factors: Draws
    entropy: Draws
    tau: float

    @property
    def right(self) -> dict[str, Draws]:
        """The right sides of (21), sharpest first."""
        bits = self.entropy / math.log(2) / self.tau
        return {"pairs": bits * self.coin, "spread": bits / 2 * self.spread, "paper": bits / 2 * self.factors}


def logit_paths(
    recurrence: Recurrence,
    state: OneState,
    soft: Float[Tensor, "draws vocab"],
    fed: Float[Tensor, "draws dim"],
    *,
    tau: float = 1.0,
    among: int | None = None,
) -> LogitPaths:
    """Both sides of (21) at one state, for soft tokens and what is fed in their place (:func:`paths.soft_tokens`).

    ``coin`` is sought among all pairs of tokens, or among the so many likeliest. As many backward passes through a
    single token as the final state is wide, for each distinct embedding that is fed.
    """
    head, embeddings = head_jacobian(recurrence, state), centred(recurrence.embeddings)
    frame = triangle(centred(head))
    distinct, which = fed.unique(dim=0, return_inverse=True)
    steps = steps_of(recurrence, state, distinct)
    moved = frame @ steps @ embeddings.T
    likely = soft.mean(0).argsort(descending=True)[:among].sort().values
    points = moved[:, :, likely].mT
    widest = torch.stack([torch.cdist(each, each).max() for each in points])
    return LogitPaths(
        exact=torch.stack(
            [norms(softened(moved[i], p, tau)) for i, p in zip(which.tolist(), soft, strict=True)]
        ),
        softmax=softmax_jacobian_norm(soft, temperature=tau),
        spread=norms(moved)[which],
        coin=widest[which] * math.sqrt(2) / 4,
        factors=norms(frame) * norms(steps)[which] * norms(embeddings),
        entropy=entropy(soft.log()),
        tau=tau,
    )


def differenced(
    recurrence: Recurrence,
    state: OneState,
    soft: Float[Tensor, "1 vocab"],
    fed: Float[Tensor, "1 dim"],
    *,
    step: float = 1e-3,
) -> float:
    """|dz'/dz| at tau = 1 by central differences of forward passes, for small vocabularies: no derivative is taken.

    Each logit is moved in turn; what is fed moves with the softmax, and the state stays. Errors of fourth order.
    """
    vocab, logits = soft.shape[1], soft.log()

    def after(nudge: Tensor) -> Tensor:
        moved = fed + ((logits + nudge).softmax(-1) - soft) @ recurrence.embeddings
        return recurrence.logits(recurrence.advance(state.expand(len(nudge), -1), moved))

    with torch.no_grad():
        basis = step * torch.eye(vocab, dtype=soft.dtype)
        far, near = (after(k * basis) - after(-k * basis) for k in (2, 1))
    columns = (8 * near - far) / (12 * step)
    return operator_norm((columns - columns.mean(1, keepdim=True)).T)


def steps_of(
    recurrence: Recurrence, state: OneState, fed: Float[Tensor, "draws dim"]
) -> Float[Tensor, "draws read dim"]:
    """dh'/de, h' being what the head reads of F(s, e), for each embedding that is fed."""
    found = []
    for e in fed.split(max(1, 4096 // fed.shape[1])):
        leaf = e.detach().requires_grad_()
        with torch.enable_grad():
            found.append(rows(_read(recurrence, state.expand(len(e), -1), leaf), leaf, chunk=_AT_ONCE))
    return torch.cat(found)


def softened(matrix: Float[Tensor, "r vocab"], p: Float[Tensor, " vocab"], tau: float) -> Tensor:
    """``matrix`` (1/tau)(diag(p) - p p^T)."""
    return (matrix - (matrix @ p)[:, None]) * p / tau


@dataclass(frozen=True)
class FromPrompt:
    """Norms of both paths from the prompt's embeddings x to the next logits, an entry for each draw: ``attention`` of
    dz'/dx at a fixed token, ``token`` of B K dz/dx. ``reach`` is |dz/dx|."""

    attention: Draws
    token: Draws
    reach: float


def from_prompt(
    model: nn.Module,
    recurrence: Recurrence,
    prompt: Int[Tensor, "1 length"],
    soft: Sequence[Float[Tensor, "_ vocab"]],
    fed: Sequence[Float[Tensor, "_ dim"]],
    taus: Sequence[float],
) -> list[FromPrompt]:
    """Both paths behind ``prompt`` for several relaxations, a member each: soft tokens, what is fed, temperature.

    A Jacobian from the prompt is formed up to 2^21 entries; of a larger one only norms are found, by Lanczos iteration
    to 1e-4. F is differentiated once for each distinct embedding that is fed.
    """
    x = model.get_input_embeddings()(prompt).detach()
    distinct, which = torch.cat(list(fed)).unique(dim=0, return_inverse=True)
    with torch.enable_grad():
        leaf = x.flatten(1).requires_grad_()
        state = read_prompt(model, leaf.unflatten(1, x.shape[1:]))
        head = head_jacobian(recurrence, state.detach())
        frame, size = triangle(centred(head)), head.shape[1]
        reach = _norm_behind(state[:, -size:], leaf)
        attention = _attention(model, recurrence, x, distinct, frame)
    moved = frame @ steps_of(recurrence, state.detach(), distinct) @ centred(recurrence.embeddings).T
    out, start = [], 0
    for p, tau in zip(soft, taus, strict=True):
        at = which[start : start + len(p)]
        start += len(p)
        token = [reach(softened(moved[i], q, tau) @ head) for i, q in zip(at.tolist(), p, strict=True)]
        out.append(FromPrompt(attention[at], torch.tensor(token, dtype=torch.float64), reach(frame)))
    return out


def two_paths(
    model: nn.Module,
    recurrence: Recurrence,
    prompt: Int[Tensor, "1 length"],
    noise: Float[Tensor, "draws vocab"],
    *,
    taus: Sequence[float],
    tail: float = 0.1,
) -> list[dict]:
    """The two paths of (20) from the prompt to the next logits, for every relaxation and temperature.

    One row each with the keys ``way, tau``, and median, ``tail`` and 1 - ``tail`` quantiles over the noise of

    * ``token``: path through the token / attention path;
    * ``bound``: the right side of (21) with its least C, times |dz/dx|, / attention path;
    * ``share``: the first over the second, the norm over its bound.
    """
    with torch.no_grad():
        state = read_prompt(model, model.get_input_embeddings()(prompt))
    cases = list(itertools.product(relaxations(noise).items(), taus))
    tokens = [_soft_tokens(recurrence, state, tau, **options) for (_, options), tau in cases]
    found = from_prompt(model, recurrence, prompt, *zip(*tokens, strict=True), [tau for _, tau in cases])
    ends, levels = (" low", "", " high"), torch.tensor([tail, 0.5, 1 - tail], dtype=torch.float64)
    out = []
    factors = _factors(recurrence, state, [fed for _, fed in tokens])
    for ((way, _), tau), (p, _), sizes, C in zip(cases, tokens, found, factors, strict=True):
        bound = C * entropy_bound(p, temperature=tau) * sizes.reach
        ratios = {
            "token": sizes.token / sizes.attention,
            "bound": bound / sizes.attention,
            "share": sizes.token / bound,
        }
        row = {"way": way, "tau": tau}
        for name, x in ratios.items():
            row |= {f"{name}{end}": float(y) for end, y in zip(ends, x.quantile(levels), strict=True)}
        out.append(row)
    return out


def cut_token(
    model: nn.Module,
    prompt: Int[Tensor, "1 length"],
    *,
    between: float | None = None,
    rewarded: float | None = None,
) -> dict[str, float]:
    """What cutting one sampled token's path loses of a gradient at the prompt's embeddings (matched straight-through).

    The prompt, a token o ~ pi, and behind it the reward R = pi'(y), y the likeliest successor of o. ``between`` and
    ``rewarded`` are entropies in nats that the logits of pi, and those behind each o, are scaled to; None leaves them.
    ``error`` is |E dR/dx with the token path cut - E dR/dx|, ``signal`` the norm of the second, both exact
    expectations over o.
    """
    F = transformer(model)
    x = model.get_input_embeddings()(prompt).detach().requires_grad_()
    hard = torch.eye(len(F.embeddings), dtype=x.dtype)
    with torch.enable_grad():
        state = read_prompt(model, x).expand(len(hard), -1)
        z = F.logits(state)
        pi = (_scales(z, between) * z).softmax(-1)
        behind = F.logits(F.advance(state, F.embeddings)).detach()  # a row for each o
        scales, gradients = _scales(behind, rewarded), []
        for token in (hard, hard + pi - pi.detach()):
            after = (scales * F.logits(F.advance(state, token @ F.embeddings))).softmax(-1)
            worth = pi[0].detach() @ after.gather(1, behind.argmax(-1, keepdim=True))
            gradients.append(torch.autograd.grad(worth.sum(), x, retain_graph=True)[0])
    cut, whole = gradients
    pi, after = pi[0].detach(), after.detach()
    return {
        "H between": float(entropy(pi.log())),
        "H rewarded": float(pi @ entropy(after.log())),
        "error": float((cut - whole).norm()),
        "signal": float(whole.norm()),
    }


def _scales(logits: Float[Tensor, "rows vocab"], wished: float | None) -> Float[Tensor, "rows 1"]:
    """The factors on ``logits`` that give the softmax of each row the entropy ``wished``; 1 for None."""
    power = torch.zeros(len(logits), dtype=logits.dtype)
    if wished is not None:
        ends = torch.full_like(power, -30.0), torch.full_like(power, 30.0)
        rows_ = logits.detach()
        power, _ = bisect(
            lambda x: entropy((x.exp2()[:, None] * rows_).log_softmax(-1)) > wished, *ends, steps=60
        )
    return power.exp2()[:, None]


def _factors(recurrence: Recurrence, state: OneState, fed: Sequence[Tensor]) -> list[Draws]:
    """|W| |dh'/de| |E| of each draw."""
    ends = norms(centred(head_jacobian(recurrence, state))) * norms(centred(recurrence.embeddings))
    distinct, which = torch.cat(list(fed)).unique(dim=0, return_inverse=True)
    each = norms(steps_of(recurrence, state, distinct))[which] * ends
    return list(each.split([len(e) for e in fed]))


def _soft_tokens(
    recurrence, state, tau, *, noise=None, straight_through=False, matched=False
) -> tuple[Tensor, Tensor]:
    return soft_tokens(recurrence, state, 1.0, tau, noise, straight_through, matched)


def _read(recurrence: Recurrence, states: Tensor, fed: Tensor) -> Float[Tensor, "batch read"]:
    """What the head reads of F(s, e)."""
    after = recurrence.advance(states, fed)
    return after[:, recurrence.kept(after.shape[1]) :]


def _norm_behind(h: Float[Tensor, "1 read"], leaf: Float[Tensor, "1 features"]) -> Callable[[Tensor], float]:
    """A -> |A dh/dx|: with the Jacobian reduced once to a triangle, or by Lanczos iteration where it is too large."""
    if h.shape[1] * leaf.shape[1] <= FORMED:
        least = triangle(rows(h, leaf, chunk=_AT_ONCE)[0].T).T  # |A L Q| = |A L|
        return lambda A: operator_norm(A @ least)
    forward, transposed = products(h, leaf)

    def norm(A: Tensor) -> float:
        maps = lambda w: forward(w) @ A.T, lambda u: transposed(u @ A)
        return operator_norm_of(*maps, leaf.shape[1], tol=_TOL)

    return norm


def _attention(model, recurrence, x, distinct, frame) -> Draws:
    """|dz'/dx| at each fixed token of ``distinct``."""
    found = []
    formed = frame.shape[1] * x[0].numel() <= FORMED
    for e in distinct.split(16 if formed else 1):
        leaf = x.flatten(1).repeat(len(e), 1).requires_grad_()
        with torch.enable_grad():
            h = _read(recurrence, read_prompt(model, leaf.unflatten(1, x.shape[1:])), e)
        if formed:
            found += norms(frame @ rows(h, leaf, chunk=_AT_ONCE)).tolist()
        else:
            found.append(_norm_behind(h, leaf)(frame))
    return torch.tensor(found, dtype=torch.float64)
