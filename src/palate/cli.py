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
    image: Annotated[
        Path | None,
        typer.Option(help="A picture, or a folder of them, that the prompts change: one for all, or one for each."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far, above 0 (the picture) up to 1 (a new one) [default: 0.6].")
    ] = None,
) -> None:
    """Draw candidates for prompts, each with its seed.

    From noise, or, with --image, out of pictures that the prompts change.
    """
    from palate.drawing import sample as run

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
        image=image,
        strength=strength,
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
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Add the adapter into the base: a pipeline folder that needs nothing else.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write [default: export, or merged, in RUN].")
    ] = None,
) -> None:
    """A run's weights and model card, for others to load.

    The card tells what they were made of and by, and no paths, names or secrets of yours.
    """
    from palate.exporting import export as to

    to(run, out, merge=merge)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe: what it would take, nothing downloaded.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides such as training.micro_batch_size=1.")
    ] = None,
    fetch_configs: Annotated[bool, typer.Option(help="Get the configs of a model on the hub, no weights.")] = False,
) -> None:
    """Versions, devices, memory and known traps, or a recipe's needs.

    Of this installation; or, with a recipe, what memory and time it takes, before it is run.
    """
    if recipe is not None:
        from palate.estimate import of_recipe

        of_recipe(recipe, overrides or (), fetch=fetch_configs)
        return
    from palate.doctor import main as run

    if not run():
        raise typer.Exit(1)


dataset = typer.Typer(
    help="Preference data: check it, import it, convert it. Any format or hub id that Palate reads.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dataset, name="dataset")

Data = Annotated[str, typer.Argument(help="A folder, a file, or a hub id owner/name[:config][@revision].")]
Format = Annotated[str | None, typer.Option(help="Its format [default: found by looking].")]
Split = Annotated[str | None, typer.Option(help="Which split [default: train, where there are several].")]
MediaRoot = Annotated[Path | None, typer.Option(help="Where relative media paths start [default: beside the table].")]
MaxBad = Annotated[float, typer.Option(min=0, max=1, help="Share of bad media, and of bad rows, that may be left out.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Stop after so many rows.")]
Merge = Annotated[bool, typer.Option(help="Make one row of pairs of a prompt that follow each other.")]


@dataset.command("check")
def dataset_check(
    path: Data,
    format: Format = None,
    split: Split = None,
    media_root: MediaRoot = None,
    max_bad: MaxBad = 0.01,
    against: Annotated[
        str | None, typer.Option(help="Another split of it, or another path: prompts and media that both have.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read all of it, decode every medium, and say whether it is good; exit code 1 if not.

    Counts, ties, bad media and rows by reason, near duplicates, label balance by side and by model, and what two
    splits share.
    """
    from palate.data import check as run

    good = run(
        path,
        format=format,
        split=split,
        media_root=media_root,
        max_bad=max_bad,
        against=against,
        as_json=as_json,
    )
    if not good:
        raise typer.Exit(1)


@dataset.command("import")
def dataset_import(
    source: Data,
    out: Annotated[Path, typer.Argument(help="Folder to write Palate's own format into.")],
    format: Format = None,
    split: Split = None,
    media_root: MediaRoot = None,
    limit: Limit = None,
    max_bad: MaxBad = 0.01,
    merge: Merge = False,
) -> None:
    """Write it in Palate's own format, media and all.

    Bad media are left out and counted, up to the share --max-bad; beyond it nothing is written.
    """
    from palate.data import convert as run

    run(
        source,
        out,
        format=format,
        split=split,
        media_root=media_root,
        limit=limit,
        max_bad=max_bad,
        merge=merge,
    )


@dataset.command("convert")
def dataset_convert(
    source: Data,
    out: Annotated[Path, typer.Argument(help="File or folder to write, as the format has it.")],
    to: Annotated[str, typer.Option(help="parquet (Palate's own), pickapic, trl or flow_factory.")],
    format: Format = None,
    split: Split = None,
    media_root: MediaRoot = None,
    limit: Limit = None,
    max_bad: MaxBad = 0.01,
    merge: Merge = False,
) -> None:
    """Write it in another format that others read."""
    from palate.data import convert as run

    run(
        source,
        out,
        to,
        format=format,
        split=split,
        media_root=media_root,
        limit=limit,
        max_bad=max_bad,
        merge=merge,
    )


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
