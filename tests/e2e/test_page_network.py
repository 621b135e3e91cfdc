"""The page on bad networks, without a mouse, under its policy, and on a device that came by a link. Real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, WebSocketRoute, expect

from tests.e2e import page_servers
from tests.e2e.page_chat import SOCKET, Chat
from tests.upstreams.script import expected_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LONG = "script tokens=300 rate=75 seed=a"
"""Four seconds of text: time enough to interrupt it."""
SHORT = "script tokens=20 seed=c"
PHONE = {"width": 390, "height": 844}
OFFLINE_NOISE = ("net::ERR_INTERNET_DISCONNECTED", "WebSocket connection")
SLOW = {"offline": False, "latency": 300, "downloadThroughput": 50_000, "uploadThroughput": 20_000}
"""300 ms and 400 kbit/s, as on the edge of a village."""


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1280, "height": 860}) as opened:
        yield opened


@pytest.fixture
def chat(context: BrowserContext, server_url: str) -> Iterator[Chat]:
    subject = Chat(context.new_page(), server_url)
    yield subject
    assert [said for said in subject.complaints if not any(noise in said for noise in OFFLINE_NOISE)] == []


def said(question: str) -> str:
    """What the scripted model answers."""
    return expected_text([{"role": "user", "content": question}], "scripted")


def test_offline_is_said_and_what_is_asked_then_is_answered_later(chat: Chat) -> None:
    chat.open()
    chat.ask(LONG)
    chat.expect_text(0)
    chat.page.context.set_offline(True)
    banner = chat.page.get_by_test_id("banner")
    expect(banner).to_contain_text("You’re offline. Your answer goes on at the server.")
    expect(chat.answer(0).get_by_test_id("state")).to_have_text("Goes on unseen")
    chat.ask(SHORT)
    expect(chat.answer(1).get_by_test_id("state")).to_have_text("Will be sent when you’re back")
    chat.page.context.set_offline(False)
    expect(banner).to_contain_text("Connected again")
    chat.expect_whole(0)
    chat.expect_whole(1)
    assert [chat.copied(0), chat.copied(1)] == [said(LONG), said(SHORT)]


def test_what_was_asked_offline_can_be_taken_back_and_never_goes_out(chat: Chat) -> None:
    chat.open()
    chat.page.get_by_test_id("cut").click()
    chat.ask(SHORT)
    chat.answer(0).get_by_test_id("back").click()
    expect(chat.answers).to_have_count(0)
    expect(chat.page.get_by_test_id("composer")).to_have_value(SHORT)
    chat.page.get_by_test_id("reconnect").click()
    chat.expect_connected()
    expect(chat.answers).to_have_count(0)


def test_the_page_comes_and_works_over_a_slow_line(chat: Chat) -> None:
    line = chat.page.context.new_cdp_session(chat.page)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", SLOW)
    chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    assert chat.copied(0) == said(SHORT)


def test_a_line_that_stalls_and_then_bursts_loses_nothing(chat: Chat) -> None:
    held: list[str | bytes] = []
    stalled = False
    page_side: list[WebSocketRoute] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        page_side[:] = [socket]
        socket.on_message(server.send)
        server.on_message(lambda data: held.append(data) if stalled else socket.send(data))

    chat.page.route_web_socket(SOCKET, route)
    chat.open()
    chat.ask(LONG)
    chat.expect_text(0)
    stalled = True
    while sum(len(data) for data in held) < 4_000:
        chat.page.evaluate("0")  # lets what arrived be heard
    chat.expect_state(0, "streaming")
    stalled = False
    for data in held:
        page_side[0].send(data)
    chat.expect_whole(0)
    assert chat.copied(0) == said(LONG)


def test_nothing_can_be_run_that_the_page_did_not_bring(chat: Chat) -> None:
    chat.open()
    answer = chat.page.request.get(f"{chat.url}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    refused = chat.page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "window.harmed = 1";
            document.body.append(script);
        })"""
    )
    assert refused == "script-src-elem"
    assert chat.page.evaluate("window.harmed") is None
    chat.complaints.clear()  # the browser's word on what was just refused


def test_everything_is_reached_by_keyboard(chat: Chat) -> None:
    opened = chat.open()
    keyboard = chat.page.keyboard
    keyboard.type("What is your name?")
    keyboard.press("Enter")
    chat.expect_whole(0)
    tab_to(chat.page, "again")
    keyboard.press("Enter")
    chooser = chat.answer(0).get_by_test_id("chooser")
    expect(chooser).to_have_text("2/2")
    chat.expect_whole(0)
    tab_to(chat.page, "previous")
    keyboard.press("Enter")
    expect(chooser).to_have_text("1/2")
    tab_to(chat.page, "edit")
    keyboard.press("Enter")
    keyboard.type(" Tell me.")
    keyboard.press("Enter")
    expect(chat.page.get_by_test_id("question").last.get_by_test_id("chooser")).to_have_text("2/2")
    chat.expect_whole(0)
    tab_to(chat.page, "chat-edit", f"[data-id='{opened}'] ")
    keyboard.press("Enter")
    keyboard.type("By hand")
    keyboard.press("Enter")
    expect(chat.listed(opened)).to_have_text("By hand")
    tab_to(chat.page, "chat-trash", f"[data-id='{opened}'] ")
    keyboard.press("Enter")
    expect(chat.page.get_by_test_id("confirm-dialog")).to_be_visible()
    tab_to(chat.page, "confirm")
    keyboard.press("Enter")
    expect(chat.listed(opened)).to_have_count(0)
    expect(chat.page.get_by_test_id("empty")).to_be_visible()


def tab_to(page: Page, testid: str, within: str = "") -> None:
    """Press Tab until this has the focus; it must be seen to have it."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("(what) => document.activeElement.matches(what)", f"{within}[data-testid={testid}]"):
            break
    else:
        pytest.fail(f"{testid} is not reached by Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_a_device_comes_in_by_its_link_once_and_nobody_without_one(browser: Browser) -> None:
    with page_servers.demo("--lan") as told:
        parts = urlsplit(told)
        url = f"http://127.0.0.1:{parts.port}"
        with browser.new_context() as stranger:
            page = stranger.new_page()
            page.goto(f"{url}/")
            expect(page.get_by_test_id("token-dialog")).to_be_visible()
            expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "stopped")
        with browser.new_context(viewport={"width": 1440, "height": 900}) as first:
            chat = Chat(first.new_page(), url)
            chat.page.goto(f"{url}/#{parts.fragment}")
            chat.expect_connected()
            chat.ask("Name one lake.")
            chat.page.get_by_test_id("device").click()
            expect(chat.page.get_by_test_id("qr").get_by_role("img")).to_be_visible()
            link = chat.page.get_by_test_id("device-link")
            expect(link).to_have_attribute("href", re.compile("#code=.*&chat="))
            fragment = urlsplit(link.get_attribute("href") or "").fragment
            chat.page.keyboard.press("Escape")
            with browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True) as second:
                device = Chat(second.new_page(), url)
                device.page.goto(f"{url}/#{fragment}")
                device.expect_whole(0)
                chat.expect_whole(0)
                assert device.copied(0) == chat.copied(0)
                assert "code=" not in device.page.url
            with browser.new_context() as late:
                page = late.new_page()
                page.goto(f"{url}/#{fragment}")
                expect(page.get_by_test_id("token-dialog")).to_contain_text("has been used")
