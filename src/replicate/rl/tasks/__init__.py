"""What a model is asked: one module a task, and the module's name is the task's.

A task module has

- ``draw(tokenizer, count, *, settings, rng) -> Prompts``: ``count`` prompts in the words of a tokenizer, a function of
  the :class:`~replicate.settings.task.Task` ``settings`` and the numpy generator ``rng`` alone. ``ValueError`` where
  the tokenizer cannot say them;
- ``HORIZON``: how many tokens an answer has;
- ``reward(tokens, labels)``: the reward of sampled answers, as in :data:`replicate.rl.prompts.Reward`.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from replicate.checks import one_of


def names() -> tuple[str, ...]:
    """The tasks there are."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def get(name: str) -> ModuleType:
    """The module of a task; ``ValueError`` lists the tasks there are."""
    one_of("task", name, names())
    return import_module(f"{__name__}.{name}")
