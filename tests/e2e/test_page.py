"""The page in a real Chromium, against three servers.

`tidewire demo` shows that it works out of the box. `tidewire serve` with a scripted model shows, character by
character, that nothing is lost. A scripted server shows what no real one says on demand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.e2e.page_chat import Chat, Map, ScriptedServer, attempt, failed
from tests.upstreams.script import expected_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LONG = "script tokens=300 rate=75 seed=a"
"""Four seconds of text: time enough to interrupt it."""
LONGER = "script tokens=3000 rate=75 seed=a"
"""Forty seconds, for what may take long on a busy machine; it is told to hurry when that is done."""
OTHER = "script tokens=300 rate=75 seed=b unicode=1"
SHORT = "script tokens=20 seed=c"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}

HOSTILE = """<img src="x" onerror="window.harmed=1"><script>window.harmed=2</script>

[link](javascript:window.harmed=3) [data](data:text/html,<script>window.harmed=4</script>)
[spaced](java\nscript:window.harmed=5) ![pixel](https://tracker.example/pixel.png)

<a href="javascript:window.harmed=6" onclick="window.harmed=7">raw</a> <iframe src="https://example.org"></iframe>
<style>body { display: none }</style>

[good](https://example.org/a?b=1&c=2)
"""

WIDE = f"""Code:

```python
{"wide = " + "+ 1 " * 60}
```

| {" | ".join("column" for _ in range(12))} |
|{"---|" * 12}
| {" | ".join("value" for _ in range(12))} |

{"word" * 60}
"""


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport=DESKTOP) as opened:
        yield opened


@pytest.fixture
def chat(context: BrowserContext, server_url: str) -> Iterator[Chat]:
    """The page, not yet loaded. At the end nothing must have been loaded from elsewhere, thrown or complained."""
    subject = Chat(context.new_page(), server_url)
    yield subject
    assert subject.complaints == []


def scripted_text(question: str) -> str:
    """What the scripted model answers; those with a seed say the same whatever was said before."""
    return expected_text([{"role": "user", "content": question}], "scripted")


# --- the demo, with the local model ---------------------------------------------------------------------------------


def test_the_demo_answers_whole_although_its_connection_is_cut(context: BrowserContext, demo_url: str) -> None:
    chat = Chat(context.new_page(), demo_url)
    chat.open()
    chat.ask("Tell me about the tide in four sentences.")
    chat.expect_text(0)
    chat.page.get_by_test_id("cut").click()
    chat.expect_connected(connections=2)
    chat.expect_whole(0)
    assert chat.copied(0)
    expect(chat.answer(0).get_by_test_id("meta")).to_have_text(re.compile(r"token.*first token.*attempt.*whole"))
    assert chat.complaints == []


# --- a real server, with a scripted model ---------------------------------------------------------------------------


def test_a_question_gets_a_whole_answer(chat: Chat) -> None:
    chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    assert chat.copied(0) == scripted_text(SHORT)
    expect(chat.page.get_by_test_id("connection")).to_have_text(re.compile(r"Connected\d+ ms"))


def test_two_chats_stream_side_by_side_over_one_socket(chat: Chat, hurry: Callable[[], None]) -> None:
    first = chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    chat.page.get_by_test_id("new-chat").click()
    chat.ask(LONGER)
    chat.expect_text(0)
    chat.press_in_list(first, "beside")
    expect(chat.page.get_by_test_id("pane")).to_have_count(2)
    expect(chat.answers).to_have_count(2)
    expect(chat.page.get_by_test_id("composer")).to_have_attribute("placeholder", re.compile("Ask in"))
    chat.ask(OTHER)
    chat.expect_text(2)
    chat.expect_state(0, "streaming")
    hurry()
    chat.expect_whole(0)
    chat.expect_whole(2)
    assert [chat.copied(0), chat.copied(2)] == [scripted_text(LONGER), scripted_text(OTHER)]
    chat.expect_connected(connections=1)
    chat.pane(0).get_by_test_id("close-pane").click()
    expect(chat.answers).to_have_count(2)


def test_stop_keeps_what_stands(chat: Chat) -> None:
    chat.open()
    chat.ask(LONG)
    chat.expect_text(0)
    chat.answer(0).get_by_test_id("stop").click()
    chat.expect_state(0, "cancelled")
    kept = chat.copied(0)
    assert kept
    assert scripted_text(LONG).startswith(kept)
    shown = chat.text(0)
    chat.page.reload()
    chat.expect_state(0, "cancelled")
    assert chat.text(0) == shown


def test_escape_stops_the_latest_answer(chat: Chat) -> None:
    chat.open()
    chat.ask(LONG)
    chat.expect_text(0)
    chat.page.keyboard.press("Escape")
    chat.expect_state(0, "cancelled")


def test_a_reload_in_mid_answer_resumes_it_whole(chat: Chat, hurry: Callable[[], None]) -> None:
    chat.open()
    chat.ask(LONGER)
    chat.expect_text(0)
    chat.page.reload()
    expect(chat.page.get_by_test_id("question")).to_contain_text(LONGER)
    chat.expect_state(0, "streaming")
    chat.expect_resumed(0)
    hurry()
    chat.expect_whole(0)
    assert chat.copied(0) == scripted_text(LONGER)


def test_another_tab_follows_from_the_start(chat: Chat, hurry: Callable[[], None]) -> None:
    opened = chat.open()
    chat.ask(LONG)
    chat.expect_text(0)
    other = Chat(chat.page.context.new_page(), chat.url)  # it has none of the text: that lies in the tab's storage
    other.open(opened)
    other.expect_text(0)
    hurry()
    other.expect_whole(0)
    chat.expect_whole(0)
    assert other.copied(0) == scripted_text(LONG)
    assert other.complaints == []


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_cut_connection_in_mid_answer_costs_nothing(chat: Chat, codec: str, hurry: Callable[[], None]) -> None:
    chat.open()
    connections = 1
    if codec == "msgpack":
        chat.page.get_by_test_id("settings").click()
        chat.page.get_by_test_id("codec-msgpack").click()
        chat.page.keyboard.press("Escape")
        connections = 2
        chat.expect_connected(connections)
    chat.ask(OTHER)
    chat.expect_text(0)
    chat.page.get_by_test_id("cut").click()
    expect(chat.page.get_by_test_id("banner")).to_be_visible()
    expect(chat.page.get_by_test_id("connection")).to_have_attribute("data-state", "reconnecting")
    chat.expect_connected(connections + 1)
    chat.expect_resumed(0)
    hurry()
    chat.expect_whole(0)
    assert chat.copied(0) == scripted_text(OTHER)


def test_a_question_asked_while_the_connection_is_down_is_sent_once_it_is_back(chat: Chat) -> None:
    chat.open()
    chat.page.get_by_test_id("cut").click()
    chat.ask(SHORT)
    chat.expect_state(0, "offline")
    chat.page.get_by_test_id("reconnect").click()
    chat.expect_whole(0)


def test_three_at_once_stand_side_by_side(chat: Chat) -> None:
    ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], "Hi"))
    chat.open()
    chat.page.get_by_test_id("suggestion").last.click()
    for number in range(3):
        chat.expect_whole(number)
    tops = chat.answers.evaluate_all("all => all.map((answer) => answer.getBoundingClientRect().top)")
    assert len(set(tops)) == 1


def test_it_fits_a_phone(browser: Browser, server_url: str, tmp_path: Path) -> None:
    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)) / "phone.png"
    with browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark") as context:
        chat = Chat(context.new_page(), server_url)
        ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], WIDE))
        chat.open()
        chat.expect_no_sideways_scroll()
        chat.ask("Something wide")
        chat.expect_whole(0)
        chat.expect_no_sideways_scroll()
        chat.page.screenshot(path=picture)
        assert picture.stat().st_size > 10_000
        chat.page.get_by_test_id("menu").click()
        expect(chat.page.get_by_test_id("chats").get_by_text("Something wide")).to_be_in_viewport()
        assert chat.complaints == []


def test_the_panel_shows_what_the_backend_does(chat: Chat) -> None:
    chat.page.set_viewport_size({"width": 1440, "height": 900})
    chat.open()
    panel = chat.page.get_by_test_id("panel")
    expect(panel.get_by_test_id("light-scripted")).to_have_attribute("data-state", "closed")
    expect(panel.get_by_test_id("route")).to_have_text("Route “default”: scripted")
    expect(panel.get_by_test_id("fact-node")).to_have_text(re.compile(r"^[0-9a-f]{6}$"))
    chat.ask(LONG)
    chat.expect_text(0)
    expect(panel.get_by_test_id("light-scripted")).to_have_attribute("data-busy", "true")
    chat.page.get_by_test_id("cut").click()
    chat.expect_whole(0)
    expect(panel.get_by_test_id("fact-resumes")).to_have_text("1")
    lines = panel.get_by_test_id("happenings")
    for line in ("accepted", "attempt 1 at scripted", "first text", "connection lost", "1 answer resumed", "whole"):
        expect(lines).to_contain_text(line)
    expect(panel.get_by_test_id("books").get_by_role("row", name="Chat")).to_contain_text("312")
    chat.page.get_by_test_id("panel-button").click()
    expect(panel).to_be_hidden()


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


def test_only_a_text_that_has_the_server_s_hash_is_called_whole(chat: Chat) -> None:
    hashes = {"right": sha256(b"right").hexdigest(), "wrong": sha256(b"right").hexdigest(), "none": None}
    server = ScriptedServer(chat.page, lambda server, frame: server.answer(frame["id"], "told"))
    parent = None
    entries = server.histories["kept"] = []
    for text, told in hashes.items():
        entries.append({"id": f"q_{text}", "role": "user", "parent": parent, "state": "done", "content": "?"})
        answer = {"id": f"a_{text}", "role": "assistant", "parent": f"q_{text}", "state": "done", "content": text}
        entries.append(answer | ({"text_sha256": told} if told else {}))
        parent = answer["id"]
    chat.open("kept")
    chat.expect_whole(0)
    for number in (1, 2):
        chat.expect_state(number, "done")
        expect(chat.answer(number).get_by_test_id("whole")).to_have_count(0)
    chat.ask("?")
    chat.expect_whole(3)
    asked = next(frame for frame in server.sent if frame["type"] == "send")
    entry = {"id": asked["id"], "role": "assistant", "parent": f"e_{asked['id']}", "state": "done", "content": "other"}
    server.say({"type": "message", "conversation": "kept", "seq": 10} | entry)
    expect(chat.answer(3).get_by_test_id("answer-text")).to_have_text("other")
    expect(chat.answer(3).get_by_test_id("whole")).to_have_count(0)


def test_gauges_drain_and_refill(chat: Chat) -> None:
    chat.page.set_viewport_size({"width": 1440, "height": 900})
    limit = {"name": "tokens_per_minute", "limit": 1000, "remaining": 100, "reset_seconds": 3600.0}
    server = ScriptedServer(chat.page, lambda server, frame: server.say({"type": "quota", "limits": [limit]}))
    chat.open()
    chat.ask("?")
    gauge = chat.page.get_by_test_id("gauge-tokens_per_minute")
    expect(gauge).to_have_attribute("data-low", "true")
    server.say({"type": "quota", "limits": [{**limit, "reset_seconds": 1.0}]})
    expect(gauge).to_have_attribute("data-share", "1.000")
    expect(gauge).to_contain_text("1,000 of 1,000")


def test_a_failure_that_passes_is_retried_under_the_same_id(chat: Chat) -> None:
    def on_send(server: ScriptedServer, frame: Map) -> None:
        key = frame["id"]
        if "retry_of" in frame:
            server.say(attempt(key, 3, 2, "b", "restart"))
            server.say({"type": "delta", "id": key, "after": 3, "seq": 4, "text": "Better"})
        else:
            server.say(attempt(key, 1), failed(key, 2, "upstream_unavailable", retryable=True))
            server.ended(key, "failed")

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
    assert [frame["input"] for frame in server.sent if frame["type"] == "send"] == ["one\ntwo"]


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
