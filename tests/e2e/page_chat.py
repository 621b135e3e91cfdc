"""The page as its user sees it, and a scripted server to show it what no real one says on demand."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Playwright, WebSocketRoute, expect
from playwright.sync_api import TimeoutError as Late

ANSWER_MS = 60_000
"""How long an answer of the local model may take on a busy machine, in milliseconds."""
MOVED_MS = 2_000
"""How long a click waits for a row that may have moved."""
MOVES = 10
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SOCKET = re.compile(r"/v1/ws$")

Map = dict[str, Any]


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium, with a new, empty profile."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is missing: apt-get install chromium"
    return playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))


class Chat:
    """The chat page in one tab. What must never happen on it is gathered in `complaints`."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        page.on("console", self._on_console)
        page.on("request", lambda request: self._on_address(request.url))
        page.on("websocket", lambda socket: self._on_address(socket.url.replace("ws", "http", 1)))

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type} on the console: {message.text}")

    def _on_address(self, address: str) -> None:
        if not address.startswith(f"{self.url}/"):
            self.complaints.append(f"loaded from elsewhere: {address}")

    def open(self, chat: str | None = None) -> str:
        """Load the page with a new chat, or this one, and wait until it is connected; the chat's id."""
        chat = chat or uuid.uuid4().hex
        if self.page.url.startswith(self.url):
            self.page.goto("about:blank")  # to another fragment alone the browser would not load anything
        self.page.goto(f"{self.url}/#chat={chat}")
        self.expect_connected()
        return chat

    def ask(self, question: str) -> None:
        """Type a question and press Enter."""
        composer = self.page.get_by_test_id("composer")
        composer.fill(question)
        composer.press("Enter")
        expect(composer).to_have_value("")

    @property
    def answers(self) -> Locator:
        """Every answer of the open chat, oldest first."""
        return self.page.get_by_test_id("answer")

    def answer(self, number: int) -> Locator:
        """One answer, counted from 0."""
        return self.answers.nth(number)

    def text(self, number: int) -> str:
        """What an answer shows."""
        return self.answer(number).get_by_test_id("answer-text").inner_text().strip()

    def copied(self, number: int) -> str:
        """The text of an ended answer, as it came from the server: what its copy button gives."""
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=self.url)
        self.page.bring_to_front()
        self.answer(number).get_by_test_id("copy").click()
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def pane(self, number: int) -> Locator:
        """One of the chats that stand side by side, counted from 0."""
        return self.page.get_by_test_id("pane").nth(number)

    def listed(self, chat: str) -> Locator:
        """The row of a chat in the list."""
        return self.page.locator(f"[data-testid=chat][data-id='{chat}']")

    def press_in_list(self, chat: str, button: str) -> None:
        """One of the buttons that a chat's row shows when it is pointed at: `beside`, `edit`, `trash`.

        What is asked puts the list in another order: a row that has moved away under the pointer is pointed at again.
        """
        for _ in range(MOVES):
            self.listed(chat).hover()
            try:
                self.listed(chat).get_by_test_id(f"chat-{button}").click(timeout=MOVED_MS)
            except Late:
                continue
            return
        raise AssertionError(f"the row of {chat} does not stand still")

    def expect_text(self, number: int) -> None:
        """Wait until an answer has begun."""
        expect(self.answer(number).get_by_test_id("answer-text")).to_have_text(re.compile(r"\S"), timeout=ANSWER_MS)

    def expect_state(self, number: int, state: str) -> None:
        """Wait until an answer is `streaming`, `done`, `failed`, `cancelled`, …"""
        expect(self.answer(number)).to_have_attribute("data-state", state, timeout=ANSWER_MS)

    def expect_whole(self, number: int) -> None:
        """Wait until an answer is complete and the page has found that what it shows has the server's hash."""
        self.expect_state(number, "done")
        expect(self.answer(number).get_by_test_id("whole")).to_be_visible()

    def expect_resumed(self, number: int) -> None:
        """An answer was picked up again at least once."""
        expect(self.answer(number)).to_have_attribute("data-resumes", re.compile(r"^[1-9]"))

    def expect_connected(self, connections: int | None = None) -> None:
        """Wait until the page is connected; `connections` counts those since it was loaded."""
        chip = self.page.get_by_test_id("connection")
        expect(chip).to_have_attribute("data-state", "connected", timeout=ANSWER_MS)
        if connections is not None:
            expect(chip).to_have_attribute("data-connections", str(connections))

    def expect_no_sideways_scroll(self) -> None:
        """Nothing is wider than the window."""
        wide = self.page.evaluate(
            """() => [...document.querySelectorAll("body, main, .scroller, .content, .group, .turn, .answer")]
                .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > innerWidth + 1)
                .map((e) => e.className || e.tagName)"""
        )
        assert wide == []


class ScriptedServer:
    """Answers on the page's WebSocket in the test's stead of a server; `on_send` says what follows a question.

    `sent` holds every frame of the page, over all its connections. Whatever is asked in a conversation is entered into
    it at once, and only conversations that were asked in are known, and those whose entries `histories` has.
    """

    def __init__(self, page: Page, on_send: Callable[[ScriptedServer, Map], None], *, token: str | None = None) -> None:
        self.sent: list[Map] = []
        self.histories: dict[str, list[Map]] = {}
        self._on_send = on_send
        self._token = token
        self._socket: WebSocketRoute | None = None
        self._heads: dict[str, int] = {}
        self._answers: dict[str, tuple[str, str]] = {}
        page.route_web_socket(SOCKET, self._connected)

    def say(self, *frames: Map) -> None:
        """Send frames to the page."""
        assert self._socket is not None
        for frame in frames:
            self._socket.send(json.dumps(frame))

    def answer(self, message_id: str, text: str) -> None:
        """A whole answer in one piece."""
        data = text.encode()
        self.say(
            {"type": "accepted", "id": message_id, "replay": False, "state": "streaming", "seq": 0},
            attempt(message_id, 1),
            {"type": "delta", "id": message_id, "after": 1, "seq": 2, "text": text},
            {
                "type": "done",
                "id": message_id,
                "seq": 3,
                "text_bytes": len(data),
                "text_sha256": hashlib.sha256(data).hexdigest(),
                "finish_reason": "stop",
                "usage": usage(),
                "cost_usd": 0.0,
                "model": "model-a",
                "target": "a",
                "attempts": 1,
            },
        )
        self.ended(message_id, "done")

    def ended(self, message_id: str, state: str) -> None:
        """Say in the conversation that an answer has ended."""
        conversation, question = self._answers[message_id]
        self._notice(conversation, {"id": message_id, "role": "assistant", "parent": question, "state": state})

    def _notice(self, conversation: str, entry: Map) -> None:
        kept = len(self.histories.get(conversation, ()))
        self._heads[conversation] = self._heads.get(conversation, kept) + 1
        self.say({"type": "message", "conversation": conversation, "seq": self._heads[conversation]} | entry)

    def _asked(self, frame: Map) -> None:
        conversation, message_id = frame["conversation"], frame["id"]
        question = frame.get("parent") or f"e_{message_id}"
        if message_id in self._answers:
            question = self._answers[message_id][1]
        elif "input" in frame:
            question = f"e_{message_id}"
            kept = [entry["id"] for entry in self.histories.get(conversation, ())]
            before = kept + [key for key, (where, _) in self._answers.items() if where == conversation]
            parent = before[-1] if before else None
            entry = {"id": question, "role": "user", "parent": parent, "state": "done", "content": frame["input"]}
            self._notice(conversation, entry)
        self._answers[message_id] = (conversation, question)
        self._notice(conversation, {"id": message_id, "role": "assistant", "parent": question, "state": "running"})

    def _connected(self, socket: WebSocketRoute) -> None:
        self._socket = socket
        socket.on_message(self._received)

    def _received(self, data: str | bytes) -> None:
        value = json.loads(data)
        for frame in value if isinstance(value, list) else [value]:
            self.sent.append(frame)
            if frame["type"] == "hello":
                self._greet(frame)
            elif frame["type"] == "send":
                self._asked(frame)
                self._on_send(self, frame)
            elif frame["type"] == "history":
                self._tell(frame)
            elif frame["type"] == "conversation" and frame["op"] == "list":
                self.say({"type": "conversation", "op": "list", "conversations": []})
            elif frame["type"] == "ping":
                self.say({"type": "pong", "nonce": frame["nonce"], "open": []})

    def _tell(self, history: Map) -> None:
        conversation = history["conversation"]
        if entries := self.histories.get(conversation):
            page = {"conversation": conversation, "messages": entries, "tip": entries[-1]["id"], "seq": len(entries)}
            self.say({"type": "history", "title": "Kept"} | page)
            return
        error = {"code": "conversation_unknown", "class": "permanent", "status": 404, "message": "", "retryable": False}
        self.say({"type": "error", "re": "history", "conversation": conversation, "error": error})

    def _greet(self, hello: Map) -> None:
        assert self._socket is not None
        if hello.get("token") != self._token:
            self._socket.close(code=4401)
            return
        self.say(
            {
                "type": "welcome",
                "session": "s",
                "user": "u",
                "tier": "free",
                "heartbeat_seconds": 20,
                "max_frame_bytes": 1 << 20,
                "resumed": [],
                "active": [],
                "server_time": 0.0,
            }
        )


def attempt(message_id: str, seq: int, number: int = 1, target: str = "a", mode: str = "fresh") -> Map:
    """An `attempt` frame; those after the first give a time-out as their reason."""
    frame = {"type": "attempt", "id": message_id, "seq": seq, "attempt": number, "target": target, "mode": mode}
    reason = {"reason": {"code": "upstream_timeout", "message": ""}} if number > 1 else {}
    return frame | {"model": f"model-{target}"} | reason


def failed(message_id: str, seq: int, code: str, *, retryable: bool) -> Map:
    """A `failed` frame."""
    error = {"code": code, "class": "temporary" if retryable else "permanent", "status": 503, "message": ""}
    return {
        "type": "failed",
        "id": message_id,
        "seq": seq,
        "usage": usage(),
        "partial": True,
        "error": error | {"retryable": retryable},
    }


def usage() -> Map:
    """Some tokens."""
    return {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "cached_tokens": 0, "reasoning_tokens": 0}
