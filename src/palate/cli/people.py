"""Verbs on a project folder: score, project ... (`palate sample --project` is in models, `palate dataset export` in
dataset.)"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import BatchSize, app, group

project_verbs = group(
    "project", "A project's raters, known pairs and sensitive comparisons. Also while the studio runs."
)

Project = Annotated[Path, typer.Argument(help="Folder of the project.")]
Who = Annotated[str, typer.Argument(metavar="RATER", help="A rater's id, or name; `palate project raters` lists them.")]


@app.command()
def score(
    project: Annotated[Path, typer.Option(help="Folder of the project.")],
    scorer: Annotated[list[str], typer.Option(help="Scorer by name, dotted path, or world:shapes; may be repeated.")],
    batch_size: BatchSize = 8,
) -> None:
    """AI feedback: score every sample of a project.

    The same command again scores only what is new.
    """
    from palate.doors import asked
    from palate.project import read

    read(project)
    asked.scorers(scorer)
    from palate.doors.projects import score as run

    run(project, scorer, batch_size)


@project_verbs.command("comparisons")
def project_comparisons(project: Project) -> None:
    """List what is compared, a line of JSON each.

    Its id, what it shows, whether it is known or sensitive, and how many judged it. With `expected` filled in, such
    lines are a table for `palate project known`.
    """
    from palate.doors.marking import listing as run

    run(project)


@project_verbs.command("known")
def project_known(
    project: Project,
    file: Annotated[
        Path | None,
        typer.Argument(help="Table, .jsonl or .csv: `comparison`, or `prompt`, `a` and `b`; `expected`; `dimension`."),
    ] = None,
    comparison: Annotated[str, typer.Option(help="Id of one comparison, instead of a table.")] = "",
    expected: Annotated[str, typer.Option(help="With --comparison: id of the sample that wins it.")] = "",
    dimension: Annotated[str, typer.Option(help="Which question it answers [default: the first].")] = "",
    unmark: Annotated[bool, typer.Option("--unmark", help="They are ordinary again, and count.")] = False,
) -> None:
    """Say which pairs have a plain answer, to test raters by.

    They are mixed in and shown to everybody, marked by nothing, and count for nothing else. Pairs of files come into
    the project.
    """
    if (file is None) == (not comparison):
        raise typer.BadParameter("give either a table or --comparison", param_hint="FILE")
    if file is not None and expected:
        raise typer.BadParameter("is told by the table's own column; leave it out", param_hint="--expected")
    from palate.doors.marking import known as run

    run(project, file, comparison=comparison, expected=expected, dimension=dimension, unmark=unmark)


@project_verbs.command("sensitive")
def project_sensitive(
    project: Project,
    comparison: Annotated[list[str] | None, typer.Option(help="Id of a comparison; may be repeated.")] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Id of a sample: all that show it; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts: all comparisons of these.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="Prompts by * and ?, such as '*blood*'; repeatable.")] = None,
    matching: Annotated[
        list[str] | None, typer.Option(help="Prompts by a regular expression found in them; repeatable.")
    ] = None,
    unmark: Annotated[bool, typer.Option("--unmark", help="They are not sensitive any more.")] = False,
) -> None:
    """Say what not everybody wants to look at.

    It is blurred if the project says so, and not shown to raters who ask to be spared. It is said of comparisons that
    are there; of those that are made later, run it again.
    """
    if not (comparison or sample or prompts or like or matching):
        names = "--comparison, --sample, --prompts, --like or --matching"
        raise typer.BadParameter(f"say which, by {names}", param_hint="PROJECT")
    from palate.doors.marking import sensitive as run

    run(
        project,
        comparisons=comparison or [],
        samples=sample or [],
        prompt_file=prompts,
        like=like or [],
        matching=matching or [],
        unmark=unmark,
    )


@project_verbs.command("raters")
def project_raters(project: Project) -> None:
    """Who judges, how much, and how reliably.

    Known pairs, repeats answered alike, pace, and flags with their reasons.
    """
    from palate.doors.raters import table as run

    run(project)


@project_verbs.command("judges")
def project_judges(
    project: Project,
    question: Annotated[str | None, typer.Option(help="Name of the project's question; the first by default.")] = None,
) -> None:
    """Which scorers agree with your people, and how far people agree.

    Of what `palate score` stored: accuracy on people's pairs, ties left out and ties told, and rank correlations.
    """
    from palate.doors.agreeing import table as run

    run(project, question)


@project_verbs.command("revoke")
def project_revoke(project: Project, rater: Who) -> None:
    """A rater's join link lets nobody in any more. What they said stays."""
    from palate.doors.raters import revoke as run

    run(project, rater)


@project_verbs.command("erase")
def project_erase(
    project: Project,
    rater: Who,
    votes: Annotated[bool, typer.Option("--votes", help="And delete all that they said.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Without asking.")] = False,
) -> None:
    """Forget a rater, on their request.

    Name and link, and, with --votes, all they said. It cannot be undone. It says what goes and what stays, and asks.
    That it was done is noted.
    """
    from palate.doors.raters import erase as run

    if not run(project, rater, votes=votes, yes=yes):
        raise typer.Exit(1)
