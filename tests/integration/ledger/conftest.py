"""Databases of the ledger: see also `ledger_url` in `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.ledger.book import Book


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The address of an empty SQLite database, where the kind of database makes no difference."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def book(ledger_url: str) -> Iterator[Book]:
    """An open ledger, empty."""
    found = Book.open(ledger_url)
    yield found
    found.close()
