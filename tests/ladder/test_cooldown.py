"""Cooldown: a rung is the end of a branch of its own, and the trunk goes on as if no branch had left it."""

import numpy as np
import pytest
import torch

from replicate.ladder import corpus, open_ladder, pretrain
from replicate.ladder.batches import Batches

COOLDOWN = 10


def shas(ladder):
    return [checkpoint.sha for checkpoint in ladder]


@pytest.fixture(scope="module")
def cooled_spec(spec):
    """The session's ladder with a branch before every rung."""
    return spec.model_copy(update={"cooldown": COOLDOWN})


def trained(spec, folder):
    """The ladder, and the state to resume from that its training left at every rung: of the trunk."""
    states, save = {}, pretrain._save

    def keep(spec, step, *rest):
        save(spec, step, *rest)
        states[step] = torch.load(rest[-1] / "resume.pt", weights_only=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "_save", keep)
        return pretrain.train(spec, folder, progress=False), states


@pytest.fixture(scope="module")
def cooled(cooled_spec, tmp_path_factory):
    """That ladder, and the states of its trunk."""
    return trained(cooled_spec, tmp_path_factory.mktemp("cooled"))


def test_the_trunk_is_the_ladder_without_cooldown_bit_for_bit(ladder, cooled):
    """Weights, momenta and data: what a branch touched of them would show at the next rung."""
    _, trunk = cooled
    for rung in ladder:
        plain, found = rung.model().state_dict(), trunk[rung.step]["model"]
        assert plain.keys() == found.keys()
        assert all(torch.equal(plain[name], found[name]) for name in plain), rung.name


def test_a_rung_is_its_trunk_trained_on_with_a_falling_rate(cooled, cooled_spec):
    """Done here once more from the trunk's weights and momenta: the same bits, and others than the trunk's."""
    found, trunk = cooled
    data = Batches(cooled_spec)
    for rung in found:
        model, weights = rung.model(), rung.model().state_dict()
        model.load_state_dict(trunk[rung.step]["model"])
        assert not all(torch.equal(weights[name], found) for name, found in model.state_dict().items())
        model.train()
        optimizer = pretrain._optimizer(model)
        optimizer.load_state_dict(trunk[rung.step]["optimizer"])
        for i in range(COOLDOWN):
            step = rung.step + i
            rate = cooled_spec.learning_rate * min(1, (step + 1) / cooled_spec.warmup) * (1 - i / COOLDOWN)
            pretrain._update(cooled_spec, step, rate, model, optimizer, data)
        assert all(torch.equal(weights[name], found) for name, found in model.state_dict().items()), rung.name


def test_names_count_the_branchs_tokens_and_the_ladder_says_what_it_is(ladder, cooled, cooled_spec):
    found, _ = cooled
    read = [(step + COOLDOWN) * cooled_spec.batch * cooled_spec.context for step in (0, 20, 40)]
    assert [c.step for c in found] == [0, 20, 40]
    assert [c.tokens for c in found] == [-(-n // 1000) * 1000 for n in read]  # in thousands, rounded up
    assert "every rung cooled down" in found.kind
    assert "cooled" not in ladder.kind


def test_cooling_lowers_the_loss_late_in_training(cooled_spec, tmp_path):
    """On fresh data, below the rung's own trunk and below what as many updates more at the full rate make of it.

    Late, since before the first descent is over more updates at the full rate are worth more than a rate that falls.
    """
    changes = {"steps": 80, "every": 80, "cooldown": 20, "learning_rate": 0.02, "warmup": 50}
    spec = cooled_spec.model_copy(update={**changes, "records": 0.5, "label_documents": 0.5})
    ladder, trunk = trained(spec, tmp_path)
    chain, rng = corpus.prose_chain(spec.seed), np.random.default_rng(9)
    data = torch.from_numpy(corpus.batch(chain, spec, sequences=256, length=spec.context, rng=rng))

    @torch.no_grad()
    def loss(model):
        return model(input_ids=data, labels=data).loss.item()

    model = ladder.at(80).model()
    cold = loss(model)
    model.load_state_dict(trunk[80]["model"])
    optimizer = pretrain._optimizer(model)
    optimizer.load_state_dict(trunk[80]["optimizer"])
    hot = [loss(model)]
    for step in range(80, 100):
        pretrain._update(spec, step, spec.learning_rate, model, optimizer, Batches(spec))
    hot.append(loss(model))
    assert cold < min(hot) - 0.005


def test_the_branchs_rate_falls_to_zero_on_the_data_that_come_next(cooled_spec, tmp_path, monkeypatch):
    """In equal steps from the trunk's rate, of which the one after the last would be at zero."""
    spec = cooled_spec.model_copy(update={"steps": 10, "every": 5, "cooldown": 4, "warmup": 5})
    seen = []

    def update(_, step, rate, model, *__):
        seen.append((step, rate, model))
        return torch.zeros(())

    monkeypatch.setattr(pretrain, "_update", update)
    pretrain._train(spec, tmp_path, progress=False)
    trunk = next(model for step, _, model in seen if step == 9)
    branches = [(step, rate) for step, rate, model in seen if model is not trunk]
    assert [step for step, *_ in branches] == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    full, down = spec.learning_rate, np.linspace(1, 0, 5)[:4]
    warm = np.array([1, 2, 3, 4]) / 5
    expected = full * np.concatenate([warm * down, down, down])
    assert [rate for _, rate in branches] == pytest.approx(expected.tolist())
    assert [rate for _, rate, model in seen if model is trunk] == pytest.approx([*(full * warm), *[full] * 6])


def test_killed_between_a_snapshot_and_its_state_it_is_kept_as_it_is(
    cooled, cooled_spec, tmp_path, monkeypatch
):
    """The snapshot may be in use already: a second run repeats the steps of the trunk and not the rung's branch."""
    replacing, calls = pretrain.replacing, []

    def die(path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "replacing", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(cooled_spec, tmp_path, progress=False)
    root = pretrain.folder_of(cooled_spec, tmp_path)
    assert [c.step for c in open_ladder(root)] == [0, 20]
    assert torch.load(root / "resume.pt", weights_only=True)["step"] == 0
    (early,) = root.glob("stage1-step20-*")

    def stamps():
        return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in [early, *early.iterdir()]}

    before, branches, real = stamps(), [], pretrain._cooled
    monkeypatch.setattr(pretrain, "_cooled", lambda *args: branches.append(args[1]) or real(*args))
    again = pretrain.train(cooled_spec, tmp_path, progress=False)
    assert stamps() == before
    assert branches == [40]
    assert shas(again) == shas(cooled[0])


def test_killed_in_a_branch_it_resumes_to_the_same_bits(cooled, cooled_spec, tmp_path, monkeypatch):
    update = pretrain._update

    def die(spec, step, *rest):
        if step == 43:  # first come to in the branch at 40
            raise KeyboardInterrupt
        return update(spec, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_update", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(cooled_spec, tmp_path, progress=False)
    root = pretrain.folder_of(cooled_spec, tmp_path)
    assert [c.step for c in open_ladder(root)] == [0, 20]
    assert shas(pretrain.train(cooled_spec, tmp_path, progress=False)) == shas(cooled[0])


def test_the_length_of_the_branch_makes_another_ladder(spec, cooled_spec):
    assert len({pretrain.key(cooled_spec.model_copy(update={"cooldown": n})) for n in (0, 1, COOLDOWN)}) == 3
