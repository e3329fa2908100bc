"""Facts of a store as rows and back: added once by id, never changed, given in order of arrival."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from palate.records import Comparison, Medium, Ranking, Retraction, Sample, Score, Vote
from palate.store import schema
from palate.store.database import Database
from palate.store.errors import StoreError

PAGE = 500
MAX_TEXT, MAX_ID = 100_000, 500
Row = dict[str, Any]
Record = TypeVar("Record")


@dataclass(frozen=True)
class Kind:
    """A kind of fact. key: the columns by which one is known again. row, record: between a record and its columns."""

    table: sa.Table
    key: tuple[str, ...]
    row: Callable[[Any], Row]
    record: Callable[[Any], Any]


def media_path(sha256: str, type: str) -> str:
    """Where a medium of that content lies, relative to the project's folder."""
    return f"media/{sha256[:2]}/{sha256}{ENDINGS[type]}"


ENDINGS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "audio/mpeg": ".mp3",
    "text/plain": ".txt",
}

_SAMPLE = ("id", "prompt", "source", "time", "seed")
_SCORE = ("sample", "dimension", "source", "time")
_VOTE = tuple(column.name for column in schema.votes.columns if column.name != "seq")
_RANKING = ("id", "source", "time", "dimension", "comparison", "seconds", "repeat")
_COMPARISON = ("id", "prompt", "wanted", "batch", "expected", "dimension", "time", "sensitive")


def _fields(record: object, names: Iterable[str]) -> Row:
    return {name: getattr(record, name) for name in names}


def _listed(text: str) -> tuple[Any, ...]:
    return tuple(tuple(entry) if isinstance(entry, list) else entry for entry in json.loads(text))


def _sample(row: Any) -> Sample:
    medium = Medium(row.type, path=media_path(row.medium, row.type))
    return Sample(row.id, row.prompt, medium, row.source, row.time, row.seed)


SAMPLES = Kind(schema.samples, ("id",), lambda s: _fields(s, _SAMPLE), _sample)
SCORES = Kind(
    schema.scores,
    ("sample", "source", "dimension", "time"),
    lambda s: (
        _fields(s, ("sample", "dimension", "source", "time")) | {"value": None if math.isnan(s.value) else s.value}
    ),
    lambda r: Score(r.sample, r.dimension, math.nan if r.value is None else r.value, r.source, r.time),
)
VOTES = Kind(schema.votes, ("id",), lambda v: _fields(v, _VOTE), lambda r: Vote(**{k: getattr(r, k) for k in _VOTE}))
RANKINGS = Kind(
    schema.rankings,
    ("id",),
    lambda r: _fields(r, _RANKING) | {"groups": json.dumps(r.groups), "shown": json.dumps(r.shown)},
    lambda r: Ranking(
        groups=_listed(r.groups), shown=_listed(r.shown), **{name: getattr(r, name) for name in _RANKING}
    ),
)
RETRACTIONS = Kind(
    schema.retractions,
    ("id",),
    lambda r: _fields(r, ("id", "of", "source", "time")),
    lambda r: Retraction(r.id, r.of, r.source, r.time),
)
COMPARISONS = Kind(
    schema.comparisons,
    ("id",),
    lambda c: _fields(c, _COMPARISON) | {"samples": json.dumps(c.samples)},
    lambda r: Comparison(samples=_listed(r.samples), **{name: getattr(r, name) for name in _COMPARISON}),
)


def sample_query() -> sa.Select[Any]:
    """Samples with the type of their media, as `SAMPLES.record` takes them."""
    return sa.select(schema.samples, schema.media.c.type).join(
        schema.media, schema.media.c.sha256 == schema.samples.c.medium
    )


def comparison_query(mark: int | None = None) -> sa.Select[Any]:
    """Comparisons as the latest amendments, up to a mark (None: all), have them, as `COMPARISONS.record` takes them."""
    table, latest, last = schema.comparisons, schema.amendments, sa.alias(schema.amendments)
    newest = sa.select(sa.func.max(last.c.seq)).where(last.c.comparison == table.c.id)
    if mark is not None:
        newest = newest.where(last.c.seq <= mark)
    amended = ("expected", "dimension", "sensitive")
    columns = [
        sa.func.coalesce(latest.c[column.name], column).label(column.name) if column.name in amended else column
        for column in table.columns
    ]
    return sa.select(*columns).outerjoin_from(table, latest, latest.c.seq == newest.scalar_subquery())


def insert(connection: sa.Connection, kind: Kind, rows: Sequence[Row]) -> list[Row]:
    """Adds those that are new and returns them. Raises StoreError for another content under a known key."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        _check_texts(kind, row)
        known = found.setdefault(_key(kind, row), row)
        if known != row:
            raise _other(kind, row, known)
    new = []
    stored = _stored(connection, kind, list(found))
    for key, row in found.items():
        if key not in stored:
            new.append(row)
        elif changed := {name: stored[key][name] for name in row if stored[key][name] != row[name]}:
            raise _other(kind, row, changed)
    if new:
        connection.execute(sa.insert(kind.table), new)
    return new


def _key(kind: Kind, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in kind.key)


def _stored(connection: sa.Connection, kind: Kind, keys: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], Row]:
    """Rows that are there already, by their key."""
    first = kind.table.c[kind.key[0]]  # narrow enough: few scores are of one sample
    rows: dict[tuple[Any, ...], Row] = {}
    values = list(dict.fromkeys(key[0] for key in keys))
    for start in range(0, len(values), PAGE):
        query = sa.select(kind.table).where(first.in_(values[start : start + PAGE]))
        rows |= {_key(kind, row): row for row in map(dict, connection.execute(query).mappings())}
    return rows


def _other(kind: Kind, row: Row, known: Mapping[str, Any]) -> StoreError:
    names = [name for name, value in known.items() if name in row and row[name] != value]
    said = ", ".join(f"{name} {_short(known[name])} -> {_short(row[name])}" for name in names)
    which = " of ".join(str(part) for part in _key(kind, row))
    return StoreError(
        f"{kind.table.name}: {which} is known with another content ({said}); facts never change: give it another id"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_texts(kind: Kind, row: Row) -> None:
    """Raises StoreError for a text that not every database holds."""
    who = f"{kind.table.name} {_short(row.get('id', ''))}"
    for name, value in row.items():
        if not isinstance(value, str):
            continue
        most = MAX_ID if name in ("id", *kind.key, "source") else MAX_TEXT
        if len(value) > most:
            raise StoreError(f"{who}: {name} has {len(value):,} letters, at most {most:,}")
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise StoreError(f"{who}: {name} holds a letter that is none (NUL or half a pair); take it out")


def require(connection: sa.Connection, column: sa.Column[Any], wanted: Iterable[str], who: str) -> None:
    """Raises StoreError, with the first that is not there, unless all of them are in the column."""
    names = list(dict.fromkeys(wanted))
    for start in range(0, len(names), PAGE):
        part = names[start : start + PAGE]
        found = set(connection.scalars(sa.select(column).where(column.in_(part))))
        missing = [name for name in part if name not in found]
        if missing:
            what = f"{column.table.name[:-1]} {missing[0]!r}"
            raise StoreError(f"{who} about {what}, which the project does not hold; add that first")


def chunks(records: Iterable[Record], size: int = PAGE) -> Iterator[list[Record]]:
    iterator = iter(records)
    while part := list(islice(iterator, size)):
        yield part


def pages(database: Database, query: sa.Select[Any], seq: sa.Column[int], mark: int | None) -> Iterator[Any]:
    """Rows of a query in order of `seq`, up to a mark (None: as of now), a page at a time: no reading lasts long."""
    with database.read() as connection:
        last = mark if mark is not None else highest(connection, seq)
    at = 0
    while True:
        page = query.where(seq > at, seq <= last).order_by(seq).limit(PAGE)
        with database.read() as connection:
            rows = connection.execute(page).all()
        yield from rows
        if len(rows) < PAGE:
            return
        at = rows[-1].seq


def highest(connection: sa.Connection, seq: sa.Column[int]) -> int:
    return connection.scalar(sa.select(sa.func.coalesce(sa.func.max(seq), 0))) or 0


def highest_of(table: sa.Table) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.coalesce(sa.func.max(table.c.seq), 0)).scalar_subquery()


def not_retracted(table: sa.Table, mark: int | None) -> sa.ColumnElement[bool]:
    """Votes or rankings that were not taken back, by the retractions up to a mark."""
    taken_back = sa.select(1).where(schema.retractions.c.of == table.c.id)
    if mark is not None:
        taken_back = taken_back.where(schema.retractions.c.seq <= mark)
    return ~taken_back.exists()
