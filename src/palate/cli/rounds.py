"""`palate rounds`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import app


@app.command()
def rounds(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the rounds.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Values that replace the recipe's.")
    ] = None,
) -> None:
    """Draw, ask people, learn, and again.

    The same command again goes on wherever it was stopped: votes and drawings are kept.
    """
    from palate import config

    config.load(recipe, overrides or [], config.RoundsRecipe)  # a slip is told before torch is imported
    from palate.doors.rounds import rounds as run

    run(recipe, overrides or [])
