"""Verbs about judges: serve-scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import app


@app.command("serve-scorer")
def serve_scorer(
    name: Annotated[str, typer.Argument(help="A scorer: its name, a dotted path, or world:shapes.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 for any that is free.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="Where the token is, or is made [default: the user's own settings].")
    ] = None,
) -> None:
    """Serve a scorer to Palate in another environment.

    On this machine, to whoever has the token; elsewhere it is named http:127.0.0.1:PORT.
    """
    from palate.doors.serving import serve

    serve(name, port, token_file)
