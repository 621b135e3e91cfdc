"""The live tails of the messages that somebody in this process follows or owns.

A `Channel` is one message's tail: the newest entries, up to a byte limit, and the followers to wake. Where a message
is generated in this process the journal writer publishes into it after Redis has acknowledged (G2); where it is
generated elsewhere the hub subscribes to the message's shard channel, and every doubt - a lost connection, an entry
that does not continue the tail, silence - is settled the same way: by reading the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgpack
import structlog

from server.messages.events import Entry, unpack
from server.messages.state import has_ended
from server.store.keys import MessageKeys
from server.store.link import Link, StoreError
from server.store.store import Store
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("hub")

REREAD_SECONDS: Final = 1.0
"""How often the head of a message that is generated elsewhere is read, in case a notification was lost."""
CONFIRM_SECONDS: Final = 2.0
MISSING_SECONDS: Final = 2.0
"""How long a message may be missing before its followers are told: an owner that is still there makes it once more."""
NOTE_CANCEL: Final = b"c"
NOTE_REFUSED: Final = b"x"
"""Followed by the packed error: the claim was taken back."""
NOTE_OWNER: Final = b"o"
"""The message has a new owner; its events go on with a jump."""


class Follower(Protocol):
    """Who is woken when a message has something new."""

    def wake(self, tag: str) -> None:
        """There may be events after your cursor."""
        ...

    def replaced(self, tag: str) -> None:
        """Redis lost the message, and it was asked for anew: your cursor means nothing any more."""
        ...

    def gone(self, tag: str, error: dict[str, Any] | None) -> None:
        """The message is no more: its claim was taken back (`error` says why), or Redis lost it."""
        ...


@dataclass(slots=True)
class Encoded:
    """A frame that was encoded for one follower and may serve the next one at the same cursor."""

    cursor: int
    codec: str
    limit: int
    data: bytes
    after: int
    frame: dict[str, Any]


class Channel:
    """One message's tail and its followers."""

    __slots__ = (
        "_size",
        "base",
        "doubtful",
        "encoded",
        "ended",
        "entries",
        "followers",
        "generation",
        "head",
        "keys",
        "limit",
        "local",
        "missed",
        "missing_since",
        "tag",
    )

    def __init__(self, tag: str, keys: MessageKeys, head: int, local: bool, limit: int) -> None:
        self.tag = tag
        self.keys = keys
        self.head = head
        """Seq of the newest acknowledged event."""
        self.base = head
        """Seq after which the tail begins: cursors before it are served from Redis."""
        self.local = local
        """Whether this process generates the message."""
        self.ended = False
        self.generation = b""
        """Of the claim whose events these are; empty until it is known."""
        self.doubtful = False
        """The subscription broke off: what is published may be of another claim, until the record was read."""
        self.missed = False
        """Something may have been published meanwhile."""
        self.missing_since: float | None = None
        """Since when, by the loop's clock, there has been no record of it."""
        self.limit = limit
        """Most bytes of newest entries that are kept; older ones are read from Redis by the page."""
        self.entries: deque[Entry] = deque()
        self._size = 0
        self.followers: set[Follower] = set()
        self.encoded: list[Encoded] = []

    def publish(self, entry: Entry) -> bool:
        """Take the next entry; False if it does not continue the tail (then the log must be read)."""
        if entry.last <= self.head:
            return True
        if entry.prev != self.head:
            return False
        self.entries.append(entry)
        self.head = entry.last
        self.ended = entry.ends
        self._size += entry.size
        while self._size > self.limit and len(self.entries) > 1:
            old = self.entries.popleft()
            self._size -= old.size
            self.base = old.last
        self.encoded.clear()
        self.wake()
        return True

    def reset(self, head: int, ended: bool) -> None:
        """Forget the tail: from here on everything up to `head` is read from Redis."""
        self.entries.clear()
        self._size = 0
        self.base = self.head = head
        self.ended = ended
        self.encoded.clear()
        self.wake()

    def belongs_to(self, generation: bytes) -> None:
        """The claim under this id is that one: if it was another until now, no cursor of its events means anything."""
        before, self.generation = self.generation, generation
        if before and before != generation:
            for follower in self.followers:
                follower.replaced(self.tag)

    def wake(self) -> None:
        """Wake every follower."""
        for follower in self.followers:
            follower.wake(self.tag)

    def serves(self, cursor: int) -> bool:
        """Whether the tail can tell what comes after `cursor`."""
        return self.base <= cursor

    def tail(self, cursor: int) -> Iterator[Entry]:
        """The entries that end after `cursor`, oldest first."""
        start = len(self.entries)
        while start and self.entries[start - 1].last > cursor:
            start -= 1
        for index in range(start, len(self.entries)):
            yield self.entries[index]


class Hub:
    """Every channel of this process."""

    def __init__(self, store: Store, tail_bytes: int) -> None:
        self.store = store
        self.tail_bytes = tail_bytes
        self.channels: dict[str, Channel] = {}
        self.on_note: Callable[[str, bytes], None] = lambda tag, note: None
        """Told of control notes (cancel, refusal) on channels that are subscribed."""
        self._owner = TaskOwner("hub")
        self._links: dict[Link, Link] = {}
        self._by_name: dict[bytes, Channel] = {}
        self._confirm: dict[bytes, asyncio.Future[None]] = {}
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self._rereading: set[str] = set()
        self._control = b""

    async def start(self, control: bytes) -> None:
        """Begin to watch over the subscriptions; hear on `control` of stops asked for elsewhere."""
        self._control = control
        self._subscriber(control)
        self.store.on_moved = self._moved
        self._owner.start(self._watch(), "reread")

    async def close(self) -> None:
        """Stop listening."""
        await self._owner.close()
        for link in self._links.values():
            await link.close()

    def own(self, tag: str, keys: MessageKeys, head: int, generation: bytes) -> Channel:
        """The channel of a message that this process generates from now on."""
        channel = self.channels.get(tag)
        if channel is None:
            channel = self.channels[tag] = Channel(tag, keys, head, True, self.tail_bytes)
        elif not channel.local:
            channel.local = True
            self._unsubscribe(channel)
            channel.reset(head, False)
        elif channel.head != head:  # Redis lost what an earlier claim of ours had written
            channel.reset(head, False)
        channel.belongs_to(generation)
        return channel

    def disown(self, tag: str) -> None:
        """This process no longer generates the message: its channel goes with its last follower."""
        channel = self.channels.get(tag)
        if channel is None:
            return
        channel.local = False
        if not channel.followers:
            del self.channels[tag]
        elif not channel.ended:
            self._owner.start(self._listen_quietly(channel), "listen")

    async def follow(self, tag: str, keys: MessageKeys, follower: Follower, head: int, ended: bool) -> Channel:
        """Follow a message whose record says `head` and `ended`; subscribes if it is generated elsewhere.

        Raises `StoreError` or `TimeoutError` if Redis does not confirm the subscription.
        """
        channel = self.channels.get(tag)
        if channel is None:
            channel = self.channels[tag] = Channel(tag, keys, head, False, self.tail_bytes)
            channel.ended = ended
            channel.followers.add(follower)
            if not ended:
                try:
                    await self._listen(channel)
                except BaseException:
                    self.unfollow(tag, follower)
                    raise
        else:
            channel.followers.add(follower)
            if head > channel.head and not channel.local:
                self._reread_soon(channel)
        return channel

    def unfollow(self, tag: str, follower: Follower) -> None:
        """Stop following; the last one of a message generated elsewhere ends the subscription."""
        channel = self.channels.get(tag)
        if channel is None:
            return
        channel.followers.discard(follower)
        if not channel.followers and not channel.local:
            self._unsubscribe(channel)
            del self.channels[tag]

    def listen(self, name: bytes, heard: Callable[[bytes], None]) -> asyncio.Future[None]:
        """Call `heard` with what is published on a shard channel that is no message's; empty: some may have been lost.

        The future is done once Redis has confirmed it: nothing that is published later is missed.
        """
        self._listeners[name] = heard
        confirmed = self._confirm[name] = asyncio.get_running_loop().create_future()
        try:
            self._subscriber(name).push("SSUBSCRIBE", name)
        except StoreError:
            log.info("listen_put_off", channel=name)  # made up for when the topology is known again
        return confirmed

    def unlisten(self, name: bytes) -> None:
        """Listen no more."""
        if self._listeners.pop(name, None) is not None:
            self._confirm.pop(name).cancel()
            try:
                self._subscriber(name).push("SUNSUBSCRIBE", name)
            except StoreError:
                log.info("unlisten_put_off", channel=name)

    # --- messages generated elsewhere ---------------------------------------------------------------------------

    async def _listen(self, channel: Channel) -> None:
        """Subscribe, then read where the log stands: nothing can fall between the two."""
        name = channel.keys.channel
        waiting = self._confirm.get(name)
        if waiting is None:
            self._by_name[name] = channel
            waiting = self._confirm[name] = asyncio.get_running_loop().create_future()
            self._subscriber(name).push("SSUBSCRIBE", name)
        async with asyncio.timeout(CONFIRM_SECONDS):
            await asyncio.shield(waiting)
        await self._reread(channel)

    async def _listen_quietly(self, channel: Channel) -> None:
        try:
            await self._listen(channel)
        except (StoreError, TimeoutError):
            log.info("listen_failed", tag=channel.tag)  # the watch rereads it

    def _unsubscribe(self, channel: Channel) -> None:
        name = channel.keys.channel
        if self._by_name.pop(name, None) is None:
            return
        waiting = self._confirm.pop(name, None)
        if waiting is not None and not waiting.done():
            waiting.cancel()
        self._subscriber(name).push("SUNSUBSCRIBE", name)

    def _pushed(self, reply: list[Any]) -> bool:
        kind = reply[0]
        if kind == b"smessage":
            channel = self._by_name.get(reply[1])
            if channel is not None and not channel.local:
                self._heard(channel, reply[2])
            elif (heard := self._listeners.get(reply[1])) is not None:
                heard(reply[2])
            elif reply[1] == self._control:
                self.on_note(reply[2].decode(), NOTE_CANCEL)
            return True
        if kind == b"ssubscribe":
            self._confirmed(reply[1])
            return True
        return bool(kind == b"sunsubscribe")

    def _confirmed(self, name: bytes) -> None:
        """What is published from now on is heard. If the subscription broke off, what was published meanwhile is read:
        not before this, for what came after that reading would be missed."""
        waiting = self._confirm.get(name)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        elif (heard := self._listeners.get(name)) is not None:
            heard(b"")
        elif (channel := self._by_name.get(name)) is not None:
            channel.doubtful = channel.missed = True
            self._reread_soon(channel)

    def _heard(self, channel: Channel, data: bytes) -> None:
        if data[:1] == NOTE_REFUSED:
            self._gone(channel, msgpack.unpackb(data[1:]))
        elif len(data) == 1:
            self.on_note(channel.tag, data)
        elif channel.doubtful:
            channel.missed = True
        elif not channel.publish(unpack(data)):
            self._reread_soon(channel)

    def _gone(self, channel: Channel, error: dict[str, Any] | None) -> None:
        for follower in list(channel.followers):
            follower.gone(channel.tag, error)

    def _subscriber(self, name: bytes) -> Link:
        """The subscribing connection to the primary of a channel."""
        primary = self.store.link(name)
        link = self._links.get(primary)
        if link is None:

            def changed(up: bool) -> None:
                if up:
                    self._subscribe_again(primary)

            link = self._links[primary] = self.store.subscriber(primary, self._pushed, changed)
        return link

    def _subscribe_again(self, primary: Link) -> None:
        """A new connection knows no subscription: make them again."""
        for name in self._names():
            if self.store.link(name) is primary:
                self._links[primary].push("SSUBSCRIBE", name)

    def _names(self) -> list[bytes]:
        return [self._control, *self._listeners, *self._by_name]

    def _moved(self) -> None:
        """Some primary has moved: follow it, and subscribe anew where a slot changed hands."""
        for primary, link in self._links.items():
            if link.address != primary.address:
                link.turn_to(primary.address)
        for name in self._names():
            self._subscriber(name).push("SSUBSCRIBE", name)

    def _reread_soon(self, channel: Channel) -> None:
        if channel.tag not in self._rereading:
            self._rereading.add(channel.tag)
            self._owner.start(self._reread_quietly(channel), "reread")

    async def _reread_quietly(self, channel: Channel) -> None:
        again = False
        try:
            await self._reread(channel)
            again, channel.missed = channel.missed, False
        except (StoreError, TimeoutError):
            log.info("reread_failed", tag=channel.tag)  # the watch comes round again
        finally:
            self._rereading.discard(channel.tag)
        if again:
            self._reread_soon(channel)

    async def _reread(self, channel: Channel) -> None:
        """Let the tail begin at the head that the record tells; what lies before it is paged by the followers.

        A head below what we had *before asking* means that Redis lost acknowledged writes; one below what arrived
        meanwhile only means that the answer was overtaken.
        """
        known, doubted = channel.head, channel.doubtful
        head, state, generation = await self.store.call(
            channel.keys.record, "HMGET", channel.keys.record, "head", "state", "gen", seconds=CONFIRM_SECONDS
        )
        if channel.local or self.channels.get(channel.tag) is not channel:
            return
        if head is None:
            now = asyncio.get_running_loop().time()
            channel.missing_since = channel.missing_since or now
            if now - channel.missing_since >= MISSING_SECONDS:
                self._gone(channel, None)
            return
        channel.missing_since = None
        ended = has_ended(state)
        if channel.generation and generation != channel.generation:
            channel.reset(int(head), ended)
        channel.belongs_to(generation)
        if doubted:  # before this was asked; who came to doubt since then asks again
            channel.doubtful = False
        if int(head) < known or int(head) > channel.head or (ended and not channel.ended):
            channel.reset(int(head), ended)
        if channel.ended:
            self._unsubscribe(channel)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(REREAD_SECONDS)
            for channel in list(self.channels.values()):
                if channel.local or channel.ended:
                    continue
                if channel.keys.channel in self._by_name:
                    self._reread_soon(channel)
                else:  # it had ended, but Redis lost the end
                    self._owner.start(self._listen_quietly(channel), "listen")
