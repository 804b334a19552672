"""What decides a computed number besides its inputs: the code, the libraries, the kernels.

The digest of a module's code covers the syntax tree of every module of the package that it can reach by imports. A
comment, a docstring, a blank line or a line break change nothing; an operator does. What a module does not import
cannot change its numbers, and does not change its digest.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from replicate import kernels

PACKAGE = "replicate"
LIBRARIES = ("torch", "transformers", "numpy")
"""Those whose arithmetic or random numbers enter weights and records."""


def identity(*modules: str) -> dict[str, object]:
    """Everything but the inputs that decides what ``modules`` compute here: goes into keys, and is said in records."""
    return {"code": digest(*modules), "versions": versions(), "kernels": kernels.name()}


def versions() -> dict[str, str]:
    """The versions of the libraries that matter to numbers."""
    return {name: version(name) for name in LIBRARIES}


def digest(*modules: str) -> str:
    """SHA-256 over the code that importing ``modules`` brings in, as it was when this process began to use it."""
    return _digest(modules)


@cache
def _digest(modules: tuple[str, ...]) -> str:
    return digest_of(modules, _SOURCES)


def sources(root: Path) -> dict[str, str]:
    """The text of every module of the package whose folder is ``root``, by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def digest_of(modules: Sequence[str], texts: Mapping[str, str]) -> str:
    """The digest of ``modules`` in a package of these ``texts``. ``ValueError`` for one that is not among them."""
    total = hashlib.sha256()
    for name in sorted(set().union(*(reachable(module, texts) for module in modules))):
        total.update(f"{name}\n{_dumped(texts[name])}\n".encode())
    return total.hexdigest()


def reachable(module: str, texts: Mapping[str, str]) -> set[str]:
    """``module`` and all modules among ``texts`` that it imports, at once or on the way, inside functions as well."""
    if module not in texts:
        raise ValueError(f"module: expected one of the package's own, got {module!r}")
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            # A package is the base of its own relative imports, a module's base is its package.
            is_package = any(other.startswith(f"{name}.") for other in texts)
            base = name if is_package else name.rpartition(".")[0]
            found = [*_above(name), *_imports(texts[name], base)]
            waiting += [other for other in found if other in texts]
    return seen


@cache
def _imports(text: str, package: str) -> tuple[str, ...]:
    """Dotted names that a module of ``package`` may import; what is above a name is imported before it."""
    found = []
    for node in _walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name for alias in node.names for name in _above(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found += [*_above(base), *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _above(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _walk(child)


@cache
def _dumped(text: str) -> str:
    return _dump(ast.parse(text))


def _dump(node: object) -> str:
    """A syntax tree in words, without docstrings and without what a newer Python adds and leaves empty."""
    if isinstance(node, list):
        return "[" + ",".join(map(_dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, _without_docstrings(value)) for name, value in ast.iter_fields(node))
    said = ",".join(f"{name}={_dump(value)}" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({said})"


def _without_docstrings(value: object) -> object:
    return [item for item in value if not _is_docstring(item)] if isinstance(value, list) else value


def _is_docstring(node: object) -> bool:
    """A string that stands alone: a docstring of a module, class, function or variable; it does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# Read now and not when asked: these are the texts that were imported, whatever an editor does to the files later.
_SOURCES = sources(Path(__file__).parent)
