"""The simulated network: a Redis server behind it, `SimLink` in place of `server.store.link.Link`, and WebSockets.

Everything that travels keeps its order per connection and takes a drawn time. A connection can be cut with commands
on it: then each of them may have happened or not, and no reply comes.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson
from starlette.websockets import WebSocketDisconnect

from server.messages.ownership import SLOW_READ_SECONDS
from server.store.link import (
    CONNECT_SECONDS,
    LAG_SECONDS,
    LOST_SECONDS,
    RETRY_MAX_SECONDS,
    RETRY_SECONDS,
    STALL_SECONDS,
    WATCH_SECONDS,
    Address,
    Pending,
    StoreReply,
    Waiting,
    fail_lost,
)
from tests.simulation.loop import WORLD, Handle, Host, SimLoop
from tests.simulation.redis import Keyspace, ReplyError

EPOCH: Final = 1_700_000_000.0
"""Unix time at which every simulation begins."""
SOCKET_BUFFER_BYTES: Final = 4096
"""How much a WebSocket holds that its peer has not read."""


class Delays:
    """How long things take on the way; drawn from the seed."""

    def __init__(self, chance: random.Random, usual: float, spike: float, spikes: float) -> None:
        self._random = chance.random
        self.usual = usual
        self.spike = spike
        self.spikes = spikes
        """Share of packets that are held up."""

    def draw(self) -> float:
        """Seconds for one packet."""
        share = self._random()
        if share < self.spikes:
            return self.usual + self.spike * self._random()
        return self.usual * (0.5 + share)


class SimServer:
    """One Redis primary: data, connections, subscriptions, and what may go wrong with them."""

    def __init__(
        self,
        loop: SimLoop,
        delays: Delays,
        chance: random.Random,
        keep_undo: bool,
        edit_script: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.loop = loop
        self.delays = delays
        self.chance = chance
        self.skew = 0.0
        """By how much its clock is ahead, in seconds."""
        self.space = Keyspace(lambda: EPOCH + loop.now + self.skew, keep_undo)
        self.space.on_publish = self._publish
        self.frozen = False
        self.down = False
        self.connections: dict[_Connection, None] = {}
        self.channels: dict[bytes, dict[_Connection, None]] = {}
        self.watch: Callable[[Host, tuple[Any, ...], Any], None] = lambda host, command, reply: None
        """Told of every command that ran, with its reply (or `ReplyError`)."""
        self.on_lost: Callable[[], None] = lambda: None
        """Told when writes were lost."""
        self.calm_since = 0.0
        """Since when it has served without a freeze or crash."""
        self._frozen_at = 0.0
        self._held: list[tuple[_Connection, list[tuple[Any, ...]]]] = []
        self._edit_script = edit_script
        self._edited: dict[bytes, bytes] = {}

    # --- faults ---

    def freeze(self) -> None:
        """Answer nobody (SIGSTOP); connections stay."""
        self.frozen = True
        self._frozen_at = self.loop.now

    def thaw(self) -> None:
        """Go on: what arrived meanwhile is run now."""
        if not self.frozen:
            return
        self.frozen = False
        if self.loop.now - self._frozen_at >= SLOW_READ_SECONDS:
            self.calm_since = self.loop.now
        held, self._held = self._held, []
        for connection, batch in held:
            self.arrive(connection, batch)

    def crash(self, lost: int) -> None:
        """Die, and lose the last writes, acknowledged ones among them."""
        self.frozen = False
        self._held.clear()
        self.down = True
        self._frozen_at = self.loop.now
        for connection in list(self.connections):
            connection.cut(may_arrive=False)
        self.channels.clear()
        self.space.scripts.clear()
        if lost and self.space.lose(lost):
            self.on_lost()

    def restart(self) -> None:
        """Serve again."""
        self.down = False
        if self.loop.now - self._frozen_at >= SLOW_READ_SECONDS:  # a shorter one need not be noticed
            self.calm_since = self.loop.now

    # --- serving ---

    def arrive(self, connection: _Connection, batch: list[tuple[Any, ...]]) -> None:
        """Commands have come in."""
        if self.down or connection.gone:
            return
        if self.frozen:
            self._held.append((connection, batch))
            return
        replies: list[Any] = []
        connection.replies = replies
        for command in batch:
            self._serve(connection, command, replies)
        connection.replies = None
        if replies and not connection.broken:
            connection.answer(replies)

    def _serve(self, connection: _Connection, command: tuple[Any, ...], replies: list[Any]) -> None:
        name = command[0]
        if name == "SSUBSCRIBE":
            channel = command[1]
            self.channels.setdefault(channel, {})[connection] = None
            replies.append(_Push([b"ssubscribe", channel, 1]))
            return
        if name == "SUNSUBSCRIBE":
            channel = command[1]
            self.channels.get(channel, {}).pop(connection, None)
            replies.append(_Push([b"sunsubscribe", channel, 0]))
            return
        try:
            reply = self.space.execute(*command)
        except ReplyError as error:
            reply = error
        replies.append(reply)
        self.watch(connection.link.host, command, reply)

    def load(self, scripts: Sequence[bytes]) -> None:
        """Load scripts, those of a mutant in place of ours."""
        for source in scripts:
            if self._edit_script is None:
                self.space.execute("SCRIPT", "LOAD", source)
                continue
            edited = self._edited.get(source)
            if edited is None:
                edited = self._edited[source] = self._edit_script(source)
            sha = self.space.execute("SCRIPT", "LOAD", source)
            changed = self.space.execute("SCRIPT", "LOAD", edited)
            self.space.scripts[sha] = self.space.scripts[changed]

    def _publish(self, channel: bytes, data: bytes) -> int:
        listeners = self.channels.get(channel)
        if not listeners:
            return 0
        for connection in listeners:
            push = _Push([b"smessage", channel, data])
            if connection.replies is not None:
                connection.replies.append(push)
            elif not connection.broken:
                connection.answer([push])
        return len(listeners)


class _Push(list[Any]):
    """What is not a reply."""


class _Connection:
    """One connection of a link."""

    __slots__ = (
        "arrived_at",
        "batch",
        "batch_at",
        "broken",
        "gone",
        "heard_at",
        "link",
        "pending",
        "replied_at",
        "replies",
        "server",
    )

    def __init__(self, link: SimLink, server: SimServer) -> None:
        self.link = link
        self.server = server
        self.pending: Pending = deque()
        self.batch: list[tuple[Any, ...]] | None = None
        self.batch_at = -1.0
        self.heard_at = 0.0
        self.arrived_at = 0.0
        self.replied_at = 0.0
        self.replies: list[Any] | None = None
        self.broken = False
        """No reply gets through any more."""
        self.gone = False
        """No command gets through any more."""

    def write(self, command: tuple[Any, ...]) -> None:
        """Put a command on the way; those of one instant travel together."""
        server = self.server
        loop = server.loop
        now = loop.now
        if self.batch is not None and self.batch_at == now:
            self.batch.append(command)
            return
        batch = self.batch = [command]
        self.batch_at = now
        self.arrived_at = max(self.arrived_at, now + server.delays.draw())
        loop.call_at(self.arrived_at, server.arrive, self, batch, context=self.link.outside)

    def answer(self, replies: list[Any]) -> None:
        """Put replies on the way back."""
        loop = self.server.loop
        self.replied_at = max(self.replied_at, loop.now + self.server.delays.draw())
        loop.call_at(self.replied_at, self.link._answered, self, replies, context=self.link.inside)

    def cut(self, may_arrive: bool) -> None:
        """Break; what is on its way to the server may still arrive, what comes back does not."""
        if self.broken:
            return
        self.broken = True
        self.gone = not may_arrive
        self.server.connections.pop(self, None)
        for listeners in self.server.channels.values():
            listeners.pop(self, None)
        self.server.loop.call_soon(self.link._lost, self, context=self.link.inside)


class SimLink(Waiting):
    """`server.store.link.Link` over the simulated network."""

    def __init__(
        self,
        server: SimServer,
        host: Host,
        address: Address,
        scripts: Sequence[bytes] = (),
        on_push: Callable[[list[Any]], bool] | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(address, scripts, on_push, on_change)
        self.server = server
        self.host = host
        self.loop = server.loop
        self.inside = self.loop.context_of(host)
        self.outside = self.loop.context_of(WORLD)
        self._connection: _Connection | None = None
        self._delay = RETRY_SECONDS
        self._closed = False
        self._watching: Handle | None = None
        self._trying = 0
        self.loop.call_soon(self._connect, context=self.inside)

    @property
    def connected(self) -> bool:
        """See `Link`."""
        return self._connection is not None

    @property
    def available(self) -> bool:
        """See `Link`."""
        return self._connection is not None and not self.stalled

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """See `Link`."""
        connection = self._connection
        if connection is None:
            raise self.unavailable()
        future: asyncio.Future[Any] = asyncio.Future(loop=self.loop)
        connection.pending.append((future, self.loop.now))
        if not connection.broken:
            connection.write(command)
        if self._watching is None:
            self._watch_in(STALL_SECONDS + WATCH_SECONDS)
        return future

    def push(self, *command: Any) -> None:
        """See `Link`."""
        if self._connection is not None and not self._connection.broken:
            self._connection.write(command)

    async def close(self) -> None:
        """See `Link`."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut(may_arrive=True)
            self._fail(connection)

    def turn_to(self, address: Address) -> None:
        """See `Link`."""
        self.address = address
        self.drop(may_arrive=True)

    def drop(self, may_arrive: bool) -> None:
        """Cut the connection, if there is one."""
        if self._connection is not None:
            self._connection.cut(may_arrive)

    # --- connecting ---

    def _connect(self) -> None:
        if self._closed:
            return
        self._trying += 1
        self.loop.call_later(self.server.delays.draw(), self._arrived, self._trying, context=self.outside)
        self.loop.call_later(CONNECT_SECONDS, self._failed, self._trying, "timeout", context=self.inside)

    def _arrived(self, attempt: int) -> None:
        """The server sees the connection; a frozen one accepts and says nothing."""
        server = self.server
        if self._closed or self.host.dead or attempt != self._trying or server.frozen:
            return
        if server.down:
            self.loop.call_later(server.delays.draw(), self._failed, attempt, "refused", context=self.inside)
            return
        server.load(self.scripts)
        connection = _Connection(self, server)
        server.connections[connection] = None
        self.loop.call_later(server.delays.draw(), self._established, attempt, connection, context=self.inside)

    def _failed(self, attempt: int, why: str) -> None:
        if attempt != self._trying or self._connection is not None:
            return
        self._trying += 1
        self.last_error = why
        self._tell(False)
        self.loop.call_later(self._delay, self._connect)
        self._delay = min(self._delay * 2, RETRY_MAX_SECONDS)

    def _established(self, attempt: int, connection: _Connection) -> None:
        if attempt != self._trying or connection.broken or self._closed:
            connection.cut(may_arrive=False)
            return
        self._trying += 1
        self._connection, self.stalled, self._delay = connection, False, RETRY_SECONDS
        self._tell(True)

    def _lost(self, connection: _Connection) -> None:
        self._fail(connection)
        if connection is not self._connection:
            if self._connection is None and not self._closed:
                self._failed(self._trying, "lost")
            return
        self._connection = None
        self._tell(False)
        self._connect()

    @staticmethod
    def _fail(connection: _Connection) -> None:
        pending, connection.pending = connection.pending, deque()
        fail_lost(pending)

    # --- replies ---

    def _answered(self, connection: _Connection, replies: list[Any]) -> None:
        if connection.broken:
            return
        connection.heard_at = self.loop.now
        pending = connection.pending
        for reply in replies:
            if type(reply) is _Push:
                if self.on_push is not None:
                    self.on_push(list(reply))
                continue
            future, _ = pending.popleft()
            if future.done():
                continue
            if isinstance(reply, ReplyError):
                future.set_exception(StoreReply(str(reply)))
            else:
                future.set_result(reply)
        self.stalled = False

    def _watch_in(self, seconds: float) -> None:
        when = self.loop.now + seconds
        self._watching = self.loop.call_at(when, self._watch, when, context=self.inside)

    def _watch(self, due: float) -> None:
        self._watching = None
        connection = self._connection
        if connection is None or not connection.pending:
            return
        now = self.loop.now
        age = now - max(connection.pending[0][1], connection.heard_at)
        if now - due > LAG_SECONDS:
            self._watch_in(WATCH_SECONDS)
        elif age > LOST_SECONDS:
            connection.cut(may_arrive=True)
        elif age > STALL_SECONDS:
            self._stalls()
            self._watch_in(LOST_SECONDS - age + WATCH_SECONDS)
        else:
            self._watch_in(STALL_SECONDS - age + WATCH_SECONDS)


class SimSocket:
    """A WebSocket as a node sees it (what `Session` needs of starlette's); its other end is `peer`."""

    def __init__(self, loop: SimLoop, delays: Delays, host: Host, peer: Peer) -> None:
        self.loop = loop
        self.delays = delays
        self.host = host
        self.peer = peer
        self.inside = loop.context_of(host)
        self.outside = loop.context_of(WORLD)
        self.unread = 0
        """Bytes sent that the peer has not read."""
        self.closed = False
        """Whether this end knows that it is over."""
        self.cut_off = False
        """Nothing gets through any more, in either direction."""
        self.on_sent: Callable[[list[dict[str, Any]], int], None] = lambda frames, size: None
        self._inbox: deque[dict[str, Any]] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._down_at = 0.0
        self._up_at = 0.0

    # --- the node's side ---

    async def receive(self) -> dict[str, Any]:
        """The next thing that came."""
        while not self._inbox:
            self._waiting = self.loop.create_future()
            await self._waiting
        return self._inbox.popleft()

    async def send(self, message: dict[str, Any]) -> None:
        """Send one WebSocket message; waits while the peer does not read."""
        while self.unread > SOCKET_BUFFER_BYTES and not self.closed:
            self._room = self.loop.create_future()
            await self._room
        if self.closed:
            raise WebSocketDisconnect(1006)
        data = message["text"]
        value = orjson.loads(data)
        frames = value if isinstance(value, list) else [value]
        size = len(data)
        self.unread += size
        self.on_sent(frames, size)
        if not self.cut_off:
            self._down_at = max(self._down_at, self.loop.now + self.delays.draw())
            self.loop.call_at(self._down_at, self.peer.arrived, self, frames, size, context=self.outside)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close in order."""
        if self.closed:
            raise RuntimeError("closed before")
        self.closed = True
        if not self.cut_off:
            self._down_at = max(self._down_at, self.loop.now + self.delays.draw())
            self.loop.call_at(self._down_at, self.peer.ended, self, int(code), context=self.outside)

    # --- the peer's side ---

    def deliver(self, frames: list[dict[str, Any]]) -> None:
        """The peer sends frames."""
        if self.cut_off:
            return
        text = orjson.dumps(frames if len(frames) > 1 else frames[0]).decode()
        self._up_at = max(self._up_at, self.loop.now + self.delays.draw())
        message = {"type": "websocket.receive", "text": text}
        self.loop.call_at(self._up_at, self._take, message, context=self.inside)

    def read(self, size: int) -> None:
        """The peer has read so much."""
        self.unread -= size
        room, self._room = self._room, None
        if room is not None and not room.done():
            self.loop.call_soon(_wake, room, context=self.inside)

    def cut(self, noticed_after: float) -> None:
        """Nothing gets through any more; this end notices after a while."""
        self.cut_off = True
        self.loop.call_later(noticed_after, self._disconnected, context=self.inside)

    def _disconnected(self) -> None:
        self.closed = True
        self._take({"type": "websocket.disconnect", "code": 1006})
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _take(self, message: dict[str, Any]) -> None:
        if self.cut_off and message["type"] != "websocket.disconnect":
            return
        self._inbox.append(message)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Peer:
    """The other end of a `SimSocket`."""

    def arrived(self, socket: SimSocket, frames: list[dict[str, Any]], size: int) -> None:
        """Frames have come in."""
        raise NotImplementedError

    def ended(self, socket: SimSocket, code: int) -> None:
        """The node closed the connection."""
        raise NotImplementedError
