"""Commands that check, list and report; they compute nothing that is published."""

from pathlib import Path
from typing import Annotated

import typer

from replicate import kernels
from replicate.cli.program import Overrides, app, checked


@app.command("check-params")
def check_params(
    params: Annotated[Path, typer.Argument(help="YAML file of parameters.")],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Checks a parameter file: names, types, and whether folders, device and ladder can be used here.

    Nothing is computed and nothing is left behind.
    """
    checked(params, overrides, keep=False)
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
def report(
    results: Annotated[Path, typer.Option(help="Folder of the published run.")] = Path("results/cpu"),
    readme: Annotated[Path, typer.Option(help="README whose generated blocks are made anew.")] = Path(
        "README.md"
    ),
    claims: Annotated[
        Path, typer.Option(help="Page of all claims, made anew; the glossary beside it.")
    ] = Path("CLAIMS.md"),
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the pages are up to date.")
    ] = False,
    publish: Annotated[
        Path | None, typer.Option(help="First copy this run's small results into RESULTS.")
    ] = None,
) -> None:
    """Makes the README's tables, CLAIMS.md and GLOSSARY.md anew; with --publish, takes over a finished run first."""
    from replicate.files import write_text
    from replicate.report import claims_page, glossary
    from replicate.report import readme as blocks
    from replicate.runs.main_job import publish_run

    if publish is not None:
        publish_run(publish, results)
    pages = {
        readme: blocks.render(readme, results),
        claims: claims_page.render(results, results.parent / "elsewhere"),
        claims.with_name("GLOSSARY.md"): glossary.page(),
    }
    stale = [page for page, text in pages.items() if not page.is_file() or page.read_text() != text]
    for page, text in pages.items():
        if not check and page in stale:
            write_text(page, text)
        words = ("out of date" if check else "rewritten") if page in stale else "up to date"
        typer.echo(f"{page}: {words}")
    raise typer.Exit(1 if check and stale else 0)
