"""Simulated clients: `ClientSession`, the shipped one, with a shell that reconnects to whatever node is there."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from protocol.client.events import Event, MessageEnded, Stalled, Welcomed
from protocol.client.message import ClientMessage, MessageState
from protocol.client.session import ClientSession
from protocol.client.timing import Backoff, Beat, Heartbeat
from tests.simulation.loop import Handle
from tests.simulation.network import Peer, SimSocket

if TYPE_CHECKING:
    from tests.simulation.world import World

BEAT_SECONDS: Final = 1.5
"""The clients' own heartbeat; shorter than in production, so that a simulation has less to wait for."""
GREETING_SECONDS: Final = 2.0
RETRIES: Final = 3


class SimClient(Peer):
    """One device of one user."""

    def __init__(self, world: World, number: int, user: str) -> None:
        self.world = world
        self.number = number
        self.name = f"c{number}"
        self.session = ClientSession(token=user)
        self.user = user
        self.socket: SimSocket | None = None
        self.stalled_until = 0.0
        self.retries: dict[str, int] = {}
        self.given_up: set[str] = set()
        """Failures that were reopened as often as this user has patience for."""
        self.probes: set[str] = set()
        """Ids under which this client asks for something else than the others."""
        self.promised: set[str] = set()
        """Ids of which a server has said, to a `send` of this client, that they are accepted."""
        self.answers: list[dict[str, Any]] = []
        """Errors that belong to no message of the session."""
        self.rests = False
        """It is over: no reconnecting."""
        self.texts: dict[str, str] = {}
        self._backoff = Backoff(world.chance.random, base_seconds=0.1, cap_seconds=2.0)
        self._heart: Heartbeat | None = None
        self._unread: deque[tuple[SimSocket, list[dict[str, Any]], int]] = deque()
        self._timer: Handle | None = None

    def __repr__(self) -> str:
        return self.name

    # --- what the user wants ---

    def ask(self, message_id: str) -> None:
        """Ask for a message, once per device."""
        if message_id not in self.session.messages:
            self.session.send(message_id, self.world.request(message_id))
            self.flush()

    def follow(self, message_id: str) -> None:
        """Follow a message from here, or again."""
        self.session.resume(message_id)
        self.flush()

    def cancel(self, message_id: str) -> None:
        """Stop it."""
        if message_id in self.session.messages:
            self.apply(self.session.cancel(message_id))
        self.flush()

    def detach(self, message_id: str) -> None:
        """Look away."""
        if message_id in self.session.messages:
            self.session.detach(message_id)
        self.flush()

    def probe(self, message_id: str) -> None:
        """Ask for something else under an id that is taken."""
        if self.socket is not None and self.session.open:
            self.probes.add(message_id)
            frame = {"type": "send", "id": message_id, **self.world.request(message_id, seed=self.number + 1)}
            self.world.note(self.name, "probes", message_id)
            self.socket.deliver([frame])

    # --- connecting ---

    def connect(self) -> None:
        """Open a connection to some node."""
        if self.socket is not None or self.rests:
            return
        node = self.world.pick_node()
        if node is None:
            self.retry_later()
            return
        self.socket = node.accept(self)
        self.world.note(self.name, "connects", node.name)
        now = self.world.loop.now
        self._heart = Heartbeat(BEAT_SECONDS, now)
        self.socket.deliver([self.session.hello()])
        self.world.later(GREETING_SECONDS, self._greeted_by, self.socket)
        self._beat_later(self.socket)

    def _greeted_by(self, socket: SimSocket) -> None:
        if socket is self.socket and not self.session.open:
            self.drop("no greeting")

    def retry_later(self) -> None:
        """Connect again after a while."""
        self.world.later(self._backoff.next_delay(), self.connect)

    def drop(self, why: str, noticed_after: float = 0.0) -> None:
        """End the connection from this side; the node notices after a while."""
        socket, self.socket = self.socket, None
        if socket is None:
            return
        self.world.note(self.name, "drops", why)
        socket.cut(noticed_after)
        self._unread.clear()
        self.session.disconnected()
        self.retry_later()

    def _beat_later(self, socket: SimSocket) -> None:
        assert self._heart is not None
        self.world.later(max(0.0, self._heart.next_at - self.world.loop.now) + 0.001, self._beat, socket)

    def _beat(self, socket: SimSocket) -> None:
        if socket is not self.socket or self._heart is None:
            return
        beat = self._heart.poll(self.world.loop.now)
        if beat is Beat.DEAD:
            self.drop("silence", self.world.chance.uniform(0.0, 5.0))
            return
        if beat is Beat.PING and self.session.open:
            self.session.ping(1)
            self.flush()
        self._beat_later(socket)

    # --- what comes in ---

    def stall(self, seconds: float) -> None:
        """Read nothing for a while."""
        self.stalled_until = max(self.stalled_until, self.world.loop.now + seconds)
        self.world.later(self.stalled_until - self.world.loop.now, self._read_on)

    def _read_on(self) -> None:
        if self.world.loop.now < self.stalled_until:
            return
        unread, self._unread = self._unread, deque()
        for socket, frames, size in unread:
            self.arrived(socket, frames, size)

    def arrived(self, socket: SimSocket, frames: list[dict[str, Any]], size: int) -> None:
        """See `Peer`."""
        if socket is not self.socket:
            return
        if self.world.loop.now < self.stalled_until:
            self._unread.append((socket, frames, size))
            return
        socket.read(size)
        if self._heart is not None:
            self._heart.heard()
        for frame in frames:
            if self.world.loses_frame(frame):
                continue
            self._hear_promises(frame)
            self.apply(self.session.receive(frame))
            if frame["type"] == "error":
                self._error(frame)
            elif "seq" in frame and frame["type"] != "accepted":
                self.world.check.client_has(self, frame)
        self.flush()

    def _hear_promises(self, frame: dict[str, Any]) -> None:
        """What was accepted, and what is said not to be known after all."""
        message = self.session.messages.get(frame.get("id", ""))
        if message is None:
            return
        if frame["type"] == "accepted" and message.state is MessageState.SENDING:
            self.promised.add(message.id)
        elif frame["type"] == "error" and message.id in self.promised:
            self.world.check.broken_promise(self, frame)

    def _error(self, frame: dict[str, Any]) -> None:
        if frame.get("id") in self.probes:
            self.world.check.probed(self, frame)

    def ended(self, socket: SimSocket, code: int) -> None:
        """See `Peer`."""
        if socket is self.socket:
            self.drop(f"closed {code}")

    def flush(self) -> None:
        """Send what there is to send."""
        if self.socket is not None and self.session.has_outgoing:
            self.socket.deliver(self.session.outgoing())

    def apply(self, events: list[Event]) -> None:
        """React as an application would."""
        for event in events:
            if isinstance(event, Stalled):
                delay = 0.3 if event.retry_after_seconds is None else event.retry_after_seconds
                self.world.later(delay, self._resume_stalled, event.message.id)
            elif isinstance(event, MessageEnded):
                self._ended(event.message)
            elif isinstance(event, Welcomed):
                self._backoff.reset()

    def _resume_stalled(self, message_id: str) -> None:
        message = self.session.messages.get(message_id)
        if message is not None and message.state is MessageState.STALLED:
            self.session.resume(message_id)
            self.flush()

    def _ended(self, message: ClientMessage) -> None:
        self.world.note(self.name, "ended", message.id, str(message.state))
        error = message.error or {}
        unknown = message.state is MessageState.REFUSED and error.get("code") == "message_unknown"
        if unknown and self.world.check.losses:
            self.world.later(0.5, self._retry, message.id)
        elif message.state is MessageState.LOST and message.request is not None:
            self.world.later(0.5, self._ask_anew, message.id)
        elif message.state in (MessageState.REFUSED, MessageState.FAILED) and error.get("retryable"):
            tried = self.retries.get(message.id, 0)
            if message.state is MessageState.FAILED:
                if tried >= RETRIES:
                    self.given_up.add(message.id)
                    return
                self.retries[message.id] = tried + 1
            if message.request is not None:
                wait = error.get("retry_after_ms") or 200
                self.world.later(wait / 1000 * self.world.chance.uniform(0.5, 1.0), self._retry, message.id)

    def _retry(self, message_id: str) -> None:
        if self.session.retry(message_id):
            self.flush()

    def _ask_anew(self, message_id: str) -> None:
        """The server does not know it: it may have been lost, or released; ask again, as a user would."""
        message = self.session.messages.get(message_id)
        if message is not None and message.state is MessageState.LOST:
            self.session.forget(message_id)
            self.session.send(message_id, self.world.request(message_id))
            self.flush()

    # --- the end ---

    def unsettled(self) -> list[ClientMessage]:
        """Messages that are still to come to an end here."""
        return [message for message in self.session.messages.values() if not self._is_settled(message)]

    def _is_settled(self, message: ClientMessage) -> bool:
        state = message.state
        if state in (MessageState.DONE, MessageState.CANCELLED, MessageState.DETACHED, MessageState.BROKEN):
            return True
        if state is MessageState.FAILED:
            retryable = message.request is not None and (message.error or {}).get("retryable")
            return not retryable or message.id in self.given_up
        if state is MessageState.LOST:
            return message.request is None
        error = message.error or {}
        if error.get("code") == "message_unknown" and self.world.check.losses:
            return False  # it will be asked for anew
        return state is MessageState.REFUSED and not error.get("retryable")
