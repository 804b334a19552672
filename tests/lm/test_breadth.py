"""Attention made broader: credit at the embeddings against autograd, directions against the closed form, slopes."""

import numpy as np
import pandas as pd
import pytest
import torch

from replicate.lm import attention, breadth, spectra
from replicate.models.fresh import rescaled, tiny_model
from replicate.models.precision import precision_of

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def fresh(family="olmo2", **shape):
    shape = {"vocab": 8, "hidden": 16, "heads": 2} | shape
    return tiny_model(family, generator=torch.Generator().manual_seed(0), **shape)


def last_token(soft):
    return soft[:, -1, 2]


@pytest.mark.parametrize("family", ["olmo2", "llama", "gpt2"])
def test_a_temperature_divides_the_scores_and_is_taken_back(family):
    model = fresh(family)

    @torch.no_grad()
    def weights():
        with precision_of(model):
            return model(PROMPT, output_attentions=True).attentions[0]

    plain = weights()
    with breadth.attention_temperature(model, 4.0):
        broad = weights()
    torch.testing.assert_close(weights(), plain)
    expected = (plain.log() / 4).softmax(-1)  # scores up to a constant, which the softmax takes off
    torch.testing.assert_close(broad, expected, rtol=1e-6, atol=1e-9)
    with (
        pytest.raises(ValueError, match="temperature: expected a positive number, got 0"),
        breadth.attention_temperature(model, 0),
    ):
        pass


def test_credit_is_the_gradient_at_the_embeddings():
    """Two tokens, by autograd straight through the model: the embedding of the soft token with and without graph."""
    model = fresh()
    found = breadth.credit(model, PROMPT, last_token, horizon=2)
    table = model.get_input_embeddings().weight.detach()
    grads = {}
    for cut in (False, True):
        x = table[PROMPT].requires_grad_()
        with precision_of(model):
            soft = model(inputs_embeds=x).logits[:, -1].softmax(-1)
            fed = (soft.detach() if cut else soft) @ table
            value = model(inputs_embeds=torch.cat([x, fed[:, None]], 1)).logits[:, -1].softmax(-1)[:, 2]
        (grads[cut],) = torch.autograd.grad(value.sum(), x)
    assert found["whole"] == pytest.approx(grads[False].norm().item(), rel=1e-9)
    assert found["attention"] == pytest.approx(grads[True].norm().item(), rel=1e-9)
    assert found["token"] == pytest.approx((grads[False] - grads[True]).norm().item(), rel=1e-9)
    assert found["error"] == pytest.approx(found["token"] / found["whole"])
    assert found["share"] == pytest.approx(found["attention"] / (found["attention"] + found["token"]))
    with torch.no_grad(), precision_of(model):
        probs = model(PROMPT).logits[0, -1].softmax(-1)
    assert found["entropy"] == pytest.approx(torch.special.entr(probs).sum().item(), rel=1e-9)


def test_no_rescaling_of_the_end_moves_a_number():
    model = fresh()
    before = breadth.credit(model, PROMPT, last_token, horizon=2), breadth.directions(model, PROMPT[0])
    rescaled(model, by=128.0)
    after = breadth.credit(model, PROMPT, last_token, horizon=2), breadth.directions(model, PROMPT[0])
    assert before[0] == pytest.approx(after[0], rel=1e-9)
    for x, y in zip(before[1], after[1], strict=True):
        assert x.pop("level") == y.pop("level")
        assert x == pytest.approx(y, rel=1e-9)


@pytest.mark.parametrize("family", ["olmo2", "gpt2"])
def test_directions_are_those_of_the_closed_form(family):
    model = fresh(family)
    layer, whole = breadth.directions(model, PROMPT[0])
    blocks = list(attention.anatomy(model, PROMPT[0]))
    ratios = [
        spectra.participation_ratio(attention.layer_jacobians(b)[-1, :-1].transpose(0, 1).flatten(1))
        for b in blocks
    ]
    assert layer["participation"] == pytest.approx(np.mean(ratios), rel=1e-9)
    assert layer["breadth"] == pytest.approx(
        np.mean([spectra.breadth(b.alpha[:, -1, :-1]).mean().item() for b in blocks]), rel=1e-9
    )
    through = attention.model_jacobians(model, PROMPT[0])[-1, :-1]
    assert whole["participation"] == pytest.approx(
        spectra.participation_ratio(through.transpose(0, 1).flatten(1)).item(), rel=1e-9
    )
    assert whole["reach"] == pytest.approx(spectra.breadth(through.square().sum((1, 2))).item(), rel=1e-9)
    assert [row["level"] for row in breadth.directions(model, PROMPT[0], whole=False)] == ["layer"]


@pytest.mark.parametrize("family", ["olmo2", "llama", "gpt2"])
def test_muting_a_position_shrinks_its_jacobian_in_proportion_and_no_others(family):
    model = fresh(family)
    plain = breadth.muted(model, PROMPT[0], column=1, source=1, bias=0.0)
    whole = attention.model_jacobians(model, PROMPT[0])[-1, 1]
    assert plain["size"] == pytest.approx(whole.norm().item(), rel=1e-9)
    deep, deeper = (breadth.muted(model, PROMPT[0], column=1, source=1, bias=b) for b in (12.0, 16.0))
    slope = np.log(deeper["size"] / deep["size"]) / np.log(deeper["weight"] / deep["weight"])
    assert slope == pytest.approx(1, abs=0.01)
    other = breadth.muted(model, PROMPT[0], column=1, source=2, bias=16.0)
    assert other["size"] > 1e3 * deeper["size"]
    with pytest.raises(ValueError, match="column, source: expected 0 to 3, got 4 and 0"):
        breadth.muted(model, PROMPT[0], column=4, source=0, bias=1.0)


def test_elasticities_are_slopes_of_logarithms_over_units():
    rows = [
        {"stage": "a", "unit": u, "breadth": b, "y": (u + 1) * b**power}
        for u, power in ((0, 1.0), (1, 2.0))
        for b in (1.0, 2.0, 4.0)
    ]
    table = breadth.elasticities(pd.DataFrame(rows), ["y"], by=["stage"], unit="unit")
    (row,) = table.to_dict("records")
    assert row["mean"] == pytest.approx(1.5)
    assert row["se"] == pytest.approx(0.5)
    assert (row["low"], row["high"], row["n"]) == pytest.approx((0.0, 3.0, 2))
    with pytest.raises(ValueError, match="frame: expected at least 2 of 'unit'"):
        breadth.elasticities(pd.DataFrame(rows[:3]), ["y"], by=["stage"], unit="unit")


def test_every_temperature_has_its_rows():
    model = fresh()
    rows = breadth.over_temperatures(model, lambda m: breadth.directions(m, PROMPT[0]), (0.5, 2.0))
    assert [(r["temperature"], r["level"]) for r in rows] == [
        (0.5, "layer"),
        (0.5, "model"),
        (2.0, "layer"),
        (2.0, "model"),
    ]
    assert rows[2]["breadth"] > rows[0]["breadth"]


def test_shuffling_keeps_every_units_breadths_and_leaves_no_slope():
    rows = [
        {"stage": "a", "unit": u, "breadth": float(b), "y": float(b) ** 2}
        for u in range(300)
        for b in (1, 2, 4, 8)
    ]
    frame, rng = pd.DataFrame(rows), np.random.default_rng(0)
    mixed = breadth.shuffled(frame, by=["stage"], unit="unit", rng=rng)
    assert (
        mixed.groupby("unit")["breadth"].apply(sorted) == frame.groupby("unit")["breadth"].apply(sorted)
    ).all()
    (row,) = breadth.elasticities(mixed, ["y"], by=["stage"], unit="unit").to_dict("records")
    assert abs(row["mean"]) < 4.5 * row["se"]
    assert row["se"] < 0.1
