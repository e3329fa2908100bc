"""The command `palate`: one thin command per verb. What a verb does is imported when it is called, never before.

Exit codes: 0 done, 1 failed (one line `error: ...` on stderr), 2 wrong usage, 75 stopped after saving, by a signal or
for a service that could not be reached: the same command goes on; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from palate.cli import (  # noqa: F401  # each adds its verbs
    compare,
    dataset,
    judges,
    label,
    models,
    people,
    rounds,
    synthesize,
)
from palate.cli.options import app


def _version(asked: bool) -> None:
    if asked:
        from palate import __version__

        typer.echo(f"palate {__version__}")
        raise typer.Exit


@app.callback()
def palate(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Align generative models with what people prefer."""


RESUMABLE = {
    "train": "run the same command again to resume from its last checkpoint",
    "sample": "run the same command again to draw what is missing",
    "score": "run the same command again to score what is missing",
    "demo": "run the same command again to go on",
    "rounds": "run the same command again to go on",
    "compare": "run the same command again to draw and judge what is missing",
    "synthesize": "run the same command again to make what is missing",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; an expected error is one line, not a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # wherever it stands
    given = [argument for argument in given if argument != "--debug"]
    try:
        code = app(given, prog_name="palate", standalone_mode=True)
    except (ValueError, OSError, RuntimeError) as error:
        if not _expected(error):
            raise
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {_one_line(error)}", err=True)
        code = getattr(error, "exit_code", 1)
    except SystemExit as leave:
        code = leave.code
        if code == 130:
            verb = next((argument for argument in given if argument in RESUMABLE), "")
            typer.echo(f"\ninterrupted; {RESUMABLE.get(verb, 'run the same command again to start over')}", err=True)
    sys.exit(code)


def _expected(error: Exception) -> bool:
    """Whether the user can mend it: wrong values, files, and whatever palate itself refuses; not faults within."""
    ours = type(error).__module__.startswith("palate.")
    return isinstance(error, ValueError | OSError) or ours or _out_of_memory(error)


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _one_line(error: Exception) -> str:
    if _out_of_memory(error):
        return (
            "the device ran out of memory; lower training.micro_batch_size, rollout.batch_size or "
            "evaluation.batch_size (--batch-size of sample and compare), or set training.gradient_checkpointing=true"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
