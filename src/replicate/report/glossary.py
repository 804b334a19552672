"""The glossary, every symbol of the suite with its one meaning, and what is cited: notebook 00 and ``GLOSSARY.md``."""

import tomllib
from functools import cache

from replicate.report import markdown
from replicate.report.ledger.questions import FOLDER

_INTRODUCTION = """\
# Glossary

Made by `replicate report` from `src/replicate/report/ledger/glossary.toml`. One meaning a symbol, in every notebook.
Bold upright capitals are matrices of a toy. Calligraphic capitals are numbers of a checkpoint. A hat marks an
estimate, or what GRPO sends in the place of the thing itself. Of the indices t and k are times, i and j completions or
positions, l layers."""


@cache
def symbols() -> list[dict[str, str]]:
    """The entries: ``symbol`` (LaTeX) and ``meaning``; some have a ``shape``, or ``where`` it is defined."""
    return tomllib.loads((FOLDER / "glossary.toml").read_text())["symbols"]


def table() -> str:
    """The entries as a Markdown table."""
    head = markdown.head("symbol", "means", "shape", "where")
    return head + "\n".join(
        markdown.row(f"${s['symbol']}$", s["meaning"], s.get("shape", ""), s.get("where", ""))
        for s in symbols()
    )


@cache
def references() -> dict[str, str]:
    """What is cited: titles by author and year."""
    return tomllib.loads((FOLDER / "references.toml").read_text())


def bibliography() -> str:
    """The references as a Markdown table."""
    head = markdown.head("cited as", "title")
    return head + "\n".join(markdown.row(key, title) for key, title in references().items())


def page() -> str:
    """The text of ``GLOSSARY.md``."""
    return f"{_INTRODUCTION}\n\n{table()}\n\n## References\n\n{bibliography()}\n"
