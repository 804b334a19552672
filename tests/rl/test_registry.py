"""What a task is: one module with three functions; what is read off one token refuses longer answers in one line."""

import sys

import numpy as np
import pytest

from replicate.ladder import corpus
from replicate.rl import tasks
from replicate.rl.prompts import exact_match
from replicate.settings.task import Task

WHOLE = """
from replicate.rl.prompts import exact_match
def draw(tokenizer, count, *, settings, rng): ...
def horizon(settings): return 1
def reward(settings): return exact_match
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder beside the tasks', where a test may put one of its own."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(f"{tasks.__name__}.mine")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_draws_prompts_of_its_own_settings(name):
    settings = Task(task=name, labels=4, filler=3)
    prompts = tasks.get(name).draw(corpus.tokenizer(), 9, settings=settings, rng=np.random.default_rng(0))
    assert len(prompts) == 9
    assert prompts.labels.shape == (9,)
    assert set(prompts.labels.tolist()) <= set(prompts.label_set.tolist())
    assert tasks.one_token(settings).reward(settings) is exact_match


def test_a_module_in_the_folder_is_a_task_and_a_helper_is_none(folder):
    (folder / "mine.py").write_text(WHOLE)
    (folder / "_mine.py").write_text(WHOLE)
    assert {"mine", "label_copying"} <= set(tasks.names())
    assert "_mine" not in tasks.names()
    assert tasks.one_token(Task(task="mine")).__name__.endswith("mine")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def horizon", "HORIZON = 1\ndef long", "has no horizon"),
        ("def draw", "def drew", "has no draw"),
        ("def horizon(settings): return 1", "horizon = 1", "has no horizon"),
    ],
)
def test_a_module_that_lacks_a_function_is_refused(folder, old, new, said):
    assert old in WHOLE
    (folder / "mine.py").write_text(WHOLE.replace(old, new))
    with pytest.raises(ValueError, match=f"^task mine: .*{said}$"):
        tasks.get("mine")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return 1", "return 2", "got mine with 2 tokens"),
        (
            "return exact_match",
            "return lambda tokens, labels: 0.5 * exact_match(tokens, labels)",
            "got mine with another reward than exact_match",
        ),
    ],
)
def test_what_could_not_be_measured_is_refused_where_it_is_measured(folder, old, new, said):
    """J is the probability of one right token: another answer or reward would be measured as something else."""
    assert old in WHOLE
    (folder / "mine.py").write_text(WHOLE.replace(old, new))
    assert tasks.get("mine").draw  # RL takes it
    with pytest.raises(
        ValueError, match=f"^TASK: expected answers of one token .*{said}; set TASK to label_copy"
    ):
        tasks.one_token(Task(task="mine"))


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^task: expected one of \('label_copying',.*got 'nothing'$"):
        tasks.get("nothing")
