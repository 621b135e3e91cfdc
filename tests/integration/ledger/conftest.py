"""Databases: each test that asks for `ledger_url` runs once on SQLite and once on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.ledger.book import Book
from tests.postgres import PostgresServer, missing


@pytest.fixture(scope="session")
def _postgres_process() -> Iterator[PostgresServer]:
    if (why := missing()) is not None:
        pytest.skip(why)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres(_postgres_process: PostgresServer) -> PostgresServer:
    """A running PostgreSQL, empty."""
    _postgres_process.fresh()
    return _postgres_process


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'ledger.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url


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
