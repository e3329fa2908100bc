"""Verbs about models: sample, train, report, export, demo, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from palate.cli.options import BatchSize, Call, Eta, Guidance, Out, Seed, Steps, app, drawn_with


@app.command()
def demo(
    method: Annotated[str | None, typer.Option(help="Which algorithm to run [default: diffusion_dpo].")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results [default: demo, or demo-human].")
    ] = None,
    seed: Seed = 0,
    human: Annotated[
        bool, typer.Option("--human", help="With your own votes, some 70 of them, in the browser.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --human: where the studio listens.")] = 8765,
) -> None:
    """The whole loop on the built-in world.

    Samples, judges, trains, compares and reports, in a few minutes on a laptop.
    """
    if human:
        from palate.doors.human import run as with_you

        with_you(method, out=out or Path("demo-human"), seed=seed, port=port)
        return
    out = out or Path("demo")
    from palate.doors.demo import METHOD, run

    run(method=method or METHOD, out=out, seed=seed)


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
    call: Call = None,
    batch_size: BatchSize = 8,
    image: Annotated[
        Path | None,
        typer.Option(help="A picture, or a folder of them, that the prompts change: one for all, or one for each."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far, above 0 (the picture) up to 1 (a new one) [default: 0.6].")
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(help="Draw into this project, made if need be, for people to compare; no --out."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="With --project: comparisons of each prompt [default: all].")
    ] = None,
    batch: Annotated[str, typer.Option(help="With --project: what they are drawn for, such as a round.")] = "",
    layout: Annotated[
        str | None,
        typer.Option(help="Also in a benchmark's folders: geneval, dpg, hpsv2 or partiprompts, of its prompt file."),
    ] = None,
) -> None:
    """Draw candidates for prompts, each with its seed.

    Pictures, videos or sounds, as the model makes them. From noise, or, with --image, out of pictures that the prompts
    change. With --project they are to be labelled.
    """
    from palate.doors import asked

    asked.sampling([model], prompts, image=image, out=out)
    how: dict[str, Any] = {"k": k, "image": image, "strength": strength}
    how |= drawn_with(seed, steps, guidance, eta, call, batch_size)
    if project is not None:
        from palate.doors.projects import sample as into

        into(model, prompts, folder=project, pairs=pairs, batch=batch, **how)
        return
    from palate.doors.drawing import sample as run

    run(model, prompts, out=out, layout=layout, **how)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Values that replace the recipe's.")
    ] = None,
) -> None:
    """Train by a recipe. The same command again resumes an unfinished run."""
    from palate.doors import asked

    asked.training(recipe, overrides or [])
    from palate.doors.run import train as run

    run(recipe, overrides or [])


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
    from palate.doors import asked

    asked.run(run)
    from palate.doors.judging import write_report

    path = out or run / "report.html"
    write_report(run, path)
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
    from palate.doors import asked

    asked.run(run, finished=True)
    from palate.doors.exporting import export as to

    to(run, out, merge=merge)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe: what it would take, nothing downloaded.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides such as training.micro_batch_size=1.")
    ] = None,
    fetch_configs: Annotated[bool, typer.Option(help="Get the configs of a model on the hub, no weights.")] = False,
) -> None:
    """Versions, devices, memory, traps, or a recipe's needs.

    Of this installation; or, with a recipe, what memory and time it takes, before it is run.
    """
    if recipe is not None:
        from palate.doors import asked

        model = asked.looked_at(recipe, overrides or ()).model.name
        typer.echo(f"following a step of {model} from its configs alone ...", err=True)
        from palate.doors.estimate import of_recipe

        of_recipe(recipe, overrides or (), fetch=fetch_configs)
        return
    from palate.doors.doctor import main as run

    if not run():
        raise typer.Exit(1)
