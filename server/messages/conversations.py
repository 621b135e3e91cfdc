"""The conversations of this deployment, as a node works on them: the shell around `conversation` and its scripts.

Everything may be repeated, here or on another node: entering is idempotent by message, advancing is a compare-and-set
on the message's token, and a queue is moved on by whoever sees that its current message has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgpack
import orjson
import structlog

from protocol.errors import ProtocolError
from protocol.frames import Send
from server.access.identity import Principal
from server.messages import conversation as pure
from server.messages.branch import MESSAGE_TOKENS, Branch, count_tokens
from server.messages.conversation import Entry, Map
from server.messages.finalize import GATHERED, gather
from server.messages.hub import NOTE_CANCEL, Hub
from server.messages.parts import given_parts, referred, whole
from server.messages.place import (
    GONE,
    LOG_EVENTS,
    QUEUE_LIMIT,
    STEP_SECONDS,
    Ended,
    Limits,
    Overview,
    Page,
    Place,
    Turn,
    allowed,
    over,
    refused,
    run,
    title_id,
    too_long,
    unknown,
)
from server.messages.reader import Reader, Record
from server.messages.scripts import (
    CANCEL,
    CONVERSATION_ADVANCE,
    CONVERSATION_CHANGE,
    CONVERSATION_DELETE,
    CONVERSATION_ENTER,
    CONVERSATION_PAGE,
    CONVERSATION_REGISTER,
    CONVERSATION_UNREGISTER,
    ERASE,
    RESOLVE,
)
from server.messages.tool_calls import TOOL_SECONDS, ToolCalls, is_late
from server.store.keys import (
    ConversationKeys,
    MessageKeys,
    control_channel,
    conversation_index,
    message_tag,
    user_tag,
)
from server.store.link import StoreError
from server.store.store import IMPATIENT, Store, forget
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("conversations")

MAX_PINS: Final = 64
POLL_SECONDS: Final = 1.0
"""How often the head of a watched conversation is read, in case a notification was lost."""
CONTEXT_ENTRIES: Final = 2_000
"""Most entries that are looked at for one context."""
PAGE_BYTES: Final = 131_072
ERASE_SECONDS: Final = 5.0
ERASE_AT_ONCE: Final = 64
SEEN_TOO_LITTLE: Final = 2
"""Answer of `erase_v1.lua`."""


class Feed:
    """Wakes whoever watches a conversation."""

    __slots__ = ("head", "keys", "watchers")

    def __init__(self, keys: ConversationKeys) -> None:
        self.keys = keys
        self.head = -1
        self.watchers: set[Callable[[], None]] = set()

    def wake(self) -> None:
        """Something may have changed."""
        for watcher in tuple(self.watchers):
            watcher()


class Conversations:
    """See the module."""

    def __init__(
        self, store: Store, hub: Hub, reader: Reader, tiers: Mapping[str, Limits], keep_seconds: float,
        claim_seconds: float, tool_seconds: float = TOOL_SECONDS,
    ) -> None:  # fmt: skip
        self.store = store
        self.hub = hub
        self.reader = reader
        self.tiers = tiers
        self.keep_seconds = keep_seconds
        self.claim_seconds = claim_seconds
        self.tool_seconds = tool_seconds
        self.tools = ToolCalls(store, keep_seconds)
        self._feeds: dict[bytes, Feed] = {}
        self._owner = TaskOwner("conversations")

    def start(self) -> None:
        """Begin to look after what is watched."""
        self._owner.start(self._poll(), "poll")

    async def close(self) -> None:
        """Stop."""
        await self._owner.close()

    def place(self, who: Principal, conversation: str) -> Place:
        """A conversation of this user."""
        return Place.of(user_tag(who.tenant, who.kind, who.user), conversation)

    @property
    def _ttl(self) -> int:
        return round(self.keep_seconds * 1000)

    # --- watching -----------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, keys: ConversationKeys, watcher: Callable[[], None]) -> Iterator[Feed]:
        """Call `watcher` whenever the conversation may have changed; a lost notification costs a second."""
        feed = self._feeds.get(keys.channel)
        if feed is None:
            feed = self._feeds[keys.channel] = Feed(keys)
            self.hub.listen(keys.channel, lambda _, feed=feed: feed.wake())  # type: ignore[misc]
        feed.watchers.add(watcher)
        try:
            yield feed
        finally:
            feed.watchers.discard(watcher)
            if not feed.watchers and self._feeds.get(keys.channel) is feed:
                del self._feeds[keys.channel]
                self.hub.unlisten(keys.channel)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for feed in list(self._feeds.values()):
                try:
                    await self._look(feed)
                except (StoreError, TimeoutError):
                    continue  # the next round comes

    async def _look(self, feed: Feed) -> None:
        meta = feed.keys.meta
        head, due, deleted = await self.store.call(meta, "HMGET", meta, "head", "due", "deleted", seconds=STEP_SECONDS)
        if is_late(due):
            await self.tools.expire(feed.keys)
        number = -2 if deleted else int(head or 0)
        if number != feed.head:
            feed.head = number
            feed.wake()

    # --- asking -------------------------------------------------------------------------------------------------------

    async def check(self, who: Principal, send: Send, room: int) -> None:
        """Whether this may be asked, before anything is claimed. Raises `ProtocolError`, `StoreError`, `TimeoutError`.

        `room` is how many tokens of input the largest target of the route takes.
        """
        given = pure.inputs_of(send.input)
        if not given and send.parent in (None, send.conversation):
            raise ProtocolError("invalid_frame", "send: `input` is missing (or `parent`, to have it answered again)")
        assert send.conversation is not None
        place = self.place(who, send.conversation)
        refusal: ProtocolError | None
        try:
            given = await referred(self.store, place.keys, given, IMPATIENT)
            needed = sum(count_tokens(message) for message in given)
            refusal = too_long(needed, room) if needed > room else await self._refusal(who, place, given, send.parent)
        except ProtocolError as error:  # of a part that is gone, if it is not the whole conversation
            deleted = await self.store.call(place.keys.meta, "HEXISTS", place.keys.meta, "deleted")
            refusal = unknown(place.id) if deleted else error
        if refusal is not None:
            record = MessageKeys.of(message_tag(who.tenant, who.kind, who.user, send.id)).record
            if not await self.store.call(record, "EXISTS", record):  # what is there already is attached to
                await self._unlist_unmade((who.tenant, who.kind, who.user), place)
                raise refusal

    async def _refusal(
        self, who: Principal, place: Place, given: Sequence[Map], parent: str | None
    ) -> ProtocolError | None:
        results = any(message["role"] == "tool" for message in given)
        if results:  # an end is told before the conversation has heard of it, and with it of the calls
            await self.look_at_current(place, (who.tenant, who.kind, who.user))
        deleted, entries, size, due, current = await self.store.call(
            place.keys.meta, "HMGET", place.keys.meta, "deleted", "entries", "bytes", "due", "current"
        )
        if is_late(due):
            await self.tools.expire(place.keys)
        if deleted:
            await self.unlist(who, place)
            return unknown(place.id)
        limits = self.tiers.get(who.tier)
        refusal = limits.exceeded(int(entries or 0), len(given) + 1, int(size or 0), given) if limits else None
        if refusal is None and results:
            refusal = await self.tools.wrong_results(place, given, parent, (current or b"").decode())
        if refusal is None and not await self.register(who, place.id) and limits is not None and entries is None:
            refusal = over("conversations", limits.conversations)
        return refusal

    async def answer(self, who: Principal, place: Place, given: Any) -> list[str]:
        """Record answers to tool calls, each once; the calls that are still open. Raises `ProtocolError`, …"""
        results = pure.inputs_of(given)
        if any(message["role"] != "tool" for message in results):
            raise ProtocolError("invalid_frame", "conversation: `input` takes results of tool calls only")
        await self.look_at_current(place, (who.tenant, who.kind, who.user))
        await self.overview(place, STEP_SECONDS)
        return await self.tools.answer(place, results, self.tiers.get(who.tier))

    async def register(self, who: Principal, conversation: str) -> bool:
        """Put it on the user's list; False if the tier's limit is reached."""
        limits = self.tiers.get(who.tier)
        index = conversation_index(user_tag(who.tenant, who.kind, who.user))
        most = limits.conversations if limits is not None else 10**9
        return bool(
            await self.store.run(CONVERSATION_REGISTER, [index], [conversation, time.time(), self.keep_seconds, most])
        )

    async def _admit(self, who: Principal, place: Place) -> None:
        """Whether the user may have this conversation. Raises `ProtocolError`, `StoreError`, `TimeoutError`."""
        listed = await self.register(who, place.id)
        created, deleted = await self.store.call(place.keys.meta, "HMGET", place.keys.meta, "created", "deleted")
        if deleted:
            await self.unlist(who, place)
            raise unknown(place.id)
        if not listed and not created:
            raise over("conversations", self.tiers[who.tier].conversations)

    async def _unlist_unmade(self, user: tuple[str, str, str], place: Place) -> None:
        """What was refused makes no conversation, and takes no place on the list."""
        index = conversation_index(user_tag(*user))
        since = await self.store.call(index, "ZSCORE", index, place.id, seconds=STEP_SECONDS)
        if since is None:
            return
        if not await self.store.call(place.keys.meta, "HEXISTS", place.keys.meta, "created", seconds=STEP_SECONDS):
            await self.store.run(CONVERSATION_UNREGISTER, [index], [place.id, since], STEP_SECONDS)

    async def _list_made(self, user: tuple[str, str, str], place: Place) -> None:
        """It is there now: a refusal at the same moment, which saw that it was not, does not keep it off the list."""
        index = conversation_index(user_tag(*user))
        args = [place.id, time.time(), self.keep_seconds, 10**9]
        await self.store.run(CONVERSATION_REGISTER, [index], args, STEP_SECONDS)

    async def unlist(self, who: Principal, place: Place) -> None:
        """Take it off the user's list. Raises `StoreError` or `TimeoutError`."""
        index = conversation_index(user_tag(who.tenant, who.kind, who.user))
        await self.store.call(index, "ZREM", index, place.id, seconds=STEP_SECONDS)

    async def enter(
        self, place: Place, message_id: str, token: bytes, request: Map, reopened: bool,
        user: tuple[str, str, str], seconds: float, tier: str = "",
    ) -> Turn:  # fmt: skip
        """Take the turn, or a place in the queue, as far as the tier's limits allow. Idempotent.

        Raises `ProtocolError` (the message may not go on), `Ended`, `StoreError`, `TimeoutError`.
        """
        now = time.time()
        given = pure.inputs_of(request.get("input"))
        with contextlib.suppress(ProtocolError):  # parts go with their conversation: the script tells that it is gone
            given = await referred(self.store, place.keys, given, seconds)
        entries, parts = pure.new_entries(message_id, given or None, now)
        limits = self.tiers.get(tier)
        parent = request.get("parent") or ""
        on_busy = request.get("on_busy", "queue")
        args: list[Any] = [
            message_id, token, "queue" if reopened and on_busy == "reject" else on_busy, repr(now), self._ttl,
            LOG_EVENTS, QUEUE_LIMIT, pure.ROOT if parent == place.id else parent, *allowed(limits),
            *given_parts(parts),
        ]  # fmt: skip
        for entry in entries:
            state = "running" if entry.id == message_id else "done"
            shown = Entry(entry.id, None, 0, entry.role, state, message_id, entry.body).shown()
            del shown["parent"]
            args += [
                entry.id, entry.role, "1" if entry.pinned else "", pure.size_of(entry.body),
                count_tokens(entry.body["message"]), orjson.dumps(entry.body),
                orjson.dumps({"type": "message", **shown}),
            ]  # fmt: skip
        reply = await run(self.store, CONVERSATION_ENTER, place.keys, args, seconds)
        match reply[0]:
            case b"current":
                if reply[-1] == b"made":
                    await self._list_made(user, place)
                return Turn(0)
            case b"queued" | b"busy" if await self.look_at_current(place, user):
                return await self.enter(place, message_id, token, request, reopened, user, seconds, tier)
            case b"queued":
                return Turn(int(reply[1]), reply[2].decode())
            case b"stale":
                if await self._claimed_as(user, message_id) == reply[1]:
                    raise Ended  # it is this one that is over: its node has slept
                await self.withdraw(place, message_id, reply[1])
                return await self.enter(place, message_id, token, request, reopened, user, seconds, tier)
            case b"ended":
                raise Ended
        await self._unlist_unmade(user, place)
        raise refused(place.id, request, reply, limits)

    async def _claimed_as(self, user: tuple[str, str, str], message_id: str) -> bytes | None:
        """The token of the claim that the record tells of."""
        record = MessageKeys.of(message_tag(*user, message_id)).record
        generation, run = await self.store.call(record, "HMGET", record, "gen", "run", seconds=STEP_SECONDS)
        return None if generation is None else b"%s:%s" % (generation, run)

    async def look_at_current(self, place: Place, user: tuple[str, str, str]) -> bool:
        """For who waits: ask the current message to stop if that is wanted, and move on if it has ended or is no more.

        Its owner does the same when it ends; this is for the case that nobody is left who would, and for who asks
        again as soon as the end was told. True if the turn was given on.
        """
        keys = place.keys
        current, turn, stop = await self.store.call(
            keys.meta, "HMGET", keys.meta, "current", "turn", "stop", seconds=STEP_SECONDS
        )
        if not current:
            return True
        message = MessageKeys.of(message_tag(*user, current.decode()))
        state, generation, run, owner = await self.store.call(
            message.record, "HMGET", message.record, "state", "gen", "run", "owner", seconds=STEP_SECONDS
        )
        if state is None or b"%s:%s" % (generation, run) != turn:
            await self.withdraw(place, current.decode(), turn)
            return True
        if state in (b"done", b"failed", b"cancelled"):
            return await self.advance(place, current.decode(), message, turn)
        if stop == current:
            await self.store.run(CANCEL, [message.record, message.channel], [NOTE_CANCEL], seconds=STEP_SECONDS)
            channel = control_channel(owner.decode())
            tag = message_tag(*user, current.decode())
            self.store.link(channel).call("SPUBLISH", channel, tag).add_done_callback(forget)
        return False

    async def history(
        self, place: Place, message_id: str, fence: bytes, record: MessageKeys, tokens: int
    ) -> Branch | None:
        """What the message answers: the branch above it, written into its record once.

        None if another node owns the message by now. Raises `StoreError` or `TimeoutError`.
        """
        stored = await self.store.call(record.record, "HGET", record.record, "history", seconds=STEP_SECONDS)
        if stored is None:
            most = min(CONTEXT_ENTRIES, tokens // MESSAGE_TOKENS + 1)
            page = await self.page(place, anchor=message_id, limit=most, budget=tokens, pins=True, seconds=STEP_SECONDS)
            entries = [*page.pinned, *page.entries]
            branch = Branch([entry.as_map() | {"pinned": entry.id in page.pins} for entry in entries]).within(tokens)
            packed = orjson.dumps(branch.entries)
            stored = await self.store.run(RESOLVE, [record.record], [fence, packed], seconds=STEP_SECONDS)
            if stored is None:
                return None
            if stored == packed:
                return branch
        return Branch(orjson.loads(stored))

    async def whole(self, keys: ConversationKeys, messages: Sequence[Map]) -> list[Map]:
        """The messages with their large parts in place. Raises `StoreError`, `TimeoutError`, `ProtocolError`."""
        return await whole(self.store, keys, messages)

    # --- the end of a message -----------------------------------------------------------------------------------------

    async def advance(self, place: Place, message_id: str, record: MessageKeys, token: bytes) -> bool:
        """A message has ended: keep its final text here and give the turn on. Raises `StoreError`, `TimeoutError`.

        False if there was nothing to do, here at least.
        """
        found = await self.reader.record(record)
        if found is None or not found.ended:
            return False
        text, given = await self._final(record, found)
        parts: dict[str, bytes] = {}
        body = pure.answer_body(text, given, found.end or {}, time.time(), parts)
        reply = await self.give_turn(place, message_id, token, found.state, body, parts)
        await self.store.call(record.record, "HDEL", record.record, "history", seconds=STEP_SECONDS)
        if reply[0] == b"deleted":
            await self.erase(record)
        return True

    async def _final(self, keys: MessageKeys, found: Record) -> tuple[str, list[Map]]:
        """The text and tool calls that stand; from what was kept of them, where the message is finalized already."""
        if found.standing is None:
            standing = await gather(self.reader, keys, found.base)
            return b"".join(standing.text).decode(), standing.calls
        text, reasoning, calls = found.standing
        kept = await self.store.call(keys.standing, "GET", keys.standing, seconds=STEP_SECONDS) or b""
        return kept[:text].decode(), msgpack.unpackb(kept[text + reasoning :]) if calls and kept else []

    async def give_turn(
        self, place: Place, message_id: str, token: bytes, state: str, body: Map, parts: Mapping[str, bytes]
    ) -> list[Any]:
        """Keep `body`, with its large `parts`, as the answer and let the next one have the turn."""
        now = time.time()
        shown = Entry(message_id, None, 0, "assistant", state, message_id, body).shown()
        for name in ("parent", "state", "content"):
            shown.pop(name, None)
        args: list[Any] = [
            message_id, token, state, repr(now), self._ttl, LOG_EVENTS, pure.size_of(body), orjson.dumps(body),
            orjson.dumps({"type": "message", **shown}), repr(now + self.tool_seconds),
            count_tokens(body["message"]), *given_parts(parts), *(pure.open_calls(body) if state == "done" else ()),
        ]  # fmt: skip
        return await run(self.store, CONVERSATION_ADVANCE, place.keys, args)

    async def withdraw(self, place: Place, message_id: str, token: bytes) -> None:
        """A message came to nothing: nothing of it stays. Raises `StoreError` or `TimeoutError`."""
        args = [message_id, token, "withdrawn", repr(time.time()), self._ttl, LOG_EVENTS, 0, b"{}", b"{}", 0, 0, 0]
        await run(self.store, CONVERSATION_ADVANCE, place.keys, args)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def overview(self, place: Place, seconds: float = IMPATIENT) -> Overview:
        """What is known of it. Raises `ProtocolError("conversation_unknown")`, `StoreError`, `TimeoutError`."""
        names = ("due", "created", "deleted", "head", "title", "tip", "current", "queue", "entries", "bytes", "updated")
        found = await self.store.call(place.keys.meta, "HMGET", place.keys.meta, *names, seconds=seconds)
        if is_late(found[0]):
            await self.tools.expire(place.keys)
            found = await self.store.call(place.keys.meta, "HMGET", place.keys.meta, *names, seconds=seconds)
        created, deleted, head, title, tip, current, queue, entries, size, updated = (
            value.decode() if value is not None else None for value in found[1:]
        )
        if created is None or deleted is not None:
            raise unknown(place.id)
        return Overview(
            int(head or 0), title, tip or "", current or "", tuple(queue.split(",")) if queue else (),
            int(entries or 0), int(size or 0), float(created), float(updated or created),
        )  # fmt: skip

    async def page(
        self, place: Place, *, anchor: str = "", after: bool = False, limit: int = 50, budget: int = PAGE_BYTES,
        pins: bool = False, branch: str = "", seconds: float = IMPATIENT,
    ) -> Page:  # fmt: skip
        """Entries before `anchor`, or after it on the chosen branch or that of the entry `branch`.

        See `conversation_page_v1.lua`. Raises `ProtocolError`, `StoreError`, `TimeoutError`.
        """
        args = ["after" if after else "before", anchor, limit, budget, "1" if pins else "", branch]
        keys = place.keys
        read = [keys.meta, keys.headers, keys.bodies, keys.children]
        reply = await self.store.run(CONVERSATION_PAGE, read, args, seconds)
        if len(reply) > 1 and is_late(reply[9]):
            await self.tools.expire(keys)
            reply = await self.store.run(CONVERSATION_PAGE, read, args, seconds)
        if reply[0] == b"deleted":
            raise unknown(place.id)
        if reply[0] == b"anchor":
            raise ProtocolError("message_unknown", f"there is no entry {anchor or branch!r} on this branch")
        tip, current, queue, title = (value.decode() for value in reply[1:5])
        return Page(
            int(reply[0]), tip, current, tuple(queue.split(",")) if queue else (), title or None, reply[5] == b"1",
            _entries(reply[6]), _entries(reply[7]), frozenset(reply[8].decode().split(",")),
        )  # fmt: skip

    async def events(self, place: Place, after: int, count: int) -> list[tuple[int, Map]]:
        """Events of the conversation's log after `after`, oldest first. Raises `StoreError` or `TimeoutError`."""
        rows = await self.store.call(
            place.keys.log, "XRANGE", place.keys.log, f"({after}-0", "+", "COUNT", count, seconds=STEP_SECONDS
        )
        return [(int(row[0].split(b"-")[0]), orjson.loads(row[1][1])) for row in rows]

    async def entry(self, place: Place, entry_id: str) -> Entry | None:
        """One entry."""
        keys = place.keys
        header = await self.store.call(keys.headers, "HGET", keys.headers, entry_id, seconds=STEP_SECONDS)
        body = await self.store.call(keys.bodies, "HGET", keys.bodies, entry_id, seconds=STEP_SECONDS)
        return pure.entry_of(entry_id, header.decode(), body or b"", "") if header is not None else None

    async def part(self, place: Place, digest: str) -> bytes:
        """A large part, as JSON. Raises `ProtocolError("message_unknown")`, `StoreError`, `TimeoutError`."""
        data = await self.store.call(place.keys.parts, "HGET", place.keys.parts, digest, seconds=STEP_SECONDS)
        if data is None:
            raise ProtocolError("message_unknown", f"there is no part {digest!r} in this conversation")
        found: bytes = data
        return found

    async def listing(self, who: Principal, before: float | None, limit: int) -> tuple[list[Map], float | None]:
        """The user's conversations, the one that changed last first; where to go on. Raises like `overview`."""
        user = user_tag(who.tenant, who.kind, who.user)
        index = conversation_index(user)
        most = "+inf" if before is None else f"({before!r}"
        rows = await self.store.call(
            index, "ZREVRANGEBYSCORE", index, most, "-inf", "WITHSCORES", "LIMIT", 0, limit, seconds=STEP_SECONDS
        )
        names, last = [row.decode() for row in rows[::2]], float(rows[-1]) if len(rows) == 2 * limit else None
        if last is not None:  # those of the same moment must not fall between two pages
            same = await self.store.call(index, "ZREVRANGEBYSCORE", index, repr(last), repr(last), seconds=STEP_SECONDS)
            names += [name.decode() for name in same if name.decode() not in names]
        found = await asyncio.gather(*(self._listed(Place.of(user, name)) for name in names))
        return [shown for shown in found if shown is not None], last

    async def _listed(self, place: Place) -> Map | None:
        try:
            return {"conversation": place.id, **(await self.overview(place, STEP_SECONDS)).shown()}
        except ProtocolError:
            return None  # listed first, made afterwards; or it has expired

    # --- everything ---------------------------------------------------------------------------------------------------

    async def entry_ids(self, place: Place) -> list[str]:
        """The ids of all entries, those nearer to the root first. Raises `StoreError` or `TimeoutError`."""
        found: dict[str, int] = {}
        async for name, header in self._scan(place.keys.headers):
            found[name.decode()] = int(header.split(b"|")[2])
        return sorted(found, key=lambda name: (found[name], name))

    async def entries(self, place: Place, ids: Sequence[str]) -> list[Entry]:
        """These entries, as far as they are there. Raises `StoreError` or `TimeoutError`."""
        keys = place.keys
        headers = await self.store.call(keys.headers, "HMGET", keys.headers, *ids, seconds=STEP_SECONDS)
        bodies = await self.store.call(keys.bodies, "HMGET", keys.bodies, *ids, seconds=STEP_SECONDS)
        return [
            pure.entry_of(name, header.decode(), body or b"", "")
            for name, header, body in zip(ids, headers, bodies, strict=True)
            if header is not None
        ]

    async def part_ids(self, place: Place) -> list[str]:
        """The hashes of all large parts. Raises `StoreError` or `TimeoutError`."""
        keys = place.keys
        found = await self.store.call(keys.parts, "HKEYS", keys.parts, seconds=STEP_SECONDS)
        return sorted(name.decode() for name in found)

    async def _scan(self, key: bytes) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """The fields of a hash, some more than once."""
        cursor = b"0"
        while True:
            cursor, flat = await self.store.call(key, "HSCAN", key, cursor, "COUNT", 1_000, seconds=STEP_SECONDS)
            for i in range(0, len(flat), 2):
                yield flat[i], flat[i + 1]
            if cursor == b"0":
                return

    # --- changing -----------------------------------------------------------------------------------------------------

    async def create(self, who: Principal, place: Place, title: str) -> bool:
        """Make it; False if it is there already. Raises `ProtocolError`, `StoreError`, `TimeoutError`."""
        await self._admit(who, place)
        made = bool((await self._change(place, "create", title))[0] == b"changed")
        if made:
            await self._list_made((who.tenant, who.kind, who.user), place)
        return made

    async def change(self, who: Principal, place: Place, op: str, value: str) -> int:
        """Rename, title, choose, pin or unpin; the head of the log. Raises `ProtocolError`, `StoreError`, …"""
        reply = await self._change(place, op, value)
        if reply[0] == b"changed":
            await self.register(who, place.id)
        return int(reply[1])

    async def _change(self, place: Place, op: str, value: str) -> list[Any]:
        title = orjson.dumps(value if value or op != "create" else None)
        args = [op, value, title, repr(time.time()), self._ttl, LOG_EVENTS, MAX_PINS]
        reply = await run(self.store, CONVERSATION_CHANGE, place.keys, args)
        match reply[0]:
            case b"deleted" | b"unknown":
                raise unknown(place.id)
            case b"entry":
                raise ProtocolError("message_unknown", f"there is no entry {value!r} in this conversation")
            case b"full":
                raise over("pins", MAX_PINS)
        return reply

    async def delete(self, who: Principal, place: Place) -> None:
        """Delete it, its log and what its messages hold; returns when it is gone. May be repeated."""
        reply = await run(
            self.store, CONVERSATION_DELETE, place.keys, ["close", round(self.claim_seconds * 1000)], STEP_SECONDS
        )
        if not reply:
            raise unknown(place.id)
        names = [title_id(place), *(name.decode() for name in reply[1:])]
        messages = [MessageKeys.of(message_tag(who.tenant, who.kind, who.user, name)) for name in names]
        until = asyncio.get_running_loop().time() + ERASE_SECONDS
        while messages:
            left: list[MessageKeys] = []
            for begin in range(0, len(messages), ERASE_AT_ONCE):
                some = messages[begin : begin + ERASE_AT_ONCE]
                gone = await asyncio.gather(*(self._stop_and_erase(keys) for keys in some))
                left += [keys for keys, erased in zip(some, gone, strict=True) if not erased]
            if asyncio.get_running_loop().time() > until:
                break  # whoever ends them sees that the conversation is deleted, and erases them
            messages = left
            if left:
                await asyncio.sleep(0.05)
        await run(
            self.store, CONVERSATION_DELETE, place.keys, ["empty", round(self.claim_seconds * 1000)], STEP_SECONDS
        )
        await self.unlist(who, place)

    async def _stop_and_erase(self, keys: MessageKeys) -> bool:
        await self.store.run(CANCEL, [keys.record, keys.channel], [NOTE_CANCEL], seconds=STEP_SECONDS)
        return await self.erase(keys)

    async def erase(self, keys: MessageKeys, why: ProtocolError = GONE) -> bool:
        """Erase what a message holds; False if it has not ended yet. Who asks for it again is told `why`."""
        end = msgpack.packb({"error": why.as_dict(), "usage": {}, "partial": False})
        while True:
            fields = await self.store.call(keys.record, "HKEYS", keys.record, seconds=STEP_SECONDS)
            gathered = [keys.gathered(field[len(GATHERED) :]) for field in fields if field.startswith(GATHERED)]
            place = [keys.record, keys.journal, keys.standing, *gathered]
            answer = await self.store.run(ERASE, place, [end], seconds=STEP_SECONDS)
            if answer != SEEN_TOO_LITTLE:
                return bool(answer)


def _entries(flat: Sequence[bytes]) -> list[Entry]:
    found = [
        pure.entry_of(flat[i].decode(), flat[i + 1].decode(), flat[i + 2], flat[i + 3].decode())
        for i in range(0, len(flat), 4)
    ]
    return sorted(found, key=lambda entry: entry.depth)
