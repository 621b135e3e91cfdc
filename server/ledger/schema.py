"""The one table of the ledger, as the newest migration leaves it. Imported where SQL is spoken: it loads SQLAlchemy.

Money is integer nano-dollars, times are integer milliseconds since 1970 (UTC): both exact in every database.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, Integer, MetaData, Table, Text

metadata: Final = MetaData()

attempts: Final = Table(
    "attempts",
    metadata,
    Column("message_key", Text, primary_key=True),
    Column("generation", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("run", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("user_kind", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("feature", Text),
    Column("tags", JSON, nullable=False),
    Column("door", Text, nullable=False),
    Column("session_id", Text),
    Column("job_id", Text),
    Column("conversation_id", Text),
    Column("prompt", Text),
    Column("route", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("provider", Text),
    Column("model", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("payer", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("pays_input", Boolean, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger),
    Column("charged_nano_usd", BigInteger),
    Column("price_version", Text),
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("first_token_ms", BigInteger),
    Column("withdrawn_in", Integer),
    Index("attempts_by_tenant", "tenant", "ended_ms"),
    Index("attempts_by_time", "ended_ms"),
)
"""One row an attempt; docs/ledger.md explains the columns."""
