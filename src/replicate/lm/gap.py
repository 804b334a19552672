r"""The sampling gap: the path through the sampled token in (20), its bound (Prop. 2), and Theorem 1.

A softmax Jacobian is (1/tau)(diag(p) - p p^T), a diagonal minus a rank-one matrix, whose largest eigenvalue solves a
scalar equation; no vocabulary-squared matrix is formed for it. Its norm obeys, with H the entropy in nats,

    norm <= (1/tau)(1 - sum_v p_v^2) <= (1/tau) H(p) / (2 ln 2)                                        (A5)

with equality for a fair coin. Written with the paper's normalised entropy H / log|V| the best constant is
log|V| / (2 ln 2), which grows with the vocabulary: the normalisation adds nothing.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm.recurrence import Recurrence, State
from replicate.lm.relaxed import Relaxed, SoftReward, relaxed_costates, relaxed_rollout, soft_token
from replicate.models.jacobians import jacobian

_ENTRIES = 2**22  # of the Jacobians that path_norms holds at once
_BISECTIONS = 56  # the bracket is at most twice the root wide, so this is below round-off


def softmax_jacobian_norm(
    probs: Float[Tensor, "*batch vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Exact operator norm of (1/temperature)(diag(p) - p p^T), for p along the last axis.

    The norm is the root of the secular equation 1 = sum_v p_v^2 / (p_v - x) between the two largest p, found by
    bisection in float64 from p_1 (1 - p_1) <= x <= 1 - sum p^2. Ties of the largest give x = p_1, zeros change nothing,
    a one-hot p gives 0. Time and memory are linear in the vocabulary. Rows are normalised in float64 first.

    Raises ``ValueError`` if p is not a probability vector or the temperature is not positive.
    """
    p = _checked(probs, temperature)
    top = p.topk(min(2, p.shape[-1]), dim=-1)
    first = top.values[..., :1]
    rest = p.scatter(-1, top.indices[..., :1], 0.0)
    others = rest.sum(-1, keepdim=True)  # 1 - p_1 without its rounding
    second = top.values[..., 1:2] if p.shape[-1] > 1 else torch.zeros_like(first)
    low = torch.maximum(second, first * others)  # e_1 is a trial vector
    high = torch.minimum(first, _spread(first, others, rest))  # the trace
    high = torch.maximum(low, high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        left_of_root = _secular(middle, first, others, rest) > 0
        low, high = torch.where(left_of_root, middle, low), torch.where(left_of_root, high, middle)
    return (((low + high) / 2).squeeze(-1) / temperature).to(probs.dtype)


def entropy_bound(
    probs: Float[Tensor, "*batch vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    """H(p) / (2 ln 2) / temperature, H in nats: the right side of A5, an upper bound on the norm above.

    Half the entropy in bits; no constant of it can be lowered, since a fair coin attains it at any vocabulary.
    Errors as in :func:`softmax_jacobian_norm`.
    """
    p = _checked(probs, temperature)
    return (torch.special.entr(p).sum(-1) / (2 * math.log(2) * temperature)).to(probs.dtype)


def trace_bound(probs: Float[Tensor, "*batch vocab"], *, temperature: float = 1.0) -> Float[Tensor, "*batch"]:
    """(1 - sum p^2) / temperature: the trace of the softmax Jacobian, between the two sides of A5.

    It is also the expected norm of a Gumbel-softmax Jacobian in the limit of temperature zero, where the sample is
    almost always one-hot and now and then, with density p_v p_w, a coin between two tokens.
    """
    p = _checked(probs, temperature)
    first, index = p.max(-1, keepdim=True)
    rest = p.scatter(-1, index, 0.0)
    return (_spread(first, rest.sum(-1, keepdim=True), rest).squeeze(-1) / temperature).to(probs.dtype)


def mean_gumbel_norm(logit: float, *, temperature: float) -> float:
    """E |(1/tau)(diag(p) - p p^T)| of a Gumbel-softmax sample of two tokens with logits (``logit``, 0), by quadrature.

    The difference of two Gumbel variables is logistic, so p_1 = s(x / tau) with x of density s'(x - logit), s the
    logistic function, and the norm is 2 s'(x / tau) / tau. The trapezoidal rule on the whole line converges faster
    than any power of its step; the error is below 1e-10 of the largest value. As tau goes to 0 the result goes to
    s'(logit) 2 = 1 - sum pi^2.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    step, reach = min(1.0, temperature) / 4, 40 * max(1.0, temperature) + abs(logit)
    x = step * torch.arange(-round(reach / step), round(reach / step) + 1, dtype=torch.float64)
    norm = 2 / temperature * _logistic_slope(x / temperature)
    return float(step * (norm * _logistic_slope(x - logit)).sum())


def gumbel_moments(
    pi: Float[Tensor, " vocab"], noise: Float[Tensor, "draws vocab"], *, temperature: float
) -> dict[str, float]:
    """Monte Carlo moments of (1/tau) D, D = diag(p) - p p^T, of samples p = softmax((log pi + noise) / tau).

    ``mean`` and ``se``: mean norm and its standard error; ``rms``: root mean square of the norm; ``norm of mean``;
    ``z of mean``: the largest |z| over the entries v < w of the mean Jacobian against those of D of ``pi``, in standard
    errors, both in their limits as tau goes to 0 (an entry's mean square tends to pi_v pi_w / (6 tau); a cold sample
    of it is nearly always 0, and its own standard deviation is no measure); ``worst / own bound``: the largest norm
    over A5's bound with the sample's own entropy.
    """
    draws = len(noise)
    soft = soft_token(pi.log() + noise, temperature, None, False)
    norms = softmax_jacobian_norm(soft, temperature=temperature)
    v, w = torch.triu_indices(len(pi), len(pi), offset=1)
    entries = soft[:, v] * soft[:, w] / temperature
    limit = pi[v] * pi[w]
    z = (entries.mean(0) - limit) / (limit / (6 * temperature * draws)).sqrt()
    mean = (torch.diag(soft.mean(0)) - soft.T @ soft / draws) / temperature
    return {
        "tau": temperature,
        "mean": float(norms.mean()),
        "se": float(norms.std() / draws**0.5),
        "rms": float(norms.square().mean().sqrt()),
        "norm of mean": operator_norm(mean),
        "z of mean": float(z.abs().max()),
        "worst / own bound": float((norms / entropy_bound(soft, temperature=temperature)).max()),
    }


def normalised_constant(vocab: int) -> float:
    """The smallest c with norm(diag(p) - p p^T) <= c H(p) / log|V| for all p: log|V| / (2 ln 2)."""
    if vocab < 2:
        raise ValueError(f"vocab: expected at least 2, got {vocab}")
    return math.log(vocab) / (2 * math.log(2))


def softmax_jacobian(
    probs: Float[Tensor, "*batch vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch vocab vocab"]:
    """(1/temperature)(diag(p) - p p^T) as a matrix, for small vocabularies."""
    return (torch.diag_embed(probs) - probs[..., :, None] * probs[..., None, :]) / temperature


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
    state: Float[Tensor, "1 n"],
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
    recurrence: Recurrence, states: State, fed: Float[Tensor, "batch dim"]
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
    state: Float[Tensor, "1 n"],
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
    state: Float[Tensor, "1 n"],
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "draws vocab"] | None = None,
    straight_through: bool = False,
) -> tuple[Float[Tensor, " draws"], Float[Tensor, " draws"]]:
    """Operator norms of both paths of (20), one per row of ``noise`` (one draw without noise); options as in
    :func:`paths`.

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
    state: Float[Tensor, "1 n"],
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
    run: Relaxed,
    *,
    scale: Float[Tensor, " T"] | None = None,
    noise: Float[Tensor, "1 T vocab"] | None = None,
    tau: float = 1.0,
) -> list[Paths]:
    """J_t and K_t of (20) at the states s_1..s_{T-1} of a relaxed rollout; options are those it was made with."""
    return [
        paths(
            recurrence,
            state.detach(),
            scale=1.0 if scale is None else float(scale[t]),
            tau=tau,
            noise=None if noise is None else noise[:, t],
        )
        for t, state in enumerate(run.states[:-1])
    ]


@dataclass(frozen=True)
class TheoremOne:
    """Both sides of (23) at every step t = 1..T of one relaxed rollout, and what they are made of.

    ``error`` [T] is |lambda^_t - lambda_t| with lambda^ the costate whose token path is cut; ``sharp`` [T] the right
    side with each token path's own norm; ``entropy_bound`` [T] the right side with C_k H_k, C_k = the product of the
    factors' norms / (2 ln 2); ``signal`` [T] is |lambda_t|; ``entropies`` [T] in nats; ``attention_norms`` and
    ``token_norms`` [T-1]; ``gaps`` the vectors lambda^_t - lambda_t.
    """

    error: Float[Tensor, " T"]
    sharp: Float[Tensor, " T"]
    entropy_bound: Float[Tensor, " T"]
    signal: Float[Tensor, " T"]
    entropies: Float[Tensor, " T"]
    attention_norms: list[float]
    token_norms: list[float]
    gaps: list[Tensor]


def theorem_one(
    recurrence: Recurrence,
    state: Float[Tensor, "1 n"],
    reward: SoftReward,
    *,
    horizon: int,
    scale: Float[Tensor, " T"] | None = None,
    noise: Float[Tensor, "1 T vocab"] | None = None,
    tau: float = 1.0,
) -> TheoremOne:
    """Evaluates (23) exactly along the relaxed rollout from ``state``.

    With Gumbel noise the entropy in the bound is the soft sample's own, not the policy's: a single Gumbel sample at low
    temperature is not controlled by the policy's entropy, only its mean is.
    """
    options = {"horizon": horizon, "scale": scale, "noise": noise, "tau": tau}
    full = relaxed_costates(recurrence, state, reward, **options)
    cut = relaxed_costates(recurrence, state, reward, cut=True, **options)
    with torch.no_grad():
        run = relaxed_rollout(recurrence, state, **options)
    steps = paths_along(recurrence, run, scale=scale, noise=noise, tau=tau)
    attention = [step.attention_norm for step in steps]
    token = [operator_norm(step.token) for step in steps]
    with_entropy = [chain(step)["entropy"] for step in steps]
    gaps = [a - b for a, b in zip(cut, full, strict=True)]
    signal = [float(x.norm()) for x in full]
    return TheoremOne(
        error=torch.tensor([float(x.norm()) for x in gaps], dtype=torch.float64),
        sharp=right_side(attention, token, signal),
        entropy_bound=right_side(attention, with_entropy, signal),
        signal=torch.tensor(signal, dtype=torch.float64),
        entropies=run.entropy[0],
        attention_norms=attention,
        token_norms=token,
        gaps=gaps,
    )


def right_side(attention: list[float], token: list[float], signal: list[float]) -> Float[Tensor, " T"]:
    """sum_{k>=t} (prod_{t<=j<k} |J_j|) x token_k x |lambda_{k+1}| of (23), for t = 1..T (0 at the last)."""
    bound = [0.0]
    for k in reversed(range(len(token))):
        bound.append(token[k] * signal[k + 1] + attention[k] * bound[-1])
    return torch.tensor(bound[::-1], dtype=torch.float64)


def operator_norm(matrix: Float[Tensor, "m n"]) -> float:
    """Largest singular value, from the smaller of the two Gram matrices."""
    matrix = matrix[:, matrix.any(0)]  # columns of zeros do not change it, and the token path has many
    if not matrix.numel():
        return 0.0
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0.0).sqrt())


def _checked(probs: Tensor, temperature: float) -> Tensor:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if probs.ndim < 1 or probs.shape[-1] < 1:
        raise ValueError(
            f"probs: expected [..., vocab] with a vocabulary of at least 1, got {list(probs.shape)}"
        )
    p = probs.double()
    if not torch.isfinite(p).all() or (p < 0).any():
        raise ValueError("probs: expected finite numbers of at least 0, got others")
    total = p.sum(-1, keepdim=True)
    tolerance = 1e-5 if probs.dtype in (torch.float32, torch.float64) else 1e-2
    if ((total - 1).abs() > tolerance).any():
        worst = total.flatten()[(total - 1).abs().argmax()].item()
        raise ValueError(f"probs: expected rows that sum to 1, got a sum of {worst:.6g}")
    return p / total


def _spread(first: Tensor, others: Tensor, rest: Tensor) -> Tensor:
    """1 - sum p^2, without the cancellation where p_1 is near 1."""
    return others * (1 + first) - rest.square().sum(-1, keepdim=True)


def _logistic_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (-x).sigmoid()


def _secular(x: Tensor, first: Tensor, others: Tensor, rest: Tensor) -> Tensor:
    """1 - sum_v p_v^2 / (p_v - x), the first two terms put together; decreasing between the two largest p."""
    terms = torch.where(rest > 0, rest.square() / (x - rest), 0.0)
    return (first * others - x) / (first - x) + terms.sum(-1, keepdim=True)
