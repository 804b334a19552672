"""Where relative paths point to: to the caller's working directory, as with any other tool.

One exception lets a notebook that is opened in place share ``runs/`` with the command line and with Papermill, which
start at the root of the suite: in a folder that holds the suite's notebooks, a relative path is taken from the suite
that the folder belongs to. ``REPLICATE_HOME`` overrides both. Workers and notebook kernels inherit directory and
environment, so they see the folders that their parent sees.
"""

import os
from collections.abc import Sequence
from pathlib import Path

# The map of all notebooks tells their folder, and copies of it, from any other.
_MAP = "00_start_here.ipynb"


def home() -> Path:
    """The folder that relative paths mean: ``$REPLICATE_HOME``, else the working directory, else the suite above it."""
    if named := os.environ.get("REPLICATE_HOME"):
        return Path(named).resolve()
    here = Path.cwd()
    return _suite_above(here) if (here / _MAP).is_file() else here


def resolve(path: str | os.PathLike) -> Path:
    """``path`` as an absolute path; a relative one is taken from :func:`home`, and ``~`` is the user's folder."""
    try:
        return (home() / Path(path).expanduser()).resolve()
    except RuntimeError as error:  # a user that is not there, or links that go round in a circle
        raise ValueError(f"{path}: no such path ({error})") from None


def ladder(spec: str) -> str:
    """A ladder's name with its folder resolved; one that starts with a source's prefix (``hub:``) stays as it is."""
    from replicate.ladder import sources  # it brings in torch, which not everybody here needs

    return str(resolve(spec)) if sources.is_folder(spec) else spec


def notebooks() -> Path:
    """The folder of the notebooks that a run executes: below ``REPLICATE_HOME``, in the source tree, below here."""
    tree = Path(__file__).resolve().parents[3]
    places = [home(), tree] if os.environ.get("REPLICATE_HOME") else [tree, home()]
    return next(
        (p for place in places if any((p := place / "notebooks").glob("*.ipynb"))), places[0] / "notebooks"
    )


def notebook_files(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The notebooks in ``folder`` in reading order; with ``only`` those whose names begin so."""
    found = sorted((*folder.glob("[0-9][0-9]_*.ipynb"), *folder.glob("[0-9][0-9][a-z]_*.ipynb")))
    return [path for path in found if not only or path.stem.startswith(tuple(only))]


def _suite_above(folder: Path) -> Path:
    """The nearest suite around ``folder``, which may be its ``notebooks/`` or the copies that a run has executed."""
    suites = (p for p in folder.parents if (p / "params").is_dir() and (p / "notebooks" / _MAP).is_file())
    return next(suites, folder)
