"""Checks of arguments that many modules make."""

from collections.abc import Collection


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raises ``ValueError`` unless ``value``, given for the argument ``name``, is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {tuple(allowed)}, got {value!r}")


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, of at most 200 characters; its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__
