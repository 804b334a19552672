"""How a policy learns from one batch: one module a method, and the module's name is the method's.

A method module has

- ``draw(actor, asked, config, generators) -> Batch``: samples, rewards and advantages of one update
  (:mod:`replicate.rl.batch`), all randomness from the lanes' ``generators``;
- ``again(actor, batch, config) -> signal``: the batch's ``signal`` under the policy's present weights, with its graph,
  for further steps on the same samples;
- ``losses(signal, batch, config) -> [lanes]``: what is minimised.

Which rewards a token's advantage has, and whether a critic takes part, is ``config.credit``'s
(:mod:`replicate.rl.credit`), the optimiser ``config.optimizer``'s; a method knows neither.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from replicate.checks import one_of


def names() -> tuple[str, ...]:
    """The methods there are."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def get(name: str) -> ModuleType:
    """The module of a method; ``ValueError`` lists the methods there are, or says what a module lacks."""
    one_of("method", name, names())
    method = import_module(f"{__name__}.{name}")
    if missing := [part for part in ("draw", "again", "losses") if not hasattr(method, part)]:
        raise ValueError(f"method {name}: {method.__name__} has no {', '.join(missing)}")
    return method
