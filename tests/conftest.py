"""Fixtures for every test: real servers, each empty when a test begins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

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
