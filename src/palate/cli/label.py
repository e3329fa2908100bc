"""`palate label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import app


@app.command()
def label(
    project: Annotated[Path, typer.Option(help="Folder of the project; `palate sample ... --project` fills it.")],
    host: Annotated[str, typer.Option(help="Address to listen on; another than the loopback needs tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any.")] = 8765,
    name: Annotated[
        list[str] | None, typer.Option(help="Name under which others reach it, such as a proxy's; may be repeated.")
    ] = None,
    raters: Annotated[int | None, typer.Option(min=1, help="Make so many more join links.")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what a wanted interval takes, and serve nothing.")] = False,
    within: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="With --plan: half of the interval of a win rate, at 95%.")
    ] = 0.05,
) -> None:
    """The studio: judge in a browser, alone or with others.

    Every answer is on disk when the page says so; stop it with Ctrl-C and start it again at any time.
    """
    if plan:
        from palate.doors.plans import plan as tell

        tell(project, within)
        return
    from palate.doors.labelling import label as run

    run(project, host=host, port=port, names=name or [], raters=raters, open_browser=open_browser)
