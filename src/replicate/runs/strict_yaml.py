"""YAML without its traps: what is written is what is read, or it is refused with the line and the remedy.

YAML 1.1 reads ``010`` as 8, ``1:30`` as 90 and ``1_0`` as 10, takes the last of two equal keys in silence, and builds
almost any object that a tag asks for. Here numbers are decimal, keys are words that stand once, and other tags are
refused. A value accepted here is the one that Papermill, which reads the same files, hands to a notebook.
"""

import re
import reprlib
from typing import Any

import yaml

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+][0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE)
_TAG = "tag:yaml.org,2002:"

# Anchors let a short file hold itself, or a list of a billion: only the beginning is ever turned into text.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 2, 60, 60


def read(text: str) -> Any:
    """The one document in ``text``; ``ValueError`` with one line that starts with the place for anything else."""
    try:
        return yaml.load(text, Loader=_Strict)
    except _Refused as error:
        raise ValueError(f"{_place(error)}{error.problem}") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"not valid YAML ({_place(error)}{error.problem or error.context})") from None
    except yaml.YAMLError as error:  # a character that no YAML may hold
        raise ValueError(f"not valid YAML ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise ValueError("not a flat mapping of parameters: nested too deeply") from None


def shown(value: Any, limit: int = 60) -> str:
    """``repr(value)``, cut to ``limit`` characters without ever being built whole, on one line."""
    text = _BRIEF.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Refused(yaml.MarkedYAMLError):
    """YAML that is valid and yet not taken."""


class _Strict(yaml.SafeLoader):
    """PyYAML's safe loader with plain numbers, plain keys and no tags."""

    # Dates stay text, as Papermill leaves them.
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: build
        for tag, build in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, *(_TAG + name for name in ("null", "str", "seq", "map")))
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuses keys that are no words or stand twice, and merging (``<<``), before a mapping is built."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != _TAG + "str":
                raise _refusal(key, f"expected a parameter's name before the colon, got {_written(key)}")
            if key.value in lines:
                raise _refusal(
                    key, f"{_written(key)} stands twice, first in line {lines[key.value]}; keep one"
                )
            lines[key.value] = key.start_mark.line + 1


def _number(loader: yaml.SafeLoader, node: yaml.Node) -> int | float:
    text = loader.construct_scalar(node)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if not _INTEGER.fullmatch(text):
        remedy = "at most 18 digits" if text.isdecimal() and text[0] != "0" else "a plain decimal number"
        raise _refusal(
            node, f"{_written(node)} is no plain number; write {remedy}, or quote it if it is text"
        )
    return int(text)


def _truth(loader: yaml.SafeLoader, node: yaml.Node) -> bool:
    try:
        return loader.bool_values[loader.construct_scalar(node).lower()]
    except KeyError:
        raise _refusal(node, f"expected true or false, got {_written(node)}") from None


def _refusal(node: yaml.Node, problem: str) -> _Refused:
    return _Refused(problem=problem, problem_mark=node.start_mark)


def _written(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return f"a {node.id}"
    return shown(node.value)[1:-1] or "nothing"


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}: " if mark else ""


_Strict.add_constructor(_TAG + "int", _number)
_Strict.add_constructor(_TAG + "float", _number)
_Strict.add_constructor(_TAG + "bool", _truth)
