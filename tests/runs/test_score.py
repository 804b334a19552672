"""Scoring somebody's own checkpoints: against brute force, whatever the batch and the order; what fails is said."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from replicate.impact.law import SATURATIONS
from replicate.ladder import open_ladder
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.rl.grpo import group_advantages
from replicate.runs import score as scores
from replicate.runs import text_tasks
from replicate.settings.machine import Machine
from replicate.settings.scoring import Scoring

DOUBLE = Machine(dtype="float64")
COLOURS = ("red", "green", "blue", "black", "white")


@pytest.fixture(scope="module")
def law():
    return scores.calibration("results/study")


def colours(folder, name="t.jsonl", *, order=1, rated=False):
    """Prompts of different lengths whose right answers are the colour that they name, or red."""
    rows = [
        {"prompt": f"label is {colour} ;{' old' * more} answer :", "answers": [f" {colour}", " red"]}
        for colour in COLOURS
        for more in range(3)
    ][::order]
    for row in rows if rated else ():
        del row["answers"]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def first_letter(prompt, completion):
    """A verifier that hangs on the second token as well as on the first."""
    return (len(completion.strip()) % 4) / 3


def halves(prompt, completion):
    return float(sum(map(ord, completion)) % 2)


def run(folder, task, law, **options):
    return scores.score(open_ladder(folder), task, Scoring(**options), DOUBLE, law)


def softmax_at(folder, bpe, prompt):
    """The policy behind ``prompt`` and dlog pi(a)/dh of its tokens, from the whole sequence of logits, row by row."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        probs = model(torch.tensor([bpe.encode(prompt)])).logits[0, -1, : len(bpe)].softmax(-1)
    head = model.get_output_embeddings().weight.detach()[: len(bpe)]
    return probs, head - probs @ head


def moments(p, group):
    """c, E[A^2 | right], E[A^2 | wrong], from all patterns of right and wrong."""
    found = np.zeros(4)
    for pattern in itertools.product((0.0, 1.0), repeat=group):
        chance = np.prod([p if won else 1 - p for won in pattern])
        sent = group_advantages(torch.tensor([pattern], dtype=torch.float64))[0, 0].item()
        found += chance * np.array([sent, sent, sent**2, sent**2]) * np.tile([pattern[0], 1 - pattern[0]], 2)
    found /= np.array([p, 1 - p, p, 1 - p])
    return found[0] - found[1], found[2], found[3]


def test_one_token_answers_against_brute_force(strangers, bpe, tmp_path, law):
    """J_0, score, gain and end from each prompt's softmax alone, several right answers, prompts of several lengths."""
    task = text_tasks.load(colours(tmp_path))
    found = run(strangers, task, law, samples=4, budget=200)
    assert list(found.rungs["name"]) == ["checkpoint-100", "checkpoint-200"]
    for rung in found.rungs.itertuples():
        rows = []
        for item in task.items:
            probs, slopes = softmax_at(strangers / rung.name, bpe, item.prompt)
            right = sorted({bpe.encode(answer)[0] for answer in item.answers})
            wrong = np.setdiff1d(np.arange(len(bpe)), right)
            size = (probs * slopes.square().sum(1)).numpy()
            p, g = probs[right].sum().item(), probs[right] @ slopes[right]
            c, won, lost = moments(p, 4)
            rows.append([p, c * (g @ g).item(), won * size[right].sum() + lost * size[wrong].sum()])
        J0, kappa, square = np.mean(rows, axis=0)
        value = kappa / square**0.5
        gain = float(SATURATIONS["exponential"](value, J0, 200.0, law.law.c))
        got = [rung.J0, rung.score, rung.gain, rung.end]
        assert got == pytest.approx([J0, value, gain, J0 + gain], rel=1e-9)
        half = stats.t.ppf(0.975, 14) * np.std([p for p, *_ in rows], ddof=1) / 15**0.5
        assert rung.J0_high - rung.J0 == pytest.approx(half, rel=1e-9)
        assert rung.passes == 1
    assert found.failed == []


def test_rated_completions_against_all_that_there_are(strangers, bpe, tmp_path, law):
    """J_0 of a verifier, from the distribution of two tokens: the first's, and behind each first the second's."""
    task = text_tasks.TextTask(
        "t",
        "",
        text_tasks.load(colours(tmp_path)).limited(2, seed=0).items,
        text_tasks.Verifier("v", first_letter),
    )
    found = run(strangers, task, law, samples=1500, max_tokens=2, batch=8)
    table = found.prompts[found.prompts.name == "checkpoint-200"].set_index("line")
    model = AutoModelForCausalLM.from_pretrained(strangers / "checkpoint-200", dtype=torch.float64).eval()
    for item in task.items:
        tokens = torch.tensor([bpe.encode(item.prompt)])
        ahead = torch.cat([tokens.expand(len(bpe), -1), torch.arange(len(bpe))[:, None]], 1)
        with torch.no_grad():
            first = model(tokens).logits[0, -1, : len(bpe)].softmax(-1).numpy()
            second = model(ahead).logits[:, -1, : len(bpe)].softmax(-1).numpy()
        ends = bpe.eos_token_id
        text = [bpe.decode([t], skip_special_tokens=True) for t in range(len(bpe))]
        worth = np.array(
            [[first_letter("", a + ("" if b == ends else t)) for b, t in enumerate(text)] for a in text]
        )
        worth[ends] = first_letter("", "")
        J = first @ (second * worth).sum(1)
        assert abs(table.reward[item.line] - J) < 4 * table.room[item.line] / 3000**0.5
        assert table.room[item.line] > 0.1


def test_a_completion_ends_where_the_model_or_its_tokenizer_ends_it(strangers, bpe, tmp_path):
    """What was sampled behind an end is nobody's answer; a text that comes twice is rated once."""
    rung, seen = open_ladder(strangers).checkpoints[0], []
    red, blue = (bpe.encode(text)[0] for text in (" red", " blue"))
    model = rung.model()
    model.generation_config.eos_token_id = [bpe.pad_token_id, 7]
    ends = scores._ends(model, bpe)
    assert ends == {bpe.eos_token_id, bpe.pad_token_id, 7}
    rows = [[red, end, blue] for end in ends] + [[red, blue, red], [7, red, red]]
    task = text_tasks.load(colours(tmp_path))
    items = text_tasks.encoded(task, bpe, vocab=len(bpe), longest=64)[:1]
    rate = text_tasks.Verifier("v", lambda prompt, text: seen.append((prompt, text)) or len(text) / 100)
    found = scores._rated(bpe, ends, items, torch.tensor([rows]), rate)
    assert seen == [(items[0].item.prompt, text) for text in (" red", " red blue red", "")]
    assert found == [0.04] * 3 + [0.13, 0.0]


def test_a_verifier_of_one_token_answers_agrees_with_their_closed_form(ladder, tmp_path):
    """Two routes to the same components, on rungs that have learned something: closed, and sampled in two groups."""
    path = colours(tmp_path)
    closed = text_tasks.load(path)
    answers = {item.prompt: {a.strip() for a in item.answers} for item in closed.items}
    rate = text_tasks.Verifier("v", lambda prompt, completion: float(completion.strip() in answers[prompt]))
    rated = text_tasks.TextTask(closed.path, closed.sha, closed.items, rate)
    rung = ladder.checkpoints[-1]
    exact = scores.measure(rung, closed, Scoring(), DOUBLE).set_index("line")
    draws = [scores.measure(rung, rated, Scoring(seed=seed), DOUBLE).set_index("line") for seed in range(60)]
    for name in ("reward", "V", "kappa", "empirical", "spread"):
        # Sums over lines: of a line that is seldom answered right most draws are zero, and 60 of them no normal law.
        for weights in (exact[name] * 0 + 1, exact[name]):
            sums = pd.Series([draw[name] @ weights for draw in draws])
            assert abs(sums.mean() - exact[name] @ weights) < 4.5 * sums.sem(), name


@pytest.mark.parametrize("rated", [False, True])
def test_nothing_depends_on_the_batch_or_on_the_order_of_the_lines(strangers, tmp_path, law, rated):
    verifier = text_tasks.Verifier("v", halves) if rated else None
    found = []
    for batch, order in ((64, 1), (1, 1), (4, -1)):
        read = text_tasks.load(colours(tmp_path, order=order))
        task = text_tasks.TextTask(read.path, read.sha, read.items, verifier)
        found.append(run(strangers, task, law, batch=batch, max_tokens=3 if rated else 1).rungs)
    numbers = [name for name in found[0] if found[0][name].dtype == float and name != "tokens"]
    for other in found[1:]:
        for name in numbers:
            assert found[0][name].tolist() == pytest.approx(other[name].tolist(), rel=1e-9, abs=1e-15), name


def test_equal_rungs_are_not_told_apart_and_different_ones_are(ladder, tmp_path, law):
    """Paired over prompts: of two rungs that are one the difference is zero to the bit."""
    folder = tmp_path / "rungs"
    for step, rung in ((1, 0), (2, 2), (3, 2)):
        shutil.copytree(ladder.checkpoints[rung].where, folder / f"step{step}")
    found = run(folder, text_tasks.load(colours(tmp_path)), law)
    pairs = found.pairs[found.pairs.what == "end"].set_index(["one", "other"])
    assert pairs.loc[("step2", "step3"), "difference"] == 0
    assert pairs.loc[("step2", "step3"), "p"] == 1
    assert not pairs.loc[("step2", "step3"), "apart"]
    assert pairs.loc[("step1", "step2"), "apart"]
    ends = found.rungs.set_index("name").end
    assert pairs.loc[("step1", "step2"), "difference"] == pytest.approx(ends.step2 - ends.step1)


def test_pairs_are_corrected_for_their_number():
    """Holm by hand, on three rungs."""
    rng = np.random.default_rng(0)
    values = {f"r{i}": {name: rng.normal(i / 2, 1, 30) for name in scores.COMPARED} for i in range(3)}
    found = scores._pairs(values)
    assert len(found) == 6
    for what, own in found.groupby("what"):
        plain = [
            stats.ttest_rel(values[row.other][what], values[row.one][what]).pvalue for row in own.itertuples()
        ]
        order = np.argsort(plain)
        by_hand = np.minimum(np.maximum.accumulate(np.array(plain)[order] * [3, 2, 1]), 1)
        assert own.p.to_numpy()[order] == pytest.approx(by_hand)
        assert (own.apart == (own.p < 0.05)).all()


def test_a_rung_that_cannot_be_opened_is_a_line_and_the_others_are_scored(strangers, tmp_path, law):
    folder = shutil.copytree(strangers, tmp_path / "rungs")
    (folder / "checkpoint-300").mkdir()
    damaged = shutil.copytree(strangers / "checkpoint-100", folder / "checkpoint-400")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    found = run(folder, text_tasks.load(colours(tmp_path)), law)
    assert list(found.rungs["name"]) == ["checkpoint-100", "checkpoint-200"]
    assert [line.split(":")[0] for line in found.failed] == ["checkpoint-300", "checkpoint-400"]
    assert "damaged safetensors file" in found.failed[1]


def test_what_a_source_refuses_is_a_line_and_what_was_fetched_is_let_go(
    strangers, tmp_path, law, monkeypatch
):
    """A rung's files are let go before the next one's are asked for, also where it failed."""
    opened, log = open_ladder(strangers), []
    first, second = opened.checkpoints
    gone = dataclasses.replace(first, name="checkpoint-50", where=tmp_path / "nowhere")
    monkeypatch.setattr(Checkpoint, "ready", lambda self, weights=True: log.append(("ready", self.name)))
    monkeypatch.setattr(Checkpoint, "discard", lambda self: log.append(("discard", self.name)))
    ladder = Ladder("hub:a/b", "a hub's", (gone, second), refused=((first, "a twin of main"),))
    found = scores.score(ladder, text_tasks.load(colours(tmp_path)), Scoring(), DOUBLE, law)
    assert list(found.rungs["name"]) == [second.name]
    assert found.failed[0] == "checkpoint-100: a twin of main"
    assert found.failed[1].startswith("checkpoint-50: ")
    names = [name for done, name in log if done == "discard"]
    assert names == [gone.name, second.name]
    assert log.index(("discard", gone.name)) < log.index(("ready", second.name))


def test_weights_that_are_no_numbers_are_a_line(strangers, tmp_path, law):
    folder = shutil.copytree(strangers, tmp_path / "rungs")
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-100", dtype=torch.float64)
    model.get_output_embeddings().weight.data[3] = float("nan")
    model.save_pretrained(folder / "checkpoint-100")
    found = run(folder, text_tasks.load(colours(tmp_path)), law)
    assert list(found.rungs["name"]) == ["checkpoint-200"]
    assert found.failed[0].startswith("checkpoint-100: ")


def test_where_no_rung_can_be_scored_the_first_reason_is_given(strangers, tmp_path, law):
    (tmp_path / "t.jsonl").write_text(
        '{"prompt": "label is red :", "answers": [" silver"]}\n{"prompt": "label is", "answers": [" red"]}\n'
    )
    line = "no checkpoint can be scored: checkpoint-100: .*line 1: expected answer ' silver' .*and 1 more"
    with pytest.raises(ValueError, match=line):
        run(strangers, text_tasks.load(tmp_path / "t.jsonl"), law)


def test_prompts_with_their_completions_fit_into_the_context(strangers, tmp_path, law):
    task = text_tasks.load(colours(tmp_path, rated=True), verifier="operator:eq")
    with pytest.raises(ValueError, match=r"line 1: expected a prompt of 1 to 5 tokens, got 6"):
        run(strangers, task, law, max_tokens=60)


@pytest.mark.parametrize(
    ("reward", "remedy"),
    [
        (0.0, "give easier prompts"),
        (1.0, "give harder prompts"),
        (0.5, "more --samples, or a verifier that tells"),
    ],
)
def test_rewards_without_a_spread_are_refused_with_the_remedy(strangers, tmp_path, law, reward, remedy):
    items = text_tasks.load(colours(tmp_path)).items
    task = text_tasks.TextTask("t", "", items, text_tasks.Verifier("v", lambda prompt, completion: reward))
    with pytest.raises(
        ValueError, match=f"^rewards: no spread .*mean is {reward:g}, at every checkpoint; .*{remedy}"
    ):
        run(strangers, task, law)


def test_a_rung_without_spread_is_marked_and_compared_with_none(strangers, tmp_path, law):
    """A head that is sure of one wrong token: J_0 is there, a score is not."""
    folder = shutil.copytree(strangers, tmp_path / "rungs")
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-100", dtype=torch.float64)
    model.get_output_embeddings().weight.data *= 100
    model.save_pretrained(folder / "checkpoint-100")
    found = run(folder, text_tasks.load(colours(tmp_path)), law, budget=1000)
    sure, other = found.rungs.itertuples()
    assert "no spread" in sure.note
    assert sure.J0 < 1e-6
    assert np.isnan([sure.score, sure.gain, sure.end, sure.end_low]).all()
    assert other.note == ""
    assert found.pairs.empty


def test_kappa_needs_two_prompts_that_speak_in_both_groups(strangers, tmp_path, law):
    """Else every product of the two groups is zero, and an interval of zero width would claim to know that."""
    task = text_tasks.load(colours(tmp_path))
    for prompts, said in ((task.items[:1], "too little spread in the rewards"), (task.items, "")):
        known = {item.prompt for item in prompts}
        rate = text_tasks.Verifier(
            "v", lambda prompt, text, known=known: float(prompt in known and len(text) % 2)
        )
        rated = text_tasks.TextTask("t", "", task.items, rate)
        tables = [(c, scores.measure(c, rated, Scoring(), DOUBLE)) for c in open_ladder(strangers)]
        assert all((table.spread[table.line != 1] == 0).all() for _, table in tables) == bool(said)
        if said:
            with pytest.raises(ValueError, match=f"^rewards: {said}"):
                scores.compared(tables, [], rated, Scoring(), law)
        else:
            assert (scores.compared(tables, [], rated, Scoring(), law).rungs.note == "").all()


def test_a_device_that_is_not_there_is_refused(strangers, tmp_path, law):
    task = text_tasks.load(colours(tmp_path))
    with pytest.raises(ValueError, match=r"^--device nowhere: does not work here"):
        scores.score(open_ladder(strangers), task, Scoring(), Machine(device="nowhere"), law)


def test_what_is_written_can_be_read_again_and_is_the_same_twice(strangers, tmp_path, law):
    task, ladder = text_tasks.load(colours(tmp_path)), open_ladder(strangers)
    for name in ("a", "b"):
        found = run(strangers, task, law)
        given = {"ladder": ladder, "task": task, "scoring": Scoring(), "machine": DOUBLE, "law": law}
        scores.write(tmp_path / name, found, **given)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {*(f"score.{kind}" for kind in ("csv", "json", "png", "pdf")), "pairs.csv", "prompts.csv"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    said = json.loads((tmp_path / "a" / "score.json").read_text())
    assert [row["J0"] for row in said["checkpoints"]] == found.rungs.J0.tolist()
    assert [row["tokens"] for row in said["checkpoints"]] == [None, None]
    assert said["law"]["c"] == law.law.c
    assert said["checkpoints"][0]["sha"] == ladder.checkpoints[0].sha
    again = pd.read_csv(tmp_path / "a" / "prompts.csv")
    assert again.groupby("name").reward.mean().tolist() == pytest.approx(found.rungs.J0.tolist(), rel=1e-6)
