"""The migrations of the ledger's database, run by Alembic."""

from __future__ import annotations

from typing import Final

HEAD: Final = "0002"
"""The newest one: a database that stands here needs no Alembic."""
