"""Commands that run jobs and notebooks."""

from pathlib import Path
from typing import Annotated

import typer

from replicate.cli.program import (
    DEFAULT,
    Address,
    Engine,
    GpusPerJob,
    Overrides,
    ParamsFile,
    ShardOption,
    Workers,
    app,
    checked,
    run_jobs,
    say,
)
from replicate.runs import params as schemas


@app.command()
def run(
    params: ParamsFile = DEFAULT,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody mutates it
    engine: Engine = "local",
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
    only: Annotated[
        list[str], typer.Option(help="Execute only notebooks whose name starts so, as in --only 11.")
    ] = [],  # noqa: B006
    workers: Workers = 1,
) -> None:
    """The main job: the ladder, all jobs, every notebook; leaves figures, tables and provenance in RUN_DIR."""
    given = checked(params, overrides, engine, notebooks=only, one_token=True)
    from replicate.runs.main_job import main_job

    how = {"engine": engine, "address": address, "gpus_per_job": gpus_per_job}
    outcome = main_job(given, only=only, workers=workers, **how)
    typer.echo(outcome.summary())
    say(outcome.warnings(), outcome.problems())
    raise typer.Exit(1 if outcome.problems() else 0)


def _command_of(name: str, experiments: tuple[str, ...] | None, says: str) -> None:
    """Makes a command that runs the missing jobs of these experiments (None: of all)."""

    @app.command(name, help=says)
    def command(
        params: ParamsFile = DEFAULT,
        overrides: Overrides = [],  # noqa: B006
        engine: Engine = "local",
        address: Address = None,
        gpus_per_job: GpusPerJob = None,
        shard: ShardOption = None,
        workers: Workers = 1,
    ) -> None:
        how = {"engine": engine, "address": address, "gpus_per_job": gpus_per_job}
        given = checked(params, overrides, engine, one_token=experiments != ("rl",))
        run_jobs(given, experiments, shard=shard, workers=workers, **how)


_command_of("sweep", None, "Runs every job (checkpoint x seed x experiment) that has no record yet.")
_command_of("measure", ("measure",), "Runs the measurements only: J_0, costates, headroom.")
_command_of("rl", ("rl",), "Runs GRPO only, at the listed budgets and seeds.")


@app.command()
def study(
    params: Annotated[Path, typer.Option("-f", "--params", help="Study file.")] = Path("params/study.yaml"),
    overrides: Overrides = [],  # noqa: B006
    role: Annotated[list[str], typer.Option(help="Only ladders of these roles; all by default.")] = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(help="Only ladders of this name.")] = [],  # noqa: B006
    publish: Annotated[
        Path | None, typer.Option(help="Afterwards write the small tables into this folder.")
    ] = None,
    workers: Workers = 2,
) -> None:
    """Several ladders: trains each and runs its jobs; the locked ones only once the preregistration is committed."""
    from replicate.checks import one_of
    from replicate.runs import cells, cells_published, preflight
    from replicate.runs import study as studies
    from replicate.runs import study_interventions as interventions
    from replicate.runs.units import warnings_of

    for name in role:
        one_of("--role", name, studies.ROLES)
    loaded = studies.load(params, schemas.overrides(overrides))
    interventions.of(loaded)
    is_of_cells = bool(cells.of(loaded))
    if publish is not None:
        studies.thresholds(loaded.preregistration)  # rather than find out when the last job is done
    entries = loaded.of(role or studies.ROLES, only)
    for entry in entries:
        if not is_of_cells:  # a cell says by itself what it runs
            preflight.require_one_token(entry.params, where=f"{params}, ladder {entry.name}")
        preflight.require(entry.params, where=f"{params}, ladder {entry.name}")
    if is_of_cells:
        studies.train(loaded, entries, workers=workers)
        entries = cells.entries(loaded, entries)
    plans = studies.run(loaded, entries, workers=workers)
    held = [] if any(plan.outcome.problems() for plan in plans) else interventions.entries(loaded, entries)
    plans += studies.run(loaded, held, workers=workers) if held else []
    problems = [line for plan in plans for line in plan.outcome.problems()]
    for plan in plans:
        typer.echo(f"{plan.name}: {plan.outcome.summary()}")
    say(warnings_of({plan.name: plan.outcome for plan in plans}), problems)
    if publish is not None and is_of_cells:
        failed = {plan.name: plan.outcome.failed for plan in plans}
        cells_published.publish(loaded, entries, publish, failed)
        typer.echo(f"tables of {len(entries)} cells in {publish}")
    elif publish is not None and not problems:
        studies.publish(loaded, entries, publish)
        if held:
            studies.publish(loaded, held, publish / "interventions")
        typer.echo(f"tables of {len(entries)} ladders in {publish}")
    raise typer.Exit(1 if problems else 0)


@app.command()
def ladder(params: ParamsFile = DEFAULT, overrides: Overrides = []) -> None:  # noqa: B006
    """Opens the ladder, training the tiny one if it is not there, and lists its checkpoints."""
    given = checked(params, overrides)
    from replicate.runs import jobs

    opened = jobs.ladder(given)
    typer.echo(f"{opened.kind}: {len(opened)} checkpoints")
    for checkpoint in opened:
        typer.echo(
            f"{checkpoint.step:>9}  {checkpoint.tokens or '-':>15}  {checkpoint.sha[:12]}  {checkpoint.name}"
        )


@app.command()
def elsewhere(
    params: ParamsFile = DEFAULT,
    overrides: Overrides = [],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="Values of SEED, each with a ladder of its own.")] = [  # noqa: B006
        *range(5)
    ],
    settings: Annotated[
        list[str], typer.Option(help="Kernels: pinned, native, stand-in (another machine's rounding).")
    ] = ["pinned", "native", "stand-in"],  # noqa: B006
    only: Annotated[list[str], typer.Option(help="Execute only notebooks whose name starts so.")] = [],  # noqa: B006
    results: Annotated[Path, typer.Option(help="Folder for the verdict tables.")] = Path("results/elsewhere"),
    workers: Workers = 1,
) -> None:
    """The main job at several seeds and under several kernels; status 1 if a run fails or two verdicts differ."""
    checked(params, overrides, notebooks=only, one_token=True, keep=False)
    from replicate.report import elsewhere as seen
    from replicate.runs import elsewhere as runs

    options = {"seeds": seeds, "settings": settings, "only": only, "overrides": overrides}
    status = runs.elsewhere(params, **options, results=results, workers=workers)
    problems = [f"failed: {name}: {error}" for name, error in status.items() if error]
    found = {name: tables for name, tables in seen.load(results).items() if name in status}
    first = next(iter(found.values()), [])
    problems += [f"differs: {line}" for line in seen.disagreements(first, found)]
    for line in problems:
        typer.echo(line, err=True)
    typer.echo(f"{len(found)} of {len(status)} runs finished, verdicts in {results}")
    raise typer.Exit(1 if problems else 0)
