"""``replicate hub``: checkpoints on the Hugging Face hub, from what there is to files on this disk."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from replicate.cli.program import Overrides, app
from replicate.runs import params as schemas

hub = typer.Typer(
    help="""Checkpoints on the Hugging Face hub: list what there is, lock what is chosen, check it, fetch it.

The ladder is LADDER ("hub:org/name") of the parameter file; HF_ENDPOINT and HF_TOKEN are the hub's own.
""",
    rich_markup_mode=None,
)
app.add_typer(hub, name="hub")

HubParams = Annotated[
    Path, typer.Option("-f", "--params", help="YAML file whose LADDER is a hub's, as params/olmo2-1b.yaml.")
]
OLMO2 = Path("params/olmo2-1b.yaml")


def _asked(path: Path, overrides: list[str]):
    """What the file tells the source; ``ValueError`` if its ladder is not the hub's."""
    params = schemas.load(path, schemas.overrides(overrides))
    if not params.LADDER.startswith("hub:"):
        raise ValueError(
            f"{path}: LADDER: expected hub:org/name, got {params.LADDER!r}; give it with -p LADDER=..."
        )
    from replicate.ladder.hub import client
    from replicate.runs import jobs

    asked = jobs.request(params)
    return asked, client.names_of(asked.spec), Path(asked.hub.lock)


@hub.command("list")
def list_revisions(params: HubParams = OLMO2, overrides: Overrides = []) -> None:  # noqa: B006
    """Lists the revisions of each repository by stage, with the gaps between them."""
    _, repos, _ = _asked(params, overrides)
    from replicate.ladder.hub.listing import listing

    for each in listing(repos):
        for line in each.lines():
            typer.echo(line)


@hub.command()
def lock(params: HubParams = OLMO2, overrides: Overrides = []) -> None:  # noqa: B006
    """Chooses revisions by HUB_STEPS and writes HUB_LOCK: commits, sizes and SHA-256; no weights are read."""
    asked, repos, path = _asked(params, overrides)
    from replicate.ladder.hub import lock as locks

    made = locks.make(repos, asked.hub.steps, progress=True)
    made.save(path)
    for line in made.holes:
        typer.echo(f"hole: {line}")
    total = sum(one.size() for one in made.checkpoints)
    typer.echo(f"{path}: {len(made.checkpoints)} checkpoints, {total / 1e9:.3g} GB")


@hub.command()
def preflight(
    params: HubParams = OLMO2,
    overrides: Overrides = [],  # noqa: B006
    rate: Annotated[float, typer.Option(help="Megabytes a second that the network brings.", min=0.01)] = 50.0,
    seconds: Annotated[float | None, typer.Option(help="Seconds of work a checkpoint.", min=0.0)] = None,
) -> None:
    """Says from the lock alone what would go wrong (status 1), and what fetching costs in bytes, disk and hours."""
    asked, repos, path = _asked(params, overrides)
    from replicate.ladder.hub import lock as locks
    from replicate.ladder.hub import preflight as checks

    locked = locks.load(path, repos)
    problems = [f"{repo}@{branch}: {why}" for (repo, branch), why in checks.refusals(locked).items()]
    plan = checks.plan(locked, asked.folder / "hub", on_disk=asked.hub.on_disk)
    problems += [said] if (said := plan.complaint()) else []
    typer.echo(plan.line(rate=rate, seconds=seconds))
    for line in problems:
        typer.echo(f"refused: {line}", err=True)
    raise typer.Exit(1 if problems else 0)


@hub.command()
def fetch(params: HubParams = OLMO2, overrides: Overrides = []) -> None:  # noqa: B006
    """Fetches every checkpoint of the lock and keeps it, going on where an earlier fetch was broken off."""
    asked, _, _ = _asked(params, overrides)
    from replicate.checks import first_line
    from replicate.ladder.sources.hub import open as open_hub

    ladder = open_hub(asked)
    failed = [why for _, why in ladder.refused]
    for rung in tqdm(ladder, desc="fetch", unit="checkpoint", file=sys.stderr):
        try:
            rung.ready()
        except (ValueError, OSError) as error:  # the others can still be had
            failed.append(first_line(error))
    for line in failed:
        typer.echo(f"failed: {line}", err=True)
    typer.echo(f"{len(ladder) + len(ladder.refused) - len(failed)} checkpoints in {asked.folder / 'hub'}")
    raise typer.Exit(1 if failed else 0)
