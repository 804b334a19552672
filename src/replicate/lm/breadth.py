"""Does broader attention make up for the path that sampling cuts? Attention broadened by hand, and what follows.

Prop. 3 ends in two sentences about breadth. To test them attention is *made* broader or narrower: its scores are
divided by a temperature, in every head, and nothing else of the model is touched. What follows is summarised as an
elasticity, the slope of log y in log breadth: 1 where y is proportional to the number of positions attended to, 0 where
breadth does not matter. A rank correlation would call a change of one percent perfect if it were monotone.

Credit is compared at the prompt's embeddings, where the model's own coordinates have no say.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.lm import attention, recurrence, relaxed, spectra
from replicate.lm.blockwise import pulled_back
from replicate.lm.relaxed import SoftReward
from replicate.lm.shapes import shape_of
from replicate.models.hooks import blocks, first_of, frozen, hidden_states, require_eager
from replicate.models.jacobians import rows
from replicate.models.precision import precision_of

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)


@contextmanager
def attention_temperature(model: nn.Module, temperature: float | int) -> Iterator[nn.Module]:
    """``model`` with the scores of every head divided by ``temperature``; above 1 attention is broader.

    Raises ``ValueError`` for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    modules = [attention.attention_module(model, layer) for layer in range(shape_of(model).layers)]
    before = [module.scaling for module in modules]
    try:
        for module in modules:
            module.scaling = module.scaling / temperature
        yield model
    finally:
        for module, scaling in zip(modules, before, strict=True):
            module.scaling = scaling


def credit(
    model: nn.Module,
    prompt: Int[Tensor, "1 length"],
    reward: SoftReward,
    *,
    horizon: int,
    scale: Float[Tensor, " T"] | None = None,
) -> dict[str, float]:
    """Credit at the prompt's embeddings along a deterministic relaxed rollout, split into the two paths of (20).

    ``attention`` is the norm of the cut costate, which attention alone carries, ``token`` that of what the cut loses,
    ``whole`` that of the costate; ``error`` is token / whole, the relative error of the cut costate, and ``share``
    attention / (attention + token). ``breadth`` is the mean over layers, heads and the positions that choose a token
    of the breadth of attention over earlier positions; ``entropy`` the policy's mean over the tokens fed back, nats.
    """
    model_, state = recurrence.transformer(model), recurrence.prompt_state(model, prompt)
    options = {"horizon": horizon, "scale": scale}
    full = relaxed.relaxed_costates(model_, state, reward, **options)[0]
    cut = relaxed.relaxed_costates(model_, state, reward, cut=True, **options)[0]
    at_prompt = pulled_back(model, prompt, torch.cat([full, cut, full - cut]))
    whole, through, token = at_prompt.norm(dim=1).tolist()
    with torch.no_grad(), precision_of(model):
        run = relaxed.relaxed_rollout(model_, state, **options)
        read = torch.cat([model.get_input_embeddings()(prompt), *(e[:, None] for e in run.fed)], 1)
        weights = torch.cat(
            model(inputs_embeds=read, output_attentions=True).attentions
        )  # [layer, head, t, j]
    chosen_at = range(prompt.shape[1] - 1, read.shape[1])
    return {
        "breadth": float(
            torch.stack([spectra.breadth(weights[:, :, t, :t]).mean() for t in chosen_at]).mean()
        ),
        "entropy": float(run.entropy[0, :-1].mean()),
        "attention": through,
        "token": token,
        "whole": whole,
        "error": token / whole,
        "share": through / (through + token),
    }


def directions(
    model: nn.Module, tokens: Int[Tensor, " length"], *, whole: bool = True
) -> list[dict[str, str | float]]:
    """Breadth, reach and effective rank at the last position t: of whole layers (their mean) and of the whole model.

    Of a layer the Jacobian is da_t/dx_{<t} [d, t x d], all heads together; of the model dh_t^L/dh_{<t}^0. ``reach`` is
    the breadth of its squared norms over j < t, ``participation`` and ``entropy rank`` its effective ranks, ``breadth``
    the mean over heads (and layers) of that of the attention weights. Without ``whole`` only the layers are measured.
    """
    require_eager(model, "attention weights and their derivatives")
    with frozen(model), torch.enable_grad(), precision_of(model), _sublayers(model) as seen:
        states, _ = hidden_states(model, tokens[None])
        layers = [_measured(_at_last(a, x), w[0, :, -1, :-1]) for x, a, w in seen]
        found = [{"level": "layer", **pd.DataFrame(layers).mean().to_dict()}]
        if whole:
            through = _measured(_at_last(states[-2], states[0]), None)
            found.append({"level": "model", **through, "breadth": found[0]["breadth"]})
    return found


def muted(
    model: nn.Module, tokens: Int[Tensor, " length"], *, column: int, source: int, bias: float
) -> dict[str, float]:
    """The size of dh_t^L/dh_j^0 through all layers, t the last position and j = ``source``, with position ``column``
    muted: every later position's score of it is lowered by ``bias`` in every head and layer.

    ``size`` is the Frobenius norm, ``weight`` the mean attention weight of later positions to ``column``. Raises
    ``ValueError`` unless both positions lie before the last.
    """
    last = len(tokens) - 1
    if not (0 <= column < last and 0 <= source < last):
        raise ValueError(f"column, source: expected 0 to {last - 1}, got {column} and {source}")
    require_eager(model, "attention weights and their derivatives")
    mask = torch.full((last + 1, last + 1), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    mask[column + 1 :, column] -= bias
    embedded = model.get_input_embeddings()(tokens[None]).detach().requires_grad_()
    ends: list[Tensor] = []
    hook = blocks(model)[-1].register_forward_hook(lambda _, __, out: ends.append(first_of(out)))
    try:
        with frozen(model), torch.enable_grad(), precision_of(model), _sublayers(model) as seen:
            model(inputs_embeds=embedded, attention_mask=mask[None, None].to(embedded.dtype), use_cache=False)
            jacobian = rows(ends[0][:, -1], embedded)[0, :, source]
    finally:
        hook.remove()
    weight = torch.stack([w[0, :, column + 1 :, column].mean() for *_, w in seen]).mean()
    return {"weight": float(weight), "size": float(torch.linalg.matrix_norm(jacobian))}


@contextmanager
def _sublayers(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Notes of every attention sublayer its input x, its output a and its weights, with their graph."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(_, args, kwargs, output):
        seen.append((args[0] if args else kwargs["hidden_states"], output[0], output[1].detach()))

    modules = [attention.attention_module(model, layer) for layer in range(shape_of(model).layers)]
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _at_last(
    output: Float[Tensor, "1 length out"], inputs: Float[Tensor, "1 length in"]
) -> Float[Tensor, "context out in"]:
    """d output_t / d inputs_j for the last t and every j before it."""
    return rows(output[:, -1], inputs)[0, :, :-1].transpose(0, 1)


def over_temperatures(
    model: nn.Module, measure, temperatures: Sequence[float] = TEMPERATURES
) -> list[dict[str, float]]:
    """The rows of ``measure(model)`` (one or a list) at each temperature of the attention, which they name."""
    out = []
    for temperature in temperatures:
        with attention_temperature(model, temperature):
            found = measure(model)
        found = found if isinstance(found, list) else [found]
        out += [{"temperature": temperature, **row} for row in found]
    return out


def elasticities(
    frame: pd.DataFrame, columns: Sequence[str], *, by: Sequence[str], unit: str
) -> pd.DataFrame:
    """Slope of log column in log breadth within each ``unit``, averaged over the units of each group ``by``.

    One row a group and column: ``mean``, its standard error ``se`` over units, ``low`` and ``high``, the mean less and
    plus 3 se. Raises ``ValueError`` for a group with fewer than two units.
    """
    table = []
    for key, group in frame.groupby(list(by), sort=False):
        for column in columns:
            slopes = [_slope(part["breadth"], part[column]) for _, part in group.groupby(unit)]
            if len(slopes) < 2:
                raise ValueError(f"frame: expected at least 2 of {unit!r} in {key}, got {len(slopes)}")
            mean, se = float(np.mean(slopes)), float(np.std(slopes, ddof=1) / len(slopes) ** 0.5)
            values = {"of": column, "mean": mean, "se": se, "low": mean - 3 * se, "high": mean + 3 * se}
            table.append({**dict(zip(by, key, strict=True)), **values, "n": len(slopes)})
    return pd.DataFrame(table)


def shuffled(frame: pd.DataFrame, *, by: Sequence[str], unit: str, rng: np.random.Generator) -> pd.DataFrame:
    """``frame`` with the breadths of each ``unit`` in a group ``by`` shuffled among its rows: no relation is left."""
    mixed = frame.copy()
    mixed["breadth"] = frame.groupby([*by, unit])["breadth"].transform(
        lambda x: rng.permutation(x.to_numpy())
    )
    return mixed


def _slope(x: pd.Series, y: pd.Series) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _measured(
    jacobians: Float[Tensor, "context out in"], weights: Float[Tensor, "heads context"] | None
) -> dict[str, float]:
    stacked = jacobians.transpose(0, 1).flatten(1)
    found = {
        "reach": spectra.breadth(jacobians.square().sum((1, 2))),
        "participation": spectra.participation_ratio(stacked),
        "entropy rank": spectra.entropy_rank(stacked),
    }
    if weights is not None:
        found["breadth"] = spectra.breadth(weights).mean()
    return {name: float(x) for name, x in found.items()}
