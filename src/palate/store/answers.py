"""Answers of raters become votes and rankings, each counted once however often it is sent, and can be taken back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import SimpleNamespace
from typing import Any, Literal

import sqlalchemy as sa

from palate.project import ProjectSettings
from palate.records import Ranking, Vote, now
from palate.store import facts, leases, schema
from palate.store.errors import StoreError
from palate.store.leases import Lease
from palate.store.writes import Value, Writes, adding

Status = Literal["saved", "known", "late", "nothing"]
Answer = str | Sequence[Sequence[int]]
_leases, _answers, _raters = schema.leases, schema.answers, schema.raters
MAX_KEY = 200
_OF_LEASE = ("id", "rater", "comparison", "shown", "repeat", "state")
_SEEN = sa.select(_answers).where(
    _answers.c.rater == sa.bindparam("rater_of"), _answers.c.key == sa.bindparam("key_of")
)
# All that an answer is held against, in one look: the rater, their answer under this key, the lease, how many others.
_STANDING = (
    sa.select(
        *(_raters.c[name] for name in ("id", "token", "given", "answered", "opted_out")),
        *(_answers.c[name].label(f"known_{name}") for name in ("kind", "lease")),
        *(_leases.c[name].label(f"lease_{name}") for name in _OF_LEASE),
        leases.HOLDING.label("holding"),
    )
    .select_from(
        _raters.outerjoin(
            _answers, sa.and_(_answers.c.rater == _raters.c.id, _answers.c.key == sa.bindparam("key_of"))
        ).outerjoin(_leases, _leases.c.id == sa.bindparam("id_of"))
    )
    .where(_raters.c.id == sa.bindparam("rater_of"))
)
_LEASE = sa.select(_leases).where(_leases.c.id == sa.bindparam("id_of"))
_CHANGE = sa.update(_leases).where(_leases.c.id == sa.bindparam("id_of"))
# Inline: their numbers are not asked back.
_INSERT = {kind: sa.insert(kind.table).inline() for kind in (facts.VOTES, facts.RANKINGS)}
_NOTE = sa.insert(_answers).inline()
_ADD = {kind: adding(kind.table, "seq") for kind in _INSERT}
_NOTED = adding(_answers, "seq")


@dataclass(frozen=True)
class Receipt:
    """What became of an answer or an undo.

    saved: it is on disk. known: this key was saved before, nothing was added. late: the lease ran out and its place
    went to another, or the rater answered it elsewhere; nothing was stored. Of an undo: the answer, a skip, is taken
    back, but its place went to another. nothing: there was no answer to undo. lease: the lease it is about; after an
    undo that was saved it is open again. done: how many of the rater's answers stand by now, skips, known pairs and
    repeats included. leases: after an answer, if that was asked for, those that the rater was given along with it; all
    that they hold, if they were given none.
    """

    status: Status
    lease: str = ""
    done: int = 0
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True)
class Given:
    """An answer as it comes: by whom, to which lease, under which key of the rater's own, and what was said."""

    rater: str
    lease: str
    key: str
    answers: Mapping[str, Answer]
    seconds: float | None = None
    reason: str = ""

    def check(self, settings: ProjectSettings) -> None:
        """Raises StoreError for questions, choices or a key that cannot be."""
        check_key(self.key)
        if set(self.answers) != set(settings.questions):
            raise StoreError(
                f"an answer must say something to each of {', '.join(settings.questions)}; "
                f"it has {', '.join(self.answers) or 'nothing'}"
            )
        allowed = {"left", "right"} if settings.kind == "pair" else set()
        extra = ("tie", "both_bad", "skip") if settings.kind == "pair" else ("both_bad", "skip")
        allowed |= {name for name in extra if getattr(settings.choices, name)}
        if self.reason == "broken":  # who cannot see it cannot judge it, whatever the settings say
            allowed.add("skip")
        for dimension, said in self.answers.items():
            if not isinstance(said, str) and settings.kind == "pair":
                raise StoreError(f"{dimension}: a ranking is no answer in a project of pairs")
            if isinstance(said, str) and said not in allowed:
                raise StoreError(f"{dimension}: {said!r} is no answer here; it may be {', '.join(sorted(allowed))}")
        if len(self.reason) > 1000:
            raise StoreError("the reason is longer than 1,000 letters")


def check_key(key: str) -> None:
    if not isinstance(key, str) or not key or len(key) > MAX_KEY:
        raise StoreError(f"an answer needs a key, 1 to {MAX_KEY} letters of its own, by which it is known again")


def answer(connection: sa.Connection, given: Given, now_s: float, settings: ProjectSettings, n: int = 0) -> Receipt:
    """Stores all that was said in one answer, then leases the rater up to n in all, whatever became of it."""
    asked = {"rater_of": given.rater, "key_of": given.key, "id_of": given.lease, "now_of": now_s}
    rater = leases.standing(connection.execute(_STANDING, asked).first(), given.rater)
    writes = Writes(connection)
    status = _stored(writes, given, rater)
    alike = status == "saved" and rater.lease_state == "open" and not rater.opted_out
    holding = rater.holding if alike else None  # of all others it is looked up
    done = rater.answered + (status == "saved")
    made = leases.take(writes, rater, n, now_s, settings, answered=done, holding=holding)
    writes.run()
    told = made or (leases.held(connection, rater.id, now_s, rater.opted_out)[:n] if n else ())
    return Receipt(status, given.lease, done, tuple(leases.filled(connection, told)))


def _stored(writes: Writes, given: Given, standing: Any) -> Status:
    """What became of an answer. standing: a row of `_STANDING`."""
    if standing.known_kind is not None:
        if standing.known_lease != given.lease or standing.known_kind != "answer":
            raise StoreError(f"key {given.key!r} belongs to another answer: give each a key of its own")
        return "known"
    lease = SimpleNamespace(**{name: getattr(standing, f"lease_{name}") for name in _OF_LEASE})
    if lease.rater != given.rater:
        raise StoreError(f"lease {given.lease!r} is not this rater's; ask for another")
    said = _said(given, lease)
    skipped = all(fact.choice == "skip" for fact in said if isinstance(fact, Vote)) and not any(
        isinstance(fact, Ranking) for fact in said
    )
    if not _reclaim(writes.connection, lease):
        return "late"
    writes.add(_close, id=lease.id, state="skipped" if skipped else "answered")
    if skipped and not lease.repeat:
        writes.add(leases.giving_back, comparison=lease.comparison)
    for kind, record in ((facts.VOTES, Vote), (facts.RANKINGS, Ranking)):
        rows = [kind.row(fact) for fact in said if isinstance(fact, record)]  # the key is new, and so are their ids
        if len(rows) == 1:
            writes.add(_ADD[kind], **rows[0])
        elif rows:
            writes.connection.execute(_INSERT[kind], rows)  # in their order
    writes.add(_NOTED, **_note(given.rater, given.key, "answer", lease.id, [fact.id for fact in said]))
    return "saved"


def _known(connection: sa.Connection, rater: str, key: str) -> Any:
    return connection.execute(_SEEN, {"rater_of": rater, "key_of": key}).first()


def _close(value: Value) -> sa.Update:
    return sa.update(_leases).where(_leases.c.id == value("id")).values(state=value("state"))


def _note(rater: str, key: str, kind: str, lease: str, ids: list[str]) -> dict[str, Any]:
    """A row that tells what came under a rater's key."""
    facts_of, undone = json.dumps(ids), kind == "undo"
    return {"rater": rater, "key": key, "kind": kind, "lease": lease, "facts": facts_of, "undone": undone}


def _reclaim(connection: sa.Connection, lease: Any) -> bool:
    """Whether the lease may still be answered: it is open, or it ran out and its place is still free.

    A repeat has no place to lose, but may have been given again, and is answered once.
    """
    if lease.state == "open":
        return True  # ran out or not: nobody was given its place
    if lease.state != "expired":
        return False
    newer = connection.execute(
        sa.select(_leases).where(
            _leases.c.rater == lease.rater,
            _leases.c.comparison == lease.comparison,
            _leases.c.state != "expired",
            _leases.c.repeat == lease.repeat,
        )
    ).first()
    if newer is None:
        return lease.repeat or leases.take_place(connection, lease.comparison)
    if newer.state != "open":
        return False
    # The same rater was given it again meanwhile: that lease's place is this one's.
    connection.execute(_CHANGE, {"id_of": newer.id, "state": "expired"})
    return True


def _said(given: Given, lease: Any) -> list[Vote | Ranking]:
    """The facts of an answer, sides turned as they were shown."""
    shown, time = json.loads(lease.shown), now()
    made: list[Vote | Ranking] = []
    for dimension, said in given.answers.items():
        name = f"{given.rater}/{given.key}/{dimension}"
        if not isinstance(said, str):
            made.append(_ranking(given, lease, shown, name, dimension, said, time))
        elif said == "both_bad":  # of several, too: what is said of all is said of each pair, as by a ranking
            for number, pair in enumerate(combinations(shown, 2)):
                made.append(_vote(given, lease, pair, f"{name}/{number}" if number else name, dimension, said, time))
        else:
            made.append(_vote(given, lease, shown[:2], name, dimension, said, time))
    return made


def _vote(given: Given, lease: Any, shown: Sequence[str], name: str, dimension: str, said: str, time: str) -> Vote:
    a, b = sorted(shown)
    choice = {"left": "a" if shown[0] == a else "b", "right": "b" if shown[0] == a else "a"}.get(said, said)
    return Vote(
        name,
        a,
        b,
        choice,  # type: ignore[arg-type]  # `Given.check` looked
        given.rater,
        time,
        dimension,
        comparison=lease.comparison,
        left=shown[0],
        seconds=given.seconds,
        reason=given.reason if said == "skip" else "",
        repeat=lease.repeat,
    )


def _ranking(
    given: Given, lease: Any, shown: list[str], name: str, dimension: str, said: Sequence[Sequence[int]], time: str
) -> Ranking:
    places = [place for group in said for place in group]
    if sorted(places) != list(range(len(shown))):
        raise StoreError(
            f"{dimension}: a ranking must place each of 0 to {len(shown) - 1}, as they were shown, once; got {places}"
        )
    groups = tuple(tuple(shown[place] for place in group) for group in said if group)
    return Ranking(
        name,
        groups,
        given.rater,
        time,
        dimension,
        comparison=lease.comparison,
        shown=tuple(shown),
        seconds=given.seconds,
        repeat=lease.repeat,
    )


def undo(connection: sa.Connection, rater: str, key: str, expires: float) -> Receipt:
    """Takes the rater's latest answer back: its facts are retracted and its lease is open again.

    The lease of a skip stays closed if another has its place by now.
    """
    row = leases.rater_of(connection, rater)
    known = _known(connection, rater, key)
    if known is not None:
        if known.kind != "undo":
            raise StoreError(f"key {key!r} belongs to another answer: give each a key of its own")
        return Receipt("known", known.lease, row.answered)
    latest = sa.select(_answers).where(
        _answers.c.rater == rater, _answers.c.kind == "answer", sa.not_(_answers.c.undone)
    )
    last = connection.execute(latest.order_by(_answers.c.seq.desc()).limit(1)).first()
    if last is None:
        return Receipt("nothing", done=row.answered)
    lease = connection.execute(_LEASE, {"id_of": last.lease}).one()
    gone = lease.state == "skipped" and not lease.repeat and not leases.take_place(connection, lease.comparison)
    if not gone:
        connection.execute(_CHANGE, {"id_of": lease.id, "state": "open", "expires": expires})
    connection.execute(sa.update(_answers).where(_answers.c.seq == last.seq).values(undone=True))
    time = now()
    rows = [{"id": f"{rater}/{key}/{of}", "of": of, "source": rater, "time": time} for of in json.loads(last.facts)]
    facts.insert(connection, facts.RETRACTIONS, rows)
    connection.execute(_NOTE, _note(rater, key, "undo", lease.id, [made["id"] for made in rows]))
    leases.count_answers(connection, rater, row.answered - 1)
    return Receipt("late" if gone else "saved", lease.id, row.answered - 1)
