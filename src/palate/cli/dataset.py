"""`palate dataset ...`: preference data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.options import group

dataset = group("dataset", "Preference data: check it, import it, convert it. Any format or hub id that Palate reads.")

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
    from palate.doors.data import check as run

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
    dataset_convert(source, out, "parquet", format, split, media_root, limit, max_bad, merge)


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
    from palate.doors.data import convert as run

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


@dataset.command("export")
def dataset_export(
    project: Annotated[Path, typer.Argument(help="Folder of a project.")],
    out: Annotated[Path, typer.Argument(help="Folder to write Palate's own format into.")],
    snapshot: Annotated[str | None, typer.Option(help="Of an earlier snapshot, by id or name [default: now].")] = None,
    name: Annotated[str | None, typer.Option(help="Call the snapshot that is taken.")] = None,
    by: Annotated[str, typer.Option(help="votes (rankings among them) or scores.")] = "votes",
    dimension: Annotated[str, typer.Option(help="Which question, or which score, is the preference.")] = "overall",
    labels: Annotated[str, typer.Option(help="soft (share of the votes) or majority.")] = "soft",
    at_least: Annotated[int, typer.Option(min=1, help="Leave pairs with fewer votes out.")] = 1,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the prompts for OUT/validation, beside OUT/train.")
    ] = 0.0,
) -> None:
    """What people and judges said in a project, as preference data.

    A snapshot: the same one gives the same bytes, whatever comes in. Works while the studio runs.
    """
    from palate.doors.giving import How
    from palate.doors.giving import export as run

    if labels not in ("soft", "majority"):
        raise typer.BadParameter("may be soft or majority", param_hint="--labels")
    if by not in ("votes", "scores"):
        raise typer.BadParameter("may be votes or scores", param_hint="--by")
    how = How(by, dimension, "majority" if labels == "majority" else "soft", at_least, held_out)
    run(project, out, how, snapshot=snapshot, name=name)
