"""Snapshots: how far each kind of fact had come. What came later is not in it, so that it reads the same for ever."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from palate.records import now
from palate.store import facts, schema
from palate.store.errors import StoreError

_TABLES = ("samples", "scores", "votes", "rankings", "retractions", "comparisons", "erasures")
_LATER = ("amendments",)  # of a later schema: in an id only where there are any, so that older ids stay what they are
_ALL = _TABLES + _LATER


@dataclass(frozen=True)
class Snapshot:
    """id: holds the marks, so that it means the same wherever the project is opened. marks: the last row of each table.

    time: when it was taken; empty where only its id is known.
    """

    id: str
    time: str
    marks: Mapping[str, int]
    name: str | None = None


def take(connection: sa.Connection, project: str, name: str | None, save: bool) -> Snapshot:
    """The facts as they are now. The same facts give the same id. Raises StoreError for a name of other facts."""
    columns = [facts.highest_of(schema.FACTS[table]).label(table) for table in _ALL]
    row = connection.execute(sa.select(*columns)).one()
    marks = {table: getattr(row, table) for table in _ALL}
    made = Snapshot(_id(project, marks), now(), marks, name)
    if not save:
        return made
    table = schema.snapshots
    known = connection.execute(sa.select(table).where(table.c.id == made.id)).first()
    if known is None:
        _check_name(connection, name)
        connection.execute(sa.insert(table).values(id=made.id, name=name, time=made.time))
        return made
    if name is not None and known.name is None:
        _check_name(connection, name)
        connection.execute(sa.update(table).where(table.c.id == made.id).values(name=name))
    elif name not in (None, known.name):
        raise StoreError(f"nothing came in since snapshot {known.name!r}: use that, or call it as it is called")
    return Snapshot(made.id, known.time, marks, name or known.name)


def _check_name(connection: sa.Connection, name: str | None) -> None:
    if name is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w. -]{0,99}", name) or _marks_of(name) is not None:
        raise StoreError(f"a snapshot cannot be called {name!r}: up to 100 letters and digits, and not like an id")
    if connection.scalar(sa.select(schema.snapshots.c.id).where(schema.snapshots.c.name == name)) is not None:
        raise StoreError(f"there is a snapshot {name!r} already, of other facts: choose another name")


def find(connection: sa.Connection, project: str, wanted: str) -> Snapshot:
    """By id or name. Raises StoreError if there is none, or if it can no longer be given as it was."""
    table = schema.snapshots
    row = connection.execute(sa.select(table).where(sa.or_(table.c.id == wanted, table.c.name == wanted))).first()
    name = row.id if row is not None else wanted
    marks = _marks_of(name)
    if marks is None or _id(project, marks) != name:
        kept = connection.scalars(sa.select(table.c.name).where(table.c.name.is_not(None)).order_by(table.c.time)).all()
        names = f"; those with names are {', '.join(map(repr, kept[-5:]))}" if kept else ""
        raise StoreError(
            f"snapshot {wanted!r} is none of this project{names}; palate dataset export prints the id of each"
        )
    found = Snapshot(name, row.time if row else "", marks, row.name if row else None)
    check(connection, found)
    return found


def check(connection: sa.Connection, snapshot: Snapshot) -> None:
    """Raises StoreError if votes that were in the snapshot were erased since, or if it is from the future."""
    table = schema.erasures
    later = sa.select(table).where(table.c.seq > snapshot.marks["erasures"]).order_by(table.c.seq)
    for row in connection.execute(later):
        if any(first <= snapshot.marks[name] for name, first in json.loads(row.lowest).items()):
            raise StoreError(
                f"snapshot {snapshot.id} holds votes of a rater who was erased on {row.time}: "
                "it cannot be given as it was; take a new one"
            )
    for name, mark in snapshot.marks.items():
        if mark > facts.highest(connection, schema.FACTS[name].c.seq) and not _erased(connection, name):
            raise StoreError(f"snapshot {snapshot.id} has more {name} than the database: an older copy was put back")


def _erased(connection: sa.Connection, name: str) -> bool:
    """Whether rows of the table were ever deleted, so that its highest says little."""
    return any(name in json.loads(text) for text in connection.scalars(sa.select(schema.erasures.c.lowest)))


def _id(project: str, marks: Mapping[str, int]) -> str:
    told = [*_TABLES, *(table for table in _LATER if marks[table])]
    numbers = "-".join(str(marks[table]) for table in told)
    return f"{numbers}-{hashlib.sha256(f'{project} {numbers}'.encode()).hexdigest()[:8]}"


def _marks_of(name: str) -> dict[str, int] | None:
    if not re.fullmatch(rf"(\d{{1,18}}-){{{len(_TABLES)},{len(_ALL)}}}[0-9a-f]{{8}}", name):
        return None
    numbers = map(int, name.split("-")[:-1])
    return dict.fromkeys(_ALL, 0) | dict(zip(_ALL, numbers, strict=False))
