"""The command line: ``replicate --help``, the same as ``python -m replicate --help``.

Every error that the input causes is one line on stderr that names the culprit, and status 2; a run in which some job
or notebook failed finishes the others, says so, and ends with status 1. Parameters are checked before torch is
imported, and what the machine can tell about them before any work.
"""

import os
import sys

import typer

from replicate import kernels
from replicate.cli import hub, jobs, score, upkeep  # noqa: F401 - a command is there once its module is imported
from replicate.cli.program import app
from replicate.runs import params as schemas

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: turns errors of the input into one line and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        kernels.setting()
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name="replicate", standalone_mode=False))
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except typer.TyperException as error:
        _refuse(f"{error.format_message()} (see replicate --help)")
    except (ValueError, OSError) as error:
        _refuse(str(error))


def _refuse(message: str) -> None:
    print(f"replicate: error: {schemas.one_line(message)}", file=sys.stderr)
    sys.exit(2)
