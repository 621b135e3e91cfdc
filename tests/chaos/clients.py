"""The clients of a chaos run: they ask, cancel, go away and come back on another device, and check every character."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

from protocol.client.aio import Client, ClientEvent, Message, connect
from protocol.client.events import AttemptStarted, MessageAccepted, Output, Replaced, Resyncing
from protocol.client.failures import ClientClosed, ConnectionFailed, MessageError
from protocol.client.message import ClientMessage, MessageState
from protocol.client.timing import Backoff
from tests.chaos.figures import Figures
from tests.chaos.rig import told
from tests.upstreams.script import reply_to

MODEL: Final = "scripted"
BACKOFF_CAP_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.3
MOST_FORGOTTEN: Final = 5
STUCK_SECONDS: Final = 45.0
"""A message that has not ended so long after the last fault is stuck."""

Map = dict[str, Any]


@dataclass
class Asked:
    """One message as all clients together know it."""

    id: str
    messages: list[Map]
    rate: float
    text: str = field(repr=False)
    marks: list[int] = field(repr=False)
    """Length of the text after each token."""
    accepted: bool = False
    cancel_asked: bool = False
    end: Map | None = None
    """The end frame that the first client saw; every other must see the same."""
    deltas: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, attempt, length of the text) at each delta that came live."""
    last_attempt: int = 0
    restarted_at: list[tuple[float, int]] = field(default_factory=list)
    """When new text came first in each attempt after a lost owner."""
    forgotten: int = 0
    """How often a client was told that Redis does not know it any more, though it had been accepted."""
    troubled: bool = False
    """Whether a connection or a node that had to do with it was in trouble."""


def new_asked(message_id: str, script: str, rate: float) -> Asked:
    """A message to ask for."""
    messages = [{"role": "user", "content": f"script {script}\n{message_id}"}]
    tokens = reply_to(messages, MODEL).tokens
    return Asked(message_id, messages, rate, "".join(tokens), list(accumulate(map(len, tokens))))


class Device:
    """One client of the library, watched frame by frame."""

    def __init__(self, url: str, crowd: Crowd) -> None:
        self.crowd = crowd
        self.client: Client = connect(
            url,
            codec=crowd.chance.choice(["json", "msgpack"]),
            on_event=self._event,
            backoff=Backoff(random.random, cap_seconds=BACKOFF_CAP_SECONDS),
            connect_seconds=60.0,
            proxy=None,
        )
        self._hello_at = 0.0
        self._awaited: set[str] = set()
        self._sent: dict[str, int] = {}
        """Message → seq of the last event that came over this connection since it was last asked for."""
        session = self.client.session
        self._hello, self._receive = session.hello, session.receive
        session.hello = self._note_hello  # type: ignore[method-assign]
        session.receive = self._note_frame  # type: ignore[method-assign]

    def _note_hello(self) -> Map:
        frame = self._hello()
        self._hello_at = time.monotonic()
        self._sent.clear()
        self._awaited = {point["id"] for point in frame.get("resume", ()) if self.crowd.accepted(point["id"])}
        for message_id in self.client.session.messages:
            self.crowd.asked[message_id].troubled = True
        return frame

    def _note_frame(self, frame: Map) -> list[Any]:
        kind, message_id = frame["type"], frame.get("id")
        if message_id in self._awaited and kind in ("delta", "attempt", "snapshot", "done", "cancelled", "failed"):
            self._awaited.discard(message_id)
            self.crowd.figures.resume.append(time.monotonic() - self._hello_at)
        if kind == "accepted":
            self._sent.pop(frame["id"], None)
        elif "seq" in frame:
            self.crowd.figures.counts["events"] += 1
            self._note_sent(frame)
        return self._receive(frame)

    def _note_sent(self, frame: Map) -> None:
        """No node sends a connection again what it has sent it, unless it was asked to by a resume or a repeat.

        That may cross what is under way: then it answers from the cursor that it was told, and the client drops what it
        has had meanwhile. Without such a question a repeat is an error, though a client would drop it as well. Only an
        end may be told again at any time.
        """
        message_id, before = frame.get("id", ""), frame.get("after")
        had = self._sent.get(message_id)
        if frame["type"] in ("delta", "attempt") and had is not None and before is not None and before < had:
            self.crowd.figures.problem("repeated", f"{message_id}: {frame['type']} from {before} after events to {had}")
        self._sent[message_id] = frame["seq"]

    def _event(self, event: ClientEvent) -> None:
        view: ClientMessage | None = getattr(event, "message", None)
        if view is None:
            return
        asked = self.crowd.asked[view.id]
        # not by the state: what is cancelled before any server heard of it is over, and was never accepted
        asked.accepted = asked.accepted or isinstance(event, MessageAccepted | AttemptStarted | Output)
        if isinstance(event, Resyncing):
            asked.troubled = True
            asked.forgotten += event.reason == "lost"
            self.crowd.figures.counts["gaps_healed"] += 1
        elif isinstance(event, AttemptStarted):
            asked.last_attempt = max(asked.last_attempt, event.info.attempt)
        elif isinstance(event, Output):
            self._output(asked, view)
        elif isinstance(event, Replaced):
            asked.troubled = True
            self._check(asked, view)

    def _output(self, asked: Asked, view: ClientMessage) -> None:
        now = time.time()
        length = len(self._check(asked, view))
        asked.deltas.append((now, view.attempt, length))
        if view.attempt > 1 and view.attempts and all(number != view.attempt for _, number in asked.restarted_at):
            asked.restarted_at.append((time.monotonic(), view.attempt))

    def _check(self, asked: Asked, view: ClientMessage) -> str:
        text = view.text
        if not asked.text.startswith(text):
            self.crowd.figures.problem("wrong", f"{asked.id}: {text[:80]!r}… is not what the upstream says")
        return text


class Crowd:
    """All clients of a run and everything they asked for."""

    def __init__(self, url: str, slow_url: str, seed: int, figures: Figures) -> None:
        self.url = url
        self.slow_url = slow_url
        """Through here a client reads slowly."""
        self.figures = figures
        self.asked: dict[str, Asked] = {}
        self.chance = random.Random(seed)
        self.open = 0
        self.stop = asyncio.Event()
        """Set when nothing new is to be asked."""
        self.healed_at: float | None = None
        """Monotonic time since which nothing goes wrong any more."""

    def accepted(self, message_id: str) -> bool:
        """Whether some client saw it accepted."""
        return self.asked[message_id].accepted

    @asynccontextmanager
    async def device(self, *, slow: bool = False) -> AsyncIterator[Device]:
        """A client of its own connection."""
        device = Device(self.slow_url if slow else self.url, self)
        async with device.client:
            yield device
            self.figures.counts["reconnects"] += device.client.reconnects

    async def worker(self, number: int) -> None:
        """One user: asks for one thing after another until `stop`."""
        turn = 0
        while not self.stop.is_set():
            try:
                async with self.device(slow=number % 8 == 7) as device:
                    while not self.stop.is_set():
                        turn += 1
                        await self._one(device, f"c{number}-{turn}")
            except ConnectionFailed as failure:
                self.figures.counts["connections_given_up"] += 1
                if self.healed_at is not None:
                    self.figures.problem("stuck", f"no connection: {failure}")
                    return

    async def _one(self, device: Device, message_id: str) -> None:
        chance = self.chance
        rate = chance.choice([20, 40, 60, 0])
        tokens = chance.randrange(20, 300) if rate else chance.choice([1, 300, 3000])
        words = [f"tokens={tokens}", f"rate={rate}", *(["unicode=1"] if chance.random() < 0.4 else [])]
        asked = self.asked[message_id] = new_asked(message_id, " ".join(words), rate)
        self.figures.counts["messages"] += 1
        self.open += 1
        try:
            how = chance.choices([self._plain, self._twice, self._cancelled, self._handed_over], [4, 2, 2, 2])[0]
            await how(device, asked)
            if chance.random() < 0.2:
                await self._again(asked)
        finally:
            self.open -= 1

    # --- what users do ------------------------------------------------------------------------------------------

    async def _plain(self, device: Device, asked: Asked) -> None:
        await self._to_the_end(device.client.ask(id=asked.id, messages=asked.messages), asked)

    async def _twice(self, device: Device, asked: Asked) -> None:
        """The same id on two connections at once."""
        self.figures.counts["twice"] += 1
        async with self.device() as other, asyncio.TaskGroup() as group:
            group.create_task(self._plain(device, asked))
            group.create_task(self._plain(other, asked))

    async def _cancelled(self, device: Device, asked: Asked) -> None:
        """Stopped after a while, here or from another device."""
        message = device.client.ask(id=asked.id, messages=asked.messages)
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(self._to_the_end(message, asked))
            await asyncio.wait({ending}, timeout=self.chance.uniform(0.0, 3.0))
            if not ending.done():
                asked.cancel_asked = True
                if self.chance.random() < 0.5:
                    await self._stop_here(message)
                else:
                    await self._stop_elsewhere(asked)

    async def _stop_here(self, message: Message) -> None:
        with contextlib.suppress(MessageError, ClientClosed, TimeoutError):  # whoever follows it tells how it ended
            await asyncio.wait_for(message.cancel(), STUCK_SECONDS)

    async def _stop_elsewhere(self, asked: Asked) -> None:
        async with self.device() as other:
            message = other.client.resume(asked.id)
            try:
                await asyncio.wait_for(message.cancel(), STUCK_SECONDS)
            except (MessageError, ClientClosed, TimeoutError):
                return
            if message.view.state is MessageState.CANCELLED:
                self._note_end(message.view, asked)

    async def _handed_over(self, device: Device, asked: Asked) -> None:
        """Asked for on a device that goes away; followed to the end on another."""
        asked.troubled = True
        async with self.device() as first:
            message = first.client.ask(id=asked.id, messages=asked.messages)
            try:
                async with asyncio.timeout(self.chance.uniform(0.2, 2.0)):
                    await message.done()
            except TimeoutError:
                pass
            except MessageError:
                pass  # the next device asks again
            kept = message.view.cursor, message.text
        if not asked.accepted or message.view.state is MessageState.REFUSED:
            await self._plain(device, asked)
            return
        await asyncio.sleep(self.chance.uniform(0.0, 0.5))
        if self.chance.random() < 0.5 or message.view.ended:
            again = device.client.resume(asked.id)
        else:
            again = device.client.resume(asked.id, after=kept[0], text=kept[1])
        await self._to_the_end(again, asked)

    async def _again(self, asked: Asked) -> None:
        """A late repeat replays what there was."""
        async with self.device() as other:
            await self._to_the_end(other.client.ask(id=asked.id, messages=asked.messages), asked)

    # --- to the end -----------------------------------------------------------------------------------------------

    async def _to_the_end(self, message: Message, asked: Asked) -> None:
        """Follow to the end, asking again wherever the server says that it may help."""
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    await message.done()
                self._note_end(message.view, asked)
                return
            except TimeoutError:
                if self.healed_at is not None and time.monotonic() - self.healed_at > STUCK_SECONDS:
                    self.figures.problem("stuck", f"{asked.id}: {message.view.state} at {message.view.cursor}")
                    return
            except MessageError as failure:
                if message.view.state is MessageState.LOST and self._may_be_forgotten(asked):
                    message = await self._ask_anew(message, asked)
                elif not await self._retry(message, asked, failure):
                    return

    def _may_be_forgotten(self, asked: Asked) -> bool:
        """Whether Redis was killed or failed over, and may have lost what it had acknowledged a moment before."""
        counts = self.figures.counts
        return counts["restart"] + counts["failover"] > 0 and asked.forgotten < MOST_FORGOTTEN

    async def _ask_anew(self, message: Message, asked: Asked) -> Message:
        """Ask for a message that was lost to a device that only followed it, as its user would."""
        asked.forgotten += 1
        client = message._client
        message.forget()
        await asyncio.sleep(RETRY_SECONDS)
        return client.ask(id=asked.id, messages=asked.messages)

    def _patience(self) -> float:
        return 5.0

    async def _retry(self, message: Message, asked: Asked, failure: MessageError) -> bool:
        if message.view.state in (MessageState.LOST, MessageState.BROKEN):
            kind = "lost" if message.view.state is MessageState.LOST else "wrong"
            self.figures.problem(kind, f"{asked.id}: {failure}")
            return False
        if not failure.retryable:
            self.figures.problem("lost", f"{asked.id}: refused for ever: {failure}")
            return False
        self.figures.counts["refused" if message.view.state is MessageState.REFUSED else "failed"] += 1
        asked.troubled = True
        await asyncio.sleep(RETRY_SECONDS)
        message._client.session.retry(message.id)
        message._client._wake()
        return True

    def _note_end(self, view: ClientMessage, asked: Asked) -> None:
        end = told(view.end)
        if view.end is None:  # cancelled before anything was sent
            return
        if asked.end is None:
            asked.end = end
            self.figures.counts[view.state.value] += 1
        elif asked.end != end:
            self.figures.problem("wrong", f"{asked.id}: two ends: {asked.end} and {end}")
        if view.state is MessageState.DONE and view.text != asked.text:
            self.figures.problem("wrong", f"{asked.id}: {len(view.text)} characters of {len(asked.text)}")
        if view.state is MessageState.CANCELLED and not asked.cancel_asked:
            self.figures.problem("wrong", f"{asked.id}: cancelled, though nobody asked for it")


def added_delays(asked: Asked, calls: list[Map]) -> list[float]:
    """Seconds from the upstream's writing of each delta's last token to a client's receiving it, where it tells."""
    if not asked.rate or len(calls) != 1:
        return []
    begun = calls[0]["t"]
    return [
        came - (begun + bisect_left(asked.marks, length) / asked.rate)
        for came, attempt, length in asked.deltas
        if attempt == 1 and length
    ]
