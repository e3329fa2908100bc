"""`palate compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import BatchSize, Eta, Guidance, Out, Prompts, Seed, Steps, app


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The model to beat: hub id, folder, or world:shapes.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other: likewise, or a run folder.")],
    prompts: Prompts,
    scorer: Annotated[
        list[str],
        typer.Option(
            help="Scorer by name or dotted path; may be repeated. Each score has a verdict of its own, "
            "unless NAME=WEIGHT says how to add them up."
        ),
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="Seeds of each prompt.")] = 2,
    out: Out = Path("runs/compare"),
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    eta: Eta = None,
    batch_size: BatchSize = 8,
) -> None:
    """Win rates of two models on the same prompts and seeds.

    The same command again prints what it found.
    """
    from palate.doors.run import compare as run

    run(
        a,
        b,
        prompts=prompts,
        scorers=scorer,
        n=n,
        out=out,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=eta,
        batch_size=batch_size,
    )
