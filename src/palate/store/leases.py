"""Who judges what: leases that expire, so that a comparison gets exactly as many distinct raters as are wanted.

A comparison has places, one for each rater that is wanted. A lease takes one; an answer keeps it, a skip or the lease's
end gives it back. Every change of `places` is one conditional UPDATE, so that two who come at once cannot both have the
last place, and rows are locked in one order (rater, lease, places by comparison), so that none waits for another in a
circle. Which of a rater's turns is a known pair or a repeat is keyed by (rater, turn), and so are the sides.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from palate.project import ProjectSettings
from palate.records import Comparison, Sample
from palate.store import facts, schema
from palate.store.errors import StoreError

REPEAT_AFTER = 10  # turns before a comparison may come again
_leases, _places, _raters = schema.leases, schema.places, schema.raters


@dataclass(frozen=True)
class Lease:
    """A comparison that waits for one rater. samples: from left to right, or first to last, as this rater sees them.

    repeat: they judged it before, the other way round. expires: seconds since 1970.
    """

    id: str
    comparison: Comparison
    samples: tuple[Sample, ...]
    repeat: bool
    expires: float


def expire(connection: sa.Connection, now: float) -> None:
    """Gives the places of leases that ran out back."""
    over = sa.select(_leases.c.id, _leases.c.comparison, _leases.c.repeat).where(
        _leases.c.state == "open", _leases.c.expires <= now
    )
    rows = connection.execute(over.order_by(_leases.c.comparison).with_for_update(skip_locked=True)).all()
    for row in rows:
        closed = connection.execute(
            sa.update(_leases).where(_leases.c.id == row.id, _leases.c.state == "open").values(state="expired")
        )
        if closed.rowcount and not row.repeat:
            give_back(connection, row.comparison)


def any_expired(connection: sa.Connection, now: float) -> bool:
    query = sa.select(_leases.c.id).where(_leases.c.state == "open", _leases.c.expires <= now).limit(1)
    return connection.scalar(query) is not None


def give_back(connection: sa.Connection, comparison: str) -> None:
    """A place of a comparison is free again; a known pair has none to give."""
    where = (_places.c.comparison == comparison, sa.not_(_places.c.known))
    connection.execute(sa.update(_places).where(*where).values(free=_places.c.free + 1))


def take_place(connection: sa.Connection, comparison: str) -> bool:
    """Takes a place of a comparison; False if there is none. A known pair is open to everyone."""
    where = (_places.c.comparison == comparison, sa.or_(_places.c.known, _places.c.free > 0))
    free = sa.case((_places.c.known, _places.c.free), else_=_places.c.free - 1)
    return bool(connection.execute(sa.update(_places).where(*where).values(free=free)).rowcount)


def held(connection: sa.Connection, rater: str, now: float) -> Sequence[Any]:
    """The rater's open leases, oldest first."""
    query = sa.select(_leases).where(_leases.c.rater == rater, _leases.c.state == "open", _leases.c.expires > now)
    return connection.execute(query.order_by(_leases.c.number)).all()


def take(connection: sa.Connection, rater: str, n: int, now: float, settings: ProjectSettings) -> None:
    """Leases the rater up to n in all, those included that they hold. Raises StoreError for who is not of the project."""
    row = locked_rater(connection, rater)
    missing = n - len(held(connection, rater, now))
    expires = now + 60 * settings.lease_minutes
    for number in range(row.given, row.given + missing):
        comparison, before = _next(connection, row, number, settings)
        if comparison is None:
            return
        connection.execute(
            sa.insert(_leases).values(
                id=secrets.token_hex(12),
                rater=rater,
                comparison=comparison,
                number=number,
                shown=json.dumps(before[::-1] if before else _order(connection, rater, comparison, number)),
                repeat=bool(before),
                state="open",
                expires=expires,
            )
        )
        connection.execute(sa.update(_raters).where(_raters.c.id == rater).values(given=number + 1))


def locked_rater(connection: sa.Connection, rater: str) -> Any:
    """The rater's row, held until the transaction ends. Raises StoreError if there is none, or they were erased."""
    row = connection.execute(sa.select(_raters).where(_raters.c.id == rater).with_for_update()).first()
    if row is None or row.token is None:
        raise StoreError(f"rater {rater!r} is not of this project; add them first")
    return row


def _next(
    connection: sa.Connection, rater: Any, number: int, settings: ProjectSettings
) -> tuple[str | None, list[str]]:
    """What the rater is given at this turn, its place taken; for a repeat also the order it was shown in before."""
    ordinary = _unseen(rater).where(sa.not_(_places.c.known), _places.c.free > 0)
    if connection.scalar(ordinary.limit(1)) is None:
        return None, []  # done: nobody is kept busy with known pairs alone
    turn = _key(rater.id, number) / 2**64
    if turn < settings.known_share:
        known = connection.scalar(_unseen(rater).where(_places.c.known).order_by(_places.c.seq).limit(1))
        if known is not None:
            return known, []
    elif turn < settings.known_share + settings.repeat_share:
        again = _repeatable(connection, rater.id, number)
        if again is not None:
            return again.comparison, json.loads(again.shown)
    nearest = ordinary.order_by(_places.c.free, _places.c.seq).limit(1)
    # Of what others are taking at this moment the next is as good; only if there is no next is waited for them.
    for query in (nearest.with_for_update(skip_locked=True, of=_places), nearest.with_for_update(of=_places)):
        comparison = connection.scalar(query)
        if comparison is not None and take_place(connection, comparison):
            return comparison, []
    return None, []


def _unseen(rater: Any) -> sa.Select[tuple[str]]:
    """Comparisons that a rater neither holds nor judged nor skipped, nor asked to be spared."""
    mine = sa.select(1).where(
        _leases.c.rater == rater.id,
        _leases.c.comparison == _places.c.comparison,
        sa.not_(_leases.c.repeat),
        _leases.c.state != "expired",
    )
    query = sa.select(_places.c.comparison).where(~mine.exists())
    return query.where(sa.not_(_places.c.sensitive)) if rater.opted_out else query


def _repeatable(connection: sa.Connection, rater: str, number: int) -> Any:
    """The first comparison that the rater answered some turns ago and was not given again; None if there is none."""
    again = sa.alias(_leases)
    repeated = sa.select(1).where(
        again.c.rater == rater, again.c.comparison == _leases.c.comparison, again.c.repeat, again.c.state != "expired"
    )
    query = (
        sa.select(_leases.c.comparison, _leases.c.shown)
        .join(_places, _places.c.comparison == _leases.c.comparison)
        .where(
            _leases.c.rater == rater,
            _leases.c.state == "answered",
            _leases.c.number <= number - REPEAT_AFTER,
            sa.not_(_leases.c.repeat),
            sa.not_(_places.c.known),
            ~repeated.exists(),
        )
    )
    return connection.execute(query.order_by(_leases.c.number).limit(1)).first()


def _order(connection: sa.Connection, rater: str, comparison: str, number: int) -> list[str]:
    """The samples of a comparison in an order of this rater's own."""
    query = sa.select(schema.comparisons.c.samples).where(schema.comparisons.c.id == comparison)
    samples: list[str] = json.loads(connection.scalar(query) or "[]")
    return sorted(samples, key=lambda sample: _key(rater, number, sample))


def _key(*parts: object) -> int:
    """64 bits that anyone can compute again."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def filled(connection: sa.Connection, rows: Sequence[Any]) -> list[Lease]:
    """Rows of leases with the comparisons and samples they are about."""
    if not rows:
        return []
    query = sa.select(schema.comparisons).where(schema.comparisons.c.id.in_([row.comparison for row in rows]))
    comparisons = {row.id: facts.COMPARISONS.record(row) for row in connection.execute(query)}
    ids = [sample for row in rows for sample in json.loads(row.shown)]
    found = facts.sample_query().where(schema.samples.c.id.in_(ids))
    samples = {row.id: facts.SAMPLES.record(row) for row in connection.execute(found)}
    return [
        Lease(
            row.id,
            comparisons[row.comparison],
            tuple(samples[sample] for sample in json.loads(row.shown)),
            row.repeat,
            row.expires,
        )
        for row in rows
    ]
