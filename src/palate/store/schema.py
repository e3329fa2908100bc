"""The tables of a project's database, the same on SQLite and PostgreSQL.

Facts (`FACTS`) are only ever added to; `erase` alone deletes. `seq` is their order of arrival, which a snapshot cuts.
Work (leases, places, answers) changes. `migrations/` builds these tables in steps; a test holds the two together.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows by INTEGER alone


def _seq() -> sa.Column[int]:
    return sa.Column("seq", Number, primary_key=True, autoincrement=True)


def _fact(name: str, *columns: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(name, metadata, _seq(), *columns, sqlite_autoincrement=True)


project = sa.Table(
    "project", metadata, sa.Column("id", sa.Text, primary_key=True), sa.Column("time", sa.Text, nullable=False)
)

media = sa.Table(
    "media",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("size", Number, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
)
samples = _fact(
    "samples",
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("medium", sa.Text, sa.ForeignKey("media.sha256"), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger),
    sa.Column("batch", sa.Text, nullable=False),
)
scores = _fact(
    "scores",
    sa.Column("sample", sa.Text, sa.ForeignKey("samples.id"), nullable=False),
    sa.Column("dimension", sa.Text, nullable=False),
    sa.Column("value", sa.Double),  # null for NaN, which not every database holds
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.UniqueConstraint("sample", "source", "dimension", "time"),
)
votes = _fact(
    "votes",
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("a", sa.Text, nullable=False),
    sa.Column("b", sa.Text, nullable=False),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("dimension", sa.Text, nullable=False),
    sa.Column("comparison", sa.Text, nullable=False),
    sa.Column("left", sa.Text, nullable=False),
    sa.Column("seconds", sa.Double),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("repeat", sa.Boolean, nullable=False),
)
rankings = _fact(
    "rankings",
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("groups", sa.Text, nullable=False),  # JSON
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("dimension", sa.Text, nullable=False),
    sa.Column("comparison", sa.Text, nullable=False),
    sa.Column("shown", sa.Text, nullable=False),  # JSON
    sa.Column("seconds", sa.Double),
    sa.Column("repeat", sa.Boolean, nullable=False),
)
retractions = _fact(
    "retractions",
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("of", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
)
comparisons = _fact(
    "comparisons",
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("samples", sa.Text, nullable=False),  # JSON
    sa.Column("wanted", sa.Integer, nullable=False),
    sa.Column("batch", sa.Text, nullable=False),
    sa.Column("expected", sa.Text, nullable=False),
    sa.Column("dimension", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("sensitive", sa.Boolean, nullable=False),
)
# What holds of a comparison from then on, whole: the latest counts.
amendments = _fact(
    "amendments",
    sa.Column("comparison", sa.Text, nullable=False),
    sa.Column("expected", sa.Text, nullable=False),
    sa.Column("dimension", sa.Text, nullable=False),
    sa.Column("sensitive", sa.Boolean, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
)
erasures = _fact(
    "erasures",
    sa.Column("rater", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("votes", sa.Boolean, nullable=False),
    sa.Column("removed", sa.Integer, nullable=False),
    sa.Column("lowest", sa.Text, nullable=False),  # JSON: of each table, the first row that was removed
)
sa.Index("samples_medium", samples.c.medium)
sa.Index("votes_source", votes.c.source)
sa.Index("rankings_source", rankings.c.source)
sa.Index("retractions_of", retractions.c.of)
sa.Index("retractions_source", retractions.c.source)
sa.Index("amendments_comparison", amendments.c.comparison, amendments.c.seq)
_FACTS = (samples, scores, votes, rankings, retractions, comparisons, erasures, amendments)
FACTS = {table.name: table for table in _FACTS}

# --- work: what is being done, not what is known ----------------------------------------------------------------------

raters = sa.Table(
    "raters",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("token", sa.Text, unique=True),  # SHA-256 of the token; null once erased
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("expires", sa.Text),
    sa.Column("revoked", sa.Boolean, nullable=False),
    sa.Column("blur", sa.Boolean, nullable=False),
    sa.Column("opted_out", sa.Boolean, nullable=False),
    sa.Column("given", sa.Integer, nullable=False),  # leases so far
    sa.Column("answered", sa.Integer, nullable=False, server_default="0"),  # answers that stand
)
# Which samples a comparison shows, for looking up: `comparisons.samples` has them in order.
shown = sa.Table(
    "shown",
    metadata,
    sa.Column("comparison", sa.Text, primary_key=True),
    sa.Column("sample", sa.Text, primary_key=True),
)
sa.Index("shown_sample", shown.c.sample)
places = sa.Table(
    "places",
    metadata,
    sa.Column("comparison", sa.Text, primary_key=True),
    sa.Column("seq", Number, nullable=False),
    sa.Column("free", sa.Integer, nullable=False),  # raters still wanted; those who hold a lease have taken theirs
    sa.Column("known", sa.Boolean, nullable=False),
    sa.Column("sensitive", sa.Boolean, nullable=False),
)
sa.Index("places_next", places.c.known, places.c.free, places.c.seq)
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("rater", sa.Text, nullable=False),
    sa.Column("comparison", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # the rater's first, second ...
    sa.Column("shown", sa.Text, nullable=False),  # JSON: ids of samples from left to right
    sa.Column("repeat", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # open, answered, skipped, expired
    sa.Column("expires", sa.Double, nullable=False),  # seconds since 1970
)
sa.Index("leases_of_rater", leases.c.rater, leases.c.state, leases.c.number)
sa.Index("leases_expiring", leases.c.state, leases.c.expires)
sa.Index("leases_of_comparison", leases.c.comparison, leases.c.rater)
# The rule that no rater judges a comparison twice is the database's own.
_once = sa.text("NOT repeat AND state <> 'expired'")
sa.Index("leases_once", leases.c.rater, leases.c.comparison, unique=True, sqlite_where=_once, postgresql_where=_once)
answers = sa.Table(
    "answers",
    metadata,
    _seq(),
    sa.Column("rater", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # answer, undo
    sa.Column("lease", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),  # JSON: ids of what it added
    sa.Column("undone", sa.Boolean, nullable=False),
    sa.UniqueConstraint("rater", "key"),
    sqlite_autoincrement=True,
)
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, unique=True),
    sa.Column("time", sa.Text, nullable=False),
)
