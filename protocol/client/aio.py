"""The asyncio client: one WebSocket, many messages, reconnecting by itself.

    async with connect("ws://127.0.0.1:8400/v1/ws", token="…") as client:
        message = await client.send(messages=[{"role": "user", "content": "Hello"}], model="default")
        async for piece in message:
            print(piece.text, end="")

`protocol.client.session` decides everything; this file opens sockets, keeps time and wakes who waits. One task runs
the connection, owned by the `async with` block; leaving the block ends it and closes the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from protocol.client.answer import Message, Piece
from protocol.client.connection import Connection
from protocol.client.ending import Ending, ending_of, token_refused
from protocol.client.events import (
    ConversationChanged,
    ConversationMessage,
    ErrorReceived,
    Event,
    GoingAway,
    MessageAccepted,
    MessageEnded,
    Output,
    PongReceived,
    Stalled,
    Welcomed,
)
from protocol.client.failures import ClientClosed, ConnectionFailed, TidewireError
from protocol.client.ids import new_id
from protocol.client.message import ClientMessage, MessageState
from protocol.client.session import ClientSession, MalformedFrame
from protocol.client.store import STORAGE_KEY, OpenStore
from protocol.client.timing import Backoff, Beat, Heartbeat
from protocol.codec import JSON, MSGPACK, Codec, DecodeError
from protocol.errors import may_reconnect
from protocol.frames import HEARTBEAT_SECONDS, HELLO_SECONDS

Map = dict[str, Any]
__all__ = ["Client", "ClientEvent", "Disconnected", "Message", "Piece", "connect", "new_id"]
TokenSource = Callable[[], Awaitable[str]]
"""Gets a fresh token; asked before every connection and shortly before the token expires.

If it raises `OSError` or `TimeoutError`, or takes longer than `TOKEN_SECONDS`, it is asked again later; anything else
is a defect of its own and ends the client.
"""

CONNECT_SECONDS: Final = 10.0
"""How long entering `connect` may take, tries included."""
CLOSE_SECONDS: Final = 2.0
CHECK_SECONDS: Final = 3.0
"""How long an answer to `check` may take."""
TOKEN_SECONDS: Final = 10.0
"""How long a token source may take."""
STABLE_SECONDS: Final = 5.0
"""A connection that lived this long counts as a success, so the next backoff starts from its base."""
STALL_SECONDS: Final = 1.0
"""When to ask again for a message the server can't tell more of, if it doesn't say."""
RENEW_SHARE: Final = 0.8
"""A token is renewed after this share of its life."""
RENEW_FLOOR_SECONDS: Final = 0.2
"""But not sooner, however short its life: the source is asked over a network."""
SAVE_SECONDS: Final = 1.0
"""How often the open messages are written to the storage while text arrives."""
MAX_INCOMING_BYTES: Final = 16 * 2**20


class Disconnected(NamedTuple):
    """The socket is gone; the next try follows by itself. Messages go on at the server."""

    reason: str
    retry_in_seconds: float


ClientEvent = Event | Disconnected
"""What `on_event` is told."""


class Client:
    """Holds the session and keeps it connected: `async with connect(url) as client`.

    `url` is that of the WebSocket endpoint (`ws://host:port/v1/ws`). `token` is a JWT, an API key, or an async
    function that gets one. `on_event` is called with every event, also `Disconnected`; it must not block or raise.
    In `storage` (a dict, a `shelve`, …) the open messages, and the cursors of conversations, are kept under
    `storage_key`, so that another process goes on with them: `messages()`. Entering raises `ConnectionFailed` if
    there is no greeting within `connect_seconds`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | TokenSource | None = None,
        codec: Literal["json", "msgpack"] = "json",
        on_event: Callable[[ClientEvent], None] | None = None,
        backoff: Backoff | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        headers: Mapping[str, str] | None = None,
        proxy: str | Literal[True] | None = True,
        storage: MutableMapping[str, str] | None = None,
        storage_key: str = STORAGE_KEY,
    ) -> None:
        self.url = url
        self.session = ClientSession(token=token if isinstance(token, str) else None)
        self.welcome: Welcomed | None = None
        """The newest greeting."""
        self.reconnects = 0
        """How often a connection was made after the first."""
        self._token_source = token if callable(token) else None
        self._codec: Codec = MSGPACK if codec == "msgpack" else JSON
        self._on_event = on_event
        self._backoff = backoff or Backoff(random.random)
        self._connect_seconds = connect_seconds
        self._headers = dict(headers or {})
        self._proxy = proxy
        self._messages: dict[str, Message] = {}
        self._connection: Connection | None = None
        self._settled = asyncio.Event()
        self._hurry = asyncio.Event()
        self.failure: TidewireError | None = None
        """Why nothing more will come: it was closed, or refused for good."""
        self._last_error: Map | None = None
        self._token_refused = False
        self._stalls: dict[str, asyncio.TimerHandle] = {}
        self._group = asyncio.TaskGroup()
        self._runner: asyncio.Task[None] | None = None
        self._store = OpenStore(storage, storage_key)
        self._saving: asyncio.TimerHandle | None = None
        self._store.load(self.session)

    async def __aenter__(self) -> Self:
        """Connect. Raises `ConnectionFailed` if there is no greeting within `connect_seconds`."""
        await self._group.__aenter__()
        self._runner = self._group.create_task(self._run(), name="tidewire-client")
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._settled.wait()
        except TimeoutError:
            self.failure = ConnectionFailed("timeout", f"no connection within {self._connect_seconds} s")
        except asyncio.CancelledError:
            await self._close()
            raise
        if self.failure is not None:
            failure = self.failure
            await self._close()
            raise failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket and end the task. Messages go on at the server."""
        await self._close()

    async def _close(self) -> None:
        self._save()
        self.failure = self.failure or ClientClosed()
        try:
            if self._connection is not None:  # a cancelled connection would say that it is a defect (1011)
                await self._connection.socket.close()
        finally:
            if self._runner is not None:
                self._runner.cancel()
            await self._group.__aexit__(None, None, None)

    # --- messages -----------------------------------------------------------------------------------------------

    async def send(self, *, id: str | None = None, **request: Any) -> Message:  # noqa: A002
        """Ask for a message and wait until it is accepted.

        `request` holds the fields of the `send` frame: `messages`, `model`, `conversation`, `input`, … Raises
        `MessageRefused`, `ConnectionFailed`; `ValueError` if `id` was used on this client before.
        """
        message = self.ask(id=id, **request)
        await message.accepted()
        return message

    def ask(self, *, id: str | None = None, **request: Any) -> Message:  # noqa: A002
        """Like `send`, without waiting: a refusal shows when the message is iterated or awaited."""
        request = {name: value for name, value in request.items() if value is not None}
        return self._handle(self.session.send(id or new_id(), request))

    def resume(self, message_id: str, *, after: int = 0, text: str = "", reasoning: str = "") -> Message:
        """Follow a message, for instance one of `welcome.active`, or one kept from an earlier run."""
        return self._handle(self.session.resume(message_id, after=after, text=text, reasoning=reasoning))

    def messages(self) -> list[Message]:
        """Every message that is not forgotten; after a restart those that `storage` had kept open."""
        return [self._handle(view) for view in self.session.messages.values()]

    def subscribe(self, conversation: str, *, after: int = 0) -> None:
        """Follow every message of a conversation from the event `after` of its log on; they are told to `on_event`.

        Where `session.subscribed` tells a number already, `storage` kept it, and it is followed from there.
        """
        self.session.subscribe(conversation, after=after)
        self._save()
        self._wake()

    def unsubscribe(self, conversation: str) -> None:
        """Stop following a conversation."""
        self.session.unsubscribe(conversation)
        self._save()
        self._wake()

    def conversation(self, op: str, conversation: str | None = None, **fields: Any) -> None:
        """One operation on conversations; the answer is told to `on_event` as `ConversationChanged`."""
        self.session.conversation(op, conversation, **fields)
        self._wake()

    def history(
        self,
        conversation: str,
        *,
        before: str | None = None,
        after: str | None = None,
        limit: int = 50,
        branch: str | None = None,
    ) -> None:
        """Ask for a page of a conversation; it is told to `on_event` as `HistoryReceived`."""
        self.session.history(conversation, before=before, after=after, limit=limit, branch=branch)
        self._wake()

    def auth(self, token: str) -> None:
        """Renew the credentials."""
        self.session.auth(token)
        self._wake()

    def _handle(self, view: ClientMessage) -> Message:
        if self.failure is not None:
            raise self.failure
        message = self._messages.get(view.id)
        if message is None:
            message = self._messages[view.id] = Message(self, view)
            self._save()
        self._wake()
        return message

    def cancel(self, message_id: str) -> None:
        """Stop generating; `Message.cancel` waits for the receipt too."""
        self._apply(self.session.cancel(message_id))

    def retry(self, message_id: str) -> bool:
        """Ask again for a refused message or one that failed for now; False if that can't help."""
        retried = self.session.retry(message_id)
        self._wake()
        return retried

    def detach(self, message_id: str) -> None:
        """Stop following; the message goes on."""
        self.session.detach(message_id)
        self._wake()
        message = self._messages.get(message_id)
        if message is not None:
            message.notify()

    def check(self) -> None:
        """Look after the connection, for after a sleep of the machine or a change of network.

        Without one, connect now; else ask for a quick answer, which also tells whether anything was missed, and
        reconnect if there is none within `CHECK_SECONDS`.
        """
        now = asyncio.get_running_loop().time()
        if self._connection is None:
            self._hurry.set()
            return
        self.session.ping(int(now * 1000))
        self._connection.check_by = min(self._connection.check_by, now + CHECK_SECONDS)
        self._connection.nudge.set()
        self._wake()

    def forget(self, message_id: str) -> None:
        """Drop an ended or detached message from memory."""
        self.session.forget(message_id)
        self._messages.pop(message_id, None)

    # --- the connection -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Connect, converse, wait, again; until closed or until trying again is pointless."""
        try:
            while True:
                ending = await self._connect_once()
                delay = self._delay_after(ending)
                self._tell(Disconnected(ending.reason, delay))
                self._hurry.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._hurry.wait()
        except TidewireError as failure:
            self.failure = self.failure or failure
        finally:
            for timer in self._stalls.values():
                timer.cancel()
            self.failure = self.failure or ClientClosed()
            self._settled.set()
            for message in self._messages.values():
                message.notify()

    async def _connect_once(self) -> Ending:
        try:
            if self._token_source is not None:
                async with asyncio.timeout(TOKEN_SECONDS):
                    self.session.token = await self._token_source()
            async with self._connecting() as socket:
                return await self._converse(socket)
        except (OSError, TimeoutError, WebSocketException) as error:
            return ending_of(error)
        finally:
            self._note_success()
            self._connection = None
            self.session.disconnected()

    def _connecting(self) -> open_websocket:
        """Raises `InvalidURI`. Our own heartbeats replace the library's: they tell more."""
        return open_websocket(
            self.url,
            subprotocols=[Subprotocol(self._codec.subprotocol)],
            additional_headers=self._headers,
            compression=None,
            open_timeout=CONNECT_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
            max_size=MAX_INCOMING_BYTES,
            proxy=self._proxy,
        )

    def _note_success(self) -> None:
        """After a connection that lived for a while, the next failure is a first one."""
        now = asyncio.get_running_loop().time()
        if self._connection is not None and now - self._connection.greeted_at >= STABLE_SECONDS:
            self._backoff.reset()

    async def _converse(self, socket: ClientConnection) -> Ending:
        """Greet, then read here while two helpers write and keep time; they end with the reading."""
        if socket.subprotocol is None and self._codec.binary:
            return Ending("the server does not speak msgpack", fatal=True)
        now = asyncio.get_running_loop().time()
        connection = Connection(socket, Heartbeat(HEARTBEAT_SECONDS, now), greet_by=now + HELLO_SECONDS)
        self._connection, self._last_error = connection, None
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._write(connection), name="tidewire-writer"),
                group.create_task(self._beat(connection), name="tidewire-heart"),
            ]
            ending = await self._read(connection)
            for helper in helpers:
                helper.cancel()
        if connection.retire_at < math.inf:  # the server was faster than its own `goaway`
            left = connection.retire_at - asyncio.get_running_loop().time()
            return Ending(ending.reason, planned=True, wait_seconds=max(0.0, left))
        return connection.verdict or ending

    async def _read(self, connection: Connection) -> Ending:
        """Apply what arrives until the connection ends; says why it did."""
        socket, receive, decode = connection.socket, self.session.receive, self._codec.decode_trusted
        try:
            await self._transmit(connection, [self.session.hello()])
            while True:
                data = await socket.recv(decode=False)
                connection.heart.heard()
                for frame in decode(data):
                    self._apply(receive(frame))
                if self.session.has_outgoing:
                    connection.wake.set()
        except ConnectionClosed as closed:
            return ending_of(closed)
        except (DecodeError, MalformedFrame) as error:
            return Ending(f"the server sent a malformed frame ({error})")

    async def _write(self, connection: Connection) -> None:
        while True:
            await connection.wake.wait()
            connection.wake.clear()
            try:
                await self._transmit(connection, self.session.outgoing())
            except ConnectionClosed:
                return  # the reader tells why

    async def _transmit(self, connection: Connection, frames: list[Map]) -> None:
        """Send frames, as many as fit in one WebSocket message each time."""
        batch: list[bytes] = []
        size = 0
        for frame in frames:
            encoded = self._codec.encode(frame)
            if len(encoded) > connection.max_frame_bytes and frame["type"] == "send":
                self._refuse_oversized(frame["id"], len(encoded), connection.max_frame_bytes)
                continue
            if batch and size + len(encoded) + len(batch) + 8 > connection.max_frame_bytes:
                await connection.socket.send(self._codec.join(batch), text=not self._codec.binary)
                batch, size = [], 0
            batch.append(encoded)
            size += len(encoded)
        if batch:
            await connection.socket.send(self._codec.join(batch), text=not self._codec.binary)

    def _refuse_oversized(self, message_id: str, size: int, limit: int) -> None:
        """What the server would close the whole connection for is refused here, for this message alone."""
        text = f"the request takes {size} bytes, the server accepts {limit}"
        error = {"code": "invalid_frame", "class": "permanent", "status": 400, "message": text, "retryable": False}
        self._apply(self.session.receive({"type": "error", "re": "send", "id": message_id, "error": error}))

    async def _beat(self, connection: Connection) -> None:
        """Ping, renew the token, leave when the server drains, and notice a dead connection."""
        now = asyncio.get_running_loop().time
        while connection.verdict is None:
            try:
                async with asyncio.timeout_at(connection.due(self.session.open)):
                    await connection.nudge.wait()
                connection.nudge.clear()
            except TimeoutError:
                await self._act(connection, now())

    async def _act(self, connection: Connection, now: float) -> None:
        if not self.session.open and now >= connection.greet_by:
            connection.give_up("no answer to hello")
        elif now >= connection.check_by:
            connection.give_up("the server did not answer in time")
        elif now >= connection.retire_at:
            connection.retire_at = math.inf
            connection.verdict = Ending("the server asked us to reconnect", planned=True)
            await connection.socket.close()
        elif now >= connection.renew_at and self._token_source is not None:
            await self._renew(connection, self._token_source, now)
        else:
            self._poll_heart(connection, now)

    async def _renew(self, connection: Connection, source: TokenSource, now: float) -> None:
        """Of one source, every token lives about as long; a failure is tried again a tenth later."""
        connection.renew_at = now + connection.renew_seconds / 10
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TOKEN_SECONDS):
                self.auth(await source())
            connection.renew_at = now + connection.renew_seconds

    def _poll_heart(self, connection: Connection, now: float) -> None:
        beat = connection.heart.poll(now)
        if beat is Beat.DEAD:
            connection.give_up("the server no longer answers")
        elif beat is Beat.PING:
            self.session.ping(int(now * 1000))
            connection.wake.set()

    # --- storage ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Keep what is open, now."""
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        self._store.save(self.session)

    def _save_soon(self) -> None:
        if self._saving is None and self._store.kept:
            self._saving = asyncio.get_running_loop().call_later(SAVE_SECONDS, self._save)

    # --- events -------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._connection is not None:
            self._connection.wake.set()

    def _tell(self, event: ClientEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _apply(self, events: list[Event]) -> None:
        for event in events:
            view: ClientMessage | None = getattr(event, "message", None)
            if view is not None:
                message = self._messages.get(view.id)
                if message is not None:
                    message.notify()
            self._react(event)
            self._tell(event)
        self._wake_if_needed()

    def _wake_if_needed(self) -> None:
        if self._connection is not None and self.session.has_outgoing:
            self._connection.wake.set()

    def _react(self, event: Event) -> None:
        if isinstance(event, Output | ConversationMessage | ConversationChanged):
            self._save_soon()
        elif isinstance(event, MessageAccepted | MessageEnded):
            self._save()
        elif isinstance(event, PongReceived) and self._connection is not None:
            self._connection.check_by = math.inf
        elif isinstance(event, Stalled):
            self._resume_later(event)
        elif isinstance(event, Welcomed):
            self._greeted(event)
        elif isinstance(event, GoingAway) and self._connection is not None:
            now = asyncio.get_running_loop().time()
            self._connection.retire_at = now + event.reconnect_after_seconds
            self._connection.nudge.set()
        elif isinstance(event, ErrorReceived) and event.message is None:
            self._last_error = event.error
            if event.conversation is not None and event.re in ("subscribe", "history") and event.error["retryable"]:
                self._after(
                    event.error.get("retry_after_ms"), f"in {event.conversation}", self._again, event.conversation
                )

    def _greeted(self, welcome: Welcomed) -> None:
        self.reconnects += self.welcome is not None
        self.welcome = welcome
        self._token_refused = False
        if self._connection is not None:
            now = asyncio.get_running_loop().time()
            self._connection.greeted_at = now
            self._connection.heart = Heartbeat(welcome.heartbeat_seconds, now)
            self._connection.max_frame_bytes = welcome.max_frame_bytes
            if self._token_source is not None and welcome.expires_in_seconds is not None:
                self._connection.renew_seconds = max(RENEW_FLOOR_SECONDS, RENEW_SHARE * welcome.expires_in_seconds)
                self._connection.renew_at = now + self._connection.renew_seconds
            self._connection.nudge.set()
        self._settled.set()

    def _resume_later(self, event: Stalled) -> None:
        seconds = event.retry_after_seconds
        wait_ms = None if seconds is None else seconds * 1000
        self._after(wait_ms, event.message.id, self._resume_stalled, event.message.id)

    def _after(self, wait_ms: float | None, key: str, then: Callable[[str], None], what: str) -> None:
        """Do something in so many milliseconds; what was to be done under this key before is not done."""
        earlier = self._stalls.pop(key, None)
        if earlier is not None:
            earlier.cancel()
        delay = STALL_SECONDS if wait_ms is None else wait_ms / 1000
        self._stalls[key] = asyncio.get_running_loop().call_later(delay, then, what)

    def _again(self, conversation: str) -> None:
        self._stalls.pop(f"in {conversation}", None)
        self.session.again(conversation)
        self._wake()

    def _resume_stalled(self, message_id: str) -> None:
        self._stalls.pop(message_id, None)
        message = self.session.messages.get(message_id)
        if message is not None and message.state in (MessageState.STALLED, MessageState.SENDING):
            self.session.resume(message_id)
            self._wake()

    def _delay_after(self, ending: Ending) -> float:
        """Seconds until the next try. Raises `ConnectionFailed` if none would help."""
        if ending.planned:
            return ending.wait_seconds
        if self._token_source is not None and not self._token_refused and token_refused(ending):
            self._token_refused = True
            return 0.0
        if ending.fatal or (ending.code is not None and not may_reconnect(ending.code)):
            code = self._last_error["code"] if self._last_error else "connection_refused"
            text = self._last_error["message"] if self._last_error else ending.reason
            raise ConnectionFailed(code, text, close_code=ending.code or ending.status)
        return max(self._backoff.next_delay(), ending.wait_seconds)


connect: Final = Client
"""The same, as it reads in `async with`."""
