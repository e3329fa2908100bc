"""`palate dataset synthesize`: preference data that models judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.dataset import dataset
from palate.cli.options import BatchSize, Eta, Guidance, Seed, Steps


@dataset.command("synthesize")
def synthesize(
    prompts: Annotated[Path, typer.Argument(help="Prompts, one a line, or world:shapes:train.")],
    out: Annotated[Path, typer.Argument(help="Folder to write Palate's own format into.")],
    model: Annotated[list[str], typer.Option(help="Draws candidates: a hub id, a folder, a run. Repeat for more.")],
    scorer: Annotated[list[str], typer.Option(help="Judges them; NAME=-1 where less is better. Repeat for more.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Candidates of each prompt by each model.")] = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    eta: Eta = None,
    batch_size: BatchSize = 8,
    shard: Annotated[int, typer.Option(min=1, help="Prompts of a shard: what is done again after a kill.")] = 64,
    in_memory: Annotated[int, typer.Option(min=1, help="Models held in memory at once.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Share the shards out by Ray Data (extra ray).")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Of Ray [default: one each GPU, or one].")] = None,
) -> None:
    """Draw candidates by several models, rank them by several scorers.

    Ranked preferences with their scores, and what they cost; run it again and only what is missing is made.
    """
    from palate.doors.synthesis import synthesize as run

    run(
        prompts,
        out,
        model,
        scorer,
        k=k,
        seed=seed,
        per_shard=shard,
        batch_size=batch_size,
        in_memory=in_memory,
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=eta,
        ray=ray,
        workers=workers,
    )
