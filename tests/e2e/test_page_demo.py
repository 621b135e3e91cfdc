"""The buttons of `tidewire demo` in a real Chromium: what is broken is really broken, and the answer arrives whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Route, expect

from tests.e2e.page_chat import ANSWER_MS, Chat

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

STORY = "Write a short story about a lighthouse keeper who talks to ships."
"""Long enough to be broken in the middle, also where the model is fast."""
QUESTIONS = 5
"""At most so many are asked until the mended model is tried again."""
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
EXPECTED_NOISE = ("WebSocket connection", "net::ERR")
"""What a browser says by itself when a server process dies under it."""


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport=WIDE) as opened:
        yield opened


@pytest.fixture
def chat(context: BrowserContext, demo_url: str) -> Iterator[Chat]:
    subject = Chat(context.new_page(), demo_url)
    subject.open()
    yield subject
    assert [said for said in subject.complaints if not any(noise in said for noise in EXPECTED_NOISE)] == []


def test_a_broken_primary_model_is_replaced_in_mid_answer_and_comes_back(chat: Chat) -> None:
    page = chat.page
    primary = page.get_by_test_id("light-primary")
    expect(primary).to_have_attribute("data-state", "closed")
    chat.ask(STORY)
    chat.expect_text(0)
    page.get_by_test_id("primary").click()
    expect(page.get_by_test_id("primary")).to_have_attribute("aria-pressed", "true")
    expect(primary).to_have_attribute("data-state", "open")
    expect(chat.answer(0).get_by_test_id("fallback")).to_contain_text("Switched to backup", timeout=ANSWER_MS)
    chat.expect_whole(0)
    expect(page.get_by_test_id("happenings")).to_contain_text("attempt 2 at backup goes on with the text")
    page.get_by_test_id("primary").click()
    expect(page.get_by_test_id("primary")).to_have_attribute("aria-pressed", "false")
    expect(primary).to_contain_text("tried with the next question", timeout=ANSWER_MS)
    for number in range(1, QUESTIONS + 1):  # the node asked may think the pause a moment longer than the one that told
        chat.ask("Name one lake.")
        chat.expect_whole(number)
        if primary.get_attribute("data-state") != "open":
            break
    expect(primary).to_have_attribute("data-state", re.compile("closed|half_open|ramping"))


def test_an_answer_outlives_the_node_that_serves_it(chat: Chat) -> None:
    page = chat.page
    node = page.get_by_test_id("fact-node")
    expect(node).to_have_text(re.compile("^[0-9a-f]{6}$"))
    before = node.inner_text()
    chat.ask(STORY)
    chat.expect_text(0)
    page.get_by_test_id("kill").click()
    expect(node).not_to_have_text(before, timeout=ANSWER_MS)
    chat.expect_resumed(0)
    chat.expect_whole(0)
    told = "The server node that was answering is gone; another one goes on."
    expect(chat.answer(0).get_by_test_id("fallback")).to_have_text(told)
    expect(page.get_by_test_id("happenings")).to_contain_text(told)
    expect(page.get_by_test_id("happenings")).not_to_contain_text("owner_lost")


def test_sent_twice_is_answered_once(chat: Chat) -> None:
    chat.page.get_by_test_id("composer").fill("Name one sea.")
    chat.page.get_by_test_id("twice").click()
    status = chat.page.get_by_test_id("controls-status")
    expect(status).to_contain_text("answered once", timeout=ANSWER_MS)
    expect(chat.answers).to_have_count(1)
    chat.expect_whole(0)
    asked = chat.page.get_by_test_id("turn").get_attribute("data-id")
    assert asked is not None
    with chat.page.expect_popup() as shown:
        status.get_by_test_id("proof").click()
    kept = json.loads(shown.value.locator("body").inner_text())
    assert kept["id"] == asked
    assert kept["text"].strip() == chat.copied(0).strip()
    (attempt,) = kept["attempts"]
    used = f"a model once ({attempt['target']}: done): {kept['usage']['total_tokens']} tokens"
    expect(status).to_contain_text(f"…{asked[-8:]}. It called {used}")


def test_that_two_were_answered_once_is_said_only_if_the_server_says_so(chat: Chat) -> None:
    def other_usage(route: Route) -> None:
        kept = route.fetch().json()
        kept["usage"]["total_tokens"] *= 2
        route.fulfill(json=kept)

    status = chat.page.get_by_test_id("controls-status")
    for answer, told in ((other_usage, "are not the same"), (lambda route: route.abort(), "does not tell")):
        chat.page.unroute_all()
        chat.page.route("**/v1/messages/*", answer)
        chat.page.get_by_test_id("composer").fill("Name one sea.")
        chat.page.get_by_test_id("twice").click()
        expect(status).to_contain_text(told, timeout=ANSWER_MS)


def test_this_machine_s_second_window_gets_a_plain_link(chat: Chat) -> None:
    chat.page.get_by_test_id("device").click()
    expect(chat.page.get_by_test_id("device-link")).to_have_attribute("href", f"{chat.url}/")
    expect(chat.page.get_by_test_id("device-dialog")).to_contain_text("tidewire demo --lan")


def test_a_second_device_finds_the_running_answer_and_may_stop_it(chat: Chat, browser: Browser) -> None:
    chat.ask(STORY)
    chat.expect_text(0)
    chat.page.get_by_test_id("device").click()
    address = chat.page.get_by_test_id("device-link")
    expect(address).to_have_attribute("href", re.compile("#chat="))
    link = address.get_attribute("href")
    assert link is not None
    chat.page.keyboard.press("Escape")
    with browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True) as context:
        device = Chat(context.new_page(), chat.url)
        device.page.goto(link)
        device.expect_text(0)
        device.answer(0).get_by_test_id("stop").click()
        device.expect_state(0, "cancelled")
        chat.expect_state(0, "cancelled")
        assert device.copied(0) == chat.copied(0)
        assert device.complaints == []


def test_the_operator_sees_both_nodes_and_what_was_spent(chat: Chat) -> None:
    chat.ask("Name one river.")
    chat.expect_whole(0)
    operator = chat.page.context.new_page()
    operator.goto(f"{chat.url}/operator/")
    expect(operator.get_by_test_id("node")).to_have_count(2, timeout=ANSWER_MS)
    expect(operator.get_by_test_id("light-primary")).to_be_visible()
    expect(operator.get_by_test_id("spending").get_by_role("row", name="demo")).to_contain_text("$")
    expect(operator.get_by_test_id("plot-sessions").locator("svg")).to_have_attribute(
        "aria-label", re.compile(r"Live sessions: [1-9]")
    )
    expect(operator.get_by_test_id("plot-tokens").locator("path").last).to_have_attribute("d", re.compile(r"^M40"))
