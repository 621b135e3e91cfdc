"""What a session has to say, made only when its socket can take it (G5).

No output is ever queued per connection: a followed message costs a cursor. When the socket can take more, `take`
builds one WebSocket message from control frames and from whatever lies after the cursors *now*; so load makes batches
larger by itself. Messages take turns, and control frames overtake data. What a tail in memory cannot serve is read
from Redis by the page, one page per session at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

import structlog

from protocol.codec import Encoder
from protocol.errors import ProtocolError
from server.messages.events import END, Entry, Event
from server.messages.follow import Frame, Hole, next_frame
from server.messages.hub import Channel, Encoded
from server.messages.reader import Reader
from server.store.link import Link, StoreError
from server.store.store import Store

log = structlog.get_logger("session")

CONTROL_FRAMES: Final = 256
"""Most answers waiting for a socket; then reading from that socket pauses."""
CONTROL_BYTES: Final = 262_144
"""The same in bytes: a `pong` that tells the heads of many messages is long."""
MESSAGE_BYTES: Final = 65_536
"""About how much several frames in one WebSocket message may have together."""
DELTA_BYTES: Final = 131_072
"""Most text merged into one delta."""
JSON_GROWTH: Final = 6
"""A control character of one byte takes six in JSON (RFC 8259 section 7)."""
FRAME_OVERHEAD: Final = 1024
JOIN_OVERHEAD: Final = 6
"""What joining adds per frame at most: a comma; brackets or an array header (msgpack: up to five bytes) once."""
ENCODED_KEPT: Final = 4
NOWHERE: Final = 2**53
"""A cursor beyond every head: what comes next is a snapshot."""
PAGE_RETRY_SECONDS: Final = 0.25


def text_limit(max_frame_bytes: int) -> int:
    """How many bytes of text fit into one frame of `max_frame_bytes`, in the worst case."""
    return max(1, min(DELTA_BYTES, (max_frame_bytes - FRAME_OVERHEAD) // JSON_GROWTH))


class Follow:
    """One message as this session follows it."""

    __slots__ = (
        "channel",
        "cursor",
        "id",
        "page",
        "queued",
        "receipt_only",
        "snapshot",
        "stale",
        "tag",
        "wants_snapshot",
    )

    def __init__(self, message_id: str, tag: str, channel: Channel, cursor: int, receipt_only: bool) -> None:
        self.id = message_id
        self.tag = tag
        self.channel = channel
        self.cursor = cursor
        self.receipt_only = receipt_only
        """Only the end is wanted: a device that asked for a stop without following."""
        self.page: list[Entry] | None = None
        self.snapshot: Frame | None = None
        """A part that waits to be sent."""
        self.wants_snapshot = False
        self.stale = False
        """Whether what is being read of it may belong to a claim that Redis has lost."""
        self.queued = False


class Outbound:
    """See the module. One per session; `take` and `wake` are called from the event loop only."""

    def __init__(self, codec: Encoder, reader: Reader, max_frame_bytes: int) -> None:
        self.codec = codec
        self.reader = reader
        self.limit = text_limit(max_frame_bytes)
        self._joinable = max_frame_bytes - self.limit * JSON_GROWTH - FRAME_OVERHEAD
        """A WebSocket message of up to so many bytes has room for one more frame, whatever is in it."""
        self.follows: dict[str, Follow] = {}
        self.by_id: dict[str, str] = {}
        self.something = asyncio.Event()
        """Set when `take` may have something."""
        self.finished: list[Follow] = []
        """Follows whose end has been taken; the session unfollows them."""
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._latest: Frame | None = None
        """The newest `quota` frame, until it is sent; at most one."""
        self._control_room = asyncio.Event()
        self._control_room.set()
        self._ready: deque[Follow] = deque()
        self._paging: deque[Follow] = deque()
        self._page_wanted = asyncio.Event()
        self._page_used = asyncio.Event()
        self._page_used.set()

    # --- what others put in ---------------------------------------------------------------------------------------

    def put(self, frame: Frame) -> None:
        """Say something that is not part of a message's log."""
        data = self.codec.encode(frame)
        self._control.append(data)
        self._control_bytes += len(data)
        if len(self._control) >= CONTROL_FRAMES or self._control_bytes >= CONTROL_BYTES:
            self._control_room.clear()
        self.something.set()

    def put_latest(self, frame: Frame) -> None:
        """Say something of which only the newest is worth sending: it takes the place of one that has not gone out."""
        self._latest = frame
        self.something.set()

    async def control_room(self) -> None:
        """Wait until the peer has taken enough of its answers."""
        await self._control_room.wait()

    def follow(self, message_id: str, tag: str, channel: Channel, cursor: int, receipt_only: bool = False) -> Follow:
        """Begin to follow; an earlier follow of the same message is replaced."""
        follow = Follow(message_id, tag, channel, cursor, receipt_only)
        self.drop(tag)
        self.follows[tag] = follow
        self.by_id[message_id] = tag
        self.wake(tag)
        return follow

    def drop(self, tag: str) -> Follow | None:
        """Stop following."""
        follow = self.follows.pop(tag, None)
        if follow is not None:
            self.by_id.pop(follow.id, None)
            if follow.page is not None or follow.snapshot is not None:
                self._page_used.set()
        return follow

    def wake(self, tag: str) -> None:
        """The message may have something new (`Follower`)."""
        follow = self.follows.get(tag)
        if follow is not None and not follow.queued:
            follow.queued = True
            self._ready.append(follow)
            self.something.set()

    def replaced(self, tag: str) -> None:
        """Redis lost the message, and it was asked for anew (`Follower`): a snapshot replaces what the peer has."""
        follow = self.follows.get(tag)
        if follow is not None:
            follow.cursor, follow.stale, follow.receipt_only = NOWHERE, True, False
            self.wake(tag)

    def gone(self, tag: str, error: dict[str, Any] | None) -> None:
        """The message is no more (`Follower`): say so and stop following."""
        follow = self.drop(tag)
        if follow is None:
            return
        self.finished.append(follow)
        unknown = ProtocolError("message_unknown", f"message {follow.id!r} is no more")
        self.put(error_frame(None, follow.id, error or unknown.as_dict()))

    def follows_on(self, link: Link, store: Store) -> list[str]:
        """Ids of the followed messages that still run and whose journal is on this primary."""
        return [
            follow.id
            for follow in self.follows.values()
            if not follow.channel.ended and store.link(follow.channel.keys.record) is link
        ]

    # --- what the socket takes out ----------------------------------------------------------------------------------

    def take(self) -> bytes | None:
        """The next WebSocket message; None if there is nothing to say now."""
        if self._control:
            data = self._control.popleft()
            self._control_bytes -= len(data)
            if len(self._control) < CONTROL_FRAMES // 2 and self._control_bytes < CONTROL_BYTES // 2:
                self._control_room.set()
            return data
        frames: list[bytes] = []
        size = 0
        if self._latest is not None:
            frames.append(self.codec.encode(self._latest))
            self._latest, size = None, len(frames[0]) + JOIN_OVERHEAD
            if size > self._joinable:
                return frames[0]
        while self._ready and size < MESSAGE_BYTES:
            follow = self._ready[0]
            data_or_none = self._next(follow)
            self._ready.popleft()
            follow.queued = False
            if data_or_none is None:
                continue
            frames.append(data_or_none)
            size += len(data_or_none) + JOIN_OVERHEAD
            if follow.cursor != follow.channel.head or follow.page is not None:
                self.wake(follow.tag)
            if size >= MESSAGE_BYTES // 2 or size > self._joinable:
                break
        return self.codec.join(frames) if frames else None

    def _next(self, follow: Follow) -> bytes | None:
        """The follow's next frame, encoded; None if it has nothing now (or waits for a page)."""
        if self.follows.get(follow.tag) is not follow:
            return None
        if follow.snapshot is not None:
            return self._snapshot_part(follow)
        if follow.wants_snapshot:
            return None
        try:
            return self._from_page(follow) if follow.page is not None else self._from_tail(follow)
        except Hole:
            if follow.page is not None:
                follow.page = None
                self._page_used.set()
            self._want_snapshot(follow)
            return None

    def _from_page(self, follow: Follow) -> bytes | None:
        assert follow.page is not None
        got = next_frame(follow.id, follow.page, follow.cursor, self.limit, follow.channel.head)
        if got is None:
            follow.page = None
            self._page_used.set()
            return self._from_tail(follow)
        frame, follow.cursor = got
        self._ended(follow, frame)
        return self.codec.encode(frame)

    def _from_tail(self, follow: Follow) -> bytes | None:
        channel, cursor = follow.channel, follow.cursor
        if cursor == channel.head:
            if channel.ended:  # Redis lost a reopening: the end lies behind the cursor, and a resume will tell it
                self.drop(follow.tag)
                self.finished.append(follow)
            return None
        if follow.receipt_only:
            if channel.ended:
                self._want_page(follow)
            return None
        if cursor > channel.head:
            raise Hole
        if not channel.serves(cursor):
            self._want_page(follow)
            return None
        for encoded in channel.encoded:
            if encoded.cursor == cursor and encoded.codec is self.codec.subprotocol and encoded.limit == self.limit:
                follow.cursor = encoded.after
                self._ended(follow, encoded.frame)
                return encoded.data
        got = next_frame(follow.id, channel.tail(cursor), cursor, self.limit, channel.head)
        if got is None:
            return None
        frame, follow.cursor = got
        data = self.codec.encode(frame)
        if len(channel.followers) > 1 and len(channel.encoded) < ENCODED_KEPT:
            channel.encoded.append(Encoded(cursor, self.codec.subprotocol, self.limit, data, follow.cursor, frame))
        self._ended(follow, frame)
        return data

    def _ended(self, follow: Follow, frame: Frame) -> None:
        """After the end frame nothing follows."""
        if follow.channel.ended and follow.cursor == follow.channel.head and frame["type"] != "delta":
            self.drop(follow.tag)
            self.finished.append(follow)

    def _snapshot_part(self, follow: Follow) -> bytes:
        frame = follow.snapshot
        assert frame is not None
        follow.snapshot = None
        if frame["last"]:
            follow.cursor = frame["seq"]
            follow.wants_snapshot = False
            channel = follow.channel
            follow.receipt_only = channel.ended and follow.cursor == channel.head - 1  # only its end is left to tell
        self._page_used.set()
        return self.codec.encode(frame)

    # --- what is read from Redis --------------------------------------------------------------------------------------

    def _want_page(self, follow: Follow) -> None:
        if follow not in self._paging:
            self._paging.append(follow)
            self._page_wanted.set()

    def _want_snapshot(self, follow: Follow) -> None:
        follow.wants_snapshot = True
        self._want_page(follow)

    async def read_pages(self) -> None:
        """Read what the tails can't serve, one page at a time, until cancelled. Run by the session."""
        while True:
            await self._page_wanted.wait()
            follow = self._paging[0]
            try:
                if self.follows.get(follow.tag) is follow:
                    await (self._read_snapshot(follow) if follow.wants_snapshot else self._read_page(follow))
            except (StoreError, TimeoutError) as error:
                log.info("page_failed", id=follow.id, error=str(error))
                await asyncio.sleep(PAGE_RETRY_SECONDS)
                continue
            self._paging.popleft()
            if not self._paging:
                self._page_wanted.clear()
            self.wake(follow.tag)

    async def _read_page(self, follow: Follow) -> None:
        channel = follow.channel
        entries = [] if follow.receipt_only else await self.reader.page(channel.keys, follow.cursor)
        if entries and entries[-1].last < channel.head and _only_an_end(entries[-1].after(follow.cursor)):
            # a failure that was reopened since is passed over: alone it would leave the reader where it is
            entries += await self.reader.page(channel.keys, entries[-1].last, False)
        if not channel.local:
            for entry in entries:
                channel.publish(entry)  # the log may be ahead of what was heard: no reason to take it for a hole
        if not any(entry.last > follow.cursor for entry in entries):
            record = await self.reader.record(channel.keys)
            if record is None or record.end is None:
                if record is None or record.head < channel.head:
                    channel.reset(record.head if record else 0, record is None)
                follow.wants_snapshot = record is not None and follow.cursor != channel.head
                if follow.wants_snapshot:
                    await self._read_snapshot(follow)
                return
            if not follow.receipt_only and follow.cursor != record.head - 1:
                follow.wants_snapshot = True
                await self._read_snapshot(follow)
                return
            end = (END, record.state, record.end)
            entries = [Entry(follow.cursor, record.head, [end], 0)]
        await self._hold(follow)
        follow.page = entries

    async def _read_snapshot(self, follow: Follow) -> None:
        """Read part after part; a restart meanwhile begins anew."""
        channel, whole = follow.channel, False
        while not whole or follow.stale:
            whole = follow.stale = False
            record = await self.reader.record(channel.keys)
            if record is None:
                follow.wants_snapshot = False
                channel.reset(follow.cursor, True)
                return
            if record.head != channel.head and not channel.local:
                channel.reset(record.head, record.ended)
            async with aclosing(self.reader.snapshot(follow.id, channel.keys, record, self.limit)) as parts:
                async for frame in parts:
                    await self._hold(follow)
                    if self.follows.get(follow.tag) is not follow:
                        return
                    follow.snapshot, whole = frame, frame["last"]
                    self.wake(follow.tag)
        await self._page_used.wait()

    async def _hold(self, follow: Follow) -> None:
        """Wait until the page or part before this one has been sent: one per session is all it may hold."""
        await self._page_used.wait()
        if self.follows.get(follow.tag) is follow:
            self._page_used.clear()


def _only_an_end(events: Sequence[Event]) -> bool:
    return len(events) == 1 and events[0][0] == END


def error_frame(
    re: str | None, message_id: str | None, error: dict[str, Any], conversation: str | None = None
) -> Frame:
    """An `error` frame; absent fields are left out."""
    frame: Frame = {"type": "error", "error": error}
    for name, value in (("re", re), ("id", message_id), ("conversation", conversation)):
        if value is not None:
            frame[name] = value
    return frame
