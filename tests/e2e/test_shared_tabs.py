"""`sharedTabs` in a real Chromium: two tabs, one connection, and the tab that has it is closed in mid-answer."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from tests.e2e.page_chat import ARGUMENTS
from tests.integration.http.client import MODEL, place, turns
from tests.upstreams.script import expected_text

LIBRARY = Path(__file__).resolve().parents[2] / "web-demo" / "dist"
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


async def test_the_tab_that_has_the_connection_is_closed(valkey_url: str) -> None:
    options = {"server": {"allowed_origins": ["*"]}}
    async with place(valkey_url, options) as here, pages() as origin, async_playwright() as playwright:
        program = shutil.which("chromium")
        assert program is not None, "chromium is missing: apt-get install chromium"
        browser = await playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        context = await browser.new_context()
        await context.add_init_script(HELPERS)

        async def tab() -> tuple[Page, str]:
            page = await context.new_page()
            await page.goto(origin)
            return page, await page.evaluate(OPEN_TAB, here.node.url)

        one, session = await tab()
        two, shared = await tab()
        assert session == shared, "each tab has a connection of its own"
        send = "(text) => void client.send({ id: 'tabs-1', messages: [{ role: 'user', content: text }] })"
        await two.evaluate(send, ASK)
        await two.evaluate("() => until(() => client.session.messages.get('tabs-1').text.length > 200)")
        await one.close()
        await two.evaluate("() => until(() => client.session.messages.get('tabs-1').ended)")
        state, text, connections = await two.evaluate(
            "() => { const m = client.session.messages.get('tabs-1'); "
            "return [m.state, m.text, client.status.connections]; }"
        )
        await browser.close()
        assert (state, text) == ("done", expected_text(turns(ASK), MODEL))
        assert connections == 2
        assert here.upstream.count("start") == 1
