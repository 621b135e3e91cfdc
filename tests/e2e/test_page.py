"""The demo page in a real Chromium: against `tidewire demo`, and against a scripted server for what that never says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.e2e.page_chat import Chat, Map, ScriptedServer, attempt, failed, launch
from tests.e2e.page_demo import Demo

pytestmark = pytest.mark.browser

STORY = "Write a long story about a lighthouse keeper, with many details."
LIST = "Explain in many sentences how ships are built."
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}

HOSTILE = """<img src="x" onerror="window.harmed=1"><script>window.harmed=2</script>

[link](javascript:window.harmed=3) [data](data:text/html,<script>window.harmed=4</script>)
[spaced](java\nscript:window.harmed=5) ![pixel](https://tracker.example/pixel.png)

<a href="javascript:window.harmed=6" onclick="window.harmed=7">raw</a> <iframe src="https://example.org"></iframe>
<style>body { display: none }</style>

[good](https://example.org/a?b=1&c=2)
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with Demo() as running:
        yield running


# The browser ends with the module: while it lives, no other event loop can run in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, launch(playwright) as launched:
        yield launched


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport=DESKTOP) as opened:
        yield opened


@pytest.fixture
def chat(context: BrowserContext, demo: Demo) -> Iterator[Chat]:
    """The page, not yet loaded. At the end nothing must have been loaded from elsewhere, thrown or complained."""
    subject = Chat(context.new_page(), demo.url)
    yield subject
    assert subject.complaints == []


# --- against the real server ----------------------------------------------------------------------------------------


def test_a_question_gets_a_whole_answer(chat: Chat) -> None:
    chat.open()
    chat.ask("Say hello.")
    chat.expect_whole(0)
    assert chat.text(0)
    expect(chat.answer(0).get_by_test_id("meta")).to_have_text(re.compile(r"token.*first token.*attempt.*whole"))
    expect(chat.page.get_by_test_id("connection")).to_have_text(re.compile(r"Connected\d+ ms"))


def test_two_questions_stream_at_once_over_one_socket(chat: Chat) -> None:
    chat.open()
    chat.ask(STORY)
    chat.expect_state(0, "streaming")
    chat.ask(LIST)
    chat.expect_text(1)
    expect(chat.page.locator(".group")).to_have_count(1)
    chat.expect_whole(0)
    chat.expect_whole(1)
    assert chat.text(0) != chat.text(1)
    chat.expect_connected(connections=1)


def test_stop_keeps_what_stands(chat: Chat) -> None:
    chat.open()
    chat.ask(STORY)
    chat.expect_text(0)
    chat.answer(0).get_by_test_id("stop").click()
    chat.expect_state(0, "cancelled")
    text = chat.text(0)
    assert text
    chat.page.reload()
    chat.expect_state(0, "cancelled")
    assert chat.text(0) == text


def test_escape_stops_the_latest_answer(chat: Chat) -> None:
    chat.open()
    chat.ask(STORY)
    chat.expect_text(0)
    chat.page.keyboard.press("Escape")
    chat.expect_state(0, "cancelled")


def test_a_reload_in_mid_answer_resumes_it_whole(chat: Chat) -> None:
    chat.open()
    chat.ask(STORY)
    chat.expect_text(0)
    before = chat.text(0)
    chat.page.reload()
    expect(chat.page.get_by_test_id("question")).to_contain_text(STORY)
    chat.expect_resumed(0)
    chat.expect_whole(0)
    assert len(chat.text(0)) > len(before)


def test_a_reload_without_kept_text_tells_it_from_the_start(chat: Chat) -> None:
    chat.open()
    chat.ask(STORY)
    chat.expect_text(0)
    chat.page.goto("about:blank")
    other = Chat(chat.page.context.new_page(), chat.url)  # a new tab has no session storage
    other.open()
    other.expect_whole(0)
    assert other.complaints == []
    chat.complaints.clear()


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_cut_connection_in_mid_answer_costs_nothing(chat: Chat, codec: str) -> None:
    chat.open()
    connections = 1
    if codec == "msgpack":
        chat.page.get_by_test_id("settings").click()
        chat.page.get_by_test_id("codec-msgpack").click()
        chat.page.keyboard.press("Escape")
        connections = 2
        chat.expect_connected(connections)
    chat.ask(STORY)
    chat.expect_text(0)
    chat.page.get_by_test_id("cut").click()
    expect(chat.page.get_by_test_id("banner")).to_be_visible()
    expect(chat.page.get_by_test_id("connection")).to_have_attribute("data-state", "reconnecting")
    chat.expect_connected(connections + 1)
    chat.expect_resumed(0)
    chat.expect_whole(0)


def test_a_question_asked_while_the_connection_is_down_is_sent_once_it_is_back(chat: Chat) -> None:
    chat.open()
    chat.page.get_by_test_id("cut").click()
    chat.ask("Say hello.")
    chat.expect_state(0, "offline")
    chat.page.get_by_test_id("reconnect").click()
    chat.expect_whole(0)


def test_answers_are_kept_over_a_reload(chat: Chat) -> None:
    chat.open()
    chat.ask("Say hello.")
    chat.expect_whole(0)
    text = chat.text(0)
    chat.page.reload()
    chat.expect_state(0, "done")
    assert chat.text(0) == text
    chat.page.get_by_test_id("new-chat").click()
    expect(chat.answers).to_have_count(0)
    expect(chat.page.get_by_test_id("empty")).to_be_visible()


def test_it_fits_a_phone(browser: Browser, demo: Demo, tmp_path: Path) -> None:
    folder = Path(os.environ.get("TIDEWIRE_SCREENSHOTS", tmp_path))
    with browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark") as context:
        chat = Chat(context.new_page(), demo.url)
        chat.open()
        chat.expect_no_sideways_scroll()
        chat.ask("Write a tiny Python function with a very long line of code.")
        chat.expect_whole(0)
        chat.expect_no_sideways_scroll()
        chat.page.screenshot(path=folder / "phone.png")
        chat.page.get_by_test_id("menu").click()
        expect(chat.page.get_by_test_id("chats")).to_contain_text("Write a tiny")
        assert (folder / "phone.png").stat().st_size > 10_000
        assert chat.complaints == []


# --- against a scripted server --------------------------------------------------------------------------------------


def test_hostile_text_stays_inert(chat: Chat) -> None:
    ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], HOSTILE))
    chat.open()
    chat.ask("<img src=x onerror='window.harmed=8'>")
    chat.expect_whole(0)
    expect(chat.page.get_by_test_id("question")).to_contain_text("<img src=x onerror=")
    body = chat.answer(0).get_by_test_id("answer-text")
    expect(body).to_contain_text("<script>window.harmed=2</script>")
    expect(body.locator("img, script, iframe, style, [onclick], [onerror]")).to_have_count(0)
    expect(body.locator("a[href^='javascript'], a[href^='data']")).to_have_count(0)
    good = body.get_by_role("link", name="good")
    expect(good).to_have_attribute("href", "https://example.org/a?b=1&c=2")
    expect(good).to_have_attribute("rel", re.compile("noopener"))
    for text in ("link", "data", "spaced", "raw"):
        body.get_by_text(text, exact=False).first.click()
    assert chat.page.evaluate("window.harmed") is None


def test_text_goes_in_its_own_direction(chat: Chat) -> None:
    ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], "مرحبا بالعالم\n\nHello"))
    chat.open()
    chat.ask("سؤال")
    chat.expect_whole(0)
    directions = chat.answer(0).locator(".prose p").evaluate_all("all => all.map((p) => getComputedStyle(p).direction)")
    assert directions == ["rtl", "ltr"]


def test_a_fallback_is_shown_and_withdraws_the_earlier_text(chat: Chat) -> None:
    def on_send(server: ScriptedServer, frame: Map) -> None:
        key = frame["id"]
        server.say(
            {"type": "accepted", "id": key, "replay": False, "state": "streaming", "seq": 0},
            attempt(key, 1),
            {"type": "delta", "id": key, "after": 1, "seq": 2, "text": "Withdrawn"},
            attempt(key, 3, 2, "b", "restart"),
            {"type": "delta", "id": key, "after": 3, "seq": 4, "text": "Second"},
        )

    ScriptedServer(chat.page, on_send)
    chat.open()
    chat.ask("?")
    expect(chat.answer(0).get_by_test_id("fallback")).to_have_text("Switched to b: The model did not answer in time.")
    assert chat.text(0) == "Second"


def test_a_failure_that_passes_is_retried_under_the_same_id(chat: Chat) -> None:
    def on_send(server: ScriptedServer, frame: Map) -> None:
        key = frame["id"]
        if "retry_of" in frame:
            server.say(attempt(key, 3, 2, "b", "restart"))
            server.say({"type": "delta", "id": key, "after": 3, "seq": 4, "text": "Better"})
        else:
            server.say(attempt(key, 1), failed(key, 2, "upstream_unavailable", retryable=True))

    server = ScriptedServer(chat.page, on_send)
    chat.open()
    chat.ask("?")
    expect(chat.answer(0).get_by_test_id("error")).to_have_text("The model could not be reached.")
    chat.answer(0).get_by_test_id("retry").click()
    expect(chat.answer(0).get_by_test_id("answer-text")).to_have_text("Better")
    expect(chat.answer(0).get_by_test_id("error")).to_be_hidden()
    sends = [frame for frame in server.sent if frame["type"] == "send"]
    assert [frame.get("retry_of") for frame in sends] == [None, 2]
    assert sends[0]["id"] == sends[1]["id"]
    expect(chat.answers).to_have_count(1)


def test_a_server_that_wants_a_token_gets_one(chat: Chat) -> None:
    server = ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], "Hi"), token="secret")
    chat.page.goto(f"{chat.url}/")
    expect(chat.page.get_by_test_id("token-dialog")).to_be_visible()
    chat.page.get_by_test_id("token-input").fill("secret")
    chat.page.get_by_test_id("token-submit").click()
    chat.expect_connected()
    chat.ask("?")
    chat.expect_whole(0)
    assert [frame.get("token") for frame in server.sent if frame["type"] == "hello"] == [None, "secret"]


def test_enter_sends_and_shift_enter_does_not(chat: Chat) -> None:
    server = ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], "Hi"))
    chat.open()
    composer = chat.page.get_by_test_id("composer")
    composer.press_sequentially("one")
    composer.press("Shift+Enter")
    composer.press_sequentially("two")
    expect(composer).to_have_value("one\ntwo")
    composer.press("Enter")
    chat.expect_whole(0)
    assert [frame["messages"][-1]["content"] for frame in server.sent if frame["type"] == "send"] == ["one\ntwo"]


def test_the_answer_is_told_to_screen_readers(chat: Chat) -> None:
    ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], "Forty-two"))
    chat.open()
    chat.ask("?")
    expect(chat.page.get_by_test_id("live")).to_have_text("Answer: Forty-two")


def test_a_chosen_theme_stays(chat: Chat) -> None:
    chat.open()
    chat.page.get_by_test_id("settings").click()
    chat.page.get_by_test_id("theme-dark").click()
    dark = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    chat.page.get_by_test_id("theme-light").click()
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    chat.page.get_by_test_id("theme-dark").click()
    chat.page.reload()
    chat.expect_connected()
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
