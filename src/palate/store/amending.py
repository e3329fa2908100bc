"""What is said of comparisons after they were made: which are known pairs, and which are sensitive.

A comparison is a fact and stays as it came; each amendment is a fact of its own, and the latest holds. `places`, by
which raters are given their next, follows in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from palate.records import Comparison, RecordError, now
from palate.store import facts, schema
from palate.store.errors import StoreError

_amendments, _comparisons, _leases, _places = schema.amendments, schema.comparisons, schema.leases, schema.places


@dataclass(frozen=True)
class Amendment:
    """What is to hold of a comparison from now on; None leaves it as it is.

    expected: the sample that wins it in `dimension`, so that it is a known pair; empty: it is none any more.
    """

    comparison: str
    expected: str | None = None
    dimension: str | None = None
    sensitive: bool | None = None


def amend(connection: sa.Connection, part: Sequence[Amendment], source: str) -> int:
    """Notes what changes, with who said so; returns of how many comparisons. The last word on one counts.

    Raises StoreError for a comparison that is not there, or an expected sample that it does not show.
    """
    facts.require(connection, _comparisons.c.id, (made.comparison for made in part), "an amendment")
    ids = list(dict.fromkeys(made.comparison for made in part))
    query = facts.comparison_query().where(_comparisons.c.id.in_(ids))
    before = {row.id: facts.COMPARISONS.record(row) for row in connection.execute(query)}
    after = dict(before)
    for made in part:
        after[made.comparison] = _amended(after[made.comparison], made)
    changed = [name for name in ids if after[name] != before[name]]
    at = now()
    for name in changed:
        comparison = after[name]
        row = {key: getattr(comparison, key) for key in ("expected", "dimension", "sensitive")}
        connection.execute(sa.insert(_amendments).values(comparison=name, source=source, time=at, **row))
        _follow(connection, comparison)
    return len(changed)


def _amended(comparison: Comparison, made: Amendment) -> Comparison:
    named: dict[str, Any] = {"expected": made.expected, "dimension": made.dimension, "sensitive": made.sensitive}
    try:
        return replace(comparison, **{name: value for name, value in named.items() if value is not None})
    except RecordError as error:
        raise StoreError(f"comparison {comparison.id!r}: {error.field} {error.reason}") from None


def _follow(connection: sa.Connection, comparison: Comparison) -> None:
    """Its places: a known pair is open to everyone; one that is none any more wants those who are missing."""
    taken = sa.select(sa.func.count()).where(
        _leases.c.comparison == comparison.id, sa.not_(_leases.c.repeat), _leases.c.state.in_(["open", "answered"])
    )
    values: dict[str, Any] = {
        "known": bool(comparison.expected),
        "sensitive": comparison.sensitive,
        "free": max(0, comparison.wanted - (connection.scalar(taken) or 0)),
    }
    connection.execute(sa.update(_places).where(_places.c.comparison == comparison.id).values(**values))
