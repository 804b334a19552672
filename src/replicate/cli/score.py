"""The command that scores checkpoints on a task of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from replicate.cli.program import app


@app.command()
def score(
    ladder: Annotated[
        str, typer.Option(help="Folder of snapshots, one snapshot, or a source such as hub:...")
    ],
    task: Annotated[
        Path,
        typer.Option(help='JSON lines: {"prompt": ..., "answers": [...]}, or only prompts with --verifier.'),
    ],
    out: Annotated[Path, typer.Option(help="Folder for CSV, JSON and figure.")] = Path("runs/score"),
    verifier: Annotated[
        str | None, typer.Option(help="module:function(prompt, completion), a reward from 0 to 1.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Length of sampled completions, with --verifier.", min=1)
    ] = 1,
    samples: Annotated[
        int, typer.Option(help="GRPO's group; with --verifier two groups of so many a prompt.", min=2)
    ] = 8,
    budget: Annotated[int, typer.Option(help="GRPO updates whose gain is predicted.", min=1)] = 40,
    prompts: Annotated[int | None, typer.Option(help="Take so many of the task's prompts.", min=2)] = None,
    batch: Annotated[int, typer.Option(help="Prompts passed through the model at once.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="Torch's name of the device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, float64, bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Decides what is drawn.", min=0)] = 0,
    lock: Annotated[Path, typer.Option(help="Lock file of a hub's ladder.")] = Path("hub.lock.json"),
    study: Annotated[str, typer.Option(help="Folder of the study that gives the law.")] = "results/study",
) -> None:
    """Scores your own checkpoints on your own task: J_0, the law's score, the gain it predicts, how sure that is."""
    from replicate.settings.hub import Hub
    from replicate.settings.machine import Machine
    from replicate.settings.scoring import Scoring

    if max_tokens > 1 and verifier is None:
        raise ValueError("--max-tokens: expected 1 without --verifier, answers of a task are one token")
    machine = Machine(device=device, dtype=dtype)
    scoring = Scoring(
        samples=samples, max_tokens=max_tokens, budget=budget, prompts=prompts, batch=batch, seed=seed
    )
    from replicate.files import require_writable
    from replicate.ladder import open_ladder
    from replicate.report import score_page
    from replicate.runs import paths, text_tasks
    from replicate.runs import score as scores

    given = text_tasks.load(paths.resolve(task), verifier=verifier, name=str(task))
    told = {"folder": paths.resolve("runs/ladders"), "hub": Hub(lock=str(paths.resolve(lock)))}
    opened, law = open_ladder(paths.ladder(ladder), **told), scores.calibration(study)
    require_writable(paths.resolve(out))
    found = scores.score(opened, given, scoring, machine, law)
    written = {"ladder": opened, "task": given, "scoring": scoring, "machine": machine, "law": law}
    scores.write(paths.resolve(out), found, **written)
    typer.echo(f"{opened.kind}: {len(found.rungs)} of {len(opened)} checkpoints scored on {given.path}")
    count = len(found.prompts) // len(found.rungs)
    options = {"budget": budget, "samples": samples, "rated": verifier is not None, "prompts": count}
    typer.echo(score_page.page(found.rungs, found.pairs, law, **options))
    typer.echo(f"score.csv, score.json, score.png, score.pdf, pairs.csv and prompts.csv are in {out}")
    for line in found.failed:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if found.failed else 0)
