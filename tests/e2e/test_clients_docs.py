"""The files of docs/clients.md, run as they stand there; only the port is another one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from tests.e2e.page_chat import ARGUMENTS
from tests.integration.http.client import MODEL, Place, place, turns
from tests.upstreams.script import expected_text

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "tests" / "clients" / "node_modules"
LIBRARY = ROOT / "web-demo" / "dist"
VITE = ROOT / "web-demo" / "node_modules" / "vite" / "bin" / "vite.js"
QUESTION = "Why is the sky blue?"
ANSWER = expected_text(turns(QUESTION), MODEL)
SECONDS = 60.0
FENCE = re.compile(
    r"^```\w+\n(?://|#|<!--) (?P<name>[a-z]+\.[a-z]+)(?: -->)?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
FILES = {
    found["name"]: found["body"] for found in FENCE.finditer((ROOT / "docs" / "clients.md").read_text(encoding="utf-8"))
}
STAND_INS = {
    "react-native": "export const AppState = { addEventListener: (_, f) => (globalThis.wake = () => f('active')) };",
    "react-native-get-random-values": "",
}
needs_node = [
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is missing"),
    pytest.mark.skipif(not PACKAGES.exists(), reason="npm install in tests/clients is missing"),
    pytest.mark.skipif(not LIBRARY.exists(), reason="npm run library in web-demo is missing"),
]


def test_the_page_has_a_file_for_each_platform() -> None:
    assert sorted(FILES) == ["ask.mjs", "ask.py", "chat.tsx", "index.html", "native.mjs", "trip.mjs"]


def project(folder: Path, url: str) -> Path:
    """The files in a project that has installed what they import."""
    modules = folder / "node_modules"
    modules.mkdir()
    for package in PACKAGES.iterdir():
        if not package.name.startswith("."):
            (modules / package.name).symlink_to(package)
    (modules / "tidewire").symlink_to(LIBRARY)
    for name, text in STAND_INS.items():
        (modules / name).mkdir()
        (modules / name / "package.json").write_text('{ "type": "module", "exports": "./index.js" }')
        (modules / name / "index.js").write_text(text)
    for name, text in FILES.items():
        assert "ws://127.0.0.1:8080/v1/ws" in text, name
        (folder / name).write_text(text.replace("ws://127.0.0.1:8080/v1/ws", url))
    return folder


async def output_of(folder: Path, *words: str) -> str:
    """What a program writes. Fails if it does not end well."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env={"PATH": "/usr/bin:/usr/local/bin", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, err.decode()
    return out.decode()


@contextlib.asynccontextmanager
async def opened(valkey_url: str, folder: Path, build: bool = False) -> AsyncIterator[tuple[Place, Page, str]]:
    """A page of Chromium, at home where the project is served, and a node that lets it in."""
    options = {"server": {"allowed_origins": ["*"]}}
    async with place(valkey_url, options) as here, async_playwright() as playwright:
        project(folder, here.node.url)
        served = folder
        if build:
            page = '<div id="root"></div><script type="module" src="/chat.tsx"></script>'
            (folder / "index.html").write_text(page)
            await output_of(folder, str(shutil.which("node")), str(VITE), "build", "--logLevel", "error")
            served = folder / "dist"
        app = web.Application()
        app.router.add_static("/", served, follow_symlinks=True)
        runner = web.AppRunner(app)
        await runner.setup()
        program = shutil.which("chromium")
        assert program is not None, "chromium is missing: apt-get install chromium"
        browser = await playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield here, await browser.new_page(), f"http://127.0.0.1:{runner.addresses[0][1]}/index.html"
        finally:
            await browser.close()
            await runner.cleanup()


@pytest.mark.parametrize(
    ("name", "program"),
    [pytest.param("ask.mjs", "node", marks=needs_node), pytest.param("ask.py", sys.executable)],
)
async def test_ask(name: str, program: str, valkey_url: str, tmp_path: Path) -> None:
    async with place(valkey_url) as here:
        project(tmp_path, here.node.url)
        shown = await output_of(tmp_path, shutil.which(program) or program, name)
    assert shown == ANSWER


@pytest.mark.parametrize("name", [pytest.param("trip.mjs", marks=needs_node)])
async def test_conversations(name: str, valkey_url: str, tmp_path: Path) -> None:
    async with place(valkey_url) as here:
        project(tmp_path, here.node.url)
        assert await output_of(tmp_path, str(shutil.which("node")), name) == "The Elbe 4\n"
        assert here.upstream.count("start") == 3


@pytest.mark.parametrize("name", [pytest.param("native.mjs", marks=needs_node)])
async def test_react_native(name: str, valkey_url: str, tmp_path: Path) -> None:
    async with place(valkey_url) as here:
        project(tmp_path, here.node.url)
        (tmp_path / "app.mjs").write_text(
            """import { WebSocket } from "ws";
            globalThis.WebSocket = WebSocket;
            globalThis.window = globalThis; // React Native has one that cannot be listened to
            const { client } = await import("./native.mjs");
            await client.ask({ messages: [{ role: "user", content: "?" }] }).done();
            const pong = new Promise((resolve) => client.on((event) => event.type === "pong" && resolve("pong")));
            globalThis.wake();
            console.log(await pong);
            client.close();"""
        )
        assert await output_of(tmp_path, str(shutil.which("node")), "app.mjs") == "pong\n"


@pytest.mark.browser
@pytest.mark.parametrize("name", [pytest.param("index.html", marks=needs_node)])
async def test_browser(name: str, valkey_url: str, tmp_path: Path) -> None:
    async with opened(valkey_url, tmp_path) as (here, page, address):
        slow = "script tokens=200 rate=60"  # so that the page can be reloaded in mid-answer
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(QUESTION, slow))
        answer = expected_text(turns(slow), MODEL)
        await page.goto(address)
        await page.click("#ask")
        await page.wait_for_function("document.getElementById('answer').textContent.length > 20")
        await page.reload()
        await page.wait_for_function("(text) => document.getElementById('answer').textContent === text", arg=answer)
        assert here.upstream.count("start") == 1


@pytest.mark.browser
@pytest.mark.parametrize("name", [pytest.param("chat.tsx", marks=needs_node)])
async def test_react(name: str, valkey_url: str, tmp_path: Path) -> None:
    async with opened(valkey_url, tmp_path, build=True) as (here, page, address):
        await page.goto(address)
        await page.fill("input", QUESTION)
        await page.click("button")
        await page.wait_for_function("(text) => document.querySelector('.assistant')?.textContent === text", arg=ANSWER)
        assert here.upstream.count("start") == 1
