"""Devices that follow one conversation over cut sockets and dying nodes, and what each of them holds in the end.

A device keeps what the conversation's log told it: the tree of entries, the queue and the tip. An answer's text it has
from the stream or from the log; where a cut took the stream away after the log had told of the end, it asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from websockets.exceptions import ConnectionClosed, WebSocketException

from protocol.client.aio import Client, ClientEvent, connect
from protocol.client.events import ConversationChanged, ConversationMessage, ErrorReceived
from protocol.client.failures import MessageRefused
from tests.chaos.proxy import Proxy
from tests.wire import END, Wire, wire

CONVERSATION: Final = "c"
AGAIN_SECONDS: Final = 0.1
Frame = dict[str, Any]


class Told:
    """A conversation as its log tells it, event by event, none missing and none twice."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cursor = 0
        self.entries: dict[str, Frame] = {}
        self.parents: dict[str, str | None] = {}
        """Of every entry that ever was, also of those that were rolled back."""
        self.tip: str | None = None
        self.queue: list[str] = []
        self.texts: dict[str, str] = {}
        self.refused: set[str] = set()
        """Sends of this device that came to a busy conversation and were not to wait."""
        self.asked: list[str] = []

    def event(self, frame: Frame) -> None:
        """The next event of the log."""
        assert frame["seq"] == self.cursor + 1, (self.name, self.cursor, frame)
        self.cursor = frame["seq"]
        if frame["type"] == "message":
            self._entry(frame)
        elif frame["op"] == "removed":
            del self.entries[frame["entry"]]
            self.tip = frame["tip"] or None
        elif frame["op"] == "chosen":
            self.tip = frame["tip"]
        elif frame["op"] == "queue":
            self.queue = frame["queue"]

    def _entry(self, frame: Frame) -> None:
        name = frame["id"]
        known = self.entries.get(name)
        assert known is None or known["parent"] == frame["parent"], (known, frame)
        self.entries[name] = {key: frame.get(key) for key in ("id", "parent", "role", "state")}
        self.parents[name] = frame["parent"]
        if frame.get("content") is not None:
            self.texts[name] = frame["content"]
        if known is None and (frame["role"] == "assistant"):
            self.tip = name

    @property
    def open(self) -> set[str]:
        """What was asked here and is not over."""
        seen = {name for name in self.parents if self.entries.get(name, {}).get("state") != "running"}
        return set(self.asked) - seen - self.refused

    @property
    def textless(self) -> list[str]:
        """Answers that are over and whose text is not known yet."""
        return [
            name
            for name, entry in self.entries.items()
            if entry["role"] == "assistant" and entry["state"] != "running" and name not in self.texts
        ]

    def path(self, entry: str | None) -> list[str]:
        """The branch that ends there, oldest first."""
        found: list[str] = []
        while entry is not None:
            found.append(entry)
            entry = self.parents[entry]
        return found[::-1]

    def whole(self) -> dict[str, Frame]:
        """Every entry with its text."""
        return {name: {**entry, "content": self.texts[name]} for name, entry in self.entries.items()}


class RawDevice(Told):
    """A client of a few lines, on the wire as it is."""

    def __init__(self, name: str, proxy: Proxy) -> None:
        super().__init__(name)
        self.proxy = proxy
        self.wanted: dict[str, Frame] = {}
        self._fresh = asyncio.Queue[Frame]()

    def ask(self, frame: Frame) -> None:
        """Ask until it is over."""
        self.asked.append(frame["id"])
        self.wanted[frame["id"]] = frame
        self._fresh.put_nowait(frame)

    def choose(self, entry: str) -> None:
        """Go to another branch; what a cut swallows is not repeated."""
        self._fresh.put_nowait({"type": "conversation", "op": "choose", "conversation": CONVERSATION, "entry": entry})

    async def run(self) -> None:
        """Connect, and again, for ever."""
        while True:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError, EOFError):
                async with wire(self.proxy.url, hello=False) as client:
                    await client.hello()
                    await self._serve(client)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _serve(self, client: Wire) -> None:
        for frame in list(self.wanted.values()):
            await client.send(frame)  # whatever has not ended is asked for again, under its id
        for name in self.textless:
            await client.send({"type": "resume", "id": name})
        await client.send({"type": "subscribe", "conversation": CONVERSATION, "after": self.cursor})
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (self._read(client), self._write(client))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _write(self, client: Wire) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.send(await self._fresh.get())

    async def _read(self, client: Wire) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                try:
                    frame = await client.recv()
                except TimeoutError:
                    continue
                await self._take(client, frame)

    async def _take(self, client: Wire, frame: Frame) -> None:
        kind = frame["type"]
        if kind in ("message", "conversation") and "seq" in frame and frame.get("op") not in ("subscribed", "choose"):
            self.event(frame)
            if frame.get("id") not in self.open:
                self.wanted.pop(frame.get("id", ""), None)
        elif kind in END:
            view = client.view(frame["id"])
            if kind != "failed":
                view.check_hash()
            self.texts.setdefault(frame["id"], view.text)
        elif kind == "error" and frame.get("id") in self.wanted:
            asked = self.wanted[frame["id"]]
            assert frame["error"]["retryable"], frame
            if frame["error"]["code"] == "conversation_busy":
                assert asked["on_busy"] == "reject"
                self.refused.add(asked["id"])
                del self.wanted[asked["id"]]
                return
            await asyncio.sleep(AGAIN_SECONDS)
            await client.send({**asked, "after": client.view(asked["id"]).cursor})

    async def complete(self) -> None:
        """Until no text is missing: the next connection asks for what a cut took."""
        for link in tuple(self.proxy.links):
            if self.textless:
                link.cut()
        while self.textless:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(AGAIN_SECONDS)


class LibraryDevice(Told):
    """The Python client, as an application uses it."""

    def __init__(self, name: str, proxy: Proxy) -> None:
        super().__init__(name)
        self.proxy = proxy
        self.client: Client | None = None
        self.ready = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Follow for ever."""
        async with asyncio.TaskGroup() as self._group, connect(self.proxy.url, on_event=self._told) as self.client:
            self.client.subscribe(CONVERSATION)
            self.ready.set()
            await asyncio.get_running_loop().create_future()

    def _told(self, event: ClientEvent) -> None:
        if isinstance(event, ErrorReceived):
            assert event.error["retryable"], event
        if isinstance(event, ConversationMessage):
            self.event(event.frame)
        elif (
            isinstance(event, ConversationChanged) and "seq" in event.frame
            and event.frame["op"] not in ("subscribed", "choose")
        ):  # fmt: skip
            self.event(event.frame)

    def ask(self, frame: Frame) -> None:
        """Ask until it is over."""
        assert self._group is not None
        self.asked.append(frame["id"])
        self._group.create_task(self._ask({key: value for key, value in frame.items() if key != "type"}))

    async def _ask(self, request: Frame) -> None:
        assert self.client is not None
        message = self.client.ask(**request)
        try:
            self.texts[message.id] = (await message.done()).text
        except MessageRefused as refusal:
            if (refusal.code, request["on_busy"]) != ("conversation_busy", "reject"):
                raise
            self.refused.add(message.id)

    def choose(self, entry: str) -> None:
        """Go to another branch."""
        assert self.client is not None
        self.client.conversation("choose", CONVERSATION, entry=entry)

    async def complete(self) -> None:
        """Fetch the texts that streamed to nobody here."""
        assert self.client is not None
        for name in self.textless:
            self.texts[name] = (await self.client.resume(name).done()).text


Device = RawDevice | LibraryDevice


def plan(device: Device, turn: int, chance: random.Random, say: Callable[[str], str]) -> Frame | str:
    """What a device does next: a `send`, or the entry that it chooses."""
    name = f"{device.name}-{turn}"
    frame: Frame = {"type": "send", "id": name, "conversation": CONVERSATION, "on_busy": "queue"}
    questions = [e["id"] for e in device.entries.values() if e["role"] == "user"]
    answers = [e["id"] for e in device.entries.values() if e["role"] == "assistant" and e["state"] == "done"]
    match chance.choice(
        ("ask", "ask", "interrupt", "rollback", "reject", "edit", "edit_first", "regenerate", "choose")
    ):
        case "choose" if answers:
            return chance.choice(answers)
        case "regenerate" if questions:
            return {**frame, "parent": chance.choice(questions)}
        case "edit" if answers:
            frame["parent"] = chance.choice(answers)
        case "edit_first":
            frame["parent"] = CONVERSATION
        case "interrupt" | "rollback" | "reject" as on_busy:
            frame["on_busy"] = on_busy
    return {**frame, "input": say(name)}


async def act(device: Device, turns: int, chance: random.Random, say: Callable[[str], str]) -> None:
    """Everything that a device asks; it does not wait for answers, so that the devices race."""
    for turn in range(turns):
        what = plan(device, turn, chance, say)
        if isinstance(what, str):
            device.choose(what)
        else:
            device.ask(what)
        await asyncio.sleep(chance.uniform(0.05, 0.5))


async def disturb(kill: Sequence[Any], proxies: Sequence[Proxy], chance: random.Random) -> None:
    """Cut connections; kill one node after another, and start it again."""
    for node in kill:
        for _ in range(2):
            await asyncio.sleep(chance.uniform(0.3, 0.7))
            for link in tuple(chance.choice(proxies).links):
                link.cut()
        await node.kill()
        await node.start()
