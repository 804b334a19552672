"""Studies: which ladders there are, which stay locked until when, and that nobody's help changes what comes out."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from replicate import cli
from replicate.ladder import pretrain
from replicate.runs import jobs, study, sweep, units
from replicate.runs.params import ScaleParameters
from replicate.runs.store import content
from replicate.settings.hub import Hub
from replicate.settings.tiny_ladder import TinyLadder

ROOT = Path(__file__).parents[2]
PAGE = "What is asked.\n\n```yaml\nLEAST: 0.25\n```\n"
DEVELOPMENT = {"NAME": "a", "ROLE": "development", "SEED": 0}
LOCKED = {"NAME": "b", "ROLE": "locked", "SEED": 1, "TINY_COOLDOWN": 4}


@pytest.fixture(scope="module")
def common(spec):
    """What the ladders of a study of seconds share."""
    tiny = {TinyLadder.flat_name(name): getattr(spec, name) for name in TinyLadder.model_fields}
    del tiny["SEED"]
    return {
        **tiny, "RUN_DIR": "run", "LADDER": "tiny", "LADDER_DIR": "ladders", "FILLER": 4, "POOL_PROMPTS": 32,
        "EVAL_PROMPTS": 8, "MEASURE_PROMPTS": 8, "MEASURE_GROUP": 4, "PROMPTS": 4, "GROUP_SIZE": 4, "RL_SEEDS": [0, 1],
        "BUDGETS": [1, 2],
    }  # fmt: skip


def write(folder, values, page=PAGE):
    """A study file and the page that it is registered on."""
    for inner in ("params", "study"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "study" / "registered.md").write_text(page)
    path = folder / "params" / "s.yaml"
    path.write_text(yaml.safe_dump({"PREREGISTRATION": "../study/registered.md", **values}))
    return path


# --- The file -----------------------------------------------------------------------------------------------------


def test_the_studys_own_file_has_eight_ladders_to_look_at_and_four_locked_ones():
    found = study.load(ROOT / "params" / "study.yaml")
    assert Counter(entry.role for entry in found.entries) == {"development": 8, "locked": 4}
    assert found.preregistration.resolve() == ROOT / "study" / "preregistration.md"
    assert len({pretrain.key(entry.params.section(TinyLadder)) for entry in found.entries}) == 12
    assert len({entry.params.SEED for entry in found.entries}) == 12
    assert {jobs.stream(entry.params).expected() for entry in found.entries} == {61}
    values = yaml.safe_load(found.path.read_text())
    common = values.keys() - {"PREREGISTRATION", "LADDERS", "INTERVENTIONS"}
    # Every parameter that there was is said, so that no default decides what the study is. The file stays as it was
    # registered: what has come since must, at its default, be what there was before.
    since = {Hub.flat_name(name) for name in Hub.model_fields}
    since |= {"LABEL_WORDS", "TEMPLATE", "TINY_DEVICE", "TINY_DTYPE", "COMPILE", "RUNGS", "MAX_MEMORY_GB"}
    since |= {"ANSWER_TOKENS", "ANSWER_REWARD", "TINY_SEQUENCE_DOCUMENTS"}
    since |= {"METHOD", "OPTIMIZER", "REWARD_SCALE", "CREDIT", "GAE_WEIGHT", "CRITIC_RATE"}
    for ladder in values["LADDERS"]:
        assert common | ladder.keys() - {"NAME", "ROLE"} == set(ScaleParameters.model_fields) - since


def test_a_ladder_has_the_files_parameters_its_own_before_them_and_overrides_before_all(tmp_path, common):
    path = write(tmp_path, {**common, "LADDERS": [{**DEVELOPMENT, "FILLER": 5}, LOCKED]})
    a, b = study.load(path).entries
    assert (a.name, a.role, a.params.SEED, a.params.FILLER) == ("a", "development", 0, 5)
    assert (b.name, b.role, b.params.SEED, b.params.FILLER, b.params.TINY_COOLDOWN) == (
        "b",
        "locked",
        1,
        4,
        4,
    )
    changed = study.load(path, {"FILLER": 6, "SIGMA": 2.0}).entries
    assert [(e.params.FILLER, e.params.SIGMA, e.params.SEED) for e in changed] == [(6, 2.0, 0), (6, 2.0, 1)]


def test_ladders_are_chosen_by_role_and_by_name(tmp_path, common):
    third = {**DEVELOPMENT, "NAME": "c", "SEED": 2}
    found = study.load(write(tmp_path, {**common, "LADDERS": [DEVELOPMENT, LOCKED, third]}))

    def names(*of):
        return [entry.name for entry in found.of(*of)]

    assert names(study.ROLES) == ["a", "b", "c"]
    assert names(["development"]) == ["a", "c"]
    assert names(["locked"]) == ["b"]
    assert names(study.ROLES, ["c", "b"]) == ["b", "c"]
    with pytest.raises(ValueError, match=r"^--only 'x': no such ladder; there are a, b, c$"):
        found.of(study.ROLES, ["a", "x"])
    with pytest.raises(ValueError, match=r"has no locked ladder among a, c$"):
        found.of(["locked"], ["a", "c"])


TWIN = {**DEVELOPMENT, "NAME": "twin"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LADDERS": [DEVELOPMENT, TWIN]}, "equal ladders: a and twin; change SEED"),
        # What RL does with a ladder makes it no other one.
        ({"LADDERS": [DEVELOPMENT, {**TWIN, "BUDGETS": [3]}]}, "equal ladders: a and twin"),
        ({"LADDERS": [DEVELOPMENT, {**LOCKED, "NAME": "a"}]}, "two ladders of one name: a and a"),
        ({"LADDERS": [DEVELOPMENT, {**LOCKED, "SEEED": 1}]}, "ladder b: unknown parameter SEEED, the nearest"),
        ({"GRUOP_SIZE": 4}, "ladder a: unknown parameter GRUOP_SIZE, the nearest known: GROUP_SIZE"),
        ({"LADDERS": [{**DEVELOPMENT, "SEED": "one"}]}, "ladder a: parameter SEED: .*got 'one'"),
        ({"LADDERS": [{"NAME": "a", "SEED": 0}]}, "a ROLE out of development, locked for every ladder, got"),
        ({"LADDERS": [{**DEVELOPMENT, "ROLE": "open"}]}, "a ROLE out of development, locked for every ladder, got"),
        ({"LADDERS": [{**DEVELOPMENT, "ROLE": ["locked"]}]}, "a ROLE out of development, locked"),
        ({"LADDERS": [{"ROLE": "locked", "SEED": 0}]}, "expected a NAME and"),
        ({"LADDERS": ["a"]}, "expected a NAME and a ROLE .*got 'a'"),
        ({"LADDERS": []}, "expected .*LADDERS a list of mappings"),
        ({"LADDERS": DEVELOPMENT}, "expected .*LADDERS a list of mappings"),
        ({"LADDERS": None}, "expected .*LADDERS a list of mappings"),
        ({"PREREGISTRATION": 3}, "expected PREREGISTRATION to be a file's name"),
        ({"INTERVENTIONS": 3}, "expected INTERVENTIONS to be a list, got 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(tmp_path, common, changes, message):
    path = write(tmp_path, {**common, "LADDERS": [DEVELOPMENT, LOCKED], **changes})
    with pytest.raises(ValueError, match=message) as error:
        study.load(path)
    assert str(error.value).startswith((f"{path}: ", f"{path}, ladder "))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("key", ["LADDERS", "PREREGISTRATION"])
def test_a_file_that_is_no_study_is_named(tmp_path, common, key):
    path = write(tmp_path, {**common, "LADDERS": [DEVELOPMENT]})
    path.write_text(
        yaml.safe_dump({name: v for name, v in yaml.safe_load(path.read_text()).items() if name != key})
    )
    with pytest.raises(ValueError, match=f"^{path}: expected a study file with {key}, got none$"):
        study.load(path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("no block\n", "expected one block of YAML, got 0"),
        (f"{PAGE}\nand\n\n{PAGE}", "expected one block of YAML, got 2"),
        ("```yaml\nLEAST: 1\nLEAST: 2\n```\n", "LEAST"),
        ("```yaml\n- 1\n```\n", "expected a mapping in its block of YAML, got \\[1\\]"),
    ],
)
def test_thresholds_are_one_block_of_the_page(tmp_path, page, message):
    path = tmp_path / "page.md"
    path.write_text(f"```python\nLEAST = 3\n```\n\n{PAGE}\n```\nLEAST: 4\n```\n")
    assert study.thresholds(path) == {"LEAST": 0.25}
    path.write_text(page)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as error:
        study.thresholds(path)
    assert str(error.value).isprintable()


# --- The lock -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(home, common, monkeypatch):
    """A study under version control, registered and committed, and git there."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook's: they would mean its repository
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(home.parent))
    path = write(home, {**common, "LADDERS": [DEVELOPMENT, LOCKED]})
    (home / "tracked.txt").write_text("1\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")

    def git(*words):
        done = subprocess.run(["git", *who, *words], cwd=home, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "registered")
    return SimpleNamespace(path=path, page=home / "study" / "registered.md", folder=home, git=git)


def outside(checkout):
    shutil.rmtree(checkout.folder / ".git")


def without_page(checkout):
    checkout.page.unlink()


def page_never_committed(checkout):
    checkout.git("rm", "--cached", "--quiet", str(checkout.page))
    checkout.git("commit", "--quiet", "--message", "forgotten")


def page_only_staged(checkout):
    page_never_committed(checkout)
    checkout.git("add", str(checkout.page))


def study_never_committed(checkout):
    checkout.git("rm", "--cached", "--quiet", str(checkout.path))
    checkout.git("commit", "--quiet", "--message", "forgotten")


def page_changed(checkout):
    checkout.page.write_text(PAGE.replace("0.25", "0.2"))


def study_changed(checkout):
    checkout.path.write_text(checkout.path.read_text() + "SIGMA: 2.0\n")


def code_changed(checkout):
    (checkout.folder / "tracked.txt").write_text("2\n")


def code_change_staged(checkout):
    code_changed(checkout)
    checkout.git("add", "tracked.txt")


def code_removed(checkout):
    (checkout.folder / "tracked.txt").unlink()


DISORDER = {
    outside: "registered.md: not committed",
    without_page: "registered.md: no such file",
    page_never_committed: "registered.md: not committed",
    page_only_staged: "study/registered.md: has changes that are not committed",
    study_never_committed: "s.yaml: not committed",
    page_changed: "study/registered.md: has changes that are not committed",
    study_changed: "params/s.yaml: has changes that are not committed",
    code_changed: "tracked.txt: has changes that are not committed",
    code_change_staged: "tracked.txt: has changes that are not committed",
    code_removed: "tracked.txt: has changes that are not committed",
}


@pytest.mark.parametrize("disorder", DISORDER, ids=lambda disorder: disorder.__name__)
def test_locked_ladders_stay_closed(checkout, monkeypatch, capsys, disorder):
    """Whatever is not as committed: one line, status 2, and neither a rung nor a record of any ladder."""
    disorder(checkout)
    loaded = study.load(checkout.path)
    with monkeypatch.context() as patch:
        patch.setattr(study, "sweep_all", lambda *_, **__: pytest.fail("opened"))
        for entries in (loaded.of(["locked"]), loaded.entries):
            with pytest.raises(ValueError, match=DISORDER[disorder]) as error:
                study.run(loaded, entries, workers=1)
            assert str(error.value).isprintable()
    monkeypatch.setattr(sys, "argv", ["replicate", "study", "-f", str(checkout.path), "--workers", "1"])
    with pytest.raises(SystemExit) as status:
        cli.main()
    out, err = capsys.readouterr()
    assert (status.value.code, out) == (2, "")
    assert err.startswith("replicate: error: ")
    assert err.count("\n") == 1
    assert DISORDER[disorder] in err
    assert "locked ladders stay closed" in err
    assert not list(checkout.folder.rglob("stage*"))
    assert not list(checkout.folder.glob("run/records/*/*"))


def test_without_git_locked_ladders_stay_closed(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout.folder))
    with pytest.raises(ValueError, match="not committed"):
        study.require_registered(study.load(checkout.path))


def test_where_git_cannot_tell_locked_ladders_stay_closed(checkout, monkeypatch):
    real = study._git
    monkeypatch.setattr(study, "_git", lambda tree, *w: None if w[0] == "status" else real(tree, *w))
    with pytest.raises(ValueError, match=r"git cannot tell .*locked ladders stay closed"):
        study.require_registered(study.load(checkout.path))


@pytest.mark.parametrize("disorder", [outside, without_page, page_changed, code_changed])
def test_development_ladders_are_open_whatever_is_committed(checkout, monkeypatch, disorder):
    disorder(checkout)
    loaded, opened = study.load(checkout.path), []
    monkeypatch.setattr(study, "sweep_all", lambda plans, **_: opened.extend(plan.name for plan in plans))
    study.run(loaded, loaded.of(["development"]), workers=1)
    assert opened == ["a"]


def test_committed_and_clean_they_open_and_the_commits_are_said(checkout, monkeypatch):
    """What nobody tracks, such as a run's own results, changes nothing; a later commit is no other registration."""
    loaded, opened = study.load(checkout.path), []
    monkeypatch.setattr(study, "sweep_all", lambda plans, **_: opened.extend(plan.name for plan in plans))
    registered = checkout.git("rev-parse", "HEAD")
    (checkout.folder / "run").mkdir()
    (checkout.folder / "run" / "untracked").touch()
    assert study.require_registered(loaded) == registered
    study.run(loaded, loaded.entries, workers=1)
    assert opened == ["a", "b"]
    code_change_staged(checkout)
    checkout.git("commit", "--quiet", "--message", "later")
    assert study.require_registered(loaded) == checkout.git("rev-parse", "HEAD") != registered
    page = study.registered(loaded)
    assert (page["commit"], page["thresholds"]) == (registered, {"LEAST": 0.25})
    assert page["committed"] == checkout.git("show", "-s", "--format=%cI", registered)
    outside(checkout)
    assert (study.registered(loaded)["commit"], study.registered(loaded)["committed"]) == (None, None)


# --- The whole of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory, common):
    """A study that one process did undisturbed: its folder, its plans, its tables below ``tables``."""
    folder = tmp_path_factory.mktemp("alone")
    path = write(folder, {**common, "LADDERS": [DEVELOPMENT, {**LOCKED, "ROLE": "development"}]})
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLICATE_HOME", str(folder))
        torch.set_num_threads(1)
        loaded = study.load(path)
        plans = study.run(loaded, loaded.entries, workers=1, progress=False)
        study.publish(loaded, loaded.entries, folder / "tables")
        torch.set_num_threads(threads)
    return SimpleNamespace(folder=folder, study=loaded, plans=plans)


@pytest.fixture
def again(alone, tmp_path, monkeypatch):
    """A copy of it to spoil."""
    shutil.copytree(alone.folder, tmp_path / "copy")
    monkeypatch.setenv("REPLICATE_HOME", str(tmp_path / "copy"))
    return SimpleNamespace(
        folder=tmp_path / "copy", study=study.load(tmp_path / "copy" / "params" / "s.yaml")
    )


def records(folder):
    found = [json.loads(path.read_text()) for path in (folder / "run" / "records").rglob("*.json")]
    return {record["key"]: content(record) for record in found}


def said(folder):
    return json.loads((folder / "study.json").read_text())


def test_every_job_of_every_ladder_is_done_once_and_kept(alone):
    assert [(plan.name, plan.outcome.summary()) for plan in alone.plans] == [
        (name, "12 jobs done, 0 found finished, 0 failed") for name in ("a", "b")
    ]
    assert len(records(alone.folder)) == 24


def test_the_tables_are_the_records_of_all_ladders_and_say_where_they_come_from(alone):
    tables = {path.stem: pd.read_parquet(path) for path in (alone.folder / "tables").glob("*.parquet")}
    assert set(tables) == {"checkpoints", "components", "gains", "forecast"}
    rows = {"checkpoints": 3, "gains": 3 * 2 * 2, "forecast": 3 * 2}
    for name, table in tables.items():
        assert table.columns[0] == "ladder"
        assert "float64" not in set(map(str, table.dtypes))
        counts = table.ladder.value_counts().to_dict()
        assert counts == {"a": rows.get(name, counts["a"]), "b": rows.get(name, counts["a"])}
    # Each number stands with the ladder, rung, seed and budget whose record has it.
    rungs = {
        name: {c.name: c.sha for c in plan.stream.known()}
        for name, plan in zip("ab", alone.plans, strict=True)
    }
    starts = 0
    for record in records(alone.folder).values():
        (name,) = [name for name, of in rungs.items() if record["checkpoint"]["sha"] in of.values()]
        table = tables[
            {"measure": "checkpoints", "rl": "gains", "forecast": "forecast"}[record["experiment"]]
        ]
        mine = table[(table.ladder == name) & (table.step == record["checkpoint"]["step"])]
        if record["experiment"] == "measure":
            assert mine.reward.tolist() == pytest.approx([record["result"]["reward"]])
        elif record["experiment"] == "rl":
            start, *budgets = record["result"]["budgets"]
            mine = mine[mine.seed == record["seed"]].sort_values("budget")
            assert mine.start.tolist() == pytest.approx([start["reward"]] * 2)
            assert mine.gain.tolist() == pytest.approx([row["reward"] - start["reward"] for row in budgets])
            starts += start["reward"] > 0
    assert starts  # or the column could hold anything
    description = said(alone.folder / "tables")
    page = alone.study.preregistration.read_bytes()
    assert description["preregistration"]["sha256"] == hashlib.sha256(page).hexdigest()
    assert description["preregistration"]["thresholds"] == {"LEAST": 0.25}
    assert description["study"]["sha256"] == hashlib.sha256(alone.study.path.read_bytes()).hexdigest()
    for entry in alone.study.entries:
        of = description["ladders"][entry.name]
        weights = "".join(rungs[entry.name].values()).encode()
        assert of["checkpoints"] == hashlib.sha256(weights).hexdigest()
        assert (of["role"], of["parameters"]) == (entry.role, entry.params.model_dump())
        assert of["made"]["records"] == 12
    assert ["cooled" in description["ladders"][name]["kind"] for name in "ab"] == [False, True]


def test_a_changed_record_changes_the_digest_of_its_ladder_alone(again, alone):
    """Who made a record, and when, does not."""
    digests = {name: of["records"] for name, of in said(alone.folder / "tables")["ladders"].items()}
    entry = again.study.entries[1]
    store, rung = units.store_of(entry.params), jobs.ladder(entry.params).checkpoints[0]
    key = units.job_key(entry.params, rung, "measure", 1)
    record = store.get("measure", key)
    for part, name, same in (("origin", "wall_seconds", True), ("result", "reward", False)):
        record[part][name] += 0.125
        store.put("measure", key, {n: value for n, value in record.items() if n != "checksum"})
        study.publish(again.study, again.study.entries, again.folder / "tables")
        found = {name: of["records"] for name, of in said(again.folder / "tables")["ladders"].items()}
        assert found["a"] == digests["a"]
        assert (found["b"] == digests["b"]) is same


def test_nothing_is_published_while_jobs_are_missing(again):
    before = (again.folder / "tables" / "study.json").read_bytes()
    entry = again.study.entries[1]
    lost = units.store_of(entry.params).path(
        "forecast", units.job_key(entry.params, jobs.ladder(entry.params).checkpoints[1], "forecast", 1)
    )
    lost.unlink()
    with pytest.raises(
        ValueError, match=r"^ladder b: 1 of 3 jobs of forecast are missing; run the study first$"
    ):
        study.publish(again.study, again.study.entries, again.folder / "tables")
    study.publish(again.study, again.study.entries[:1], again.folder / "other")
    assert (again.folder / "tables" / "study.json").read_bytes() == before


def test_publishing_trains_nothing(again, monkeypatch):
    entry = again.study.entries[1]
    shutil.rmtree(pretrain.folder_of(entry.params.section(TinyLadder), again.folder / "ladders"))
    monkeypatch.setattr(pretrain, "_train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"^ladder b: not trained; run the study first$"):
        study.publish(again.study, again.study.entries, again.folder / "tables")


# The first ladder is not let come to its end: its training waits before the last rung for as long as there is a file.
HOOK = """
import os, sys, time

def hook(event, args):
    if event == "os.rename" and os.environ["FIRST_LADDER"] in str(args[1]) and "step40-" in str(args[1]):
        while os.path.exists(os.environ["HELD"]):
            time.sleep(0.01)

sys.addaudithook(hook)
"""


@pytest.fixture
def command(checkout, monkeypatch):
    """``replicate study`` on two workers, one ladder locked; its first ladder's training is held up while ``held``."""
    tables, held = checkout.folder / "tables", checkout.folder / "held"
    (checkout.folder / "sitecustomize.py").write_text(HOOK)
    held.touch()
    first = study.load(checkout.path).entries[0].params
    root = pretrain.folder_of(first.section(TinyLadder), checkout.folder / "ladders")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(checkout.folder), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("FIRST_LADDER", root.name)
    monkeypatch.setenv("HELD", str(held))

    def start():
        program = [sys.executable, "-m", "replicate", "study", "-f", str(checkout.path)]
        return subprocess.Popen(
            [*program, "--workers", "2", "--publish", str(tables)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return SimpleNamespace(
        start=start,
        held=held,
        root=root,
        tables=tables,
        folder=checkout.folder,
        commit=checkout.git("rev-parse", "HEAD"),
    )


def test_two_workers_killed_while_a_ladder_is_in_training_and_started_again(command, alone):
    """The same records and tables as one undisturbed process; and jobs are done before their ladder is."""
    process = command.start()
    deadline = time.monotonic() + 300
    while (
        not {0, 20} <= steps_done(command.folder) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    survivors = records(command.folder)
    assert {0, 20} <= steps_done(command.folder)
    assert not pretrain.is_done(command.root)
    command.held.unlink()

    process = command.start()
    out, err = process.communicate()
    assert process.returncode == 0, err
    found = {line.split(": ")[0]: line for line in out.splitlines() if " jobs done" in line}
    done, kept = (sum(int(line.split()[i]) for line in found.values()) for i in (1, 4))
    assert (done, kept) == (24 - len(survivors), len(survivors))
    # A process that is ended with a semaphore of its own makes Python complain at the very end.
    assert "leaked" not in err
    assert "resource_tracker" not in err

    whole = records(command.folder)
    assert whole == records(alone.folder)
    assert survivors.items() <= whole.items()
    for path in (alone.folder / "tables").glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(command.tables / path.name), pd.read_parquet(path))
    assert said(command.tables)["preregistration"]["commit"] == command.commit
    theirs, ours = (said(folder)["ladders"] for folder in (command.tables, alone.folder / "tables"))
    for name in "ab":
        for key in ("records", "checkpoints", "kind"):
            assert theirs[name][key] == ours[name][key]


def steps_done(folder):
    """The steps of the first ladder's rungs of which there are records."""
    return {r["checkpoint"]["step"] for r in records(folder).values() if r["settings"]["task"]["seed"] == 0}


def test_a_failed_job_or_ladder_is_status_1_and_nothing_is_published(checkout, monkeypatch, capsys):
    """The other ladder's jobs are counted all the same."""

    def half(plans, **_):
        plans[0].outcome.done = 12
        plans[1].outcome.failed.append(
            {"experiment": "ladder", "checkpoint": "b", "seeds": [], "error": "no room"}
        )

    monkeypatch.setattr(study, "sweep_all", half)
    monkeypatch.setattr(study, "publish", lambda *_: pytest.fail("published"))
    arguments = ["study", "-f", str(checkout.path), "--publish", str(checkout.folder / "tables")]
    monkeypatch.setattr(sys, "argv", ["replicate", *arguments])
    with pytest.raises(SystemExit) as status:
        cli.main()
    out, err = capsys.readouterr()
    assert status.value.code == 1
    assert out.splitlines() == [
        "a: 12 jobs done, 0 found finished, 0 failed",
        "b: 0 jobs done, 0 found finished, 1 failed",
    ]
    assert err == "failed: ladder at b: no room\n"


def test_alarms_of_all_ladders_are_said_once_and_change_no_status(checkout, monkeypatch, capsys):
    """One line for both ladders, that names the one which has most of it."""

    def finished(plans, **_):
        for plan, share in zip(plans, (0.5, 1.0), strict=True):
            alarm = {"alarm": "null update", "updates": 1, "first": 1, "share": share, "said": plan.name}
            plan.outcome.note("rl", 20, 0, {"alarms": [alarm]})

    monkeypatch.setattr(study, "sweep_all", finished)
    monkeypatch.setattr(sys, "argv", ["replicate", "study", "-f", str(checkout.path)])
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert not status.value.code
    said = "alarm: rl: null update on 2 of 2 runs, step 20; most at b, step 20, seed 0: b\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("page", [None, "no numbers\n"])
def test_what_cannot_be_published_is_refused_before_the_first_job(checkout, monkeypatch, capsys, page):
    checkout.page.unlink() if page is None else checkout.page.write_text(page)
    monkeypatch.setattr(study, "sweep_all", lambda *_, **__: pytest.fail("work began"))
    arguments = ["study", "-f", str(checkout.path), "--role", "development", "--publish", "tables"]
    monkeypatch.setattr(sys, "argv", ["replicate", *arguments])
    with pytest.raises(SystemExit) as status:
        cli.main()
    out, err = capsys.readouterr()
    assert (status.value.code, out) == (2, "")
    assert "registered.md" in err
    assert err.count("\n") == 1


def test_sweeps_and_studies_share_their_records(alone, monkeypatch):
    """A ladder of a study is a run's like any other."""
    monkeypatch.setenv("REPLICATE_HOME", str(alone.folder))
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("a finished job ran again"))
    outcome = sweep.sweep(alone.study.entries[0].params, progress=False)
    assert (outcome.done, outcome.found) == (0, 12)
