"""Records that a later run withdraws, and reports over all tenants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the index."""
    op.add_column("attempts", sa.Column("withdrawn_in", sa.Integer))
    op.create_index("attempts_by_time", "attempts", ["ended_ms"])


def downgrade() -> None:
    """Take both away."""
    op.drop_index("attempts_by_time", "attempts")
    op.drop_column("attempts", "withdrawn_in")
