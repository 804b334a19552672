"""The benchmarks' arithmetic: operations against torch's counter, bytes against what a pass keeps."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import common  # noqa: E402
import gpu  # noqa: E402

from replicate.models import costs  # noqa: E402
from replicate.models.answer import answer_pass, pull_back  # noqa: E402
from replicate.rl import rollout, trainer  # noqa: E402
from replicate.rl.batch import Actor  # noqa: E402
from replicate.rl.methods import surrogate  # noqa: E402
from replicate.rl.policies import SinglePolicy  # noqa: E402
from replicate.settings.grpo import GRPO  # noqa: E402
from replicate.streams import generator  # noqa: E402

SHAPE = costs.SHAPES["tiny"]
PROMPTS, LENGTH, GROUP = 3, 10, 4


def model(attention="eager"):
    found = gpu.random_olmo2(SHAPE, device="cpu", dtype=torch.float32, seed=0)
    found.set_attn_implementation(attention)
    return found


def prompts(count=PROMPTS, seed=1):
    return gpu.random_prompts(count, LENGTH, device="cpu", seed=seed)


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    # The angles of rotary embeddings are a product of matrices in some versions of transformers, and none in others.
    by_module = counter.get_flop_counts().items()
    angles = sum(sum(found.values()) for name, found in by_module if "rotary" in name.lower().split(".")[-1])
    return counter.get_total_flops() - angles


def updates(horizon, policy=None):
    """One update's samples, forward and back, with this policy."""
    policy, config = policy or SinglePolicy(model()), GRPO(prompts=PROMPTS, group_size=GROUP)

    def work():
        draws = [generator(0)]
        asked = trainer.ask(prompts(), config, draws, horizon=horizon, reward=gpu.first_is_label)
        batch = surrogate.draw(Actor(policy, policy), asked, config, draws)
        surrogate.losses(batch.signal, batch, config).sum().backward()

    return work


def test_a_shape_has_the_parameters_of_its_model():
    assert sum(p.numel() for p in model().parameters()) == SHAPE.parameters
    assert costs.SHAPES["1b"].parameters == 1_484_916_736  # as AI2 publishes it


def test_forward_flops():
    tokens = prompts().tokens
    with torch.no_grad():
        found = counted(lambda: model()(input_ids=tokens, logits_to_keep=1, use_cache=False))
    assert found == costs.forward(SHAPE, PROMPTS, LENGTH, PROMPTS, masked=True)
    hidden_pairs = PROMPTS * LENGTH * (LENGTH - 1) // 2
    causal = costs.forward(SHAPE, PROMPTS, LENGTH, PROMPTS)
    assert found - causal == 4 * SHAPE.hidden * SHAPE.layers * hidden_pairs


def test_measurement_flops():
    """Of the passes that are written out, which leave out what nobody reads."""
    tokens, seen = prompts().tokens, {}
    forth = counted(lambda: seen.update(answer=answer_pass(model(), tokens, layer=0, by_hand=True)))
    back = counted(lambda: pull_back(seen["answer"], torch.randn(1, PROMPTS, SHAPE.hidden)))
    assert forth == costs.measurement(SHAPE, PROMPTS, LENGTH, masked=True)
    assert forth + back == costs.measurement(SHAPE, PROMPTS, LENGTH, pulled=True, masked=True)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_grpo_flops(horizon):
    policy = SinglePolicy(model())
    policy.written_out = False
    assert counted(updates(horizon, policy)) == costs.grpo(
        SHAPE, PROMPTS, LENGTH, GROUP, horizon, masked=True
    )


@pytest.mark.parametrize("horizon", [2, 5])
def test_passes_that_are_written_out_take_less_than_that_and_more_than_model_flops(horizon):
    """What they leave out is the last block's output on prompts, which no model FLOPs leave out."""
    unread = (SHAPE.block - 3 * SHAPE.hidden**2) * PROMPTS * (LENGTH - 1)
    least = (
        costs.grpo(SHAPE, PROMPTS, LENGTH, GROUP, horizon)
        - 3 * 2 * unread
        - 3 * 4 * SHAPE.hidden * PROMPTS * LENGTH**2
    )
    assert least < counted(updates(horizon)) < costs.grpo(SHAPE, PROMPTS, LENGTH, GROUP, horizon, masked=True)


def test_model_flops_of_one_token_are_three_forward_passes_over_the_prompts():
    assert costs.grpo(SHAPE, PROMPTS, LENGTH, GROUP, 1) == 3 * costs.forward(SHAPE, PROMPTS, LENGTH, PROMPTS)


def saved_bytes(work):
    """Bytes of all distinct tensors that autograd keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return kept


@pytest.mark.parametrize("horizon", [1, 5])
def test_no_update_keeps_less_than_the_floor_and_the_state_is_exact(horizon):
    """State: counted tensor by tensor after a step. Activations: what autograd saves is more, and below four times."""
    policy = SinglePolicy(model("sdpa"), dtype=torch.bfloat16)
    weights = policy.parameters()
    optimizer = torch.optim.AdamW(weights, fused=True)
    copies = list(policy.weights().values())
    kept = saved_bytes(updates(horizon, policy))
    optimizer.step()
    floor = costs.rl_floor(SHAPE, PROMPTS, LENGTH, GROUP, horizon)
    assert floor["weights"] == sum(x.nbytes for x in [*weights, *copies])
    assert floor["gradients"] == sum(x.grad.nbytes for x in weights)
    momenta = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert floor["optimizer"] == sum(x.nbytes for x in momenta)
    own = {x.untyped_storage().data_ptr() for x in [*weights, *copies]}
    assert own & kept.keys()
    read = sum(size for where, (size, _) in kept.items() if where not in own)
    least = floor["activations"] + floor["log_probabilities"]
    assert least < read < 4 * least


def test_a_measurement_keeps_the_floor_and_below_four_times_as_much():
    tape = answer_pass(model().bfloat16(), prompts().tokens, layer=0, by_hand=True).tape
    kept = {}
    for block in tape.blocks:
        norms = [norm.unit for norm in (block.norm_q, block.norm_k, block.norm_a, block.norm_m)]
        for x in (block.q, block.k, block.v, block.alpha, block.gate, block.silu, block.up, *norms):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    # The last block keeps its answer position only.
    floor = costs.measurement_floor(SHAPE, PROMPTS, LENGTH, pulled=True)["activations"]
    below = floor * (SHAPE.layers - 1) / SHAPE.layers
    assert below < sum(kept.values()) < 4 * floor


def test_unshared_passes_in_chunks_learn_the_same():
    """The trainer's gradient does not depend on how often each prompt is run."""
    pool, gradients = prompts(4), []
    for policy in (SinglePolicy(model()), common.UnsharedPasses(model(), group=GROUP, chunk=2)):
        policy.logits(pool.tokens[None], keep=1).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert torch.allclose(*gradients, atol=1e-4 * gradients[0].abs().max())


def test_unshared_passes_in_chunks_take_four_forward_passes_over_all_sequences():
    policy = common.UnsharedPasses(model(), group=GROUP, chunk=1)
    sequence = costs.forward(SHAPE, PROMPTS * GROUP, LENGTH + 1, 2 * PROMPTS * GROUP, masked=True)
    # When a chunk is run again for its backward pass, the head's output is not needed once more.
    head = 2 * SHAPE.rows * SHAPE.hidden * 2 * PROMPTS * GROUP
    assert counted(updates(1, policy)) == 4 * sequence - head


@pytest.mark.parametrize("horizon", [1, 4])
def test_passes_that_share_nothing_draw_and_learn_the_same(horizon):
    """Equal compute is the same algorithm: tokens, log-probabilities and gradient of the trainer's own rollout."""
    pool, found = prompts(), []
    uniforms = torch.rand(1, PROMPTS, GROUP, horizon, generator=generator(3))
    for draw in (common.unshared_sample, rollout.sample):
        policy = SinglePolicy(model())
        drawn = draw(policy, pool.tokens[None], uniforms, vocab=pool.vocab)
        (drawn.logp * (1 + uniforms)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        found.append((drawn.tokens, drawn.logp, drawn.entropy, gradient))
    (tokens, *numbers), (expected, *others) = found
    assert torch.equal(tokens, expected)
    for a, b in zip(numbers, others, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


def test_passes_that_share_nothing_take_those_of_all_sequences():
    """T steps without gradients, of which the first is over the prompts, and one pass with them, back and forth."""
    policy, horizon = SinglePolicy(model()), 4
    rows = PROMPTS * GROUP
    scoring = 3 * costs.forward(SHAPE, rows, LENGTH + horizon, rows * (LENGTH + horizon), masked=True)
    prompt = costs.forward(SHAPE, rows, LENGTH, rows, masked=True)
    steps = 2 * rows * (horizon - 1) * (SHAPE.layers * SHAPE.block + SHAPE.rows * SHAPE.hidden)
    seen = rows * sum(range(LENGTH + 1, LENGTH + horizon))
    with mock.patch.object(surrogate, "sample", common.unshared_sample):
        found = counted(updates(horizon, policy))
    assert found == prompt + steps + 4 * SHAPE.hidden * SHAPE.layers * seen + scoring


@pytest.fixture
def bench(tmp_path):
    """The tiny shape on the CPU, with an hour of time."""
    given = ["--shape", "tiny", "--device", "cpu", "--seconds", "3600", "--out", str(tmp_path)]
    return gpu.Bench(gpu.parse(given))


def test_every_piece_that_is_done_leaves_a_record_and_is_not_done_again(bench, monkeypatch, tmp_path):
    """A failing piece and one without time stop no other; the next call does what is left, and nothing twice."""
    tried = []

    def piece(_, name):
        tried.append(name)
        if name == "grpo-8" and tried.count(name) == 1:
            raise RuntimeError("no memory")
        if name == "ladder" and tried.count(name) == 1:
            raise TimeoutError("no time")
        return {"skipped": "no trl"} if name == "trl" and tried.count(name) == 1 else {}

    monkeypatch.setattr(gpu, "run_piece", piece)
    monkeypatch.setattr(gpu, "summary", lambda *_: "")
    assert gpu.run_all(bench) == (["ladder"], ["grpo-8"])
    assert tried == bench.work.pieces
    assert not (tmp_path / "ladder.json").exists()
    record = json.loads((tmp_path / "measure.json").read_text())
    assert record["shape"] == "tiny"
    assert {"commit", "versions", "accelerator", "finished"} < record["origin"].keys()
    del tried[:]
    tried += ["ladder", "grpo-8", "trl"]
    assert gpu.run_all(bench) == ([], [])
    assert tried[3:] == ["ladder", "grpo-8", "trl"]
    assert gpu.run_all(bench) == ([], [])
    assert len(tried) == 6


def test_a_record_of_another_shape_or_device_is_none(tmp_path):
    path = tmp_path / "measure.json"
    assert not gpu.done(path, "tiny", "cpu")
    path.write_text(json.dumps({"shape": "tiny", "device": "cpu", "numbers": {}}))
    assert gpu.done(path, "tiny", "cpu")
    assert not gpu.done(path, "1b", "cpu")
    assert not gpu.done(path, "tiny", "cuda")
    path.write_text(json.dumps({"shape": "tiny", "device": "cpu", "numbers": {"unfinished": True}}))
    assert not gpu.done(path, "tiny", "cpu")


def test_a_piece_that_does_not_fit_into_the_budget_waits(bench, monkeypatch):
    monkeypatch.setattr(gpu, "run_piece", lambda *_: pytest.fail("there is no time for it"))
    bench.end = 0.0
    assert gpu.run_all(bench) == (bench.work.pieces, [])


def test_a_command_beyond_its_time_is_ended():
    assert gpu._ended([sys.executable, "-c", "import time; time.sleep(60)"], 1.0)
    assert not gpu._ended([sys.executable, "-c", "raise SystemExit(1)"], 60.0)


def test_the_updates_of_the_trainer_are_timed_one_by_one(bench):
    found = gpu.grpo(bench, 8)
    assert len(found["seconds"]) == bench.work.updates
    assert all(0 < seconds < 60 for seconds in found["seconds"])
    assert found["model_tflop"] == round(costs.grpo(SHAPE, 4, 24, 8, 8) / 1e12, 6)


@pytest.mark.smoke
def test_all_pieces_run_on_a_cpu_and_are_found_by_a_second_call(tmp_path):
    """`make gpu-dry`, from the source tree in this Python."""
    command = ["make", "gpu-dry", f"PYTHON={sys.executable}", f"GPU_DRY={tmp_path}"]
    first, second = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert "tiny OLMo-2 architecture trained here" in first.stdout
    assert "left for another call" not in first.stdout
    names = gpu.WORK["tiny"].pieces
    assert {path.stem for path in tmp_path.glob("*.json")} == set(names)
    assert second.stdout.count("there already") == len(names)
    gains = (tmp_path / "ladder-gains.csv").read_text().splitlines()
    assert len(gains) == 1 + 3 * 2 * 2  # rungs x seeds x budgets
