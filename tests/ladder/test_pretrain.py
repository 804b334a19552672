"""Training on another device or in another precision: the same data, the same weights where the arithmetic is the same,
and a name that is not the tiny ladder's."""

import pytest
import torch

from replicate.ladder import batches, pretrain
from replicate.ladder.batches import Batches
from replicate.models.fresh import tiny_olmo2

# Torch's other name of the CPU: for the code a device like any other.
DEVICE = "cpu:0"


@pytest.fixture
def on_device(spec):
    """The session's ladder, trained on a device of its own."""
    return spec.model_copy(update={"device": DEVICE})


def test_batches_drawn_ahead_are_those_drawn_on_demand(spec, on_device):
    """In order, again, back and far ahead, as a trunk and its branches ask for them."""
    plain, ahead = Batches(spec), Batches(on_device)
    for step in (0, 1, 2, 2, 3, 4, 5, 30, 4, 5, 1000):
        assert torch.equal(ahead(step), plain(step)), step
        assert len(ahead._waiting) < 2 * batches.AHEAD
    assert not torch.equal(plain(1), plain(2))


def test_the_next_batch_is_drawn_before_it_is_asked_for(on_device):
    data = Batches(on_device)
    data(0)
    assert sorted(data._waiting) == list(range(batches.AHEAD))
    assert data._waiting[1].result(timeout=30).shape == (on_device.batch, on_device.context + 1)


def test_a_ladder_trained_on_a_device_has_the_same_weights_another_folder_and_another_name(
    ladder, spec, on_device, tmp_path
):
    """Where the device's arithmetic is the CPU's own, to the last bit."""
    found = pretrain.train(on_device, tmp_path, progress=False)
    assert [c.sha for c in found] == [c.sha for c in ladder]
    assert pretrain.key(on_device) != pretrain.key(spec)
    assert (
        found.kind
        == "OLMo-2 architecture trained from scratch on one GPU, 0.05 M parameters, synthetic corpus"
    )
    assert ladder.kind == "tiny OLMo-2 architecture trained here (0.05 M parameters)"


@pytest.mark.parametrize(
    ("device", "parameters", "cooldown", "said"),
    [
        (
            "cuda",
            114_000_000,
            0,
            "OLMo-2 architecture trained from scratch on one GPU, 114 M parameters, synthetic corpus",
        ),
        (
            "cpu",
            114_000_000,
            5,
            "OLMo-2 architecture trained from scratch on a CPU, 114 M parameters, synthetic corpus, every rung "
            "cooled down",
        ),
        ("cpu", 230_000, 0, "tiny OLMo-2 architecture trained here (0.23 M parameters)"),
    ],
)
def test_no_large_ladder_is_called_tiny(spec, device, parameters, cooldown, said):
    spec = spec.model_copy(update={"device": device, "cooldown": cooldown})
    assert pretrain.kind(spec, parameters) == said


def test_bfloat16_training_keeps_float32_weights_and_follows_the_float32_run(spec, ladder, tmp_path):
    """Its first loss and gradient agree within bfloat16's digits; afterwards it learns as much."""
    half = spec.model_copy(update={"dtype": "bfloat16"})
    model = tiny_olmo2(
        layers=2, hidden=32, heads=2, context=32, vocab=200, generator=torch.Generator().manual_seed(0)
    )
    tokens = torch.randint(200, (4, 8), generator=torch.Generator().manual_seed(1))
    weight = model.model.layers[0].self_attn.v_proj.weight
    gradients = []
    for how in (spec, half):
        logits = pretrain._logits(how, model, tokens)
        assert logits.dtype == torch.float32
        gradients += torch.autograd.grad(logits.square().sum(), [weight])
    exact, found = gradients
    assert found.dtype == torch.float32
    assert not torch.equal(exact, found)
    assert (exact - found).norm() < 0.03 * exact.norm()

    trained = pretrain.train(half, tmp_path, progress=False)
    weights = trained.checkpoints[-1].model().state_dict()
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert any(not torch.equal(w, w.bfloat16().float()) for w in weights.values())
    data = Batches(spec)(10**6)
    losses = {
        name: rung.model()(input_ids=data, labels=data).loss.item()
        for name, rung in (("start", ladder.checkpoints[0]), ("exact", ladder.checkpoints[-1]),
                           ("half", trained.checkpoints[-1]))
    }  # fmt: skip
    assert abs(losses["half"] - losses["exact"]) < 0.1 * (losses["start"] - losses["exact"])


def test_off_the_cpu_the_state_is_written_once_a_minute(on_device, tmp_path, monkeypatch):
    """A killed run repeats some steps, to the same rungs; on a CPU every rung has its state."""
    steps, save = [], torch.save

    def noted(state, handle):
        steps.append(state["step"])
        save(state, handle)

    monkeypatch.setattr(pretrain.torch, "save", noted)
    pretrain.train(on_device, tmp_path / "a", progress=False)
    assert steps == [0]
    monkeypatch.setattr(pretrain, "_STATE_EVERY", 0.0)
    pretrain.train(on_device, tmp_path / "b", progress=False)
    assert steps == [0, 0, 20, 40]
