"""What each request reads is one row: a rater's count of answers, and whether they were given a comparison."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("raters", sa.Column("answered", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE raters SET answered = (SELECT count(*) FROM answers "
        "WHERE answers.rater = raters.id AND answers.kind = 'answer' AND NOT answers.undone)"
    )
    op.create_index("leases_of_comparison", "leases", ["comparison", "rater"])
