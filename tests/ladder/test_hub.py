"""Hub ladders through the unmodified client, against a small hub on the loopback interface that can misbehave."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_server import Hub
from replicate.ladder import open_ladder
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.ladder.hub import client, fetch, listing, lock, preflight, rules
from replicate.ladder.stream import Fetching
from replicate.settings.hub import Hub as HubSettings

MAIN, EARLY = "lab/run", "lab/run-early"


@pytest.fixture
def snapshots(ladder):
    """The files of the session's three rungs, as they would be uploaded."""
    return [{p.name: p.read_bytes() for p in rung.where.iterdir() if p.is_file()} for rung in ladder]


@pytest.fixture
def hub(snapshots, monkeypatch):
    """Two repositories as AI2 has them: the early rungs in one of their own, and ``main`` the last revision."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    first, second, third = snapshots
    branches = {
        "stage1-step40-tokens1B": second,
        "stage1-step80-tokens1B": third,
        "main": third,
        "notes": {"README.md": b"no rung"},
    }
    early = {"stage1-step0-tokens0B": first, "stage1-step40-tokens1B": first}
    with Hub({MAIN: branches, EARLY: early}) as server:
        yield server


def locked(hub, *steps, repos=(MAIN, EARLY)):
    return lock.make(list(repos), list(steps) or ["all"])


def opened(tmp_path, made, **hub_settings):
    made.save(tmp_path / "lock.json")
    settings = HubSettings(lock=str(tmp_path / "lock.json"), **hub_settings)
    return open_ladder(f"hub:{','.join(made.repos)}", folder=tmp_path / "cache", hub=settings)


# --- Names and rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["hub:", "hub:run", "hub:a/b/c", "hub:a/", "hub:a/b,,c/d", "hub:a/b,a/b"])
def test_names_that_are_no_repositories_are_refused(spec):
    with pytest.raises(ValueError, match="ladder hub:"):
        client.names_of(spec)


@pytest.mark.parametrize(
    ("text", "steps", "chosen", "holes"),
    [
        ("all", [30, 10, 20], [10, 20, 30], []),
        ("at 10 40", [10, 20, 30], [10], [40]),
        ("every 100", [0, 98, 205, 300], [0, 98, 205, 300], []),
        ("every 100 from 100 to 300", [0, 98, 205, 300, 400], [98, 205, 300], []),
        (
            "every 100",
            [0, 100, 300],
            [0, 100, 300],
            [200],
        ),  # a hole stays a hole: 250 would be as near to 300
        ("every 100", [0, 100, 250, 300], [0, 100, 300], [200]),
        ("every 1k to 3k", [999, 2000, 3001], [999, 2000, 3001], []),
        ("log 4 from 1 to 1000", [1, 10, 100, 1000, 5000], [1, 10, 100, 1000], []),
        ("log 3 from 1 to 100", [1, 9, 100], [1, 9, 100], []),
        (
            "every 100k from 100k to 1M",
            [100000, 1000000],
            [100000, 1000000],
            [*range(200000, 1000000, 100000)],
        ),
    ],
)
def test_rules_choose_the_nearest_and_name_the_holes(text, steps, chosen, holes):
    found = rules.choose(rules.parse(text), steps)
    assert found == (chosen, holes)


@pytest.mark.parametrize(
    "text", ["", "every", "every 0", "log 1", "each 10", "at", "every 10 from 30 to 20", "all 3"]
)
def test_rules_that_cannot_be_read_show_the_grammar(text):
    with pytest.raises(ValueError, match=r"HUB_STEPS: (expected|from 30 to 20)"):
        rules.parse(text)


def test_another_stage_is_asked_for_by_name():
    found = rules.parse("stage2-ingredient3: every 1k")
    assert (found.stage, found.ingredient, found.n) == (2, 3, 1000)


def test_holes_are_gaps_longer_than_the_usual_one():
    assert rules.holes([0, 10, 20, 50, 60, 61]) == [(20, 50)]
    assert rules.holes([5]) == []


# --- Listing and locking ---------------------------------------------------------------------------------------------


def test_the_listing_parses_names_and_shows_what_is_no_rung(hub):
    main, early = listing.listing([MAIN, EARLY])
    assert [r.said.step for r in main.revisions] == [40, 80]
    assert main.others == ("main", "notes")
    assert main.main == hub.commit(MAIN, "main")
    assert early.lines()[1] == "  stage 1: 2 steps from 0 to 40"
    with pytest.raises(ValueError, match="the branches of lab/none cannot be listed"):
        listing.listing(["lab/none"])


def test_a_lock_has_commits_sizes_and_digests_and_the_first_repository_wins(hub, snapshots):
    made = locked(hub)
    assert [(one.repo, one.step) for one in made.checkpoints] == [(EARLY, 0), (MAIN, 40), (MAIN, 80)]
    assert [one.commit for one in made.checkpoints[1:]] == [
        hub.commit(MAIN, f"stage1-step{s}-tokens1B") for s in (40, 80)
    ]
    for one, files in zip(made.checkpoints, snapshots, strict=True):
        assert {f.name: (f.bytes, f.sha256) for f in one.files} == {
            name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
        }
    weights = [key for key in hub.served if key.endswith(".safetensors")]
    assert weights == []  # of metadata and small files alone


def test_a_lock_of_other_repositories_is_not_taken(hub, tmp_path):
    made = locked(hub, repos=[MAIN])
    made.save(tmp_path / "lock.json")
    assert lock.load(tmp_path / "lock.json", [MAIN]) == made
    with pytest.raises(ValueError, match="a lock of lab/run; name another with HUB_LOCK"):
        lock.load(tmp_path / "lock.json", [EARLY])
    with pytest.raises(ValueError, match=r"no lock file .*nowhere.json; make it with `replicate hub lock`"):
        lock.load(tmp_path / "nowhere.json", [MAIN])
    (tmp_path / "lock.json").write_text("{}")
    with pytest.raises(ValueError, match="not a lock file"):
        lock.load(tmp_path / "lock.json", [MAIN])


def test_rules_and_repositories_must_match(hub):
    with pytest.raises(ValueError, match="expected one rule or 2, one a repository, got 3"):
        locked(hub, "all", "all", "all")
    with pytest.raises(ValueError, match="no revision of lab/run is chosen by at 7"):
        locked(hub, "at 7", repos=[MAIN])
    assert [one.step for one in locked(hub, "at 80", "at 0").checkpoints] == [0, 80]


# --- Preflight -------------------------------------------------------------------------------------------------------


def test_twins_and_copies_of_main_are_refused_from_metadata_alone(hub, snapshots):
    hub.repos[MAIN]["stage1-step60-tokens1B"] = snapshots[1]
    hub.repos[MAIN]["stage1-step20-tokens1B"] = snapshots[2]
    refused = preflight.refusals(locked(hub))
    assert {branch: reason.split(":")[0] for (_, branch), reason in refused.items()} == {
        "stage1-step40-tokens1B": "model.safetensors is byte-identical to that of stage1-step60-tokens1B",
        "stage1-step60-tokens1B": "model.safetensors is byte-identical to that of stage1-step40-tokens1B",
        "stage1-step20-tokens1B": "model.safetensors is byte-identical to that of stage1-step80-tokens1B",
        "stage1-step80-tokens1B": "model.safetensors is byte-identical to that of stage1-step20-tokens1B",
    }
    alone = preflight.refusals(locked(hub, "at 20", "at 0"))
    assert alone == {
        (MAIN, "stage1-step20-tokens1B"): "its weights are those of main, which is another revision"
    }
    assert preflight.refusals(locked(hub, "at 80", "at 0")) == {}  # the last revision may be what main is
    assert not any(key.endswith(".safetensors") for key in hub.served)


def test_missing_shards_are_seen_from_the_index(hub, snapshots):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = dict(snapshots[0])
    files["model-00001-of-00002.safetensors"] = files.pop("model.safetensors")
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.repos[MAIN]["stage1-step50-tokens1B"] = files
    hub.repos[MAIN]["stage1-step55-tokens1B"] = {"config.json": b"{}"}
    refused = preflight.refusals(locked(hub, repos=[MAIN]))
    assert refused == {
        (
            MAIN,
            "stage1-step50-tokens1B",
        ): "its index names model-00002-of-00002.safetensors, which is not there",
        (MAIN, "stage1-step55-tokens1B"): "no safetensors file in this revision",
    }


def test_the_plan_counts_bytes_hours_and_room(hub, tmp_path):
    made = locked(hub)
    found = preflight.plan(made, tmp_path / "not" / "yet", on_disk=2)
    sizes = [one.size() for one in made.checkpoints]
    assert (found.checkpoints, found.bytes, found.needed()) == (3, sum(sizes), 2 * max(sizes))
    assert found.complaint() is None
    assert "3 checkpoints" in found.line(rate=1.0, seconds=None)
    slow = preflight.Plan(20, 120 * 10**9, 6 * 10**9, free=10**9, on_disk=2)
    assert slow.complaint().startswith("disk: 2 checkpoints need 12.0 GB and 1.0 GB are free")
    assert "0.67 hours to fetch at 50 MB/s, 5.56 hours in all" in slow.line(rate=50.0, seconds=1000.0)
    assert "0.67 hours to fetch at 50 MB/s, 0.67 hours in all" in slow.line(rate=50.0, seconds=1.0)


# --- Fetching --------------------------------------------------------------------------------------------------------


def test_what_is_fetched_is_what_was_uploaded_and_has_the_records_of_a_local_folder(hub, tmp_path, ladder):
    found = opened(tmp_path, locked(hub))
    assert (
        found.kind
        == "checkpoints of lab/run, lab/run-early from a hub that HF_ENDPOINT names, not the public one"
    )
    assert [c.sha for c in found] == [c.sha for c in ladder]  # known before a byte is fetched
    assert not (tmp_path / "cache").exists()
    for ours, theirs in zip(found, ladder, strict=True):
        same = zip(ours.model().parameters(), theirs.model().parameters(), strict=True)
        assert all((a == b).all() for a, b in same)
    before = hub.log.total()
    assert next(iter(found)).tokenizer().vocab_size == next(iter(ladder)).tokenizer().vocab_size
    assert hub.log.total() == before  # what is there is not asked for again


def test_a_tokenizer_does_not_cost_the_weights(hub, tmp_path):
    rung = next(iter(opened(tmp_path, locked(hub))))
    rung.tokenizer()
    assert rung.config()["model_type"] == "olmo2"
    assert not any(key.endswith(".safetensors") for key in hub.served)


@pytest.mark.parametrize("fault", ["drop", "busy", "ill"])
def test_a_fault_that_passes_costs_a_retry(hub, tmp_path, ladder, fault):
    rung = next(iter(opened(tmp_path, locked(hub))))
    hub.faults[f"{EARLY}/{rung.name}/model.safetensors"] = [fault]
    rung.ready()
    assert (rung.where / "model.safetensors").read_bytes() == (
        next(iter(ladder)).where / "model.safetensors"
    ).read_bytes()


class Refused(Exception):
    """An answer of the hub that is no success, as the client raises it."""

    def __init__(self, status):
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        *((Refused(status), client.ATTEMPTS) for status in (408, 429, 500, 503)),
        *((Refused(status), 1) for status in (401, 403, 404)),
        (ConnectionError("broke"), client.ATTEMPTS),
        (ValueError("wrong"), 1),
    ],
)
def test_what_may_pass_is_asked_for_again_and_nothing_else(monkeypatch, error, asked):
    """The client tries some of these itself, but gives up within seconds."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
    calls = []

    def request():
        calls.append(error)
        raise error

    with pytest.raises(type(error)):
        client.patiently(request)
    assert len(calls) == asked


def test_a_download_that_was_killed_goes_on_where_it_was(hub, tmp_path, monkeypatch, snapshots):
    monkeypatch.setattr(fetch, "CHUNK", 4096)
    rung = next(iter(opened(tmp_path, locked(hub))))
    content, key = snapshots[0]["model.safetensors"], f"{EARLY}/{rung.name}/model.safetensors"
    rung.where.mkdir(parents=True)
    (rung.where / ".model.safetensors.part").write_bytes(content[:10000])
    rung.ready()
    spans = [(start, end) for name, start, end in hub.ranges if name == key]
    assert spans[0] == (10000, 14096)
    assert hub.served[key] == len(content) - 10000
    assert (rung.where / "model.safetensors").read_bytes() == content


def test_a_part_of_something_else_is_not_taken(hub, tmp_path, snapshots):
    rung = next(iter(opened(tmp_path, locked(hub))))
    rung.where.mkdir(parents=True)
    (rung.where / ".model.safetensors.part").write_bytes(b"x" * 10000)
    with pytest.raises(ValueError, match=r"step0.*model.safetensors has SHA-256 .*, the lock says"):
        rung.ready()
    rung.ready()  # the wrong part is gone
    assert (rung.where / "model.safetensors").read_bytes() == snapshots[0]["model.safetensors"]


def test_a_wrong_digest_stops_that_checkpoint_only(hub, tmp_path, snapshots):
    first, second, third = opened(tmp_path, locked(hub))
    wrong = bytearray(snapshots[1]["model.safetensors"])
    wrong[-1] ^= 1
    hub.repos[MAIN]["stage1-step40-tokens1B"] = {**snapshots[1], "model.safetensors": bytes(wrong)}
    object.__setattr__(second, "commit", hub.commit(MAIN, "stage1-step40-tokens1B"))
    first.ready()
    with pytest.raises(ValueError, match=r"lab/run@stage1-step40-tokens1B: model.safetensors has SHA-256"):
        second.ready()
    assert not (second.where / "model.safetensors").exists()
    third.ready()


def test_a_truncated_file_is_an_error_and_no_endless_loop(hub, tmp_path, snapshots):
    key = f"{MAIN}/stage1-step40-tokens1B/model.safetensors"
    hub.claims[key] = snapshots[1]["model.safetensors"]
    hub.repos[MAIN]["stage1-step40-tokens1B"] = {
        **snapshots[1],
        "model.safetensors": snapshots[1]["model.safetensors"][:5000],
    }
    rung = opened(tmp_path, locked(hub)).at(40)
    with pytest.raises(
        ValueError, match=r"step40-tokens1B: model.safetensors cannot be fetched \(it ends at byte 5000, the"
    ):
        rung.ready()


def test_offline_the_lock_and_what_was_fetched_are_enough(hub, tmp_path, ladder):
    made = locked(hub)
    first, *_ = opened(tmp_path, made)
    first.ready()
    hub.__exit__()
    found = opened(tmp_path, made)
    assert next(iter(found)).model().num_parameters() == next(iter(ladder)).model().num_parameters()


def test_discarded_weights_are_fetched_again_and_the_rest_stays(hub, tmp_path):
    rung = next(iter(opened(tmp_path, locked(hub))))
    rung.ready()
    rung.discard()
    assert not (rung.where / "model.safetensors").exists()
    assert (rung.where / "config.json").is_file()
    before = hub.served[f"{EARLY}/{rung.name}/config.json"]
    rung.model()
    assert hub.served[f"{EARLY}/{rung.name}/config.json"] == before


# --- As a stream -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rung(Checkpoint):
    """Stands for a checkpoint: notes when it comes and goes."""

    log: list[str] = field(default_factory=list)
    broken: bool = False
    came: threading.Event = field(default_factory=threading.Event)

    def ready(self, *, weights=True):
        if self.broken:
            raise ValueError(f"{self.name} is broken\nand more")
        self.log.append(f"+{self.name}")
        self.came.set()

    def discard(self):
        self.log.append(f"-{self.name}")


def rungs_that_tell(log, count, *, broken=()):
    rungs = tuple(
        Rung(str(i), 1, 0, i, None, Path("nowhere"), log=log, broken=i in broken) for i in range(count)
    )
    return Ladder("stand-in", "stand-in", rungs)


def looked(stream, until):
    """All that comes until there are so many."""
    come, missed = [], []
    for _ in range(500):
        more, less = stream.look()
        come, missed = come + [r.name for r in more], missed + [(r.name, why) for r, why in less]
        if len(come) + len(missed) >= until:
            return come, missed
        threading.Event().wait(0.01)
    raise AssertionError(f"only {come}, {missed}")


def test_at_most_so_many_rungs_are_on_disk_and_a_broken_one_takes_no_room():
    log = []
    ladder = rungs_that_tell(log, 5, broken=[1])
    rungs, stream = ladder.checkpoints, Fetching(ladder, on_disk=2)
    stream.begin(lambda rung: rung.step != 3)
    assert stream.expected() == 5
    come, missed = looked(stream, 4)
    assert (come, missed) == (["3", "0", "2"], [("1", "1 is broken")])  # 3 is not wanted, and never fetched
    assert not rungs[4].came.wait(0.2)
    stream.release(rungs[3])  # holds no room, so makes none
    assert not rungs[4].came.wait(0.2)
    stream.release(rungs[0])
    assert rungs[4].came.wait(5)
    assert looked(stream, 1) == (["4"], [])
    assert log == ["+0", "+2", "-0", "+4"]
    for _ in range(100):
        stream.look()
        if stream.is_done():
            break
        threading.Event().wait(0.01)
    assert stream.is_done()


def test_kept_rungs_are_not_removed_and_do_not_wait():
    log = []
    rungs = rungs_that_tell(log, 3)
    stream = Fetching(rungs, on_disk=1, keep=True)
    stream.begin(lambda rung: True)
    looked(stream, 3)
    for rung in rungs:
        stream.release(rung)
    assert log == ["+0", "+1", "+2"]


def test_a_stream_that_is_closed_fetches_no_more():
    log = []
    rungs = rungs_that_tell(log, 3)
    stream = Fetching(rungs, on_disk=1)
    stream.begin(lambda rung: True)
    looked(stream, 1)
    stream.close()
    stream._thread.join(5)
    assert log == ["+0"]
