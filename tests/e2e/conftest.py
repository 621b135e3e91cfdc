"""What the tests of the page share: a browser, and what it looks at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.e2e import page_servers
from tests.e2e.page_chat import launch


@pytest.fixture(scope="module")
def demo_url() -> Iterator[str]:
    """Where a `tidewire demo` serves."""
    with page_servers.demo() as url:
        yield url


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """Where a server with a scripted upstream serves."""
    with page_servers.scripted() as url:
        yield url


# The browser ends with the module: while it lives, no other event loop can run in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with sync_playwright() as playwright, launch(playwright) as launched:
        yield launched
