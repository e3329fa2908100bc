"""Facts that come in, with what must hold between them: a vote is about samples that are there, and so on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from palate.records import Comparison, Ranking, Retraction, Score, Vote
from palate.store import facts, medium, schema
from palate.store.errors import StoreError
from palate.store.facts import Kind, Row

Rows = list[tuple[Row, str, str, int]]  # a sample's row without its medium; that one's hash, type and size


def samples(connection: sa.Connection, rows: Rows) -> int:
    """Samples and what their media are, of which the files are on disk."""
    for _, sha256, kind, size in rows:
        medium.note(connection, sha256, kind, size)
    table = schema.samples
    query = sa.select(table.c.id, table.c.batch).where(table.c.id.in_([row["id"] for row, *_ in rows]))
    batches = {row.id: row.batch for row in connection.execute(query)}  # what is known stays in the batch it came in
    made = [row | {"medium": sha256, "batch": batches.get(row["id"], row["batch"])} for row, sha256, _, _ in rows]
    return len(facts.insert(connection, facts.SAMPLES, made))


def scores(connection: sa.Connection, part: list[Score]) -> int:
    _require_samples(connection, (score.sample for score in part), "a score")
    return _insert(connection, facts.SCORES, part)


def votes(connection: sa.Connection, part: list[Vote]) -> int:
    _require_samples(connection, (sample for vote in part for sample in (vote.a, vote.b)), "a vote")
    return _insert(connection, facts.VOTES, part)


def rankings(connection: sa.Connection, part: list[Ranking]) -> int:
    _require_samples(connection, (name for made in part for group in made.groups for name in group), "a ranking")
    return _insert(connection, facts.RANKINGS, part)


def retractions(connection: sa.Connection, part: list[Retraction]) -> int:
    known: set[str] = set()
    for table in (schema.votes, schema.rankings):
        known |= set(connection.scalars(sa.select(table.c.id).where(table.c.id.in_([made.of for made in part]))))
    missing = [made.of for made in part if made.of not in known]
    if missing:
        raise StoreError(f"a retraction of {missing[0]!r}, which is no vote or ranking of the project")
    return _insert(connection, facts.RETRACTIONS, part)


def comparisons(connection: sa.Connection, part: list[Comparison]) -> int:
    """Comparisons, and the places of the raters that are wanted."""
    ids = list(dict.fromkeys(sample for made in part for sample in made.samples))
    query = sa.select(schema.samples.c.id, schema.samples.c.prompt).where(schema.samples.c.id.in_(ids))
    prompts = {row.id: row.prompt for row in connection.execute(query)}
    for made in part:
        for sample in made.samples:
            if prompts.get(sample) != made.prompt:
                what = "of another prompt" if sample in prompts else "not in the project; add it first"
                raise StoreError(f"comparison {made.id!r}: sample {sample!r} is {what}")
    new = facts.insert(connection, facts.COMPARISONS, [facts.COMPARISONS.row(made) for made in part])
    fresh = {made.id: made for made in part if made.id in {row["id"] for row in new}}
    if not fresh:
        return 0
    table = schema.comparisons
    arrived = connection.execute(sa.select(table.c.id, table.c.seq).where(table.c.id.in_(list(fresh)))).all()
    connection.execute(
        sa.insert(schema.places),
        [
            {
                "comparison": row.id,
                "seq": row.seq,
                "free": fresh[row.id].wanted,
                "known": bool(fresh[row.id].expected),
                "sensitive": fresh[row.id].sensitive,
            }
            for row in arrived
        ],
    )
    shown = [{"comparison": made.id, "sample": sample} for made in fresh.values() for sample in made.samples]
    connection.execute(sa.insert(schema.shown), shown)
    return len(fresh)


def _insert(connection: sa.Connection, kind: Kind, part: list[Any]) -> int:
    return len(facts.insert(connection, kind, [kind.row(record) for record in part]))


def _require_samples(connection: sa.Connection, names: Iterable[str], who: str) -> None:
    facts.require(connection, schema.samples.c.id, names, who)
