"""`palate compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import BatchSize, Call, Eta, Guidance, Prompts, Seed, Steps, app, drawn_with


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]", help="The model to beat, then others: hub id, folder, run, world:shapes."
        ),
    ],
    prompts: Prompts,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="Scorer by name or dotted path; may be repeated. Each score has a verdict of its own, "
            "unless NAME=WEIGHT says how to add them up."
        ),
    ] = None,
    held_out_scorer: Annotated[
        list[str] | None, typer.Option(help="A judge kept apart from what was trained on; may be repeated.")
    ] = None,
    people: Annotated[bool, typer.Option("--people", help="People judge, in the project's studio.")] = False,
    project: Annotated[Path | None, typer.Option(help="Folder of the project that people vote in.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Seeds of each prompt.")] = 2,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results [default: runs/compare/A-vs-B].")
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    eta: Eta = None,
    call: Call = None,
    batch_size: BatchSize = 8,
) -> None:
    """Win rates of models on the same prompts and seeds.

    Of pictures, videos or sounds, judged by scorers, or by people: then the pairs go into a project, and when votes are
    in, the same command counts them. The same command again goes on where it was stopped, or prints what it found.
    """
    from palate.doors import asked

    how = {"n": n} | drawn_with(seed, steps, guidance, eta, call, batch_size)
    asked.sampling(models, prompts, out=out)
    asked.scorers(name.partition("=")[0] for name in [*(scorer or ()), *(held_out_scorer or ())])
    out = out or asked.comparison_folder(models)
    if people or project:
        if not (people and project) or scorer or held_out_scorer:
            raise typer.BadParameter(
                "give --people with --project and without scorers, or --scorer", param_hint="--people"
            )
        from palate.doors.polling import compare as poll

        poll(models, prompts=prompts, project=project, out=out, **how)
        return
    if not scorer:
        raise typer.BadParameter("say who judges: --scorer NAME, or --people --project DIR", param_hint="--scorer")
    from palate.doors.comparing import compare as run

    run(models, prompts=prompts, scorers=scorer, held_out=held_out_scorer or (), out=out, **how)
