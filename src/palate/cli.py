"""The command `palate`: one thin command per verb. What a verb does is imported when it is called, never before.

Exit codes: 0 done, 1 failed (one line `error: ...` on stderr), 2 wrong usage, 75 stopped by a signal after saving,
130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="palate",
    help="Align generative models with what people prefer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same results.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps of a sample [default: the model's own].")]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Scale of classifier-free guidance [default: the model's own].")
]
Eta = Annotated[
    float | None,
    typer.Option(min=0, help="Noise put back at each step; 0 is deterministic [default: the model's own]."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Candidates sampled at once; speed only.")]
Prompts = Annotated[Path, typer.Option("--prompts", help="Text file of prompts, one a line, or world:shapes:eval.")]


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


@app.command()
def demo(
    method: Annotated[str, typer.Option(help="Which algorithm to run.")] = "diffusion_dpo",
    out: Out = Path("demo"),
    seed: Seed = 0,
) -> None:
    """The whole loop on the built-in world.

    Samples, judges, trains, compares and reports, in a few minutes on a laptop.
    """
    from palate.demo import run

    run(method=method, out=out, seed=seed)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A hub id, a local folder, or world:shapes.")],
    prompts: Annotated[Path, typer.Argument(help="Text file of prompts, one a line, or world:shapes:eval.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Candidates of each prompt.")] = 4,
    out: Out = Path("runs/samples"),
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    eta: Eta = None,
    batch_size: BatchSize = 8,
) -> None:
    """Draw candidates for prompts, each with its seed."""
    from palate.run import sample as run

    run(
        model,
        prompts,
        k=k,
        out=out,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=eta,
        batch_size=batch_size,
    )


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Values that replace the recipe's.")
    ] = None,
) -> None:
    """Train by a recipe. The same command again resumes an unfinished run."""
    from palate.run import train as run

    run(recipe, overrides or [])


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
    from palate.run import compare as run

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


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file to write [default: report.html in RUN].")
    ] = None,
) -> None:
    """Write one HTML page about a run.

    Verdict, pictures before and after, scores, curves and the resolved recipe.
    """
    from palate.evaluation.report import from_run, write

    path = out or run / "report.html"
    write(from_run(run), path)
    typer.echo(path)


@app.command()
def doctor() -> None:
    """Versions, devices, memory and known traps of this installation."""
    from palate.doctor import main as run

    if not run():
        raise typer.Exit(1)


RESUMABLE = {
    "train": "run the same command again to resume from its last checkpoint",
    "sample": "run the same command again to draw what is missing",
    "demo": "run the same command again to go on",
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
        code = 1
    except SystemExit as leave:
        code = leave.code
        if code == 130:
            verb = next((argument for argument in given if not argument.startswith("-")), "")
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
