"""`palate compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import BatchSize, Eta, Guidance, Out, Prompts, Seed, Steps, app


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
        list[str],
        typer.Option(
            help="Scorer by name or dotted path; may be repeated. Each score has a verdict of its own, "
            "unless NAME=WEIGHT says how to add them up."
        ),
    ],
    held_out_scorer: Annotated[
        list[str] | None, typer.Option(help="A judge kept apart from what was trained on; may be repeated.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Seeds of each prompt.")] = 2,
    out: Out = Path("runs/compare"),
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    eta: Eta = None,
    batch_size: BatchSize = 8,
) -> None:
    """Win rates of two or more models on the same prompts and seeds.

    The same command again prints what it found.
    """
    from palate.doors import asked

    asked.sampling(models, prompts)
    asked.scorers(name.partition("=")[0] for name in [*scorer, *(held_out_scorer or ())])
    from palate.doors.comparing import compare as run

    run(
        models,
        prompts=prompts,
        scorers=scorer,
        held_out=held_out_scorer or (),
        n=n,
        out=out,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=eta,
        batch_size=batch_size,
    )
