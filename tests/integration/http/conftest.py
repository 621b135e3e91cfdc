"""Fixtures for tests of the HTTP surface."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.http.client import Place, place


@pytest.fixture
async def here(valkey_url: str) -> AsyncIterator[Place]:
    """One place with the defaults, on Valkey."""
    async with place(valkey_url) as found:
        yield found
