"""Conversations as a session sees them: following one live, paging through it, changing it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
import structlog

from protocol.errors import ProtocolError
from protocol.frames import DEFAULT_ROUTE, ConversationRequest, History, Subscribe, Unsubscribe
from server.messages.conversation import Entry
from server.messages.conversations import Conversations
from server.messages.origin import Origin
from server.messages.place import Overview, Place
from server.messages.service import unavailable
from server.messages.titles import make_title
from server.sessions.actor import Session, handles
from server.sessions.outbound import FRAME_OVERHEAD, JSON_GROWTH
from server.store.link import StoreError

log = structlog.get_logger("session")

EVENTS_AT_ONCE: Final = 32
RETRY_SECONDS: Final = 0.25
MAX_SUBSCRIPTIONS: Final = 256
"""Most conversations that one connection follows."""

Frame = dict[str, Any]


class Subscription:
    """How one session follows one conversation: a cursor in its log. `quiet`: only places in the queue are told."""

    def __init__(self, session: Session, place: Place, cursor: int, overview: Overview | None, quiet: bool) -> None:
        self.session = session
        self.conversations: Conversations = session.messages.means.conversations
        self.place = place
        self.cursor = cursor
        self.quiet = quiet
        self.live_after = overview.head if overview is not None else 0
        """Answers that begin after this are followed from their beginning, however quickly they end."""
        self.current = overview.current if overview is not None else ""
        self.positions: dict[str, int] = {}
        self.something = asyncio.Event()
        self.something.set()
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Tell what happens, until cancelled or until the conversation is deleted."""
        with self.conversations.watching(self.place.keys, self.something.set):
            if self.current and not self.quiet:
                await self._follow_current()
            while True:
                try:
                    self.something.clear()
                    if not await self._tell():
                        break
                except (StoreError, TimeoutError):
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                await self.something.wait()
        if self.session.subscriptions.get(self.place.id) is self:
            del self.session.subscriptions[self.place.id]

    async def _follow_current(self) -> None:
        """The answer that streams already; one that has ended comes with its notice, as its turn is about to."""
        while not self.session.knows(self.current):
            try:
                found = await self.session.messages.find(self.session.principal, self.current)
                if not found.ended:
                    await self._follow(self.current)
                return
            except ProtocolError as error:
                if error.code != "store_unavailable":
                    return
                await asyncio.sleep(RETRY_SECONDS)

    async def _tell(self) -> bool:
        """Everything after the cursor; False once nothing more will come."""
        while True:
            events = await self.conversations.events(self.place, self.cursor, EVENTS_AT_ONCE)
            if not events or events[0][0] != self.cursor + 1:
                return await self._at_the_end(bool(events))
            for seq, event in events:
                await self._event(seq, event)
                self.cursor = seq
            if self.quiet and not any(self.session.out.by_id.get(m) for m in self.positions):
                return False

    async def _at_the_end(self, gap: bool) -> bool:
        try:
            head = (await self.conversations.overview(self.place, 5.0)).head
        except ProtocolError:
            found = await self.conversations.store.call(
                self.place.keys.meta, "HGET", self.place.keys.meta, "deleted", seconds=5.0
            )
            if found is None and self.cursor == 0:
                return True  # it is not there yet
            if self.quiet:
                return False
            await self._say({"type": "conversation", "op": "deleted", "conversation": self.place.id})
            return False
        if gap or self.cursor > head:  # older events are gone, or Redis lost some
            self.cursor = self.live_after = head
            if not self.quiet:
                await self._say({"type": "conversation", "op": "reset", "conversation": self.place.id, "seq": head})
        return True

    async def _event(self, seq: int, event: Frame) -> None:
        if event["type"] == "conversation" and event["op"] == "queue":
            await self._tell_positions(event["queue"])
        if self.quiet:
            return
        frame = {**event, "conversation": self.place.id, "seq": seq}
        if event["type"] == "message" and event["role"] == "assistant":
            await self._answer(seq, frame)
            return
        await self._say(frame)

    async def _answer(self, seq: int, frame: Frame) -> None:
        """An answer begins or has ended."""
        session, name = self.session, frame["id"]
        if frame["state"] == "running":
            await self._say(frame)
            if not session.knows(name) and (seq > self.live_after or name == self.current):
                try:
                    await self._follow(name)
                except ProtocolError as error:
                    if error.code == "store_unavailable":
                        log.info("follow_put_off", id=name)
            return
        if not session.knows(name):
            entry = await self.conversations.entry(self.place, name)
            if entry is not None:
                frame["content"] = entry.message.get("content")
        await self._say(frame)

    async def _follow(self, message_id: str) -> None:
        found = await self.session.messages.find(self.session.principal, message_id)
        if not self.session.knows(message_id):
            await self.session.follow(found, 0)
            if message_id in self.session.out.by_id:
                self.session.unasked.add(message_id)

    async def _tell_positions(self, queue: list[str]) -> None:
        self.positions = {m: self.positions.get(m, 0) for m in queue}
        for number, message_id in enumerate(queue, 1):
            if message_id in self.session.out.by_id and self.positions[message_id] not in (0, number):
                await self.session.out.control_room()
                self.session.say(
                    {
                        "type": "accepted", "id": message_id, "replay": True, "state": "queued", "seq": 0,
                        "queue_position": number,
                    }
                )  # fmt: skip
            self.positions[message_id] = number

    async def _say(self, frame: Frame) -> None:
        await self.session.out.control_room()
        self.session.say(fitting(self.session, frame))

    def stop(self) -> None:
        """Tell no more, and stop following what only this follows."""
        if self.task is not None:
            self.task.cancel()


def fitting(session: Session, frame: Frame) -> Frame:
    """The frame, without its content if that is too much for one frame; `part` brings it in pieces."""
    if len(session.codec.encode(frame)) <= session.means.max_frame_bytes - FRAME_OVERHEAD:
        return frame
    left_out = ("content", "tool_calls", "error")
    return {key: value for key, value in frame.items() if key not in left_out} | {"truncated": True}


async def queue_position(session: Session, conversation: str, message_id: str) -> int:
    """Where a message stands in the queue (from 1; 0: it has its turn); changes are told from now on."""
    conversations = session.messages.means.conversations
    place = conversations.place(session.principal, conversation)
    try:
        overview = await conversations.overview(place)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    position = overview.queue.index(message_id) + 1 if message_id in overview.queue else 0
    known = session.subscriptions.get(conversation)
    if known is not None:
        known.positions.setdefault(message_id, position)
    elif position:
        known = Subscription(session, place, overview.head, overview, quiet=True)
        known.positions = {m: number for number, m in enumerate(overview.queue, 1)}
        _begin(session, known)
    return position


def _begin(session: Session, subscription: Subscription) -> None:
    name = subscription.place.id
    old = session.subscriptions.get(name)
    if old is not None:
        subscription.positions = old.positions
        old.stop()
    session.subscriptions[name] = subscription
    subscription.task = session.attend(subscription.run(), f"conversation {name}")


@handles(Subscribe)
async def subscribe(session: Session, frame: Subscribe) -> None:
    """Follow every message of a conversation; one that does not exist yet is followed from its beginning."""
    conversations = session.messages.means.conversations
    place = conversations.place(session.principal, frame.conversation)
    if len(session.subscriptions) >= MAX_SUBSCRIPTIONS and frame.conversation not in session.subscriptions:
        raise ProtocolError("too_many_messages", f"one connection follows at most {MAX_SUBSCRIPTIONS} conversations")
    overview: Overview | None = None
    try:
        overview = await conversations.overview(place)
    except ProtocolError:
        if await _deleted(conversations, place):
            raise
    except (StoreError, TimeoutError):
        raise unavailable() from None
    shown = overview.shown() if overview is not None else {"seq": 0, "current": None, "queue": []}
    session.say({"type": "conversation", "op": "subscribed", "conversation": place.id, **shown})
    _begin(session, Subscription(session, place, frame.after, overview, quiet=False))


async def _deleted(conversations: Conversations, place: Place) -> bool:
    try:
        return bool(await conversations.store.call(place.keys.meta, "HEXISTS", place.keys.meta, "deleted"))
    except (StoreError, TimeoutError):
        raise unavailable() from None


@handles(Unsubscribe)
async def unsubscribe(session: Session, frame: Unsubscribe) -> None:
    """Stop following a conversation; messages that are being followed are told to their end."""
    subscription = session.subscriptions.pop(frame.conversation, None)
    if subscription is not None:
        subscription.stop()


@handles(History)
async def history(session: Session, frame: History) -> None:
    """A page of a branch."""
    if frame.before is not None and frame.after is not None:
        raise ProtocolError("invalid_frame", "history: give `before` or `after`, not both")
    conversations = session.messages.means.conversations
    place = conversations.place(session.principal, frame.conversation)
    forward = frame.after is not None
    try:
        await conversations.overview(place)
        page = await conversations.page(
            place,
            anchor=frame.after or frame.before or "",
            after=forward,
            limit=frame.limit,
            branch=frame.branch or "",
            seconds=2.0,
        )
    except (StoreError, TimeoutError):
        raise unavailable() from None
    answer: Frame = {
        "type": "history", "conversation": place.id, "messages": [], "seq": page.head, "tip": page.tip or None,
        "title": page.title, "current": page.current or None, "queue": list(page.queue),
    }  # fmt: skip
    entries, cut = _that_fit(session, answer, page.entries, forward)
    answer["messages"] = [fitting(session, shown) for shown in entries]
    if entries and not forward and (cut or page.more):
        answer["next"] = entries[0]["id"]
    if entries and (cut or page.more if forward else frame.before is not None):
        answer["newer"] = entries[-1]["id"]
    session.say(answer)


def _that_fit(session: Session, answer: Frame, entries: list[Entry], forward: bool) -> tuple[list[Frame], bool]:
    """As many entries as one frame holds, those nearest to the anchor first; whether some were left out."""
    room = session.means.max_frame_bytes - FRAME_OVERHEAD - len(session.codec.encode(answer))
    found: list[Frame] = []
    for entry in entries if forward else reversed(entries):
        shown = fitting(session, entry.shown())
        room -= len(session.codec.encode(shown)) + 2
        if room < 0 and found:
            return (found if forward else found[::-1]), True
        found.append(shown)
    return (found if forward else found[::-1]), False


@handles(ConversationRequest)
async def conversation(session: Session, frame: ConversationRequest) -> None:
    """One operation on conversations."""
    try:
        answer = await _OPS[frame.op](session, frame)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    known = {} if frame.conversation is None else {"conversation": frame.conversation}
    session.say({"type": "conversation", "op": frame.op, **known, **answer})


def _place(session: Session, frame: ConversationRequest) -> Place:
    assert frame.conversation is not None
    return session.messages.means.conversations.place(session.principal, frame.conversation)


async def _create(session: Session, frame: ConversationRequest) -> Frame:
    conversations, place = session.messages.means.conversations, _place(session, frame)
    await conversations.create(session.principal, place, frame.title or "")
    return (await conversations.overview(place)).shown()


async def _get(session: Session, frame: ConversationRequest) -> Frame:
    return (await session.messages.means.conversations.overview(_place(session, frame))).shown()


async def _change(session: Session, frame: ConversationRequest) -> Frame:
    value = frame.title if frame.op == "rename" else frame.entry
    head = await session.messages.means.conversations.change(
        session.principal, _place(session, frame), frame.op, value or ""
    )
    return {"seq": head}


async def _title(session: Session, frame: ConversationRequest) -> Frame:
    session.check_not_expired()
    origin = Origin("ws", session.id)
    model = frame.model or DEFAULT_ROUTE
    title = await make_title(session.messages, session.principal, _place(session, frame), model, origin)
    return {"title": title}


async def _delete(session: Session, frame: ConversationRequest) -> Frame:
    await session.messages.means.conversations.delete(session.principal, _place(session, frame))
    return {}


async def _list(session: Session, frame: ConversationRequest) -> Frame:
    found, following = await session.messages.means.conversations.listing(session.principal, frame.before, frame.limit)
    return {"conversations": found, **({} if following is None else {"next": following})}


async def _waiting(session: Session, frame: ConversationRequest) -> Frame:
    """What waits, in order, with what was asked."""
    conversations = session.messages.means.conversations
    overview = await conversations.overview(_place(session, frame))
    waiting: list[Frame] = []
    for number, message_id in enumerate(overview.queue, 1):
        given = await session.messages.input_of(session.principal, message_id)
        waiting.append({"id": message_id, "queue_position": number, "input": given})
    return {"current": overview.current or None, "queue": waiting}


async def _answer(session: Session, frame: ConversationRequest) -> Frame:
    left = await session.messages.means.conversations.answer(session.principal, _place(session, frame), frame.input)
    return {"missing": left}


async def _part(session: Session, frame: ConversationRequest) -> Frame:
    """A piece of a large part, or of an entry that is too large for one frame, as JSON text."""
    conversations, place = session.messages.means.conversations, _place(session, frame)
    await conversations.overview(place)
    if frame.ref is not None:
        text = (await conversations.part(place, frame.ref)).decode()
    else:
        entry = await conversations.entry(place, frame.entry or "")
        if entry is None:
            raise ProtocolError("message_unknown", f"there is no entry {frame.entry!r} in this conversation")
        text = orjson.dumps(entry.shown()).decode()
    if frame.offset > len(text):
        raise ProtocolError("invalid_frame", f"conversation: `offset` is beyond the end, which is at {len(text)}")
    most = max(1, (session.means.max_frame_bytes - FRAME_OVERHEAD) // JSON_GROWTH)
    piece = text[frame.offset : frame.offset + most]
    named: Frame = {"ref": frame.ref} if frame.ref is not None else {"entry": frame.entry}
    following = frame.offset + len(piece)
    more = {"next": following} if following < len(text) else {}
    return {**named, "offset": frame.offset, "data": piece, "total": len(text), **more}


_OPS: Final[dict[str, Callable[[Session, ConversationRequest], Awaitable[Frame]]]] = {
    "create": _create,
    "get": _get,
    "list": _list,
    "rename": _change,
    "choose": _change,
    "pin": _change,
    "unpin": _change,
    "title": _title,
    "delete": _delete,
    "waiting": _waiting,
    "answer": _answer,
    "part": _part,
}
