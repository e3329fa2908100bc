"""Leases given out and taken in, each in transactions of its own: what a rater asks for outside an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from palate.project import ProjectSettings
from palate.store import leases
from palate.store.database import Database
from palate.store.leases import Lease

ATTEMPTS = 8  # at one of the last comparisons, when others are after it, too
Write = Callable[[Callable[[sa.Connection], Any]], Any]


def lease(
    database: Database, write: Write, rater: str, n: int, now: float, settings: ProjectSettings
) -> Sequence[Lease]:
    """What `Store.lease` says. write: runs a job in a transaction.

    Where all that is left is being taken by others, it waits for one of them, in a transaction that holds nothing else.
    """
    with database.read() as connection:
        mine = leases.held(connection, rater, now, leases.is_spared(connection, rater))
    for attempt in range(ATTEMPTS if len(mine) < n else 0):
        mine = write(partial(_taken, rater=rater, n=n, now=now, settings=settings, waits=attempt > 0))
        if mine or not _any_left(database, rater):
            break
    with database.read() as connection:
        return leases.filled(connection, mine[:n])


def _taken(
    connection: sa.Connection, rater: str, n: int, now: float, settings: ProjectSettings, waits: bool
) -> Sequence[Any]:
    row = leases.locked_rater(connection, rater)
    held, made = leases.take(connection, row, n, now, settings, waits=waits)
    return [*held, *made]


def _any_left(database: Database, rater: str) -> bool:
    with database.read() as connection:
        return leases.any_left(connection, rater)


def expire(database: Database, write: Write, now: float) -> None:
    """Gives the places of leases that ran out back, if there are any."""
    with database.read() as connection:
        late = leases.any_expired(connection, now)
    if late:
        write(lambda connection: leases.expire(connection, now))
