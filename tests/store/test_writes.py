"""Statements that go out together: the same rows as one after the other, all or none, in fewer turns of the server."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from palate.store import schema
from palate.store.writes import Value, Writes, adding

PLACE = {"known": False, "sensitive": False}


def take(value: Value) -> sa.Update:
    places = schema.places
    return sa.update(places).where(places.c.comparison == value("comparison")).values(free=places.c.free - value("by"))


def rows(store) -> list[tuple]:
    with store._database.read() as connection:
        query = sa.select(schema.places.c.comparison, schema.places.c.free).order_by(schema.places.c.seq)
        return [tuple(row) for row in connection.execute(query)]


def heard(store, job) -> int:
    """Statements that the job takes."""
    said: list[str] = []

    def hear(_connection, _cursor, statement, *_rest):
        said.append(statement)

    def counted(connection):
        said.clear()
        job(connection)

    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    try:
        store._database.write(counted)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)
    return len(said)


@pytest.mark.parametrize("number", [0, 1, 2, 8, 9, 20])
def test_as_many_rows_as_one_after_the_other(opened, number):
    store = opened()
    postgres = store._database.name.startswith("postgresql")
    add = adding(schema.places)

    def job(connection):
        writes = Writes(connection)
        for n in range(number):
            writes.add(add, comparison=f"c{n}", seq=n, free=n, **PLACE)
        writes.run()
        writes.run()  # nothing is left

    assert heard(store, job) == (-(-number // 8) if postgres else number)
    assert rows(store) == [(f"c{n}", n) for n in range(number)]

    def changed(connection):
        writes = Writes(connection)
        for n in range(number):
            writes.add(take, comparison=f"c{n}", by=10 * n)
        writes.add(add, comparison="last", seq=99, free=7, **PLACE)
        writes.run()

    store._database.write(changed)
    assert rows(store) == [*((f"c{n}", -9 * n) for n in range(number)), ("last", 7)]


def test_all_or_none(opened):
    store = opened()
    add = adding(schema.places)

    def job(connection):
        writes = Writes(connection)
        for comparison in ("a", "b", "a"):
            writes.add(add, comparison=comparison, seq=1, free=1, **PLACE)
        writes.run()

    with pytest.raises(sa.exc.IntegrityError):
        store._database.write(job)
    assert rows(store) == []


def test_an_unknown_name_is_told(opened):
    store = opened()

    def job(connection):
        writes = Writes(connection)
        writes.add(take, comparison="c")
        writes.run()

    with pytest.raises(sa.exc.SQLAlchemyError, match="w0_by"):
        store._database.write(job)
