"""The client side of the protocol, without I/O: frames in, events out, frames to send.

No sockets, no clock, no dice. A shell (`protocol.client.aio`, or the reader's own) opens a WebSocket, sends `hello()`,
hands every decoded frame to `receive` and sends what `outgoing()` returns, after every call that may have queued
something. When the socket is gone it calls `disconnected()`, and starts over with the same session: messages whose
acceptance was seen are resumed from their cursors; those that may never have arrived are asked for again under the
same id, which is safe because the id is the idempotency key.

The rules, each of which a vector in `protocol/vectors` shows:

- A `delta` continues the cursor (`after` equals it), or was had already (`seq` is not beyond it), or leaves a gap:
  then a `resume` goes out, once until it is answered, and nothing that doesn't fit is applied.
- `attempt` with mode `continue` and the end frames must follow the cursor too: their `after` tells. One whose `after`
  lies before the cursor belongs to a history in which the server lost what we have. From a server that doesn't send it,
  the client asks once about a jump as wide as a takeover's, or an end whose hash matches, and believes it when it comes
  again; narrower holes are never believed.
- A message that the server lost (`message_unknown`, another `generation`, a head before the failure that was reopened)
  begins anew: what was told of it does not stand, and who has the request asks again under the same id.
- The events of a subscribed conversation continue its own cursor, one by one; after a gap it is subscribed to anew from
  there. Events had already, and those of conversations not subscribed to, are not told.
- The text is checked against the hash in `done` and `cancelled`; if it is another, everything is told anew from 0, and
  after `MAX_MISMATCHES` of these the message is `broken`. A wrong text is never passed off as an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from protocol.client.events import (
    ErrorReceived,
    Event,
    GoingAway,
    MessageEnded,
    PongReceived,
    QuotaChanged,
    Welcomed,
)
from protocol.client.message import ENDED, ClientMessage, MessageState, Trigger
from protocol.client.outbox import Outbox
from protocol.client.progress import Progress
from protocol.client.standing import Standing
from protocol.client.subscriptions import Subscriptions
from protocol.frames import MAX_RESUMES_PER_HELLO

Map = dict[str, Any]
Apply = Callable[[ClientMessage, Map], list[Event]]

CLIENT_NAME: Final = "tidewire-python"
CLIENT_VERSION: Final = "1"
MAX_FORGOTTEN: Final = 1024
"""So many ids of forgotten messages are remembered, so that a late frame does not bring one back."""

_SENDING: Final = MessageState.SENDING
_FOLLOWING: Final = MessageState.FOLLOWING
_RESYNCING: Final = MessageState.RESYNCING
_DETACHED: Final = MessageState.DETACHED


class MalformedFrame(ValueError):
    """The server sent something that is not a frame of this protocol. Reconnect; the session stays usable."""


class ClientSession:
    """All messages of one client, over any number of connections one after another."""

    def __init__(
        self, *, token: str | None = None, client_name: str = CLIENT_NAME, client_version: str = CLIENT_VERSION
    ) -> None:
        self.token = token
        """Goes out with the next `hello`."""
        self.client: Map = {"name": client_name, "version": client_version}
        self.messages: dict[str, ClientMessage] = {}
        """Every message asked for or followed and not yet forgotten, by id."""
        self._outbox = Outbox()
        self._progress = Progress(self._outbox)
        self._standing = Standing(self._outbox, self._progress)
        self._subscriptions = Subscriptions(self._outbox)
        self._forgotten: dict[str, None] = {}
        self._about: dict[str, Apply] = {
            "accepted": self._standing.on_accepted,
            "attempt": self._progress.on_attempt,
            "snapshot": self._progress.on_snapshot,
            "done": self._progress.on_verified_end,
            "cancelled": self._progress.on_verified_end,
            "failed": self._progress.on_failed,
        }
        """What frames of one message do, unless it has ended."""
        self._handlers: dict[str, Callable[[Map], list[Event]]] = {
            "delta": self._on_delta,
            **dict.fromkeys(self._about, self._on_message),
            "error": self._on_error,
            "welcome": self._on_welcome,
            "pong": self._on_pong,
            "goaway": self._on_goaway,
            "quota": self._on_quota,
            "message": self._subscriptions.on_message,
            "history": self._subscriptions.on_history,
            "conversation": self._subscriptions.on_conversation,
        }

    @property
    def open(self) -> bool:
        """Whether `welcome` arrived on the present connection."""
        return self._outbox.open

    @property
    def draining(self) -> bool:
        """Whether the server said `goaway`: what is asked for now waits for the next connection."""
        return self._outbox.draining

    # --- what the client wants ----------------------------------------------------------------------------------

    def hello(self) -> Map:
        """The first frame of a new connection, with the resume points of up to 256 open messages.

        A message asked for on an earlier connection and never acknowledged is among them: if the server knows it, it
        need not be sent again.
        """
        points: list[Map] = []
        for message in self.messages.values():
            message._probed = False
            if message.state is _SENDING:
                if not message._transmitted or message._reopened_at >= 0:
                    continue
            elif not message.move(Trigger.RECONNECT):
                continue
            if len(points) < MAX_RESUMES_PER_HELLO:
                message._probed = True
                points.append({"id": message.id, "after": message.cursor})
        frame: Map = {"type": "hello", "client": self.client}
        if self.token is not None:
            frame["token"] = self.token
        if points:
            frame["resume"] = points
        return frame

    def send(self, message_id: str, request: Map) -> ClientMessage:
        """Ask for a message. `request` holds the fields of `send` but `type` and `id`, and is kept by reference.

        Raises `ValueError` if this session already has a message of that id.
        """
        if message_id in self.messages:
            raise ValueError(f"message {message_id} was asked for before")
        message = ClientMessage(message_id, request, _SENDING)
        self.messages[message_id] = message
        self._outbox.send(message)
        return message

    def retry(self, message_id: str) -> bool:
        """Ask again for a refused message, or reopen one that failed for now (`retry_of`).

        False if the message is in no such state, or was not asked for by this client.
        """
        message = self.messages[message_id]
        if message.request is None or message.state not in (MessageState.REFUSED, MessageState.FAILED):
            return False
        if message.state is MessageState.FAILED:
            message._reopened_at = message.cursor
            message._earlier_end = message.end
        message.move(Trigger.RETRY)
        message.error, message.end, message._transmitted, message.cancel_requested = None, None, False, False
        self._outbox.send(message)
        return True

    def resume(self, message_id: str, *, after: int = 0, text: str = "", reasoning: str = "") -> ClientMessage:
        """Follow a message: again (then from its cursor), or one that is new to this session.

        A message that is still `sending` after a `Stalled` is asked for again instead, under its id.
        For a new one, `after`, `text` and `reasoning` are what the caller kept of it; by default it is told whole.
        """
        message = self.messages.get(message_id)
        if message is None:
            message = ClientMessage(message_id, None, _RESYNCING)
            message.cursor = after
            message._add(text, reasoning, None)
            self.messages[message_id] = message
            self._outbox.resume(message)
        elif message.move(Trigger.RESUME):
            self._outbox.resume(message)
        elif message.state is _SENDING and message._transmitted:
            self._outbox.send(message)
        return message

    def detach(self, message_id: str) -> bool:
        """Stop following; the message goes on. False if it isn't followed."""
        message = self.messages[message_id]
        if not message.move(Trigger.DETACH):
            return False
        message._assembly = None
        self._outbox.put({"type": "detach", "id": message_id})
        return True

    def cancel(self, message_id: str) -> list[Event]:
        """Stop generating. The receipt is a `MessageEnded` later; at once, if the request never went out."""
        message = self.messages[message_id]
        if message.state in ENDED:
            return []
        message.cancel_requested = True
        if message.state is _SENDING and not message._transmitted:
            self._outbox.withdraw(lambda frame: frame["type"] == "send" and frame["id"] == message_id)
            message.move(Trigger.CANCEL)  # the server never heard of it: nothing was generated, nothing is billed
            return [MessageEnded(message)]
        self._outbox.put({"type": "cancel", "id": message_id})
        return []

    def forget(self, message_id: str) -> None:
        """Drop an ended or detached message from memory; frames about it are ignored from now on."""
        del self.messages[message_id]
        if self._subscriptions:
            self._forgotten[message_id] = None
            if len(self._forgotten) > MAX_FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]

    def ping(self, nonce: str | int) -> None:
        """Ask for a `pong`, which also tells the heads of all open messages."""
        self._outbox.put({"type": "ping", "nonce": nonce})

    def auth(self, token: str) -> None:
        """Renew the credentials on the open connection and for later ones."""
        self.token = token
        self._outbox.put({"type": "auth", "token": token})

    def subscribe(self, conversation: str, *, after: int = 0) -> None:
        """Follow every message of a conversation, from any device, on this and later connections.

        `after` is the `seq` of the last page of its history, or of the last event that was kept; 0: from the beginning.
        """
        self._subscriptions.follow(conversation, after)

    def unsubscribe(self, conversation: str) -> None:
        """Stop following a conversation; late events of it are not told."""
        self._subscriptions.leave(conversation)

    def subscribed(self, conversation: str) -> int | None:
        """`seq` of the last event that was told of a conversation; None if it is not subscribed to."""
        return self._subscriptions.cursor(conversation)

    def again(self, conversation: str) -> None:
        """Ask again for what was refused for now: the subscription, and pages that did not come."""
        self._subscriptions.again(conversation)

    def conversation(self, op: str, conversation: str | None = None, **fields: Any) -> None:
        """One operation on conversations (`create`, `list`, `rename`, …); the answer is a `ConversationChanged`.

        Without a connection it waits for the next one. One that was sent and not answered is not repeated: whether it
        was done is seen in the conversation's events.
        """
        self._subscriptions.operate(op, conversation, fields)

    def history(
        self,
        conversation: str,
        *,
        before: str | None = None,
        after: str | None = None,
        limit: int = 50,
        branch: str | None = None,
    ) -> None:
        """Ask for a page of a conversation; asked again on a new connection until it came."""
        self._subscriptions.page(conversation, limit, before=before, after=after, branch=branch)

    def save(self) -> list[Map]:
        """Everything a later session needs to go on with the open messages."""
        return [
            message.save()
            for message in self.messages.values()
            if message.state not in ENDED and message.state is not _DETACHED
        ]

    def save_conversations(self) -> dict[str, int]:
        """Subscribed conversation → its cursor, for a later session."""
        return self._subscriptions.save()

    def restore(self, saved: list[Map], conversations: dict[str, int] | None = None) -> None:
        """Take over what an earlier session saved; before `hello`. Raises `KeyError`, `TypeError` for anything else."""
        self._subscriptions.restore(conversations or {})
        for message in [ClientMessage.restore(entry) for entry in saved]:
            self.messages.setdefault(message.id, message)

    # --- what the connection does -------------------------------------------------------------------------------

    @property
    def has_outgoing(self) -> bool:
        """Whether `outgoing` would return anything."""
        return bool(self._outbox)

    def outgoing(self) -> list[Map]:
        """Frames to send now, in order; each is returned once. Empty before `welcome`."""
        frames = self._outbox.take()
        for frame in frames:
            if frame["type"] == "send":
                message = self.messages.get(frame["id"])
                if message is not None:
                    message._transmitted = True
        return frames

    def receive(self, frame: Map) -> list[Event]:
        """Apply one frame of the server. Raises `MalformedFrame`.

        Frames of unknown type, and those about messages that are unknown or over, change nothing.
        """
        try:
            handler = self._handlers.get(frame["type"])
            return handler(frame) if handler is not None else []
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MalformedFrame(f"{type(error).__name__}: {error}") from error

    def disconnected(self) -> None:
        """The connection is gone: forget what belonged to it. What stands of the messages is kept."""
        self._outbox.end()
        self._subscriptions.disconnected()
        for message in self.messages.values():
            message._assembly = None
            message._pong_mark = None
            message._uncertain = message.state is _SENDING and message._transmitted

    # --- frames of one message ----------------------------------------------------------------------------------

    def _on_delta(self, frame: Map) -> list[Event]:
        message = self.messages.get(frame["id"]) or self._adopt(frame)
        return [] if message is None else self._progress.on_delta(message, frame)

    def _on_message(self, frame: Map) -> list[Event]:
        message = self._live(frame)
        return [] if message is None else self._about[frame["type"]](message, frame)

    def _live(self, frame: Map) -> ClientMessage | None:
        """The message a frame is about, if it may still change."""
        message = self.messages.get(frame["id"]) or self._adopt(frame)
        if message is None or message.state in ENDED or message.state is _DETACHED:
            return None
        return message

    def _adopt(self, frame: Map) -> ClientMessage | None:
        """A message this client did not ask for: followed if a conversation is subscribed to, else ignored."""
        if not self._subscriptions or frame["id"] in self._forgotten:
            return None
        message = ClientMessage(frame["id"], None, _FOLLOWING)
        self.messages[message.id] = message
        return message

    # --- frames of the connection -------------------------------------------------------------------------------

    def _on_error(self, frame: Map) -> list[Event]:
        error: Map = frame["error"]
        re: str | None = frame.get("re")
        message = self.messages.get(frame.get("id") or "")
        conversation: str | None = frame.get("conversation")
        if conversation is not None and re in ("subscribe", "history"):
            return self._subscriptions.on_error(conversation, re, error)
        if message is None or message.state in ENDED or message.state is _DETACHED or re in ("cancel", "detach"):
            return [ErrorReceived(message, re, error, conversation)]
        return self._standing.on_error(message, re, error)

    def _on_welcome(self, frame: Map) -> list[Event]:
        self._outbox.begin()
        self._subscriptions.welcomed()
        known = {head["id"]: head for head in frame["resumed"]}
        events: list[Event] = [
            Welcomed(
                frame["session"],
                frame["user"],
                frame["tier"],
                frame["heartbeat_seconds"],
                frame["max_frame_bytes"],
                frame.get("expires_in_seconds"),
                frame["active"],
                frame,
            )
        ]
        for message in self.messages.values():
            events += self._standing.reattach(message, known.get(message.id) if message._probed else None)
        return events

    def _on_goaway(self, frame: Map) -> list[Event]:
        self._outbox.draining = True
        self._outbox.withdraw(lambda queued: queued["type"] == "send")
        return [GoingAway(frame.get("reason", ""), frame["reconnect_after_ms"] / 1000)]

    def _on_pong(self, frame: Map) -> list[Event]:
        heads = {head["id"]: head["seq"] for head in frame.get("open") or ()}
        events: list[Event] = []
        for message in self.messages.values():
            if message.state not in ENDED and message.state is not _DETACHED:
                events += self._standing.compare_head(message, heads.get(message.id))
        events.append(PongReceived(frame.get("nonce")))
        return events

    def _on_quota(self, frame: Map) -> list[Event]:
        return [QuotaChanged(frame["limits"])]
