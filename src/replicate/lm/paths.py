"""The factors of (20) at one state of a recurrence, as matrices where they fit and as norms where they do not.

A transformer's state is its whole cache: 10 positions of a model of 12 blocks and width 768 make 185,000 entries, and
a step adds 19,000. The Jacobian between them would take 27 GiB; its norm takes some tens of products with vectors.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.lm.recurrence import Embedded, OneState, Recurrence, State
from replicate.lm.relaxed import soft_token
from replicate.lm.spectra import operator_norm, operator_norm_of
from replicate.models.jacobians import columns, products

FORMED = 2**24
"""Entries of the largest Jacobian that is formed; of a larger one only norms are taken, by its products."""


@dataclass(frozen=True)
class Paths:
    """The two summands of (20) at one state s_t [1, n], for the m entries of s_{t+1} that are new.

    ``attention`` [m, n] at a fixed token; the path through the token is the product of ``advance`` [m, dim],
    ``embed`` [dim, vocab], ``soften`` [vocab, vocab] (the softmax Jacobian of ``soft``, its rank-one part multiplied by
    ``rank_one``) and ``head`` [vocab, n - kept], which reads the entries from ``kept`` on. The first ``kept`` entries
    of s_{t+1} repeat those of s_t: identity on the attention path, zero on the other.

    Matrices are formed when they are asked for; norms of those that would be too large are found without.
    """

    new: Float[Tensor, "1 m"]
    leaves: tuple[Tensor, Tensor]
    embed: Float[Tensor, "dim vocab"]
    head: Float[Tensor, "vocab read"]
    soft: Float[Tensor, " vocab"]
    kept: int
    tau: float
    rank_one: float = 1.0

    @property
    def formed(self) -> bool:
        """Whether the attention path's matrix is small enough to be formed."""
        return self.new.shape[1] * self.leaves[0].shape[1] <= FORMED

    @cached_property
    def _jacobians(self) -> tuple[Tensor, Tensor]:
        return tuple(x[0] for x in step_jacobians(self.new, self.leaves))

    @property
    def attention(self) -> Float[Tensor, "m n"]:
        """ds_{t+1}/ds_t at a fixed token, the new rows."""
        return self._jacobians[0]

    @cached_property
    def advance(self) -> Float[Tensor, "m dim"]:
        """ds_{t+1}/de, the new rows."""
        return self._jacobians[1] if self.formed else columns(self.new, self.leaves[1])

    @property
    def token(self) -> Float[Tensor, "m n"]:
        """The product of the four factors."""
        product = self.head.new_zeros(self.new.shape[1], self.leaves[0].shape[1])
        product[:, self.kept :] = self.advance @ (self.softened @ self.head)
        return product

    @property
    def soften(self) -> Float[Tensor, "vocab vocab"]:
        """(1/tau)(diag(p) - p p^T) as a matrix, for small vocabularies."""
        return (torch.diag(self.soft) - self.rank_one * torch.outer(self.soft, self.soft)) / self.tau

    @property
    def softened(self) -> Float[Tensor, "dim vocab"]:
        """``embed`` times ``soften``."""
        mean = self.embed @ self.soft
        return (self.embed - self.rank_one * mean[:, None]) * self.soft / self.tau

    @property
    def attention_new_norm(self) -> float:
        """Operator norm of the attention path's new rows."""
        if self.formed:
            return operator_norm(self.attention)
        return operator_norm_of(*products(self.new, self.leaves[0]), self.leaves[0].shape[1])

    @property
    def attention_norm(self) -> float:
        """Operator norm of the whole attention path, the identity block included."""
        if self.kept == 0:
            return self.attention_new_norm
        if not self._reads_the_rest():  # [[I, 0], [A, 0]]: the kept entries are all it reads
            return math.sqrt(1.0 + self.attention_new_norm**2)
        return operator_norm(
            torch.cat([torch.eye(self.kept, self.attention.shape[1]).double(), self.attention])
        )

    def _reads_the_rest(self) -> bool:
        if self.formed:
            return bool(self.attention[:, self.kept :].any())
        (back,) = torch.autograd.grad(self.new.sum(), self.leaves[0], retain_graph=True)
        return bool(back[:, self.kept :].any())

    @property
    def advance_norm(self) -> float:
        """Operator norm of ``advance``."""
        if self.formed:
            return operator_norm(self.advance)
        return operator_norm_of(*products(self.new, self.leaves[1]), len(self.embed))

    @property
    def token_norm(self) -> float:
        """Operator norm of ``token``."""
        middle = self.softened @ self.head  # [dim, read]
        if self.formed:
            return operator_norm(self.advance @ middle)
        forward, transposed = products(self.new, self.leaves[1])
        through = lambda w: forward(w @ middle.T), lambda u: transposed(u) @ middle
        return operator_norm_of(*through, middle.shape[1])


def paths(
    recurrence: Recurrence,
    state: OneState,
    *,
    scale: float = 1.0,
    tau: float = 1.0,
    noise: Float[Tensor, "1 vocab"] | None = None,
    straight_through: bool = False,
    matched: bool = False,
) -> Paths:
    """Both paths of (20) at ``state``, each factor on its own; options as in a relaxed rollout.

    ``matched`` straight-through feeds the token that the noise samples, and sends the policy's softmax Jacobian back.
    """
    p, fed = soft_tokens(recurrence, state, scale, tau, noise, straight_through, matched)
    return paths_at(recurrence, state, fed, p[0], scale * head_jacobian(recurrence, state), tau)


def paths_at(
    recurrence: Recurrence,
    state: OneState,
    fed: Float[Tensor, "1 dim"],
    soft: Float[Tensor, " vocab"],
    head: Float[Tensor, "vocab read"],
    tau: float,
) -> Paths:
    """The same for a soft token, for what is fed in its place, and for the head's Jacobian."""
    new, leaves = one_step(recurrence, state, fed)
    return Paths(new, leaves, recurrence.embeddings.T, head, soft, recurrence.kept(state.shape[1]), tau)


def head_jacobian(recurrence: Recurrence, state: OneState) -> Float[Tensor, "vocab read"]:
    """dz/ds for the entries of ``state`` that are not repeated, which are all that the head reads."""
    kept = recurrence.kept(state.shape[1])
    rest = state[:, kept:].detach().requires_grad_()
    with torch.enable_grad():
        logits = recurrence.logits(torch.cat([state[:, :kept].detach(), rest], dim=1))
    return columns(logits, rest)


def one_step(recurrence: Recurrence, states: State, fed: Embedded) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The new entries of F(s, e) with their graph, and its leaves s and e."""
    leaves = states.detach().requires_grad_(), fed.detach().requires_grad_()
    with torch.enable_grad():
        return recurrence.advance(*leaves)[:, recurrence.kept(states.shape[1]) :], leaves


def step_jacobians(
    new: Float[Tensor, "batch m"], leaves: tuple[Tensor, Tensor]
) -> tuple[Float[Tensor, "batch m n"], Float[Tensor, "batch m dim"]]:
    """d/ds and d/de of the new entries of F(s, e): one batched backward pass gives both."""
    batch, out = new.shape
    basis = torch.eye(out, dtype=new.dtype)[:, None].expand(-1, batch, -1)
    found = torch.autograd.grad(
        new, leaves, basis, is_grads_batched=True, retain_graph=True, allow_unused=True
    )
    # A bigram model does not read its state.
    filled = [
        x.new_zeros(out, *x.shape) if part is None else part for x, part in zip(leaves, found, strict=True)
    ]
    return filled[0].transpose(0, 1), filled[1].transpose(0, 1)


def soft_tokens(
    recurrence: Recurrence,
    state: State,
    scale: float,
    tau: float,
    noise: Tensor | None,
    straight_through: bool,
    matched: bool = False,
) -> tuple[Float[Tensor, "draws vocab"], Float[Tensor, "draws dim"]]:
    """The soft token at one state and what is fed in its place, for each row of ``noise`` (one without noise).

    The soft token is what the Jacobian belongs to: with ``matched`` it does not see the noise that picks what is fed.
    """
    if len(state) != 1:
        raise ValueError(f"state: expected one state [1, n], got {list(state.shape)}")
    with torch.no_grad():
        logits = (recurrence.logits(state) * scale).expand(1 if noise is None else len(noise), -1)
        fed = soft_token(logits, tau, noise, straight_through or matched) @ recurrence.embeddings
        return soft_token(logits, tau, None if matched else noise, False), fed
