"""Fixtures for every test: real servers, each empty when a test begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import PostgresServer, missing
from tests.servers import REDIS, REDIS_INSTALL_COMMAND, VALKEY, RedisServer, redis_binary

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("tidewire", deadline=None)
settings.load_profile("tidewire")


@pytest.fixture(scope="session")
def _valkey_process() -> Iterator[RedisServer]:
    with RedisServer(VALKEY) as server:
        yield server


@pytest.fixture(scope="session")
def _redis_process() -> Iterator[RedisServer]:
    if redis_binary() is None:
        pytest.skip(f"redis-server is missing; `make test` installs it, or: {REDIS_INSTALL_COMMAND}")
    with RedisServer(REDIS) as server:
        yield server


@pytest.fixture
def valkey_server(_valkey_process: RedisServer) -> RedisServer:
    """A running Valkey, empty. One process per test session: a test that freezes or kills it starts its own."""
    _valkey_process.flush()
    return _valkey_process


@pytest.fixture
def valkey_url(valkey_server: RedisServer) -> str:
    """The address of an empty Valkey."""
    return valkey_server.url


@pytest.fixture(params=[VALKEY, REDIS])
def redis_server(request: pytest.FixtureRequest) -> RedisServer:
    """A running server, empty; the test runs once on Valkey and once on Redis 7."""
    server: RedisServer = request.getfixturevalue(f"_{request.param}_process")
    server.flush()
    return server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty server; the test runs once on Valkey and once on Redis 7."""
    return redis_server.url


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
    """The address of an empty database; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'ledger.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url
