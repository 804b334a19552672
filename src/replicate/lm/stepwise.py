r"""Value and mean costate after every prefix of an enumerated rollout: (9) and A4 at each step, not only at the first.

    V_t = E[G_t | o_<t],    g_t = dV_t/ds = E[lambda^_t | o_<t]
    lambda^_t = sum_{k>=t} gamma^{k-t} G_k dlog pi(o_k)/ds

Completions are all N = vocab^T of them in lexicographic order, so that those with a common prefix stand together; a
list has one entry a step, t = 1..T, with vocab^(t-1) prefixes. ``state`` is where derivatives are taken at every step:
the prompt's embeddings, say, whose units no rescaling of the model's inside changes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from replicate.lm import costate
from replicate.lm.differences import direction, slope
from replicate.lm.enumeration import LogProbs, scores
from replicate.lm.recurrence import (
    OneState,
    Recurrence,
    log_probs_of,
    prompt_state,
    read_prompt,
    transformer,
    unroll,
)

Togo = Float[Tensor, "N T"]


@dataclass(frozen=True)
class Stepwise:
    """Mean costates ``g`` [prefixes, *state], probabilities P(o_<t) [prefixes], and how far each <g, v> is from the
    slope of V_t along a random v, over the norms [prefixes]; a list entry for each step."""

    g: list[Tensor]
    probabilities: list[Tensor]
    distances: list[Tensor]

    @property
    def worst(self) -> float:
        """The largest distance over all steps and prefixes."""
        return max(float(x.max()) for x in self.distances)

    @property
    def strengths(self) -> list[float]:
        """E |g_t|^2 under the policy, for each step: the terms of V in (26)."""
        pairs = zip(self.g, self.probabilities, strict=True)
        return [float(p @ g.flatten(1).square().sum(1)) for g, p in pairs]


def continuous_states(
    model: PreTrainedModel, prompt: Int[Tensor, "1 length"], completions: Int[Tensor, "N T"]
) -> dict[str, tuple[LogProbs, Tensor]]:
    """Two states that the policy reads: the prompt's embeddings [length, dim], and its keys and values, flattened, with
    the final state held. Each comes after log pi of all ``completions`` as a function of it."""
    recurrence = transformer(model)
    after = log_probs_of(recurrence, completions)
    state = prompt_state(model, prompt)[0]
    cache, final = state[: recurrence.kept(len(state))], state[recurrence.kept(len(state)) :]
    return {
        "embeddings": (
            lambda e: after(read_prompt(model, e)),
            model.get_input_embeddings()(prompt)[0].detach(),
        ),
        "keys and values": (lambda c: after(torch.cat([c, final.expand(len(c), -1)], dim=1)), cache),
    }


def at_state(
    log_probs: LogProbs,
    state: Float[Tensor, "*state"],
    togo: Togo,
    *,
    gamma: float,
    vocab: int,
    generator: torch.Generator,
) -> Stepwise:
    """Mean costates from scores, the probabilities never differentiated; V_t from probabilities, moved along v."""
    with torch.no_grad():
        logp = log_probs(state.expand(len(togo), *state.shape))
    powers, found = gamma ** torch.arange(togo.shape[1], dtype=togo.dtype), []
    for t in range(togo.shape[1]):
        weights = togo * powers / powers[t]
        weights[:, :t] = 0.0
        found.append(_mean(logp[:, t:].sum(1).exp(), scores(log_probs, state, weights), vocab**t))
    v = direction(state, generator, near=found[0][0])

    def values(h: float) -> Tensor:
        with torch.no_grad():
            moved = log_probs((state + h * v).expand(len(togo), *state.shape))
        return torch.cat(values_along(moved, togo, vocab=vocab))

    slopes = slope(values).split([len(g) for g in found])
    off = [_distance(g, v, s) for g, s in zip(found, slopes, strict=True)]
    return Stepwise(found, prefix_probabilities(logp, vocab=vocab), off)


def at_final(
    recurrence: Recurrence,
    state: OneState,
    completions: Int[Tensor, "N T"],
    togo: Togo,
    *,
    weights: Togo,
    vocab: int,
    generator: torch.Generator,
) -> Stepwise:
    """The same where the state is Def. 2's: h_t, that o_t is drawn from, all else in s_t held.

    Its costate is w_t dlog pi(o_t)/dh_t, which is unbiased if ``weights`` w_t are the returns-to-go. V_t is moved along
    h_t, and all that follows is run again from there.
    """
    start = state.expand(len(completions), -1)
    with torch.no_grad():
        run = unroll(recurrence, start, completions)
    carried = costate.costates(recurrence, start, completions, weights)
    found, off = [], []
    for t, (now, lam) in enumerate(zip(run.states, carried, strict=True)):
        h = slice(recurrence.kept(now.shape[1]), None)

        def tails(shift: Tensor, t=t, now=now, h=h) -> Tensor:
            moved = now.clone()
            moved[:, h] += shift
            with torch.no_grad():
                return unroll(recurrence, moved, completions[:, t:]).logp.sum(1).exp()

        g = _mean(tails(torch.zeros(1)), lam[:, h], vocab**t)
        v = direction(now[0, h], generator, near=g[0])
        values = slope(lambda x, tails=tails, v=v: tails(x * v)) * togo[:, t]
        found.append(g)
        off.append(_distance(g, v, values.unflatten(0, (vocab**t, -1)).sum(1)))
    return Stepwise(found, prefix_probabilities(run.logp, vocab=vocab), off)


def values_along(logp: Float[Tensor, "N T"], togo: Togo, *, vocab: int) -> list[Float[Tensor, " prefixes"]]:
    """V_t = E[G_t | o_<t] after every prefix, from log pi of all completions; also after one never taken."""
    tails = [logp[:, t:].sum(1).exp() * togo[:, t] for t in range(logp.shape[1])]
    return [x.unflatten(0, (vocab**t, -1)).sum(1) for t, x in enumerate(tails)]


def prefix_probabilities(logp: Float[Tensor, "N T"], *, vocab: int) -> list[Float[Tensor, " prefixes"]]:
    """P(o_<t) of every prefix, for t = 1..T."""
    whole = logp.sum(1).exp()
    return [whole.unflatten(0, (vocab**t, -1)).sum(1) for t in range(logp.shape[1])]


def _mean(tails: Float[Tensor, " N"], costates: Float[Tensor, "N ..."], prefixes: int) -> Tensor:
    shape = (prefixes, -1)
    return torch.einsum("pn,pn...->p...", tails.unflatten(0, shape), costates.unflatten(0, shape))


def _distance(g: Float[Tensor, "prefixes ..."], v: Tensor, slopes: Float[Tensor, " prefixes"]) -> Tensor:
    return ((g * v).flatten(1).sum(1) - slopes).abs() / (g.flatten(1).norm(dim=1) * v.norm())
