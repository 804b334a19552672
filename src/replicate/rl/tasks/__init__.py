"""What a model is asked: one module a task, and the module's name is the task's.

A task module has

- ``draw(tokenizer, count, *, settings, rng) -> Prompts``: ``count`` prompts in the words of a tokenizer, a function of
  the :class:`~replicate.settings.task.Task` ``settings`` and the numpy generator ``rng`` alone. ``ValueError`` where
  the tokenizer cannot say them;
- ``horizon(settings) -> int``: how many tokens an answer has, as many as ``labels`` has a prompt;
- ``reward(settings) -> Reward``: what rates sampled answers (:mod:`replicate.rl.prompts`).

RL takes any of them. What is read in closed form (J, the costates, the headroom, a forecast) is read off one token that
is right or wrong: it asks :func:`one_token`, which refuses every other answer.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from replicate.checks import one_of
from replicate.settings.task import Task


def names() -> tuple[str, ...]:
    """The tasks there are."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def get(name: str) -> ModuleType:
    """The module of a task; ``ValueError`` lists the tasks there are, or says what a module lacks."""
    one_of("task", name, names())
    task = import_module(f"{__name__}.{name}")
    if missing := [part for part in ("draw", "horizon", "reward") if not callable(getattr(task, part, None))]:
        raise ValueError(f"task {name}: {task.__name__} has no {', '.join(missing)}")
    return task


def one_token(settings: Task) -> ModuleType:
    """The module of the task that ``settings`` name, for what can only be read off one token that is right or wrong.

    ``ValueError`` for longer answers and for any reward but ``exact_match``.
    """
    from replicate.rl.prompts import exact_match  # it brings in torch, which a list of names does not need

    task = get(settings.task)
    horizon = task.horizon(settings)
    if horizon != 1 or task.reward(settings) is not exact_match:
        got = f"{horizon} tokens" if horizon != 1 else "another reward than exact_match"
        raise ValueError(
            f"TASK: expected answers of one token that is right or wrong, which J is read off, got {settings.task} "
            f"with {got}; set TASK to label_copying and ANSWER_TOKENS to 1, or run nothing but `replicate rl`"
        )
    return task
