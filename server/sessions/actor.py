"""One WebSocket connection: its actor. Owns auth state, the followed messages and a cursor in each.

Three tasks live exactly as long as the connection: one reads frames, one writes what `Outbound` makes of the cursors,
one reads pages from Redis. Nothing a client sends ends the session but what the close codes list.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from protocol.codec import Codec, DecodeError
from protocol.errors import CloseCode, ProtocolError
from protocol.frames import ConversationRequest, Frame, Hello, parse_client_frame
from server.access import scopes
from server.access.identity import Principal
from server.access.limits import ConnectionLimits, Pace, Penalty, frame_pace
from server.config import ServerSettings
from server.messages.service import Found, Messages, payer_of, unavailable
from server.sessions.audience import Audience
from server.sessions.outbound import Outbound, error_frame
from server.store.link import StoreError

log = structlog.get_logger("session")

MALFORMED_ALLOWED: Final = 10
"""So many WebSocket messages may be undecodable before the peer is taken for something else."""
TOLD_MOST: Final = 4_096
SENDS_IN_A_ROW: Final = 8
IN_FLIGHT: Final = 64
"""Most frames of one session being handled at once; then reading pauses."""
REFUSED_SECONDS: Final = 0.1
"""For so long a refused frame still counts as being handled: to be refused fast is no way to ask more often."""
FRAMES_IN_A_ROW: Final = 32
"""After so many frames of one WebSocket message others have their turn."""
TOLD_OF_A_FRAME: Final = {"type", "id", "conversation"}
"""What an error names of the frame that could not be served."""
EXPIRY_GRACE_SECONDS: Final = 60.0
"""How long a socket stays open after its token has expired."""


class Authenticates(Protocol):
    """Turns a token into who is asking."""

    async def authenticate(self, token: str | None) -> Principal:
        """Raises `ProtocolError`: `unauthenticated`, `token_expired`."""
        ...


class SessionWatch(Protocol):
    """What is told of sessions, for metrics."""

    def session_opened(self) -> None: ...  # noqa: D102
    def session_closed(self, seconds: float) -> None: ...  # noqa: D102
    def frame_received(self, kind: str) -> None: ...  # noqa: D102
    def frames_sent(self, size: int) -> None: ...  # noqa: D102


class Peer(Protocol):
    """A client at the other end, of a socket or of an HTTP response, as the node speaks to all of them."""

    out: Outbound

    def say(self, frame: dict[str, Any]) -> None:
        """Put an answer before all data."""
        ...

    def close_soon(self, closing: Closing) -> None:
        """Close as soon as what was said has gone out."""
        ...


@dataclass(frozen=True, slots=True)
class SessionMeans:
    """What every session works with."""

    messages: Messages
    authenticator: Authenticates
    watch: SessionWatch
    max_frame_bytes: int
    audience: Audience


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one peer may take of a node."""

    settings: ServerSettings
    connections: ConnectionLimits


class Closing(Exception):
    """The session is to be closed with this code."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Session:
    """See the module."""

    def __init__(
        self,
        socket: WebSocket,
        codec: Codec,
        means: SessionMeans,
        limits: SessionLimits,
        address_pace: Pace | None = None,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.socket = socket
        self.codec = codec
        self.means = means
        self.settings = limits.settings
        self.connections = limits.connections
        self.messages = means.messages
        self.hub = means.messages.means.hub
        self.out = Outbound(codec, means.messages.reader, means.max_frame_bytes)
        self.who: Principal | None = None
        self.opened_at = time.monotonic()
        self.subscriptions: dict[str, Any] = {}
        """Conversation → how this session follows it; `conversation_handlers` fills it."""
        self.unasked: set[str] = set()
        """Messages that are followed from their beginning because their conversation is, not by the client's word."""
        self.told: dict[str, None] = {}
        """Messages told to their end while conversations were followed, the newest `TOLD_MOST`."""
        self._malformed = 0
        self._greeted = False
        self._early_limits: list[dict[str, Any]] | None = None
        """What was to be told before `welcome`, which comes first."""
        self._paces = [frame_pace(limits.settings.frames_per_second)]
        """Of this socket's frames, of the address', and once that is known of the user's."""
        if address_pace is not None:
            self._paces.append(address_pace)
        self._penalty = Penalty()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._shared_slots: asyncio.Semaphore | None = None
        """Of all sockets of the user together, once that is known."""
        self._pending: dict[str, asyncio.Task[bool]] = {}
        self._tasks: asyncio.TaskGroup
        """What lives as long as the connection."""
        self._handlers: asyncio.TaskGroup
        """What was asked for; it is finished even if the connection is gone."""
        self._gone = False
        self._deadline: asyncio.TimerHandle | None = None
        self._closing: Closing | None = None
        self._sending_since: float | None = None
        self._patience: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve the connection until it ends; never raises for what the peer does.

        What it asked for just before is still carried out: a claim given up half-way would be nobody's.
        """
        self.means.watch.session_opened()
        try:
            async with asyncio.TaskGroup() as self._handlers:
                await self._converse()
        finally:
            for timer in (self._deadline, self._patience):
                if timer is not None:
                    timer.cancel()
            for tag in list(self.out.follows):
                self.unfollow(tag)
            if self.who is not None:
                self.connections.leave_user(user_of(self.who))
                self.means.audience.leave(payer_of(self.who).user, self)
            self.means.watch.session_closed(time.monotonic() - self.opened_at)

    async def _converse(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._watch_peer()
                self._close_after(self.settings.hello_seconds, Closing(CloseCode.HELLO_TIMEOUT, "no hello in time"))
                self._tasks.create_task(self._write(), name=f"session {self.id}: write")
                self._tasks.create_task(self.out.read_pages(), name=f"session {self.id}: pages")
                await self._read()
        except* (WebSocketDisconnect, Closing) as ending:
            self._gone = True
            await self._end(ending)

    async def _end(self, ending: BaseExceptionGroup[Any]) -> None:
        closing = next((error for error in _leaves(ending) if isinstance(error, Closing)), None)
        if closing is not None:
            try:
                async with asyncio.timeout(1.0):
                    await self.socket.close(closing.code, closing.reason)
            except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
                pass  # the peer does not read or has gone: there is nobody to tell

    # --- reading --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            if self._closing is not None:  # what was said goes out, what comes now comes too late
                await asyncio.get_running_loop().create_future()
            data = message.get("text")
            await self._take(message["bytes"] if data is None else data)

    async def _take(self, data: bytes | str) -> None:
        try:
            frames = self.codec.decode(data)
        except DecodeError as error:
            self._malformed += 1
            if self._malformed > MALFORMED_ALLOWED:
                self.close_soon(Closing(CloseCode.MALFORMED, "what arrives is not this protocol"))
                return
            await self.out.control_room()
            self.say(error_frame(None, None, ProtocolError("invalid_frame", str(error)).as_dict()))
            await asyncio.sleep(self._penalty.refused())
            return
        for number, raw in enumerate(frames, 1):
            await self.out.control_room()
            await self._frame(raw)
            if number % FRAMES_IN_A_ROW == 0:
                await asyncio.sleep(0)

    async def _frame(self, raw: dict[str, Any]) -> None:
        kind = raw.get("type")
        try:
            if wait := self._pace():
                self.refuse(
                    raw, ProtocolError("rate_limited", "too many frames", retry_after_ms=math.ceil(wait * 1000))
                )
                await asyncio.sleep(self._penalty.refused(wait))
                return
            self._penalty.served()
            frame = parse_client_frame(raw)
            self.means.watch.frame_received(str(kind))
            if self.who is None and not isinstance(frame, Hello):
                raise ProtocolError("unauthenticated", "send `hello` first")
            await self._dispatch(frame)
        except ProtocolError as error:
            self.refuse(raw, error)

    def _pace(self) -> float:
        """Count a frame: 0, or the wait in seconds after which it would fit."""
        return next((wait for pace in self._paces if (wait := pace.take())), 0.0)

    async def _dispatch(self, frame: Frame) -> None:
        """Frames about one message keep their order, and so do those for one conversation; others don't wait.

        A title waits for those before it and holds up nothing: it is as slow as a model.
        """
        lanes = _lanes(frame)
        if not lanes:
            await HANDLERS[type(frame)](self, frame)
            return
        slots = self._slots_for(frame)
        for slot in slots:
            await slot.acquire()
        after = [*lanes, f"in {getattr(frame, 'conversation', None)}"]
        before = [self._pending[lane] for lane in after if lane in self._pending]
        task = self._handlers.create_task(self._in_turn(frame, before), name=f"session {self.id}: {lanes[0]}")
        self._pending |= dict.fromkeys(lanes, task)
        task.add_done_callback(lambda done: self._handled(lanes, slots, done))

    def _slots_for(self, frame: Frame) -> list[asyncio.Semaphore]:
        """What has to be free before it is handled. What is as slow as a model takes none of the user's."""
        shared = self._shared_slots
        return [self._slots] if shared is None or _is_slow(frame) else [self._slots, shared]

    def _handled(self, lanes: list[str], slots: list[asyncio.Semaphore], task: asyncio.Task[bool]) -> None:
        well = task.cancelled() or task.exception() is not None or task.result()
        for slot in slots:
            if well:
                slot.release()
            else:
                asyncio.get_running_loop().call_later(REFUSED_SECONDS, slot.release)
        for lane in lanes:
            if self._pending.get(lane) is task:
                del self._pending[lane]

    async def _in_turn(self, frame: Frame, before: list[asyncio.Task[bool]]) -> bool:
        """Whether it was served, not refused."""
        if before:
            await asyncio.wait(before)
        if self._gone:
            return True
        try:
            await HANDLERS[type(frame)](self, frame)
        except ProtocolError as error:
            self.refuse(frame.model_dump(include=TOLD_OF_A_FRAME), error)
            return False
        except Exception as error:  # the one boundary where a defect becomes a wire code
            number = secrets.token_hex(8)
            log.error("handler_failed", frame=type(frame).__name__, error_id=number, exc_info=error)
            internal = ProtocolError("internal", "a defect of the server", details={"error_id": number})
            self.refuse(frame.model_dump(include=TOLD_OF_A_FRAME), internal)
            return False
        return True

    # --- writing --------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        out, send = self.out, self.socket.send
        field, loop = "bytes" if self.codec.binary else "text", asyncio.get_running_loop()
        sent = 0
        while True:
            data = out.take()
            self._unfollow_finished()
            if data is None:
                if self._closing is not None:
                    raise self._closing
                out.something.clear()
                await out.something.wait()
                continue
            self._sending_since = loop.time()
            await send({"type": "websocket.send", field: data if field == "bytes" else data.decode()})
            self._sending_since = None
            sent += 1
            if sent % SENDS_IN_A_ROW == 0:
                await asyncio.sleep(0)  # a writable socket never waits: let the others have a turn
            self.means.watch.frames_sent(len(data))

    def _watch_peer(self) -> None:
        """Give up a peer that has taken nothing for two heartbeats: our pings lie behind that."""
        loop, seconds = asyncio.get_running_loop(), self.settings.heartbeat_seconds
        if self._sending_since is not None and loop.time() - self._sending_since > 2 * seconds:
            self._tasks.create_task(self._give_up(), name=f"session {self.id}: give up")
        else:
            self._patience = loop.call_later(seconds / 2, self._watch_peer)

    async def _give_up(self) -> NoReturn:
        raise Closing(CloseCode.INTERNAL, "the peer does not read")

    def _unfollow_finished(self) -> None:
        finished = self.out.finished
        while finished:
            follow = finished.pop()
            self.hub.unfollow(follow.tag, self.out)
            self.unasked.discard(follow.id)
            if self.subscriptions:
                self.told[follow.id] = None
                if len(self.told) > TOLD_MOST:
                    del self.told[next(iter(self.told))]

    def knows(self, message_id: str) -> bool:
        """Whether this session follows the message, has been told it to its end, or is about to follow it."""
        return message_id in self.out.by_id or message_id in self.told or message_id in self._pending

    def say(self, frame: dict[str, Any]) -> None:
        """Put an answer before all data."""
        self.out.put(frame)

    def tell_limits(self, limits: list[dict[str, Any]]) -> None:
        """Tell what is left (`server.sessions.audience.Listener`)."""
        if self._greeted:
            self.out.put_latest({"type": "quota", "limits": limits})
        else:
            self._early_limits = limits

    def greet(self, welcome: dict[str, Any]) -> None:
        """Say `welcome`, before anything that was to be told already."""
        self.say(welcome)
        self._greeted = True
        if self._early_limits is not None:
            self.tell_limits(self._early_limits)

    def refuse(self, frame: dict[str, Any], error: ProtocolError) -> None:
        """Answer a frame that could not be served."""
        kind = frame.get("type")
        self.say(
            error_frame(
                kind if isinstance(kind, str) else None,
                _told_id(frame.get("id")),
                error.as_dict(),
                _told_id(frame.get("conversation")),
            )
        )

    def close_soon(self, closing: Closing) -> None:
        """Close as soon as what was said has gone out."""
        self._closing = self._closing or closing
        self.out.something.set()

    def _close_after(self, seconds: float, closing: Closing) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.close_soon, closing)

    def attend(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something for as long as the connection lasts. Raises `CancelledError` if it is ending already."""
        try:
            return self._tasks.create_task(work, name=f"session {self.id}: {name}")
        except RuntimeError:  # the group takes no more tasks
            work.close()
            raise asyncio.CancelledError from None

    # --- who and what -----------------------------------------------------------------------------------------------

    @property
    def principal(self) -> Principal:
        """Who is asking; only after `hello`."""
        assert self.who is not None
        return self.who

    def check_not_expired(self) -> None:
        """Raises `ProtocolError("token_expired")` where a new message would need a valid token."""
        expires = self.principal.expires_at
        if expires is not None and time.time() >= expires:
            raise ProtocolError("token_expired", "renew the token with `auth`, then ask again")

    def admit(self, who: Principal) -> int | None:
        """Take on an identity; the seconds until it expires. Raises `ProtocolError`."""
        scopes.require(who.scopes, scopes.CHAT)
        if self.who is None:
            self.connections.greet_user(user_of(who))
            allowance = self.connections.enter_user(user_of(who))
            self._paces.append(allowance.frames)
            self._shared_slots = allowance.handling
            self.means.audience.join(payer_of(who), self)
        self.who = who
        if who.expires_at is None:
            if self._deadline is not None:
                self._deadline.cancel()
            return None
        seconds = max(0.0, who.expires_at - time.time())
        self._close_after(seconds + EXPIRY_GRACE_SECONDS, Closing(CloseCode.UNAUTHENTICATED, "the token expired"))
        return int(seconds)

    def check_room(self, message_id: str) -> None:
        """Raises `ProtocolError("too_many_messages")` if this session may not follow one more."""
        most = self.settings.max_open_messages
        if len(self.out.follows) >= most and message_id not in self.out.by_id:
            raise ProtocolError("too_many_messages", f"one connection follows at most {most} messages")

    async def follow(self, found: Found, after: int, receipt_only: bool = False) -> None:
        """Follow a message from `after`. Raises `ProtocolError`."""
        if found.ended and after == found.head:  # it saw an end, perhaps another one: tell it this one
            after, receipt_only = max(0, after - 1), True
        self.unasked.discard(found.id)
        self.check_room(found.id)
        try:
            channel = await self.hub.follow(found.tag, found.keys, self.out, found.head, found.ended)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        self.out.follow(found.id, found.tag, channel, after, receipt_only)

    def unfollow(self, tag: str) -> None:
        """Stop following."""
        self.out.drop(tag)
        self.hub.unfollow(tag, self.out)


def _lanes(frame: Frame) -> list[str]:
    """What the frame is about: those about the same are handled one after another. Empty: at once, before the next."""
    message_id, conversation = getattr(frame, "id", None), getattr(frame, "conversation", None)
    if message_id is not None:
        return [message_id] if conversation is None else [message_id, f"in {conversation}"]
    return [f"title of {conversation}"] if _is_slow(frame) else []


def _is_slow(frame: Frame) -> bool:
    """Whether it waits for a model."""
    return isinstance(frame, ConversationRequest) and frame.op == "title"


def _told_id(value: object) -> str | None:
    """An id as an error repeats it: not what is no id."""
    return value if isinstance(value, str) and len(value) <= 64 else None


def user_of(who: Principal) -> tuple[str, str, str]:
    """By what a user is known, for counting."""
    return who.tenant, who.kind, who.user


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


Handler = Callable[[Session, Any], Awaitable[None]]
HANDLERS: Final[dict[type[Frame], Handler]] = {}
"""Frame type → handler; `server.sessions.handlers` fills it."""


def handles(frame: type[Frame]) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        HANDLERS[frame] = handler
        return handler

    return register
