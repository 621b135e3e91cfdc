"""Chats on the page, kept by the server: the list, versions, the queue, and the same on every device. Real Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.e2e.page_chat import Chat
from tests.upstreams.script import expected_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LONG = "script tokens=300 rate=75 seed=a"
"""Four seconds of text: time enough to do something meanwhile."""
LONGER = "script tokens=3000 rate=75 seed=a"
"""Forty seconds, for what may take two devices long on a busy machine; it is told to hurry when that is done."""
SHORT = "script tokens=20 seed=c"
OTHER = "script tokens=20 seed=d"
THIRD = "script tokens=20 seed=e"


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1280, "height": 860}) as opened:
        yield opened


@pytest.fixture
def chat(context: BrowserContext, server_url: str) -> Iterator[Chat]:
    subject = Chat(context.new_page(), server_url)
    yield subject
    assert subject.complaints == []


@pytest.fixture
def device(browser: Browser, server_url: str) -> Iterator[Chat]:
    """Another browser of the same user."""
    with browser.new_context(viewport={"width": 1280, "height": 860}) as opened:
        subject = Chat(opened.new_page(), server_url)
        yield subject
        assert subject.complaints == []


def said(question: str) -> str:
    """What the scripted model answers."""
    return expected_text([{"role": "user", "content": question}], "scripted")


def test_a_chat_gets_a_title_by_itself_and_outlives_the_browser(chat: Chat, device: Chat) -> None:
    opened = chat.open()
    chat.ask(SHORT)
    expect(chat.listed(opened)).to_contain_text(SHORT)
    chat.expect_whole(0)
    expect(chat.listed(opened)).to_contain_text(said(SHORT)[:20])
    device.open()
    device.listed(opened).get_by_role("button").first.click()
    device.expect_whole(0)
    assert device.copied(0) == said(SHORT)
    expect(device.answer(0).get_by_test_id("meta")).to_have_text(re.compile(r"scripted.*20 tokens.*1 attempt.*whole"))


def test_a_chat_is_renamed_and_found_by_its_title_on_another_device(chat: Chat, device: Chat) -> None:
    opened = chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    expect(chat.listed(opened)).to_contain_text(said(SHORT)[:20])
    device.open(opened)
    chat.press_in_list(opened, "edit")
    chat.page.get_by_test_id("rename").fill("Neap tide")
    chat.page.keyboard.press("Enter")
    expect(chat.listed(opened)).to_have_text("Neap tide")
    expect(device.listed(opened)).to_have_text("Neap tide")
    chat.press_in_list(opened, "edit")
    chat.page.get_by_test_id("rename").fill("Something else")
    chat.page.keyboard.press("Escape")
    expect(chat.listed(opened)).to_have_text("Neap tide")


def test_a_long_list_comes_in_pages_and_is_searched_whole(chat: Chat) -> None:
    for number in range(45):
        body = {"id": f"many-{number}", "title": f"Harbour {number}"}
        assert chat.page.request.post(f"{chat.url}/v1/conversations", data=body).ok
    chat.open()
    rows = chat.page.get_by_test_id("chat").filter(has_text="Harbour")
    expect(rows.first).to_contain_text("Harbour 44")
    chat.page.get_by_test_id("search").fill("harbour 0")
    expect(rows).to_have_text("Harbour 0")
    chat.page.get_by_test_id("search").fill("no such title")
    expect(chat.page.get_by_test_id("chat")).to_have_count(0)


def test_a_chat_is_deleted_everywhere_after_a_question(chat: Chat, device: Chat) -> None:
    opened = chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    device.open(opened)
    device.expect_whole(0)
    chat.press_in_list(opened, "trash")
    chat.page.get_by_test_id("dismiss").click()
    expect(chat.listed(opened)).to_have_count(1)
    chat.press_in_list(opened, "trash")
    chat.page.get_by_test_id("confirm").click()
    for each in (chat, device):
        expect(each.listed(opened)).to_have_count(0)
        expect(each.page.get_by_test_id("empty")).to_be_visible()
    assert chat.page.request.get(f"{chat.url}/v1/conversations/{opened}").status == 404


def test_regenerating_makes_a_version_and_each_can_be_chosen_from_any_device(chat: Chat, device: Chat) -> None:
    opened = chat.open()
    chat.ask("What is your name?")
    chat.expect_whole(0)
    chat.answer(0).get_by_test_id("again").click()
    chooser = chat.answer(0).get_by_test_id("chooser")
    expect(chooser).to_have_text("2/2")
    chat.expect_whole(0)
    device.open(opened)
    expect(device.answer(0).get_by_test_id("chooser")).to_have_text("2/2")
    chooser.get_by_test_id("previous").click()
    for each in (chat, device):
        expect(each.answer(0).get_by_test_id("chooser")).to_have_text("1/2")
        expect(each.answers).to_have_count(1)
    device.answer(0).get_by_test_id("next").click()
    expect(chooser).to_have_text("2/2")


def test_an_edited_question_is_another_branch(chat: Chat) -> None:
    chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    chat.ask(OTHER)
    chat.expect_whole(1)
    question = chat.page.get_by_test_id("question")
    question.nth(0).hover()
    question.nth(0).get_by_test_id("edit").click()
    field = chat.page.get_by_test_id("edit-input").first
    expect(field).to_have_value(SHORT)
    field.fill(THIRD)
    field.press("Enter")
    expect(chat.answers).to_have_count(1)
    chat.expect_whole(0)
    assert chat.copied(0) == said(THIRD)
    expect(question.get_by_test_id("chooser")).to_have_text("2/2")
    question.get_by_test_id("previous").click()
    expect(chat.answers).to_have_count(2)
    assert [chat.copied(0), chat.copied(1)] == [said(SHORT), said(OTHER)]
    chat.page.reload()
    expect(question.first.get_by_test_id("chooser")).to_have_text("1/2")
    question.first.get_by_test_id("next").click()
    expect(chat.answers).to_have_count(1)
    expect(question).to_contain_text(THIRD)


def test_what_waits_is_shown_with_its_place_on_all_devices_and_can_be_taken_back(
    chat: Chat, device: Chat, hurry: Callable[[], None]
) -> None:
    opened = chat.open()
    chat.ask(LONGER)
    chat.expect_text(0)
    device.open(opened)
    device.expect_text(0)
    chat.ask(OTHER)
    chat.ask(THIRD)
    for each in (chat, device):
        expect(each.answer(1).get_by_test_id("state")).to_have_text("Queued, number 1")
        expect(each.answer(2).get_by_test_id("state")).to_have_text("Queued, number 2")
        expect(each.page.get_by_test_id("question").nth(1)).to_contain_text(OTHER)
    chat.answer(1).get_by_test_id("back").click()
    expect(chat.page.get_by_test_id("composer")).to_have_value(OTHER)
    for each in (chat, device):
        expect(each.answers).to_have_count(2)
    hurry()
    for each in (chat, device):
        each.expect_whole(0)
        each.expect_whole(1)
        assert [each.copied(0), each.copied(1)] == [said(LONGER), said(THIRD)]


@pytest.mark.parametrize(("choice", "left"), [("interrupt", 2), ("rollback", 2), ("reject", 2)])
def test_what_a_question_does_to_the_answer_that_runs_is_chosen(
    chat: Chat, choice: str, left: int, hurry: Callable[[], None]
) -> None:
    chat.open()
    expect(chat.page.get_by_test_id("on-busy")).to_be_hidden()
    chat.ask(LONG)
    chat.expect_text(0)
    chat.page.get_by_test_id("on-busy").select_option(choice)
    chat.ask(OTHER)
    expect(chat.answers).to_have_count(left)
    if choice == "reject":
        chat.expect_state(1, "failed")
        expect(chat.answer(1).get_by_test_id("error")).to_have_attribute("data-code", "conversation_busy")
        hurry()
        chat.expect_whole(0)
        chat.answer(1).get_by_test_id("retry").click()
    else:
        chat.expect_state(0, "interrupted" if choice == "interrupt" else "unanswered")
    chat.expect_whole(1)
    assert chat.copied(1) == said(OTHER)


def test_a_question_from_another_device_appears_with_its_answer_as_it_streams(chat: Chat, device: Chat) -> None:
    opened = chat.open()
    chat.ask(SHORT)
    chat.expect_whole(0)
    device.open(opened)
    device.expect_whole(0)
    chat.ask(LONG)
    device.expect_text(1)
    device.expect_state(1, "streaming")
    expect(device.page.get_by_test_id("question").nth(1)).to_contain_text(LONG)
    device.answer(1).get_by_test_id("stop").click()
    for each in (chat, device):
        each.expect_state(1, "cancelled")


def test_a_long_chat_begins_at_its_end_and_goes_back_on_demand(chat: Chat) -> None:
    opened = "long-chat"
    history = [{"role": role, "content": f"{role} {number}"} for number in range(60) for role in ("user", "assistant")]
    body = {"conversation": opened, "messages": [*history, {"role": "user", "content": SHORT}], "model": "default"}
    assert chat.page.request.post(f"{chat.url}/v1/chat/completions", data=body).ok
    chat.open(opened)
    expect(chat.page.get_by_test_id("question").last).to_contain_text(SHORT)
    shown = chat.answers.count()
    assert shown < 60
    while shown < 61:  # each click brings a page, and the last one takes the button away
        chat.page.get_by_test_id("earlier").click()
        expect(chat.answers).not_to_have_count(shown)
        shown = chat.answers.count()
    expect(chat.page.get_by_test_id("earlier")).to_be_hidden()
    expect(chat.answers).to_have_count(61)
    expect(chat.page.get_by_test_id("question").first).to_contain_text("user 0")


def test_a_question_too_large_for_a_frame_s_preview_is_shown_whole(chat: Chat, device: Chat) -> None:
    opened = chat.open()
    long = "tide " * 8_000  # 40 KB: kept apart, and told by reference
    chat.ask(long)
    chat.expect_whole(0)
    device.open(opened)
    expect(device.page.get_by_test_id("question")).to_contain_text("tide tide")
    assert len(device.page.get_by_test_id("question").locator(".bubble").inner_text()) == len(long.strip())
