"""What a model is asked: one module a task, and the module's name is the task's.

A task module has

- ``draw(tokenizer, count, *, settings, rng) -> Prompts``: ``count`` prompts in the words of a tokenizer, a function of
  the :class:`~replicate.settings.task.Task` ``settings`` and the numpy generator ``rng`` alone. ``ValueError`` where
  the tokenizer cannot say them;
- ``HORIZON = 1`` and ``reward = exact_match`` (:mod:`replicate.rl.prompts`): J, the costates and the headroom are read
  in closed form off one token that is right or wrong, so a task with another answer is refused.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from replicate.checks import one_of


def names() -> tuple[str, ...]:
    """The tasks there are."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def get(name: str) -> ModuleType:
    """The module of a task; ``ValueError`` lists the tasks there are, or says what a module lacks."""
    from replicate.rl.prompts import exact_match  # it brings in torch, which a list of names does not need

    one_of("task", name, names())
    task = import_module(f"{__name__}.{name}")
    if missing := [part for part in ("draw", "HORIZON", "reward") if not hasattr(task, part)]:
        raise ValueError(f"task {name}: {task.__name__} has no {', '.join(missing)}")
    if task.HORIZON != 1 or task.reward is not exact_match:
        raise ValueError(
            f"task {name}: expected HORIZON = 1 and reward = exact_match, J is read off one token"
        )
    return task
