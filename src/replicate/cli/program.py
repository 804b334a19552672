"""The application, the options that its commands share, and what is checked before any of them does anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from replicate import __version__
from replicate.runs import params as schemas
from replicate.runs.params import ScaleParameters

app = typer.Typer(
    help="""Replication and audit of the Value-Gradient Hypothesis of RL for LLMs.

Relative paths, on the command line and in parameter files, are taken from the working directory; in the folder of the
notebooks RUN_DIR, LADDER and LADDER_DIR are taken from the suite's folder, and wherever REPLICATE_HOME is set, from
there. Status 0: all fine. 1: some job or notebook failed, the others are done. 2: the input is at fault, nothing ran.
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ParamsFile = Annotated[Path, typer.Option("-f", "--params", help="YAML file of parameters, as in params/.")]
Overrides = Annotated[
    list[str],
    typer.Option("-p", "--set", metavar="KEY=VALUE", help="Overrides one parameter; VALUE is read as YAML."),
]
Engine = Annotated[str, typer.Option(help="Where jobs run: local, or ray (the extra 'cluster').")]
Workers = Annotated[int, typer.Option(help="Processes side by side (jobs; notebooks).", min=1)]
Address = Annotated[str | None, typer.Option(help="Address of a running Ray cluster, with --engine ray.")]
GpusPerJob = Annotated[
    float | None,
    typer.Option(help="GPUs for each job, with --engine ray; one where DEVICE is cuda, else none.", min=0.0),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the ladder's rungs, as in 2/8."),
]
DEFAULT = Path("params/cpu.yaml")


def _show_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"replicate {__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool | None,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Shows the version."),
    ] = None,
) -> None:
    """Options of the program itself; the help text is the application's."""


def run_jobs(
    params: ScaleParameters,
    experiments: Sequence[Any] | None,
    *,
    shard: str | None = None,
    **how: Any,
) -> None:
    """Runs the jobs that have no record yet, says what became of them, and ends the program; ``how`` as sweep takes it.

    ``ValueError`` for a shard that is none.
    """
    from replicate.runs.jobs import EXPERIMENTS
    from replicate.runs.shares import Shard
    from replicate.runs.sweep import sweep as run_sweep

    part = Shard.parse(shard) if shard else None
    outcome = run_sweep(params, experiments=experiments or EXPERIMENTS, shard=part, **how)
    typer.echo(outcome.summary())
    say(outcome.warnings(), outcome.problems())
    raise typer.Exit(1 if outcome.failed else 0)


def say(warnings: Sequence[str], problems: Sequence[str]) -> None:
    """To stderr: what runs raised alarms about, which decides no status, and what failed, which does."""
    for line in warnings:
        typer.echo(f"alarm: {line}", err=True)
    for line in problems:
        typer.echo(f"failed: {line}", err=True)


def checked(
    path: Path,
    overrides: Sequence[str],
    engine: str = "local",
    *,
    notebooks: Sequence[str] | None = None,
    one_token: bool = False,
    keep: bool = True,
) -> ScaleParameters:
    """The parameters, once everything about them that can be known beforehand is found to be in order.

    ``one_token`` is for what cannot be asked of longer answers.
    """
    params = schemas.load(path, schemas.overrides(overrides))
    from replicate.runs import preflight

    preflight.require_engine(engine)
    if notebooks is not None:
        preflight.require_notebooks(notebooks)
    where = f"{path} with -p" if overrides else str(path)
    if one_token:
        preflight.require_one_token(params, where=where)
    preflight.require(params, where=where, keep=keep)
    return params
