"""Where relative paths of parameters point to, whatever the working directory is."""

import os
from pathlib import Path


def home() -> Path:
    """The folder that relative paths mean: ``$REPLICATE_HOME``, else the source tree, else the working directory."""
    if named := os.environ.get("REPLICATE_HOME"):
        return Path(named).resolve()
    tree = Path(__file__).resolve().parents[3]
    return tree if (tree / "pyproject.toml").is_file() else Path.cwd()


def resolve(path: str | os.PathLike) -> Path:
    """``path`` as an absolute path; a relative one is taken from :func:`home`."""
    return (home() / path).resolve()
