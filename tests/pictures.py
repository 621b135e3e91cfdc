"""The pictures of the README and of docs/demo.md, taken from a demo that really runs.

    .venv/bin/python -m tests.pictures                 # all of them, into docs/images
    .venv/bin/python -m tests.pictures --only cut      # one of: cut, demo, chats, phone, operator

It starts a demo of its own in a throw-away home and drives it in Chromium. Answers come from the local model, so no two
runs give the same picture: look at them before they are committed.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e import page_servers
from tests.e2e.page_chat import ANSWER_MS, Chat, launch
from tests.processes import ROOT

IMAGES: Final = ROOT / "docs" / "images"
MOST_BYTES: Final = 600_000
DESK: Final = {"width": 1440, "height": 900}
FILM: Final = {"width": 1120, "height": 660}
FILM_WIDTH: Final = 840
FILM_QUALITY: Final = 72
FILMED_AFTER_SECONDS: Final = 4.0
"""So long the film runs on once the connection is back; then it jumps to the end of the answer."""
SHORTEST_STEP_MS: Final = 150
"""A machine that could take more pictures must not make a film too large for a README."""
LONGEST_STEP_MS: Final = 400
"""A step of the film that took longer, on a busy machine, is shown as long as this."""
LOAD_SECONDS: Final = 75.0
STORY: Final = "Write a short story about a lighthouse keeper who talks to ships."

Scheme = Literal["light", "dark"]


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PICTURES), help="take this one alone")
    parser.add_argument("--into", type=Path, default=IMAGES)
    given = parser.parse_args()
    with page_servers.demo() as url, sync_playwright() as playwright, launch(playwright) as browser:
        for name, take in PICTURES.items():
            if given.only in (None, name):
                take(browser, url, given.into)
    for picture in given.into.iterdir():
        print(f"{picture.name}: {picture.stat().st_size} bytes")
        assert picture.stat().st_size < MOST_BYTES, f"{picture.name} is too large for a README"


def opened(browser: Browser, url: str, size: dict[str, int], scheme: Scheme, scale: float = 1) -> Chat:
    """The page in a context of its own, with a new chat."""
    context = browser.new_context(
        viewport={"width": size["width"], "height": size["height"]}, color_scheme=scheme, device_scale_factor=scale
    )
    chat = Chat(context.new_page(), url)
    chat.open()
    return chat


def save(page: Page, path: Path) -> None:
    """A screenshot in as few colours as it needs."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def take_demo(browser: Browser, url: str, into: Path) -> None:
    """The primary model breaks in mid-answer, and the panel shows why the backup goes on."""
    chat = opened(browser, url, DESK, "light")
    page = chat.page
    named(chat, "Name one sea.", "Seas")
    named(chat, "Name one lake.", "Lakes and rivers")
    chat.ask(STORY)
    chat.expect_text(0)
    page.get_by_test_id("primary").click()
    expect(chat.answer(0).get_by_test_id("fallback")).to_contain_text("Switched to", timeout=ANSWER_MS)
    longer(chat, 0, 900)
    save(page, into / "demo.png")
    page.get_by_test_id("primary").click()
    chat.expect_whole(0)
    page.context.close()


def named(chat: Chat, question: str, title: str) -> None:
    """Ask something in a chat of its own, give it a title, and begin another chat."""
    opened = chat.open()
    chat.ask(question)
    chat.expect_whole(0)
    chat.press_in_list(opened, "edit")
    chat.page.get_by_test_id("rename").fill(title)
    chat.page.keyboard.press("Enter")
    chat.open()


def longer(chat: Chat, number: int, characters: int) -> None:
    """Wait until an answer has so many characters, or has ended."""
    chat.page.wait_for_function(
        """([at, least]) => {
            const answer = document.querySelectorAll("[data-testid=answer]")[at];
            const text = answer.querySelector("[data-testid=answer-text]").textContent;
            return text.length >= least || answer.ariaBusy === "false";
        }""",
        arg=[number, characters],
        timeout=ANSWER_MS,
    )


def take_chats(browser: Browser, url: str, into: Path) -> None:
    """Three chats side by side, in the dark."""
    chat = opened(browser, url, DESK, "dark")
    chat.page.get_by_test_id("suggestion").last.click()
    for number in range(3):
        longer(chat, number, 160)
    save(chat.page, into / "chats.png")
    chat.page.context.close()


def take_phone(browser: Browser, url: str, into: Path) -> None:
    """A chat on a phone: an answer with a version beside it, and an input that waits."""
    context = browser.new_context(
        viewport={"width": 390, "height": 780}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    chat = Chat(context.new_page(), url)
    chat.open()
    chat.ask("Which sea has the highest tide?")
    chat.expect_whole(0)
    chat.answer(0).get_by_test_id("again").click()
    expect(chat.answer(0).get_by_test_id("chooser")).to_have_text("2/2")
    chat.expect_whole(0)
    chat.ask(STORY)
    chat.expect_text(1)
    chat.ask("And its name?")
    expect(chat.answer(2).get_by_test_id("state")).to_have_text(re.compile("number 1"))
    longer(chat, 1, 60)
    save(chat.page, into / "phone.png")
    context.close()


def take_operator(browser: Browser, url: str, into: Path) -> None:
    """The operator's page after a minute of traffic with an outage in it."""
    users = [opened(browser, url, DESK, "light") for _ in range(3)]
    operator = users[0].page.context.new_page()
    operator.set_viewport_size({"width": 1280, "height": 756})
    operator.goto(f"{url}/operator/")
    end, broken = time.monotonic() + LOAD_SECONDS, False
    while (left := end - time.monotonic()) > 0:
        for chat in users:
            chat.open()
            chat.page.get_by_test_id("suggestion").last.click()
            longer(chat, 0, 1)
        if not broken and left < LOAD_SECONDS * 0.7:
            broken = True
            users[0].page.get_by_test_id("primary").click()
        elif broken and left < LOAD_SECONDS * 0.4:
            expect(users[0].page.get_by_test_id("primary")).to_have_attribute("aria-pressed", "true")
            users[0].page.get_by_test_id("primary").click()
            broken = False
            end = min(end, time.monotonic() + LOAD_SECONDS * 0.4)
        for chat in users:
            longer(chat, 0, 400)
    operator.bring_to_front()
    expect(operator.get_by_test_id("spending").get_by_role("row", name="demo")).to_contain_text("$")
    save(operator, into / "operator.png")
    for chat in users:
        chat.page.context.close()


def take_cut(browser: Browser, url: str, into: Path) -> None:
    """A film: the connection is cut in mid-answer, comes back, and the answer is whole."""
    chat = opened(browser, url, FILM, "light")
    page = chat.page
    steps: list[tuple[float, bytes]] = []

    def film(done: Callable[[], bool]) -> None:
        while not done():
            if steps and (early := SHORTEST_STEP_MS - (time.monotonic() - steps[-1][0]) * 1000) > 0:
                page.wait_for_timeout(early)
            steps.append((time.monotonic(), page.screenshot(type="png")))

    def lasts(seconds: float) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    chat.ask("Explain in a long paragraph how a telegraph worked.")
    chat.expect_text(0)
    film(lasts(1.0))
    page.get_by_test_id("cut").hover()
    film(lasts(0.4))
    page.get_by_test_id("cut").click()
    banner = page.get_by_test_id("banner")
    film(lambda: banner.get_attribute("data-state") == "back")
    page.mouse.move(0, 0)
    film(lasts(FILMED_AFTER_SECONDS))
    chat.expect_whole(0)
    film(lasts(0.5))
    page.context.close()
    put_together(steps, into / "cut-and-resume.webp")


def put_together(steps: list[tuple[float, bytes]], path: Path) -> None:
    """An animated WebP in which time runs as it did."""
    times = [at for at, _ in steps]
    lengths = [min(LONGEST_STEP_MS, round((b - a) * 1000)) for a, b in pairwise(times)] + [2500]
    height = round(FILM["height"] * FILM_WIDTH / FILM["width"])
    frames = [
        Image.open(io.BytesIO(data)).convert("RGB").resize((FILM_WIDTH, height), Image.Resampling.LANCZOS)
        for _, data in steps
    ]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=lengths, loop=0, quality=FILM_QUALITY, method=4
    )


PICTURES: Final[dict[str, Callable[[Browser, str, Path], None]]] = {
    "cut": take_cut,
    "chats": take_chats,
    "phone": take_phone,
    "demo": take_demo,
    "operator": take_operator,
}

if __name__ == "__main__":
    main()
