"""What the tests of the page share: a browser, and what it looks at."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator

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
def _scripted() -> Iterator[tuple[str, str]]:
    with page_servers.scripted() as addresses:
        yield addresses


@pytest.fixture(scope="module")
def server_url(_scripted: tuple[str, str]) -> str:
    """Where a server with a scripted upstream serves."""
    return _scripted[0]


@pytest.fixture(scope="module")
def hurry(_scripted: tuple[str, str]) -> Callable[[], None]:
    """Has the upstream say the rest of its answers at once, when what had to happen in mid-answer has happened."""

    def all_at_once() -> None:
        with urllib.request.urlopen(urllib.request.Request(f"{_scripted[1]}/admin/pace", method="DELETE")):
            pass

    return all_at_once


# The browser ends with the module: while it lives, no other event loop can run in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with sync_playwright() as playwright, launch(playwright) as launched:
        yield launched
