"""What Alembic runs: the migrations, on the connection and in the transaction that `server.ledger.book` gives it."""

from __future__ import annotations

from alembic import context

from server.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
