"""The command line: ``replicate --help``, the same as ``python -m replicate --help``.

Every error that the input causes is one line on stderr that names the culprit, and status 2; a run in which some job
or notebook failed finishes the others, says so, and ends with status 1.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from replicate.runs import params as schemas
from replicate.runs.params import ScaleParameters

app = typer.Typer(
    help="Replication and audit of the Value-Gradient Hypothesis of RL for LLMs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

ParamsFile = Annotated[Path, typer.Option("-f", "--params", help="YAML file of parameters, as in params/.")]
Overrides = Annotated[
    list[str], typer.Option("-p", "--set", metavar="KEY=VALUE", help="Overrides one parameter.")
]
Engine = Annotated[str, typer.Option(help="Where jobs run: local, or ray (the extra 'cluster').")]
Workers = Annotated[int, typer.Option(help="Processes side by side (jobs; notebooks).", min=1)]
Address = Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")]
DEFAULT = Path("params/cpu.yaml")


@app.command()
def run(
    params: ParamsFile = DEFAULT,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody mutates it
    engine: Engine = "local",
    address: Address = None,
    only: Annotated[list[str], typer.Option(help="Execute only notebooks whose name starts so.")] = [],  # noqa: B006
    workers: Workers = 1,
) -> None:
    """The main job: the ladder, all jobs, every notebook; leaves figures, tables and provenance in RUN_DIR."""
    from replicate.runs.main_job import main_job

    outcome = main_job(_load(params, overrides), engine=engine, address=address, only=only, workers=workers)
    typer.echo(outcome.summary())
    for line in outcome.problems():
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if outcome.problems() else 0)


@app.command()
def sweep(
    params: ParamsFile = DEFAULT,
    overrides: Overrides = [],  # noqa: B006
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = 1,
) -> None:
    """Runs every job (checkpoint x seed x experiment) that has no record yet."""
    _sweep(_load(params, overrides), ("measure", "rl"), engine, address, workers)


@app.command()
def measure(params: ParamsFile = DEFAULT, overrides: Overrides = []) -> None:  # noqa: B006
    """Runs the measurements only: J_0, costates, headroom."""
    _sweep(_load(params, overrides), ("measure",))


@app.command()
def rl(params: ParamsFile = DEFAULT, overrides: Overrides = []) -> None:  # noqa: B006
    """Runs GRPO only, at the listed budgets and seeds."""
    _sweep(_load(params, overrides), ("rl",))


@app.command()
def ladder(params: ParamsFile = DEFAULT, overrides: Overrides = []) -> None:  # noqa: B006
    """Opens the ladder, training the tiny one if it is not there, and lists its checkpoints."""
    from replicate.runs import jobs

    opened = jobs.ladder(_load(params, overrides))
    typer.echo(f"{opened.kind}: {len(opened)} checkpoints")
    for checkpoint in opened:
        typer.echo(f"{checkpoint.step:>9}  {checkpoint.tokens:>15}  {checkpoint.sha[:12]}  {checkpoint.name}")


@app.command("check-params")
def check_params(
    params: Annotated[Path, typer.Argument(help="YAML file of parameters.")],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Checks a parameter file and changes nothing."""
    _load(params, overrides)
    typer.echo(f"{params}: fine")


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder of the published run.")] = Path("results/cpu"),
    readme: Annotated[Path, typer.Option(help="README whose generated blocks are made anew.")] = Path(
        "README.md"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the README is up to date.")
    ] = False,
    publish: Annotated[
        Path | None, typer.Option(help="First copy this run's small results into RESULTS.")
    ] = None,
) -> None:
    """Makes the README's tables from the results; with --publish, takes over a finished run first."""
    from replicate.report import readme as blocks
    from replicate.runs.main_job import publish_run

    if publish is not None:
        publish_run(publish, results)
    text = blocks.render(readme, results)
    current = readme.read_text() == text
    if check:
        typer.echo(f"{readme}: {'up to date' if current else 'out of date'}")
        raise typer.Exit(0 if current else 1)
    readme.write_text(text)
    typer.echo(f"{readme}: {'unchanged' if current else 'rewritten'}")


def _sweep(
    params: ScaleParameters,
    experiments: Sequence[Any],
    engine: str = "local",
    address: str | None = None,
    workers: int = 1,
) -> None:
    from replicate.runs.sweep import sweep as run_sweep

    outcome = run_sweep(params, experiments=experiments, engine=engine, address=address, workers=workers)
    typer.echo(outcome.summary())
    for row in outcome.failed:
        typer.echo(f"failed: {row['experiment']} at {row['checkpoint']}: {row['error']}", err=True)
    raise typer.Exit(1 if outcome.failed else 0)


def _load(path: Path, overrides: Sequence[str]) -> ScaleParameters:
    import yaml

    changed = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: expected KEY=VALUE")
        changed[key] = yaml.safe_load(value)
    return schemas.load(path, changed)


def main() -> None:
    """Entry point: turns errors of the input into one line and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"replicate: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
