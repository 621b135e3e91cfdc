"""The table of attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "attempts",
        sa.Column("message_key", sa.Text, primary_key=True),
        sa.Column("generation", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_kind", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("feature", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("door", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text),
        sa.Column("job_id", sa.Text),
        sa.Column("conversation_id", sa.Text),
        sa.Column("prompt", sa.Text),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("payer", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("pays_input", sa.Boolean, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger),
        sa.Column("charged_nano_usd", sa.BigInteger),
        sa.Column("price_version", sa.Text),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("first_token_ms", sa.BigInteger),
    )
    op.create_index("attempts_by_tenant", "attempts", ["tenant", "ended_ms"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("attempts")
