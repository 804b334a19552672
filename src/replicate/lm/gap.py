r"""The softmax Jacobian, which is all that is random in the path through the sampled token in (20), and its norm (A5).

A softmax Jacobian is (1/tau)(diag(p) - p p^T), a diagonal minus a rank-one matrix, whose largest eigenvalue solves a
scalar equation; no vocabulary-squared matrix is formed for it. Its norm obeys, with H the entropy in nats,

    norm <= (1/tau)(1 - sum_v p_v^2) <= (1/tau) H(p) / (2 ln 2)                                        (A5)

with equality for a fair coin. Written with the paper's normalised entropy H / log|V| the best constant is
log|V| / (2 ln 2), which grows with the vocabulary: the normalisation adds nothing.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.bisection import bisect
from replicate.lm.relaxed import soft_token
from replicate.lm.spectra import operator_norm

Distributions = Float[Tensor, "*batch vocab"]

_BISECTIONS = 56  # the bracket is at most twice the root wide, so this is below round-off


def softmax_jacobian_norm(probs: Distributions, *, temperature: float = 1.0) -> Float[Tensor, "*batch"]:
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
    low, high = bisect(lambda x: _secular(x, first, others, rest) > 0, low, high, steps=_BISECTIONS)
    return (((low + high) / 2).squeeze(-1) / temperature).to(probs.dtype)


def entropy_bound(probs: Distributions, *, temperature: float = 1.0) -> Float[Tensor, "*batch"]:
    """H(p) / (2 ln 2) / temperature, H in nats: the right side of A5, an upper bound on the norm above.

    Half the entropy in bits; no constant of it can be lowered, since a fair coin attains it at any vocabulary.
    Errors as in :func:`softmax_jacobian_norm`.
    """
    p = _checked(probs, temperature)
    return (torch.special.entr(p).sum(-1) / (2 * math.log(2) * temperature)).to(probs.dtype)


def trace_bound(probs: Distributions, *, temperature: float = 1.0) -> Float[Tensor, "*batch"]:
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
    mean = mean_jacobian(soft, torch.full((draws,), 1 / draws, dtype=soft.dtype), temperature=temperature)
    return {
        "tau": temperature,
        "mean": float(norms.mean()),
        "se": float(norms.std() / draws**0.5),
        "rms": float(norms.square().mean().sqrt()),
        "norm of mean": operator_norm(mean),
        "z of mean": float(z.abs().max()),
        "worst / own bound": float((norms / entropy_bound(soft, temperature=temperature)).max()),
    }


def gumbel_quadrature(
    pi: Float[Tensor, " vocab"], *, temperature: float
) -> tuple[Float[Tensor, "points vocab"], Float[Tensor, " points"]]:
    """Soft tokens and weights that integrate over the noise of a Gumbel-softmax sample of three tokens.

    The differences d of the noisy logits from the last have the density 2 a b c / (a + b + c)^3 with a, b, c =
    pi_v exp(-d_v). The trapezoidal rule over the plane converges faster than any power of its step for what is smooth
    in the soft token, such as its Jacobian; a norm is not, where three tokens tie, and keeps a second-order error.
    Raises ``ValueError`` for another number of tokens, and as :func:`softmax_jacobian_norm`.
    """
    if pi.shape != (3,):
        raise ValueError(f"pi: expected 3 tokens, got shape {list(pi.shape)}")
    log = _checked(pi, temperature).log()
    step, reach = 0.7 * min(1.0, temperature), 22.0 + float(log.max() - log.min())
    d = step * torch.arange(-round(reach / step), round(reach / step) + 1, dtype=torch.float64)
    first, second = (part.flatten() for part in torch.meshgrid(d, d, indexing="ij"))
    noisy = torch.stack([first, second, torch.zeros_like(first)], -1)
    weight = (math.log(2) + (log - noisy).sum(-1) - 3 * (log - noisy).logsumexp(-1)).exp() * step**2
    return (noisy / temperature).softmax(-1), weight


def mean_jacobian(
    soft: Float[Tensor, "draws vocab"], weight: Float[Tensor, " draws"], *, temperature: float
) -> Float[Tensor, "vocab vocab"]:
    """The mean of (1/temperature)(diag(p) - p p^T) over soft tokens p of the given weights."""
    return (torch.diag(weight @ soft) - soft.T @ (weight[:, None] * soft)) / temperature


def flipped_tokens(
    pi: Float[Tensor, " vocab"], noise: Float[Tensor, "draws vocab"], *, step: float
) -> tuple[Float[Tensor, "vocab vocab"], Float[Tensor, "vocab vocab"]]:
    """The Jacobian of *discrete* sampling, from tokens alone: o = argmax(log pi + noise), with Gumbel noise a sample.

    Logit v is moved by -step/2 and by +step/2 under the same noise; ``found[w, v]`` is by how much more often token w
    comes out, per draw and step. In expectation that is a central difference of pi, diag(pi) - pi pi^T to second order
    in the step: Remark 1's expected Jacobian. Also returns the z-scores off the diagonal against it (0 on it): only
    draws in which v and w tie within the step flip, and their number is Poisson to first order.
    """
    logits, draws = pi.log() + noise, len(noise)
    found = []
    for v in range(len(pi)):
        nudge = torch.zeros_like(pi)
        nudge[v] = step / 2
        more, less = ((logits + sign * nudge).argmax(-1).bincount(minlength=len(pi)) for sign in (1, -1))
        found.append((more - less).double() / (draws * step))
    found, limit = torch.stack(found, 1), softmax_jacobian(pi)
    z = (found - limit) / (limit.abs() / (draws * step)).sqrt()
    return found, z.fill_diagonal_(0.0)


def normalised_constant(vocab: int) -> float:
    """The smallest c with norm(diag(p) - p p^T) <= c H(p) / log|V| for all p: log|V| / (2 ln 2)."""
    if vocab < 2:
        raise ValueError(f"vocab: expected at least 2, got {vocab}")
    return math.log(vocab) / (2 * math.log(2))


def softmax_jacobian(
    probs: Distributions, *, temperature: float = 1.0
) -> Float[Tensor, "*batch vocab vocab"]:
    """(1/temperature)(diag(p) - p p^T) as a matrix, for small vocabularies."""
    return (torch.diag_embed(probs) - probs[..., :, None] * probs[..., None, :]) / temperature


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
