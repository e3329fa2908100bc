"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TEXT, _NUMBER, _FLAG = sa.Text(), sa.Integer(), sa.Boolean()
_REAL: sa.Double[float] = sa.Double()
_LONG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _table(name: str, columns: dict[str, Any], *rest: Any, null: tuple[str, ...] = (), numbered: bool = False) -> None:
    made = [sa.Column(key, kind, nullable=key in null) for key, kind in columns.items()]
    if numbered:
        made.insert(0, sa.Column("seq", _LONG, primary_key=True, autoincrement=True))
    op.create_table(name, *made, *rest, sqlite_autoincrement=numbered)


def upgrade() -> None:
    _table("project", {"id": _TEXT, "time": _TEXT}, sa.PrimaryKeyConstraint("id"))
    _facts_of_samples()
    _judgements()
    _table(
        "comparisons",
        {"id": _TEXT, "prompt": _TEXT, "samples": _TEXT, "wanted": _NUMBER, "batch": _TEXT, "expected": _TEXT}
        | {"dimension": _TEXT, "time": _TEXT, "sensitive": _FLAG},
        sa.UniqueConstraint("id"),
        numbered=True,
    )
    _table(
        "erasures", {"rater": _TEXT, "time": _TEXT, "votes": _FLAG, "removed": _NUMBER, "lowest": _TEXT}, numbered=True
    )
    _work()


def _facts_of_samples() -> None:
    _table("media", {"sha256": _TEXT, "type": _TEXT, "size": _LONG, "time": _TEXT}, sa.PrimaryKeyConstraint("sha256"))
    _table(
        "samples",
        {"id": _TEXT, "prompt": _TEXT, "medium": _TEXT, "source": _TEXT, "time": _TEXT}
        | {"seed": sa.BigInteger(), "batch": _TEXT},
        sa.UniqueConstraint("id"),
        sa.ForeignKeyConstraint(["medium"], ["media.sha256"]),
        null=("seed",),
        numbered=True,
    )
    op.create_index("samples_medium", "samples", ["medium"])
    _table(
        "scores",
        {"sample": _TEXT, "dimension": _TEXT, "value": _REAL, "source": _TEXT, "time": _TEXT},
        sa.UniqueConstraint("sample", "source", "dimension", "time"),
        sa.ForeignKeyConstraint(["sample"], ["samples.id"]),
        null=("value",),
        numbered=True,
    )


def _judgements() -> None:
    judgement = {"source": _TEXT, "time": _TEXT, "dimension": _TEXT, "comparison": _TEXT}
    how = {"seconds": _REAL, "repeat": _FLAG}
    for name, said in (
        ("votes", {"a": _TEXT, "b": _TEXT, "choice": _TEXT, "left": _TEXT, "reason": _TEXT}),
        ("rankings", {"groups": _TEXT, "shown": _TEXT}),
    ):
        unique = sa.UniqueConstraint("id")
        _table(name, {"id": _TEXT} | said | judgement | how, unique, null=("seconds",), numbered=True)
        op.create_index(f"{name}_source", name, ["source"])
    _table(
        "retractions",
        {"id": _TEXT, "of": _TEXT, "source": _TEXT, "time": _TEXT},
        sa.UniqueConstraint("id"),
        numbered=True,
    )
    op.create_index("retractions_of", "retractions", ["of"])
    op.create_index("retractions_source", "retractions", ["source"])


def _work() -> None:
    _table(
        "raters",
        {"id": _TEXT, "name": _TEXT, "role": _TEXT, "token": _TEXT, "time": _TEXT, "expires": _TEXT}
        | {"revoked": _FLAG, "blur": _FLAG, "opted_out": _FLAG, "given": _NUMBER},
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token"),
        null=("token", "expires"),
    )
    _table("shown", {"comparison": _TEXT, "sample": _TEXT}, sa.PrimaryKeyConstraint("comparison", "sample"))
    op.create_index("shown_sample", "shown", ["sample"])
    _table(
        "places",
        {"comparison": _TEXT, "seq": _LONG, "free": _NUMBER, "known": _FLAG, "sensitive": _FLAG},
        sa.PrimaryKeyConstraint("comparison"),
    )
    op.create_index("places_next", "places", ["known", "free", "seq"])
    _table(
        "leases",
        {"id": _TEXT, "rater": _TEXT, "comparison": _TEXT, "number": _NUMBER, "shown": _TEXT, "repeat": _FLAG}
        | {"state": _TEXT, "expires": _REAL},
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("leases_of_rater", "leases", ["rater", "state", "number"])
    op.create_index("leases_expiring", "leases", ["state", "expires"])
    once = sa.text("NOT repeat AND state <> 'expired'")
    op.create_index(
        "leases_once", "leases", ["rater", "comparison"], unique=True, sqlite_where=once, postgresql_where=once
    )
    _table(
        "answers",
        {"rater": _TEXT, "key": _TEXT, "kind": _TEXT, "lease": _TEXT, "facts": _TEXT, "undone": _FLAG},
        sa.UniqueConstraint("rater", "key"),
        numbered=True,
    )
    _table(
        "snapshots",
        {"id": _TEXT, "name": _TEXT, "time": _TEXT},
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        null=("name",),
    )
