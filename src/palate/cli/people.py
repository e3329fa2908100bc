"""Verbs on a project folder: score. (`palate sample --project` is in models, `palate dataset export` in dataset.)"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import BatchSize, app


@app.command()
def score(
    project: Annotated[Path, typer.Option(help="Folder of the project.")],
    scorer: Annotated[list[str], typer.Option(help="Scorer by name, dotted path, or world:shapes; may be repeated.")],
    batch_size: BatchSize = 8,
) -> None:
    """AI feedback: score every sample of a project.

    The same command again scores only what is new.
    """
    from palate.doors.projects import score as run

    run(project, scorer, batch_size)
