"""The command line: ``replicate --help``, the same as ``python -m replicate --help``.

Every error that the input causes is one line on stderr that names the culprit, and status 2; a run in which some job
or notebook failed finishes the others, says so, and ends with status 1. Parameters are checked before torch is
imported, and what the machine can tell about them before any work.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from replicate import __version__, kernels
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


@app.command()
def run(
    params: ParamsFile = DEFAULT,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody mutates it
    engine: Engine = "local",
    address: Address = None,
    only: Annotated[
        list[str], typer.Option(help="Execute only notebooks whose name starts so, as in --only 11.")
    ] = [],  # noqa: B006
    workers: Workers = 1,
) -> None:
    """The main job: the ladder, all jobs, every notebook; leaves figures, tables and provenance in RUN_DIR."""
    checked = _load(params, overrides, engine, notebooks=only)
    from replicate.runs.main_job import main_job

    outcome = main_job(checked, engine=engine, address=address, only=only, workers=workers)
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
    _sweep(_load(params, overrides, engine), None, engine, address, workers)


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
    from replicate.runs import preflight
    from replicate.runs import study as studies
    from replicate.runs import study_interventions as interventions

    for name in role:
        one_of("--role", name, studies.ROLES)
    loaded = studies.load(params, schemas.overrides(overrides))
    interventions.of(loaded)
    if publish is not None:
        studies.thresholds(loaded.preregistration)  # rather than find out when the last job is done
    entries = loaded.of(role or studies.ROLES, only)
    for entry in entries:
        preflight.require(entry.params, where=f"{params}, ladder {entry.name}")
    plans = studies.run(loaded, entries, workers=workers)
    held = [] if any(plan.outcome.problems() for plan in plans) else interventions.entries(loaded, entries)
    plans += studies.run(loaded, held, workers=workers) if held else []
    problems = [line for plan in plans for line in plan.outcome.problems()]
    for plan in plans:
        typer.echo(f"{plan.name}: {plan.outcome.summary()}")
    for line in problems:
        typer.echo(f"failed: {line}", err=True)
    if publish is not None and not problems:
        studies.publish(loaded, entries, publish)
        if held:
            studies.publish(loaded, held, publish / "interventions")
        typer.echo(f"tables of {len(entries)} ladders in {publish}")
    raise typer.Exit(1 if problems else 0)


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
    checked = _load(params, overrides)
    from replicate.runs import jobs

    opened = jobs.ladder(checked)
    typer.echo(f"{opened.kind}: {len(opened)} checkpoints")
    for checkpoint in opened:
        typer.echo(
            f"{checkpoint.step:>9}  {checkpoint.tokens or '-':>15}  {checkpoint.sha[:12]}  {checkpoint.name}"
        )


@app.command("check-params")
def check_params(
    params: Annotated[Path, typer.Argument(help="YAML file of parameters.")],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Checks a parameter file: names, types, and whether folders, device and ladder can be used here.

    Nothing is computed and nothing is left behind.
    """
    _load(params, overrides, keep=False)
    typer.echo(f"{params}: fine")


@app.command("params")
def parameters(
    write: Annotated[bool, typer.Option("--write", help="Make the generated files anew.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Status 1 if one is out of date.")] = False,
) -> None:
    """Lists every parameter with its default; keeps smoke.yaml and the notebooks' parameter cells up to date."""
    from replicate.runs import parameter_files, paths

    if not (write or check):
        typer.echo(parameter_files.smoke_yaml(), nl=False)
        return
    old = parameter_files.stale(paths.notebooks().parent, write=write)
    for path in old:
        typer.echo(f"{path}: {'rewritten' if write else 'out of date; replicate params --write'}")
    raise typer.Exit(1 if check and old and not write else 0)


@app.command()
def fingerprint() -> None:
    """Says whether this machine computes the same bits as the one that published the results (some seconds)."""
    from replicate.runs import fingerprint as prints

    found = prints.fingerprint()
    for name, value in found.items():
        typer.echo(f"{name:24s} {value:12s}{'' if prints.REFERENCE[name] == value else 'differs'}")
    same = "none" if not (differs := prints.differences(found)) else f"{len(differs)} of {len(found)}"
    typer.echo(f"kernels {kernels.name()}; entries that differ from the published run's: {same}")


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
    _load(params, overrides, notebooks=only, keep=False)
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


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder of the published run.")] = Path("results/cpu"),
    readme: Annotated[Path, typer.Option(help="README whose generated blocks are made anew.")] = Path(
        "README.md"
    ),
    claims: Annotated[Path, typer.Option(help="Page of all claims, made anew.")] = Path("CLAIMS.md"),
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether both pages are up to date.")
    ] = False,
    publish: Annotated[
        Path | None, typer.Option(help="First copy this run's small results into RESULTS.")
    ] = None,
) -> None:
    """Makes the README's tables and CLAIMS.md from the results; with --publish, takes over a finished run first."""
    from replicate.files import write_text
    from replicate.report import claims_page
    from replicate.report import readme as blocks
    from replicate.runs.main_job import publish_run

    if publish is not None:
        publish_run(publish, results)
    pages = {
        readme: blocks.render(readme, results),
        claims: claims_page.render(results, results.parent / "elsewhere"),
    }
    stale = [page for page, text in pages.items() if not page.is_file() or page.read_text() != text]
    for page, text in pages.items():
        if not check and page in stale:
            write_text(page, text)
        words = ("out of date" if check else "rewritten") if page in stale else "up to date"
        typer.echo(f"{page}: {words}")
    raise typer.Exit(1 if check and stale else 0)


def _sweep(
    params: ScaleParameters,
    experiments: Sequence[Any] | None,
    engine: str = "local",
    address: str | None = None,
    workers: int = 1,
) -> None:
    from replicate.runs.jobs import EXPERIMENTS
    from replicate.runs.sweep import sweep as run_sweep

    wanted = experiments or EXPERIMENTS
    outcome = run_sweep(params, experiments=wanted, engine=engine, address=address, workers=workers)
    typer.echo(outcome.summary())
    for line in outcome.problems():
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if outcome.failed else 0)


def _load(
    path: Path,
    overrides: Sequence[str],
    engine: str = "local",
    *,
    notebooks: Sequence[str] | None = None,
    keep: bool = True,
) -> ScaleParameters:
    """The parameters, once everything about them that can be known beforehand is found to be in order."""
    params = schemas.load(path, schemas.overrides(overrides))
    from replicate.runs import preflight

    preflight.require_engine(engine)
    if notebooks is not None:
        preflight.require_notebooks(notebooks)
    preflight.require(params, where=f"{path} with -p" if overrides else str(path), keep=keep)
    return params


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


if __name__ == "__main__":
    main()
