"""Who judges what: leases that expire, so that a comparison gets exactly as many distinct raters as are wanted.

A comparison has places, one for each rater that is wanted. A lease takes one; an answer keeps it, a skip or the lease's
end gives it back. All of it happens in transactions of the database's one writer, so that two who come at once cannot
both have the last place. Which of a rater's turns is a known pair or a repeat is keyed by (rater, turn), and so are the
sides.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from palate.project import ProjectSettings
from palate.records import Comparison, Sample
from palate.store import facts, schema
from palate.store.errors import StoreError
from palate.store.writes import Value, Writes, adding

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


# Statements are made once: to make one takes longer than to run it.
_id: Any = sa.bindparam("id_of")
_rater: Any = sa.bindparam("rater_of")
_comparison: Any = sa.bindparam("comparison_of")
_now: Any = sa.bindparam("now_of")
# The very words of the index `leases_once`: a bound value, or another way to say NOT, would keep SQLite from using it.
_FIRST = sa.text("NOT leases.repeat AND leases.state <> 'expired'")
_OVER = _leases.c.state == "open", _leases.c.expires <= _now
_ANY_OVER = sa.select(_leases.c.id).where(*_OVER).limit(1)
_ALL_OVER = sa.select(_leases.c.id, _leases.c.comparison, _leases.c.repeat).where(*_OVER)
_CLOSE = sa.update(_leases).where(_leases.c.id == _id).values(state="expired")
_TAKE = (
    sa.update(_places)
    .where(_places.c.comparison == _comparison, sa.or_(_places.c.known, _places.c.free > 0))
    .values(free=sa.case((_places.c.known, _places.c.free), else_=_places.c.free - 1))
)
_HELD = (
    sa.select(*(_leases.c[name] for name in ("id", "comparison", "shown", "repeat", "expires")))
    # The sum keeps SQLite to the rater's own leases: by `leases_expiring` it would read everybody's.
    .where(_leases.c.rater == _rater, _leases.c.state == "open", _leases.c.expires + 0 > _now)
    .order_by(_leases.c.number)
)
_others = sa.alias(_leases)
# How many a rater holds but for one.
HOLDING = (
    sa.select(sa.func.count())
    .select_from(_others)
    .where(_others.c.rater == _rater, _others.c.state == "open", _others.c.expires + 0 > _now, _others.c.id != _id)
    .scalar_subquery()
)
# Of what the rater holds, what they did not ask to be spared.
_HELD_UNSPARED = _HELD.join(_places, _places.c.comparison == _leases.c.comparison).where(sa.not_(_places.c.sensitive))
_OF_RATER = sa.select(_raters).where(_raters.c.id == _rater)
_COUNTED = sa.update(_raters).where(_raters.c.id == _rater)
_ADD = adding(_leases)
_COLUMNS = tuple(column.name for column in _leases.columns)
_SPARED = sa.select(_raters.c.opted_out).where(_raters.c.id == _rater)


def expire(connection: sa.Connection, now: float) -> None:
    """Gives the places of leases that ran out back."""
    for row in connection.execute(_ALL_OVER, {"now_of": now}).all():
        connection.execute(_CLOSE, {"id_of": row.id})
        if not row.repeat:
            give_back(connection, row.comparison)


def any_expired(connection: sa.Connection, now: float) -> bool:
    return connection.scalar(_ANY_OVER, {"now_of": now}) is not None


def giving_back(value: Value) -> sa.Update:
    """A place of a comparison is free again; a known pair has none to give."""
    comparison, free = _places.c.comparison == value("comparison"), _places.c.free
    return sa.update(_places).where(comparison, sa.not_(_places.c.known)).values(free=free + 1)


_GIVE_BACK = giving_back(lambda _: _comparison)


def give_back(connection: sa.Connection, comparison: str) -> None:
    """`giving_back` by itself."""
    connection.execute(_GIVE_BACK, {"comparison_of": comparison})


def take_place(connection: sa.Connection, comparison: str) -> bool:
    """Takes a place of a comparison; False if there is none. A known pair is open to everyone."""
    return bool(connection.execute(_TAKE, {"comparison_of": comparison}).rowcount)


def held(connection: sa.Connection, rater: str, now: float, spared: bool = False) -> Sequence[Any]:
    """The rater's open leases, oldest first; spared: without those that are sensitive."""
    return connection.execute(_HELD_UNSPARED if spared else _HELD, {"rater_of": rater, "now_of": now}).all()


def is_spared(connection: sa.Connection, rater: str) -> bool:
    """Whether a rater asked to be spared what is sensitive."""
    return bool(connection.scalar(_SPARED, {"rater_of": rater}))


def rater_of(connection: sa.Connection, rater: str) -> Any:
    """The rater's row. Raises StoreError if there is none, or they were erased."""
    return standing(connection.execute(_OF_RATER, {"rater_of": rater}).first(), rater)


def standing(row: Any, rater: str) -> Any:
    """The row that was found of a rater. Raises StoreError as `rater_of`."""
    if row is None or row.token is None:
        raise StoreError(f"rater {rater!r} is not of this project; add them first")
    return row


def _take(value: Value) -> sa.Update:
    """A place of a comparison that was just found to have one."""
    comparison, free = _places.c.comparison == value("comparison"), _places.c.free
    return sa.update(_places).where(comparison, sa.not_(_places.c.known)).values(free=free - 1)


def _count(value: Value) -> sa.Update:
    counts = {name: value(name) for name in ("given", "answered")}
    return sa.update(_raters).where(_raters.c.id == value("id")).values(counts)


def take(
    writes: Writes,
    rater: Any,
    n: int,
    now: float,
    settings: ProjectSettings,
    *,
    answered: int | None = None,
    holding: int | None = None,
) -> Sequence[Any]:
    """Leases the rater, of whom it is given the row, up to n in all, those that they hold included: the new ones, to be
    written by whoever runs the writes. What waits there of an answer may be of no comparison that is taken here: the
    rater had that one, so that it is not found again.

    What a rater held when they asked to be spared runs out by itself; it does not count.
    answered: how many of their answers stand, noted along. holding: how many they hold, where that is known.
    """
    if holding is None:
        writes.run()
        holding = len(held(writes.connection, rater.id, now, rater.opted_out)) if n else 0
    made: list[SimpleNamespace] = []
    for number in range(rater.given, rater.given + n - holding):
        if made:
            writes.run()  # which the next one must not be again
        lease = _next(writes, rater, number, settings)
        if lease is None:
            break
        lease.id, lease.rater, lease.number = secrets.token_hex(12), rater.id, number
        lease.state, lease.expires = "open", now + 60 * settings.lease_minutes
        writes.add(_ADD, **{name: getattr(lease, name) for name in _COLUMNS})
        made.append(lease)
    counts = rater.given + len(made), rater.answered if answered is None else answered
    if counts != (rater.given, rater.answered):
        writes.add(_count, id=rater.id, given=counts[0], answered=counts[1])
    return made


def count_answers(connection: sa.Connection, rater: str, answered: int) -> None:
    """Notes how many answers of a rater stand."""
    connection.execute(_COUNTED, {"rater_of": rater, "answered": answered})


def _filled(comparison: Any) -> sa.Select[Any]:
    """A row for each sample of a comparison, with all that a lease tells of both."""
    compared = facts.comparison_query().where(schema.comparisons.c.id == comparison).subquery()
    return (
        facts.sample_query()
        .add_columns(*(column.label(f"compared_{column.name}") for column in compared.c))
        .join(schema.shown, schema.shown.c.sample == schema.samples.c.id)
        .join(compared, compared.c.id == schema.shown.c.comparison)
    )


def _unseen(*also: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """A comparison that a rater neither holds nor judged nor skipped, nor asked to be spared; the nearest to be done
    first, then in order of arrival."""
    mine = sa.select(1).where(
        _leases.c.rater == _rater,
        _leases.c.comparison == _places.c.comparison,
        _FIRST,
    )
    spared = sa.or_(sa.not_(_places.c.sensitive), sa.not_(sa.bindparam("spared", type_=sa.Boolean)))
    return (
        sa.select(_places.c.comparison)
        .where(*also, spared, ~mine.exists())
        .order_by(_places.c.free, _places.c.seq)
        .limit(1)
    )


_FILLED = _filled(_comparison)
_ORDINARY = _filled(_unseen(_places.c.known == sa.false(), _places.c.free > 0).scalar_subquery())
_KNOWN = _filled(_unseen(_places.c.known == sa.true()).scalar_subquery())


def _next(writes: Writes, rater: Any, number: int, settings: ProjectSettings) -> SimpleNamespace | None:
    """What the rater is given at this turn, its place taken: comparison, shown and repeat of a lease; None for nothing.

    Known pairs and repeats are mixed into ordinary ones; nobody is kept busy with them alone.
    """
    connection, who = writes.connection, {"rater_of": rater.id, "spared": rater.opted_out}
    ordinary = connection.execute(_ORDINARY, who).all()
    if not ordinary:
        return None
    turn = _key(rater.id, number) / 2**64
    if turn < settings.known_share:
        if known := connection.execute(_KNOWN, who).all():
            return _as_shown(known, rater.id, number)
    elif turn < settings.known_share + settings.repeat_share:
        writes.run()
        if (again := _repeatable(connection, rater.id, number)) is not None:
            shown = json.dumps(json.loads(again.shown)[::-1])
            return SimpleNamespace(comparison=again.comparison, shown=shown, repeat=True)
    writes.add(_take, comparison=ordinary[0].compared_id)
    return _as_shown(ordinary, rater.id, number)


def _as_shown(found: Sequence[Any], rater: str, number: int) -> SimpleNamespace:
    """A comparison in an order of this rater's own. found: rows of `_filled`, which are kept along."""
    shown = sorted(json.loads(found[0].compared_samples), key=lambda sample: _key(rater, number, sample))
    return SimpleNamespace(comparison=found[0].compared_id, shown=json.dumps(shown), repeat=False, found=found)


def _repeatable(connection: sa.Connection, rater: str, number: int) -> Any:
    """The first comparison that the rater answered some turns ago and was not given again; None if there is none."""
    again = sa.alias(_leases)
    repeated = sa.select(again.c.comparison).where(again.c.rater == rater, again.c.repeat, again.c.state != "expired")
    query = (
        sa.select(_leases.c.comparison, _leases.c.shown)
        .join(_places, _places.c.comparison == _leases.c.comparison)
        .where(
            _leases.c.rater == rater,
            _leases.c.state == "answered",
            _leases.c.number <= number - REPEAT_AFTER,
            sa.not_(_leases.c.repeat),
            sa.not_(_places.c.known),
            _leases.c.comparison.not_in(repeated),  # found once, not for each
        )
    )
    return connection.execute(query.order_by(_leases.c.number).limit(1)).first()


def _key(*parts: object) -> int:
    """64 bits that anyone can compute again."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


_COMPARED = tuple(column.name for column in facts.comparison_query().selected_columns)


def filled(connection: sa.Connection, rows: Sequence[Any]) -> list[Lease]:
    """Rows of leases with the comparisons and samples they are about, which those just taken have along."""
    found = []
    for row in rows:
        made = getattr(row, "found", None) or connection.execute(_FILLED, {"comparison_of": row.comparison}).all()
        samples = {one.id: facts.SAMPLES.record(one) for one in made}
        compared = {name: getattr(made[0], f"compared_{name}") for name in _COMPARED}
        comparison = facts.COMPARISONS.record(SimpleNamespace(**compared))
        shown = tuple(samples[name] for name in json.loads(row.shown))
        found.append(Lease(row.id, comparison, shown, row.repeat, row.expires))
    return found
