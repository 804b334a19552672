r"""Prop. 2 and Theorem 1 along one checkpoint: exact left sides, and right sides that no rescaling of the model moves.

The relaxation is *matched straight-through* throughout: a token o ~ pi goes forward, the softmax Jacobian of the policy
D = diag(pi) - pi pi^T goes backward. All is measured where a model's inner coordinates have no say: in the logits less
their mean (one number added to all logits changes no policy), and at the prompt's embeddings.

**One step** (:func:`token_paths`). With B = dz'/dp [V, V], the change of the next logits z' with the weights p of the
token that is fed, the path through the token of (20) is dz'/dz = B D, and

    |B D| <= H / ln 2 x coin <= |B| H / (2 ln 2) <= |W| |dh'/de| |E| H / (2 ln 2),    B = W (dh'/de) E^T       (21)

the last being the paper's C H / log|V| with the least C that its proof allows. ``coin`` is |B D| for the fair coin
between the worst two tokens, the unit in which a small path is small.

**To the end** (:func:`cut_costates`). The prompt ends k tokens before the answer, o_1..o_k are sampled, and the reward
is pi(y) behind them. With x the prompt's embeddings, dz_j/dx the attention path alone, and u_j(v) = dR/dp_j(v) what
token v is worth at step j, cutting the token path leaves an error

    |cut - lambda| = |sum_j (dz_j/dx)^T D_j u_j| <= sum_j |dz_j/dx| |u_j| H_j / (2 ln 2)                        (23)

where a product of norms |J_j| is kept whole as one Jacobian, in (23)'s favour.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.lm import recurrence
from replicate.lm.gap import entropy_bound, softmax_jacobian_norm
from replicate.models import olmo2
from replicate.models.hooks import frozen, require_eager
from replicate.models.jacobians import jacobian, rows
from replicate.models.logits import entropy, log_policy
from replicate.models.precision import precision_of

Norms = Float[Tensor, " batch"]


@dataclass(frozen=True)
class TokenPaths:
    """One step at each of a batch of prefixes; every entry [batch], see the module's text.

    ``exact`` |B D|; ``spread`` |B|; ``coin``; ``factors`` |W| |dh'/de| |E|; ``softmax`` |D|; ``entropy`` H in nats.
    ``hidden`` is |dh'/dh|, the same path in the coordinates of the final state, which a rescaling does move.
    """

    exact: Norms
    spread: Norms
    coin: Norms
    factors: Norms
    softmax: Norms
    entropy: Norms
    hidden: Norms

    @property
    def right(self) -> dict[str, Norms]:
        """The right sides of (21), sharpest first."""
        bits = self.entropy / math.log(2)
        return {"pairs": bits * self.coin, "spread": bits / 2 * self.spread, "paper": bits / 2 * self.factors}


def policies(
    model: nn.Module, tokens: Int[Tensor, "batch length"], *, vocab: int
) -> Float[Tensor, "batch length vocab"]:
    """pi(. | tokens so far) at every position, without graph, padding rows left out."""
    with torch.no_grad(), precision_of(model):
        return log_policy(model(input_ids=tokens, use_cache=False).logits, vocab=vocab).exp()


def token_paths(
    model: nn.Module, prefixes: Int[Tensor, "batch length"], *, vocab: int, generator: torch.Generator
) -> TokenPaths:
    """Both sides of (21) in the next logits, for one token sampled behind each prefix.

    One forward pass over the prefixes and as many backward passes through a single token as the model is wide.
    """
    F = recurrence.transformer(model, vocab=vocab)
    states = recurrence.prompt_state(model, prefixes)
    pi = F.logits(states).softmax(-1)
    taken = torch.multinomial(pi, 1, generator=generator)[:, 0]
    width = model.config.hidden_size
    step = jacobian(lambda e: F.advance(states, e)[:, -width:], F.embeddings[taken])  # dh'/de [batch, d, d]
    head, embeddings = _head(model, vocab), centred(F.embeddings)
    moved = step @ embeddings.T  # dh'/dp [batch, d, V], less what all tokens share: D is blind to it
    softened = moved * pi[:, None] - (moved @ pi[:, :, None]) * pi[:, None]  # dh'/dp D
    frame = triangle(centred(head))  # |W X| = |frame X|
    B = frame @ moved
    return TokenPaths(
        exact=norms(frame @ softened),
        spread=norms(B),
        coin=_widest(B) * math.sqrt(2) / 4,
        factors=norms(frame) * norms(step) * norms(embeddings),
        softmax=softmax_jacobian_norm(pi),
        entropy=entropy(pi.log()),
        hidden=norms(softened @ head),
    )


@dataclass(frozen=True)
class CutCostates:
    """Both sides of (23) at the prompt's embeddings, along one sampled continuation of each prompt; entries [batch].

    ``tokens`` were sampled in between, with ``entropies`` in nats. ``error`` is the distance of the cut costate from
    lambda and ``signal`` the norm of lambda. ``summands`` are |(dz_j/dx)^T D_j u_j|, whose sum is at least the error;
    ``entropy`` is the right side of (23) in the module's text, ``factors`` the same with |u_j| and |dz_j/dx| split into
    the norms of embeddings and head and the rest, as in the paper's C.
    """

    tokens: Int[Tensor, "batch between"]
    entropies: Float[Tensor, "batch between"]
    error: Norms
    signal: Norms
    summands: Float[Tensor, "batch between"]
    entropy: Norms
    factors: Norms


def cut_costates(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    labels: Int[Tensor, " batch"],
    *,
    between: int,
    vocab: int,
    generator: torch.Generator,
) -> CutCostates:
    """Both sides of (23) for the task's reward, R = pi(label) after ``between`` sampled tokens.

    ``prompts`` end that many tokens before the answer. One forward pass with graph; per step between as many backward
    passes as the model is wide, for the norm of dz_j/dx. Raises ``ValueError`` for fewer than one token in between.
    """
    if between < 1:
        raise ValueError(f"between: expected at least 1 token, got {between}")
    tokens = sampled(model, prompts, steps=between, vocab=vocab, generator=generator)
    table, head = model.get_input_embeddings().weight.detach()[:vocab], _head(model, vocab)
    leaves = [table[part].requires_grad_() for part in (prompts, *tokens.split(1, dim=1))]
    with frozen(model), precision_of(model), torch.enable_grad():
        final = model.base_model(inputs_embeds=torch.cat(leaves, 1), use_cache=False).last_hidden_state
        h = final[:, prompts.shape[1] - 1 :]
        z = h @ head.T  # [batch, between + 1, V]
        reward = z[:, -1].softmax(-1).gather(1, labels[:, None]).sum()
        slopes = list(
            torch.autograd.grad(reward, leaves, retain_graph=True)
        )  # dR/dx, dR/de_j at fixed tokens
        cut, pi, summands = slopes[0], z.detach().softmax(-1), []
        for j in reversed(range(between)):
            u = slopes[j + 1][:, 0] @ table.T  # dR/dp_j, all later token paths included
            back = torch.autograd.grad(z[:, j], leaves[: j + 1], _through(pi[:, j], u), retain_graph=True)
            summands.append(back[0].flatten(1).norm(dim=1))
            slopes[: j + 1] = [a + b for a, b in zip(slopes, back, strict=False)]
    steps = [
        _step_sizes(reach_of_prompt(model, prompts, tokens[:, :j]), head, slopes[j + 1][:, 0], table)
        for j in range(between)
    ]
    bits = [entropy_bound(pi[:, j]) for j in range(between)]
    return CutCostates(
        tokens=tokens,
        entropies=entropy(pi[:, :-1].log()),
        error=(slopes[0] - cut).flatten(1).norm(dim=1),
        signal=slopes[0].flatten(1).norm(dim=1),
        summands=torch.stack(summands[::-1], 1),
        entropy=sum(b * whole for b, (whole, _) in zip(bits, steps, strict=True)),
        factors=sum(b * split for b, (_, split) in zip(bits, steps, strict=True)),
    )


def _step_sizes(
    reach: Float[Tensor, "batch d input"],
    head: Float[Tensor, "vocab d"],
    slope: Float[Tensor, "batch d"],
    table: Float[Tensor, "vocab d"],
) -> tuple[Norms, Norms]:
    """|dz_j/dx| |u_j| of one step, and the same with the head's and the embeddings' norms split off."""
    frame, embeddings = triangle(centred(head)), centred(table)
    whole = norms(frame @ reach) * (slope @ embeddings.T).norm(dim=1)
    return whole, norms(frame) * norms(reach) * norms(embeddings) * slope.norm(dim=1)


def expected_costates(
    model: nn.Module, prompt: Int[Tensor, "1 length"], label: int, *, vocab: int
) -> dict[str, float]:
    """One token in between, every token of it: expectations over o ~ pi, exactly, at the prompt's embeddings.

    ``signal`` |E lambda| of matched straight-through; ``cut`` the distance of the cut costate from it, and ``sent``
    that of g = dV/dx, which discrete GRPO sends in expectation (A4); ``entropy`` the right side of (23). With R(o) the
    reward behind token o and u its slopes, g - E lambda = (dz/dx)^T D (R - E u): sampling's bias is what is curved.
    """
    F = recurrence.transformer(model, vocab=vocab)
    head = _head(model, vocab)
    x, e = (y.requires_grad_() for y in (model.get_input_embeddings()(prompt).detach(), F.embeddings.clone()))
    with torch.enable_grad():
        state = recurrence.read_prompt(model, x)
        z = F.logits(state)
        R = F.logits(F.advance(state.expand(vocab, -1), e)).softmax(-1)[:, label]
        pi = z.detach().softmax(-1)
        by_attention, slopes = torch.autograd.grad((pi[0] * R).sum(), (x, e), retain_graph=True)
        u = slopes.sum(0, keepdim=True) @ F.embeddings.T  # E dR/dp; slopes carry pi(o)
        by_token, by_sampling = (
            torch.autograd.grad(z, x, _through(pi, worth), retain_graph=True)[0]
            for worth in (u, R.detach()[None])
        )
    reach = norms(triangle(centred(head)) @ reach_of_prompt(model, prompt, prompt[:, :0]))
    each = (slopes @ centred(F.embeddings).T).norm(dim=1).sum()  # E |u|
    return {
        "signal": float((by_attention + by_token).norm()),
        "cut": float(by_token.norm()),
        "sent": float((by_sampling - by_token).norm()),
        "entropy": float(reach * each * entropy_bound(pi)),
        "H": float(entropy(pi.log())),
    }


def reach_of_prompt(
    model: nn.Module, prompts: Int[Tensor, "batch length"], tokens: Int[Tensor, "batch read"]
) -> Float[Tensor, "batch d input"]:
    """dh/dx of the final state behind prompts and given tokens, x the embeddings of the prompt, flattened.

    A row each for the d entries of h, all in one backward pass; written out for OLMo-2, by autograd for others.
    """
    whole, length = torch.cat([prompts, tokens], 1), prompts.shape[1]
    if olmo2.supports(model):
        tape = olmo2.forward(model, whole)
        basis = torch.eye(tape.final.shape[-1], dtype=tape.final.dtype)[:, None, None]
        with torch.no_grad():
            *_, (_, back) = olmo2.pull_back(tape, basis.expand(-1, len(whole), -1, -1))
        return back[:, :, :length].transpose(0, 1).flatten(2)
    with frozen(model), precision_of(model), torch.enable_grad():
        embedded = model.get_input_embeddings()(whole).detach().requires_grad_()
        h = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1]
        return rows(h, embedded)[:, :, :length].flatten(2)


def sampled(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    *,
    steps: int,
    vocab: int,
    generator: torch.Generator,
) -> Int[Tensor, "batch steps"]:
    """``steps`` tokens drawn from the policy behind each prompt."""
    tokens = prompts
    for _ in range(steps):
        pi = policies(model, tokens, vocab=vocab)[:, -1]
        tokens = torch.cat([tokens, torch.multinomial(pi, 1, generator=generator)], 1)
    return tokens[:, prompts.shape[1] :]


def rescaled(model: nn.Module, factors: Float[Tensor, " d"]) -> None:
    """Divides the final norm's weight by ``factors`` and multiplies the head's columns by them, in place.

    No output of the model changes; the coordinates of its final state do. For architectures whose last norm is called
    ``norm`` and has no bias (OLMo-2, Llama).
    """
    with torch.no_grad():
        model.base_model.norm.weight.div_(factors)
        model.get_output_embeddings().weight.mul_(factors)


def centred(table: Float[Tensor, "vocab d"]) -> Float[Tensor, "vocab d"]:
    """Less the mean of its rows."""
    return table - table.mean(0)


def triangle(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "least n"]:
    """R of a QR decomposition: |matrix X| = |R X| for every X, with fewer rows."""
    return torch.linalg.qr(matrix, mode="r").R


def norms(matrices: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """Operator norms of a batch of matrices, from the smaller of the two Gram matrices."""
    wide = matrices.shape[-2] < matrices.shape[-1]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    return torch.linalg.eigvalsh(gram)[..., -1].clamp_min(0.0).sqrt()


def _head(model: nn.Module, vocab: int) -> Float[Tensor, "vocab d"]:
    require_eager(model, "a differentiable step")
    return model.get_output_embeddings().weight.detach()[:vocab]


def _through(
    pi: Float[Tensor, "batch vocab"], u: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """D u."""
    return pi * (u - (pi * u).sum(1, keepdim=True))


def _widest(columns: Float[Tensor, "batch d vocab"]) -> Norms:
    """The largest distance between two columns."""
    points = columns.mT
    return torch.cdist(points, points).amax((1, 2))
