"""Checks of arguments that many modules make."""

from collections.abc import Collection


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raises ``ValueError`` unless ``value``, given for the argument ``name``, is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {tuple(allowed)}, got {value!r}")
