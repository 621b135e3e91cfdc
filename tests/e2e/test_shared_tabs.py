"""`sharedTabs` in a real Chromium: two tabs, one connection; its tab is closed, crashes or sleeps in mid-answer."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Error, Page, async_playwright

from tests.e2e.page_chat import ARGUMENTS
from tests.integration.http.client import MODEL, Place, place, turns
from tests.upstreams.script import expected_text

LIBRARY = Path(__file__).resolve().parents[2] / "web-demo" / "dist"
CRASH_SECONDS = 2.0
ASK = "script tokens=300 rate=75 seed=tabs"
OPEN_TAB = """
async (url) => {
  const { Client } = await import("/index.js");
  const { sharedTabs } = await import("/tabs.js");
  window.client = new Client({ url, connect: sharedTabs({ account: "ann" }), storage: sessionStorage });
  client.start();
  await until(() => client.status.phase === "open");
  return client.status.welcome.session;
}
"""
HELPERS = """
window.until = (condition) => new Promise((resolve) => {
  const look = () => condition() ? resolve() : setTimeout(look, 10);
  look();
});
"""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not LIBRARY.exists(), reason="npm run library in web-demo is missing"),
]


@contextlib.asynccontextmanager
async def pages() -> AsyncIterator[str]:
    """An origin that serves the built library, and an empty page."""
    app = web.Application()

    async def blank(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>tab</title>", content_type="text/html")

    app.router.add_get("/", blank)
    app.router.add_static("/", LIBRARY)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class Tabs:
    """Two tabs of one browser, of which the first has the connection."""

    place: Place
    first: Page
    second: Page

    async def ask(self, message_id: str, how: str) -> None:
        """The second tab asks; until some of the answer stands there."""
        send = "([id, text]) => void client.send({ id, messages: [{ role: 'user', content: text }] })"
        await self.second.evaluate(send, [message_id, how])
        await self.second.evaluate(f"() => until(() => {_message(message_id)}.text.length > 200)")

    async def check_whole(self, message_id: str, how: str, connections: int) -> None:
        """The second tab comes to the whole answer, which was generated once."""
        await self.second.evaluate(f"() => until(() => {_message(message_id)}.ended)")
        found = await self.second.evaluate(
            f"() => {{ const m = {_message(message_id)}; return [m.state, m.text, client.status.connections]; }}"
        )
        assert found == ["done", expected_text(turns(how), MODEL), connections]
        assert self.place.upstream.count("start") == 1


def _message(message_id: str) -> str:
    return f"client.session.messages.get('{message_id}')"


@contextlib.asynccontextmanager
async def tabs(valkey_url: str) -> AsyncIterator[Tabs]:
    """Both are open, on one connection."""
    options = {"server": {"allowed_origins": ["*"]}}
    async with place(valkey_url, options) as here, pages() as origin, async_playwright() as playwright:
        program = shutil.which("chromium")
        assert program is not None, "chromium is missing: apt-get install chromium"
        # A renderer for each tab, so that one may crash without the other.
        arguments = [*ARGUMENTS, "--process-per-tab", "--disable-features=ProcessPerSiteUpToMainFrameThreshold"]
        browser = await playwright.chromium.launch(executable_path=program, args=arguments)
        context = await browser.new_context()
        await context.add_init_script(HELPERS)

        async def tab() -> tuple[Page, str]:
            page = await context.new_page()
            await page.goto(origin)
            return page, await page.evaluate(OPEN_TAB, here.node.url)

        first, session = await tab()
        second, shared = await tab()
        assert session == shared, "each tab has a connection of its own"
        try:
            yield Tabs(here, first, second)
        finally:
            await browser.close()


async def test_the_tab_that_has_the_connection_is_closed(valkey_url: str) -> None:
    async with tabs(valkey_url) as two:
        await two.ask("tabs-1", ASK)
        await two.first.close()
        await two.check_whole("tabs-1", ASK, connections=2)


async def test_the_tab_that_has_the_connection_crashes(valkey_url: str) -> None:
    async with tabs(valkey_url) as two:
        await two.ask("tabs-2", ASK)
        crashed = asyncio.Event()
        two.first.on("crash", lambda page: crashed.set())
        session = await two.first.context.new_cdp_session(two.first)
        with contextlib.suppress(TimeoutError, Error):  # there is nobody left to answer
            async with asyncio.timeout(CRASH_SECONDS):
                await session.send("Page.crash")
        await crashed.wait()
        await two.check_whole("tabs-2", ASK, connections=2)


async def test_the_tab_that_has_the_connection_sleeps(valkey_url: str) -> None:
    async with tabs(valkey_url) as two:
        await two.ask("tabs-3", ASK)
        session = await two.first.context.new_cdp_session(two.first)
        await session.send("Debugger.enable")
        await session.send("Debugger.pause")  # at its next statement: the browser would not freeze a tab with a lock
        await two.second.evaluate("() => client.check()")  # as a tab does that becomes visible
        await two.check_whole("tabs-3", ASK, connections=2)
        await session.send("Debugger.resume")
        await two.first.evaluate("() => until(() => client.status.phase === 'open')")
