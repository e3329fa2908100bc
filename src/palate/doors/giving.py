"""What people and judges said in a project, as preference data of a snapshot; for the command and the dashboard. No
torch: the studio gives it out, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from palate import durable, views
from palate.config import ConfigError
from palate.datasets import parquet
from palate.doors import awaited
from palate.doors.hands import KNOWN, reading
from palate.records import OVERALL, Preference
from palate.store import Snapshot, Store
from palate.views import Labels


@dataclass(frozen=True)
class How:
    """by: votes (and rankings) or scores of `dimension`; what was asked beside it is kept as aspects. held_out: share
    of the prompts that goes to `validation` beside `train`. labels, at_least: as of `views.prefer_from_votes`."""

    by: str = "votes"
    dimension: str = OVERALL
    labels: Labels = "soft"
    at_least: int = 1
    held_out: float = 0.0


def export(folder: Path, out: Path, how: How = How(), *, snapshot: str | None = None, name: str | None = None) -> None:
    """Writes it into a folder; the same snapshot and options give the same bytes.

    snapshot: id or name of an earlier one; None takes one now, called `name`. Raises StoreError for a snapshot that
    cannot be given, ConfigError where nothing would be written.
    """
    if snapshot is not None and name is not None:
        raise ConfigError("--name calls a new snapshot, and --snapshot is one that was taken: give either")
    with reading(folder, to_note=name is not None) as store:
        taken = store.find_snapshot(snapshot) if snapshot is not None else store.snapshot(name)
        for part, made in write(store, taken, out, how).items():
            print(f"{made.rows} rows in {part}, hash {made.hash[:16]}")
    print(f"snapshot {taken.id}{f' ({taken.name})' if taken.name else ''}: --snapshot gives the same bytes again")


def write(store: Store, taken: Snapshot, out: Path, how: How = How()) -> dict[Path, parquet.Manifest]:
    """The data of a snapshot, by the folders that it fills. Raises ConfigError where nothing would be written."""
    rows = list(_rows(store, taken, how))
    # A project that asks nothing overall has aspects alone, and rows that compare nothing themselves.
    if not rows or (how.dimension != OVERALL and not any(np.isfinite(row.prefer).any() for row in rows)):
        raise ConfigError(
            f"{store.folder}: nothing was said of {how.dimension!r} by {how.by} yet; there is nothing to export"
        )
    durable.make_folder(out)
    parts = {out: rows}
    if how.held_out:
        kept, aside = views.held_out([row.prompt for row in rows], how.held_out)
        parts = {out / "train": [rows[i] for i in kept], out / "validation": [rows[i] for i in aside]}
    made = {
        part: parquet.write(part, (replace(awaited.whole(store, row), id="") for row in content))
        for part, content in parts.items()
    }
    facts = {"project": store.settings.id, "snapshot": taken.id, **asdict(how)}
    durable.write_bytes(out / "snapshot.json", (json.dumps(facts, indent=1) + "\n").encode())
    return made


def _rows(store: Store, taken: Snapshot, how: How) -> Iterator[Preference]:
    if how.by not in ("votes", "scores"):
        raise ConfigError(f"--by {how.by}: preferences are by votes or by scores")
    scores = list(store.scores(snapshot=taken))
    return views.preferences(
        (sample for sample in store.samples(snapshot=taken) if sample.source != KNOWN),  # no candidate of any model
        store.votes(snapshot=taken),
        scores,
        rankings=store.rankings(snapshot=taken),
        comparisons=store.comparisons(snapshot=taken),
        by="votes" if how.by == "votes" else "scores",
        dimensions=sorted({score.dimension for score in scores}),
        dimension=how.dimension,
        # In the data the overall judgement is the row's own, and no aspect of it.
        aspects=[asked for asked in store.settings.questions if asked not in (how.dimension, OVERALL)],
        labels=how.labels,
        at_least=how.at_least,
    )
