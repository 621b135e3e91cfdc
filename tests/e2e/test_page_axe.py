"""Everything that the page can show, under axe-core: light and dark, on a desk and on a phone. Real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.page_chat import Chat, Map, ScriptedServer, attempt, failed
from tests.processes import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

AXE = ROOT / "web-demo" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"desk": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}
MARKDOWN = """# Tides

Two a day, *mostly*; see [the table](https://example.org) and `code`:

```python
def tide(hours: float) -> float:  # metres
    return 2.5 * sin(hours / 12.42)
```

> quoted

| port | range |
|---|---|
| Brest | 6.1 m |

- [ ] look it up
- [x] done
"""
OFFLINE_NOISE = ("net::ERR_INTERNET_DISCONNECTED", "WebSocket connection")


@pytest.fixture(params=["desk", "phone"])
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Literal["light", "dark"]:
    return "dark" if request.param == "dark" else "light"


@pytest.fixture
def chat(browser: Browser, demo_url: str, size: str, scheme: Literal["light", "dark"]) -> Iterator[Chat]:
    phone = size == "phone"
    width, height = SIZES[size]["width"], SIZES[size]["height"]
    with browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=phone, has_touch=phone
    ) as context:
        subject = Chat(context.new_page(), demo_url)
        yield subject
        assert [said for said in subject.complaints if not any(noise in said for noise in OFFLINE_NOISE)] == []


def expect_no_violation(page: Page) -> None:
    """axe-core objects to nothing; else the rules and elements are told. Waits until what fades in has done so."""
    page.evaluate(
        """() => Promise.allSettled(
            document.getAnimations()
                .filter((animation) => animation.effect.getComputedTiming().endTime !== Infinity)
                .map((animation) => animation.finished)
        )"""
    )
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    assert [f"{rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]] == []


def test_axe_finds_no_violation_in_chats_and_menus(chat: Chat, size: str) -> None:
    page = chat.page
    for number in range(8):
        body = {"id": f"kept-{number}", "title": f"Harbour {number}"}
        page.request.post(f"{chat.url}/v1/conversations", data=body)  # there already, from the second time on
    opened = chat.open()
    expect_no_violation(page)
    chat.ask("Name one lake.")
    chat.expect_whole(0)
    expect_no_violation(page)
    page.get_by_test_id("edit").last.click()
    expect(page.get_by_test_id("edit-input")).to_be_visible()
    expect_no_violation(page)
    page.keyboard.press("Escape")
    if size == "phone":
        page.get_by_test_id("menu").click()
    expect(page.get_by_test_id("search")).to_be_in_viewport()
    expect(chat.listed(opened)).to_be_in_viewport()
    expect_no_violation(page)
    chat.press_in_list(opened, "edit")
    expect(page.get_by_test_id("rename")).to_be_visible()
    expect_no_violation(page)
    page.keyboard.press("Escape")
    chat.press_in_list(opened, "trash")
    expect(page.get_by_test_id("confirm-dialog")).to_be_visible()
    expect_no_violation(page)
    page.get_by_test_id("dismiss").click()
    page.keyboard.press("Escape")
    page.get_by_test_id("settings").click()
    expect(page.get_by_test_id("codec-msgpack")).to_be_visible()
    expect_no_violation(page)


def test_axe_finds_no_violation_in_the_panel_and_on_the_operator_s_page(chat: Chat, size: str) -> None:
    page = chat.page
    chat.open()
    if size == "phone":
        page.get_by_test_id("panel-button").click()
    expect(page.get_by_test_id("light-primary")).to_be_visible()
    page.get_by_test_id("twice").click()
    expect(page.get_by_test_id("proof")).to_be_visible(timeout=60_000)
    expect_no_violation(page)
    page.get_by_test_id("device").click()
    expect(page.get_by_test_id("device-link")).to_be_visible()
    expect_no_violation(page)
    page.goto(f"{chat.url}/operator/")
    expect(page.get_by_test_id("node").first).to_be_visible()
    expect(page.get_by_test_id("spending").get_by_role("row", name="demo")).to_be_visible(timeout=60_000)
    expect_no_violation(page)


def test_axe_finds_no_violation_in_whatever_an_answer_may_be(chat: Chat) -> None:
    def on_send(server: ScriptedServer, frame: Map) -> None:
        key = frame["id"]
        server.say({"type": "accepted", "id": key, "replay": False, "state": "streaming", "seq": 0}, attempt(key, 1))
        if frame["input"] == "fail":
            server.say(failed(key, 2, "upstream_unavailable", retryable=True))
            server.ended(key, "failed")
        else:
            server.say(attempt(key, 2, 2, "b", "restart"))
            server.say({"type": "delta", "id": key, "after": 2, "seq": 3, "text": MARKDOWN, "reasoning": "Well."})

    page = chat.page
    ScriptedServer(page, on_send)
    chat.open()
    chat.ask("fail")
    expect(chat.answer(0).get_by_test_id("error")).to_be_visible()
    chat.ask("go on")
    expect(chat.answer(1).get_by_test_id("fallback")).to_be_visible()
    chat.expect_state(1, "streaming")
    expect_no_violation(page)
    page.context.set_offline(True)
    expect(page.get_by_test_id("banner")).to_contain_text("offline")
    expect_no_violation(page)
    page.context.set_offline(False)
    expect(page.get_by_test_id("banner")).to_contain_text("Connected again")
    expect_no_violation(page)


def test_axe_finds_no_violation_where_a_token_is_wanted(chat: Chat) -> None:
    ScriptedServer(chat.page, lambda server, frame: None, token="secret")
    chat.page.goto(f"{chat.url}/")
    expect(chat.page.get_by_test_id("token-dialog")).to_be_visible()
    expect(chat.page.get_by_test_id("connection")).to_have_attribute("data-state", re.compile("stopped"))
    expect_no_violation(chat.page)
