"""Workers: a process that dies is one failed task, the others go on, and nobody outlives the parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from replicate.runs import workers

# A module of its own, so that the processes need not import this package's heavy parts.
WORK = """
import os, signal, sys, time

def work(what, argument):
    if what == "die":
        os.kill(os.getpid(), argument)
    if what == "leave":
        os._exit(argument)
    if what == "raise":
        raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}[argument]("two\\nlines")
    if what == "sleep":
        with open(argument, "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(600)
    if what == "wait":
        deadline = time.monotonic() + 60
        while not os.path.exists(argument):
            if time.monotonic() > deadline:
                raise TimeoutError(argument)
            time.sleep(0.005)
    return argument
"""
PARENT = """
import sys
from replicate.runs import workers
import work_for_tests
if __name__ == "__main__":
    for _ in workers.run_each(work_for_tests.work, [("sleep", sys.argv[1])] * 2, workers=2):
        pass
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The function above, importable here and in spawned processes."""
    (tmp_path / "work_for_tests.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("work_for_tests", None)
    import work_for_tests

    return work_for_tests.work


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_that_dies_takes_its_own_task_and_no_other(work, count):
    tasks = [
        ("give", 0),
        ("die", signal.SIGKILL),
        ("give", 2),
        ("leave", 3),
        ("raise", "KeyError"),
        ("give", 5),
    ]
    found = {index: (value, error) for index, value, error in workers.run_each(work, tasks, workers=count)}
    assert [found[i] for i in (0, 2, 5)] == [(0, None), (2, None), (5, None)]
    assert "SIGKILL" in found[1][1]
    assert "status 3" in found[3][1]
    assert found[4][1] == "KeyError: 'two\\nlines'"


def test_errors_are_one_line(work):
    tasks = [("raise", "ValueError"), ("raise", "OSError")]
    found = {index: error for index, _, error in workers.run_each(work, tasks, workers=1)}
    assert found == {0: "two lines", 1: "OSError: two lines"}


def test_no_tasks_no_processes(work, monkeypatch):
    monkeypatch.setattr(workers, "_Worker", lambda *_: pytest.fail("started a process"))
    assert list(workers.run_each(work, [], workers=2)) == []


def test_processes_end_when_nobody_listens_any_more(work, tmp_path):
    log = tmp_path / "pids"
    results = workers.run_each(work, [("give", 1), ("sleep", str(log)), ("sleep", str(log))], workers=2)
    assert next(results)[1] == 1
    results.close()
    assert alive(log) == []


def alive(log):
    """Which of the processes that wrote their number into ``log`` still run."""
    running = []
    for pid in log.read_text().split() if log.exists() else []:
        try:
            if open(f"/proc/{pid}/stat").read().split(")")[-1].split()[0] != "Z":  # noqa: SIM115
                running.append(int(pid))
        except OSError:
            pass
    return running


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_process_outlives_its_parent(work, tmp_path, name):
    (tmp_path / "parent.py").write_text(PARENT)
    log = tmp_path / "pids"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(log)],
        env=environment,
        stderr=subprocess.DEVNULL,
        # Where the tests run in the background of a shell, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: len(alive(log)) == 2)
    parent.send_signal(getattr(signal, name))
    assert parent.wait(60) != 0
    wait_for(lambda: alive(log) == [])


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- A schedule: tasks that are not all there at first -------------------------------------------------------------


class Script:
    """A schedule that gives one thing after another, None for nothing at the moment, and is open until all is given.

    It notes how many tasks are out when it is asked for one.
    """

    def __init__(self, *script):
        self.script, self.out, self.most = list(script), 0, 0

    def take(self):
        found = self.script.pop(0) if self.script else None
        self.out += found is not None
        self.most = max(self.most, self.out)
        return found

    def is_open(self):
        return bool(self.script)

    def run(self, function, count):
        """What comes back, by name; at most ``count`` tasks are ever out."""
        found = {}
        for name, value, error in workers.run_each(function, self, workers=count):
            found[name] = (value, error)
            self.out -= 1
        assert self.most <= count
        return found


@pytest.mark.parametrize("count", [1, 2])
def test_tasks_have_the_names_that_the_schedule_gives_and_a_death_is_one_of_them(work, count):
    script = Script(
        ("x", ("give", 0)), ("dies", ("die", signal.SIGKILL)), None, (("y", 7), ("give", 2)), ("z", ("give", 3))
    )  # fmt: skip
    found = script.run(work, count)
    assert {name: value for name, (value, error) in found.items() if not error} == {
        "x": 0,
        ("y", 7): 2,
        "z": 3,
    }
    assert "SIGKILL" in found["dies"][1]
    assert len(found) == 4


def test_a_schedule_that_has_nothing_at_first_is_asked_again(work):
    assert Script(None, None, ("late", ("give", 1))).run(work, 1) == {"late": (1, None)}


def test_a_task_that_comes_while_another_runs_is_not_kept_waiting(work, tmp_path):
    """The first task ends only once the second, which the schedule did not have at first, has been answered."""
    go = tmp_path / "go"
    script = Script(("long", ("wait", str(go))), None, None, ("short", ("give", 1)))
    answers = workers.run_each(work, script, workers=2)
    assert next(answers) == ("short", 1, None)
    go.touch()
    assert list(answers) == [("long", str(go), None)]


def test_a_schedule_that_closes_ends_the_work(work, monkeypatch):
    """Whether a task was ever given or not; what is under way is still answered."""
    assert Script(("only", ("give", 1)), None).run(work, 2) == {"only": (1, None)}
    monkeypatch.setattr(workers, "_Worker", lambda *_: pytest.fail("started a process"))
    assert Script().run(work, 2) == {}
    assert Script(None).run(work, 2) == {}


@pytest.mark.parametrize("busy", [False, True])
def test_waiting_is_not_busy(work, tmp_path, busy):
    """For a second nothing comes, while a worker is at work or none is: the schedule is asked a few times."""
    go, asked = tmp_path / "go", []

    class Empty:
        def take(self):
            asked.append(time.monotonic())
            return ("first", ("wait", str(go))) if busy and len(asked) == 1 else None

        def is_open(self):
            closed = asked and asked[-1] > asked[0] + 1
            if closed:
                go.touch()
            return not closed

    found = list(workers.run_each(work, Empty(), workers=2))
    assert len(found) == busy
    assert len(asked) <= 4 + 1 / workers._MOMENT  # and once more after each thing that happens
