"""How far the raters have come, and what they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from palate.store.schema import comparisons, leases, media, places, samples, shown


@dataclass(frozen=True)
class Progress:
    """How far the raters have come; known pairs and repeats are not counted.

    comparisons, done: in all, and those that every wanted rater judged. wanted, votes: judgements of a comparison by a
    rater. raters: judgements by rater id. open: leases that wait for their raters.
    """

    comparisons: int
    done: int
    wanted: int
    votes: int
    raters: Mapping[str, int]
    open: int


_JUDGED = (
    sa.select(leases.c.rater, leases.c.comparison)
    .join(places, sa.and_(places.c.comparison == leases.c.comparison, sa.not_(places.c.known)))
    .where(leases.c.state == "answered", sa.not_(leases.c.repeat))
)


def count(connection: sa.Connection) -> Progress:
    by_rater = _JUDGED.with_only_columns(leases.c.rater, sa.func.count()).group_by(leases.c.rater)
    raters = {row[0]: row[1] for row in connection.execute(by_rater.order_by(leases.c.rater))}
    ordinary = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(comparisons.c.wanted), 0))
    ordinary = ordinary.join(places, places.c.comparison == comparisons.c.id).where(sa.not_(places.c.known))
    number, wanted = connection.execute(ordinary).one()
    by_comparison = _JUDGED.with_only_columns(leases.c.comparison, sa.func.count().label("n"))
    judged = by_comparison.group_by(leases.c.comparison).subquery()
    full = sa.select(sa.func.count()).select_from(judged.join(comparisons, comparisons.c.id == judged.c.comparison))
    done = connection.scalar(full.where(judged.c.n >= comparisons.c.wanted))
    waiting = connection.scalar(sa.select(sa.func.count()).where(leases.c.state == "open"))
    return Progress(number, done or 0, wanted, sum(raters.values()), raters, waiting or 0)


def telling(connection: sa.Connection) -> int:
    """Comparisons that show videos of several types: raters who look at what they load can tell those apart."""
    of = sa.select(shown.c.comparison).join(samples, samples.c.id == shown.c.sample)
    of = of.join(media, media.c.sha256 == samples.c.medium).where(media.c.type.like("video/%"))
    several = of.group_by(shown.c.comparison).having(sa.func.count(media.c.type.distinct()) > 1).subquery()
    return connection.scalar(sa.select(sa.func.count()).select_from(several)) or 0
