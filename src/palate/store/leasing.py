"""Leases given out and taken in, each in transactions of its own: what a rater asks for outside an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from palate.project import ProjectSettings
from palate.store import leases
from palate.store.database import Database
from palate.store.leases import Lease
from palate.store.writes import Writes

Write = Callable[[Callable[[sa.Connection], Any]], Any]


def lease(
    database: Database, write: Write, rater: str, n: int, now: float, settings: ProjectSettings
) -> Sequence[Lease]:
    """What `Store.lease` says. write: runs a job in a transaction; only who lacks some waits for one."""

    def taken(connection: sa.Connection) -> Sequence[Any]:
        row = leases.rater_of(connection, rater)
        before = leases.held(connection, rater, now, row.opted_out)
        writes = Writes(connection)
        made = leases.take(writes, row, n, now, settings, holding=len(before))
        writes.run()
        return [*before, *made]

    with database.read() as connection:
        mine = leases.held(connection, rater, now, leases.is_spared(connection, rater))
    if len(mine) < n:
        mine = write(taken)
    with database.read() as connection:
        return leases.filled(connection, mine[:n])


def expire(database: Database, write: Write, now: float) -> None:
    """Gives the places of leases that ran out back, if there are any."""
    with database.read() as connection:
        late = leases.any_expired(connection, now)
    if late:
        write(lambda connection: leases.expire(connection, now))
