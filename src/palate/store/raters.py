"""Raters and their tokens, of which only hashes are kept; and the one exception to append-only, their erasure."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import sqlalchemy as sa

from palate.records import now
from palate.store import leases, schema
from palate.store.errors import StoreError

Role = Literal["rater", "admin"]
_raters, _leases = schema.raters, schema.leases


@dataclass(frozen=True)
class Rater:
    """Someone who judges. id: what their votes hold as source; it says nothing about who they are."""

    id: str
    name: str
    role: Role
    time: str
    expires: str | None = None
    revoked: bool = False
    blur: bool = False
    opted_out: bool = False


def record(row: Any) -> Rater:
    return Rater(row.id, row.name, row.role, row.time, row.expires, row.revoked, row.blur, row.opted_out)


def add(connection: sa.Connection, name: str, role: str, expires: str | None) -> tuple[str, str]:
    """A new rater: their id, and the token that lets them in, told this once. expires: ISO 8601 with its offset."""
    if role not in get_args(Role):
        raise StoreError(f"role {role!r} is none; it may be {' or '.join(get_args(Role))}")
    if not name.strip() or len(name) > 200 or "\0" in name:
        raise StoreError("a rater needs a name, 1 to 200 letters")
    if expires is not None and not _is_instant(expires):
        raise StoreError(f"expires {expires!r} is no time with an offset; write it as 2027-01-31T18:00:00+00:00")
    rater, token = f"rater-{secrets.token_hex(6)}", secrets.token_urlsafe(32)
    row = {"id": rater, "name": name, "role": role, "token": digest(token), "time": now(), "expires": expires}
    connection.execute(
        sa.insert(_raters).values(revoked=False, blur=False, opted_out=False, given=0, answered=0, **row)
    )
    return rater, token


def _is_instant(time: str) -> bool:
    try:
        return datetime.fromisoformat(time).tzinfo is not None
    except ValueError:
        return False


def of_token(connection: sa.Connection, token: str) -> Rater | None:
    """Whose token it is; None if it is nobody's, revoked or expired."""
    hashed = digest(token)
    row = connection.execute(sa.select(_raters).where(_raters.c.token == hashed)).first()
    # The database compares digests, of which the time taken tells nothing about a token; this one says so again.
    if row is None or row.revoked or not hmac.compare_digest(row.token, hashed):
        return None
    if row.expires is not None and datetime.fromisoformat(row.expires) <= datetime.now(UTC):
        return None
    return record(row)


def digest(token: str) -> str:
    """What is kept of a token. Tokens are 256 random bits, so that a plain hash cannot be searched through."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def change(connection: sa.Connection, rater: str, values: Mapping[str, Any]) -> None:
    changed = connection.execute(
        sa.update(_raters).where(_raters.c.id == rater, _raters.c.token.is_not(None)).values(**values)
    )
    if not changed.rowcount:
        raise StoreError(f"rater {rater!r} is not of this project")


def erase(connection: sa.Connection, rater: str, votes: bool) -> int:
    """Forgets who a rater was and, if asked, all they said; returns how many facts were deleted. Noted as a fact."""
    leases.rater_of(connection, rater)
    connection.execute(
        sa.update(_raters).where(_raters.c.id == rater).values(name="", token=None, expires=None, revoked=True)
    )
    close = sa.select(_leases.c.id, _leases.c.comparison, _leases.c.repeat, _leases.c.state).where(
        _leases.c.rater == rater, _leases.c.state.in_(["open", "answered"] if votes else ["open"])
    )
    for row in connection.execute(close.order_by(_leases.c.comparison)).all():
        connection.execute(sa.update(_leases).where(_leases.c.id == row.id).values(state="expired"))
        if not row.repeat:
            leases.give_back(connection, row.comparison)
    lowest: dict[str, int] = {}
    removed = 0
    if votes:
        connection.execute(sa.delete(schema.answers).where(schema.answers.c.rater == rater))
        leases.count_answers(connection, rater, 0)
        for table in (schema.votes, schema.rankings, schema.retractions):
            mine = table.c.source == rater
            first = connection.scalar(sa.select(sa.func.min(table.c.seq)).where(mine))
            if first is not None:
                lowest[table.name] = first
                removed += connection.execute(sa.delete(table).where(mine)).rowcount
    note = {"rater": rater, "time": now(), "votes": votes, "removed": removed, "lowest": json.dumps(lowest)}
    connection.execute(sa.insert(schema.erasures).values(**note))
    return removed
