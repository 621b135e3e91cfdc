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
    AttemptStarted,
    ConversationChanged,
    ConversationMessage,
    ErrorReceived,
    Event,
    GoingAway,
    HistoryReceived,
    MessageAccepted,
    MessageEnded,
    Output,
    PongReceived,
    QuotaChanged,
    Replaced,
    Resyncing,
    Stalled,
    Welcomed,
)
from protocol.client.message import (
    ENDED,
    MAX_GAPS,
    MAX_MISMATCHES,
    Assembly,
    AttemptInfo,
    ClientMessage,
    MessageState,
    Trigger,
)
from protocol.frames import MAX_RESUMES_PER_HELLO

Map = dict[str, Any]

CLIENT_NAME: Final = "tidewire-python"
CLIENT_VERSION: Final = "1"
UNPROVEN: Final = frozenset({"store_unavailable", "draining", "internal", "rate_limited", "too_many_messages"})
"""Refusals that don't tell whether the same request, sent on an earlier connection, was started."""
TAKEOVER_JUMP: Final = 2**20
"""A takeover continues the journal at least so many numbers ahead; a smaller hole is never a jump."""
UNANSWERED_PONGS: Final = 3
"""After so many heartbeats a request without any answer is sent again, under its id."""
MAX_ASKED_ANEW: Final = 3
"""How often a message that the server lost is asked for anew before it is given up as `lost`."""
MAX_FORGOTTEN: Final = 1024
"""So many ids of forgotten messages are remembered, so that a late frame does not bring one back."""

CONVERSATION_REQUESTS: Final = frozenset(
    {"create", "list", "get", "rename", "title", "delete", "choose", "pin", "unpin", "waiting", "answer", "part"}
)
"""Every other `op` of a `conversation` frame with a `seq` is an event of the log, also one that is not known here."""

_SENDING: Final = MessageState.SENDING
_FOLLOWING: Final = MessageState.FOLLOWING
_RESYNCING: Final = MessageState.RESYNCING
_STALLED: Final = MessageState.STALLED
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
        self.open = False
        """Whether `welcome` arrived on the present connection."""
        self.draining = False
        """Whether the server said `goaway`: what is asked for now waits for the next connection."""
        self._queue: list[Map] = []
        self._conversations: dict[str, int] = {}
        """Subscribed conversation → the last `seq` of its log that was told."""
        self._asked_for: set[str] = set()
        """Conversations whose `subscribe` was sent on the present connection and not answered yet."""
        self._waiting: list[Map] = []
        """Operations that were asked for without a connection."""
        self._forgotten: dict[str, None] = {}
        self._pages: list[Map] = []
        self._handlers: dict[str, Callable[[Map], list[Event]]] = {
            "delta": self._on_delta,
            "accepted": self._on_accepted,
            "attempt": self._on_attempt,
            "snapshot": self._on_snapshot,
            "done": self._on_verified_end,
            "cancelled": self._on_verified_end,
            "failed": self._on_failed,
            "error": self._on_error,
            "welcome": self._on_welcome,
            "pong": self._on_pong,
            "goaway": self._on_goaway,
            "quota": self._on_quota,
            "message": self._on_conversation_message,
            "history": self._on_history,
            "conversation": self._on_conversation,
        }

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
        self._queue_send(message)
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
        self._queue_send(message)
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
            self._queue_resume(message)
        elif message.move(Trigger.RESUME):
            self._queue_resume(message)
        elif message.state is _SENDING and message._transmitted:
            self._queue_send(message)
        return message

    def detach(self, message_id: str) -> bool:
        """Stop following; the message goes on. False if it isn't followed."""
        message = self.messages[message_id]
        if not message.move(Trigger.DETACH):
            return False
        message._assembly = None
        self._put({"type": "detach", "id": message_id})
        return True

    def cancel(self, message_id: str) -> list[Event]:
        """Stop generating. The receipt is a `MessageEnded` later; at once, if the request never went out."""
        message = self.messages[message_id]
        if message.state in ENDED:
            return []
        message.cancel_requested = True
        if message.state is _SENDING and not message._transmitted:
            return self._end_unsent(message)
        self._put({"type": "cancel", "id": message_id})
        return []

    def forget(self, message_id: str) -> None:
        """Drop an ended or detached message from memory; frames about it are ignored from now on."""
        del self.messages[message_id]
        if self._conversations:
            self._forgotten[message_id] = None
            if len(self._forgotten) > MAX_FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]

    def ping(self, nonce: str | int) -> None:
        """Ask for a `pong`, which also tells the heads of all open messages."""
        self._put({"type": "ping", "nonce": nonce})

    def auth(self, token: str) -> None:
        """Renew the credentials on the open connection and for later ones."""
        self.token = token
        self._put({"type": "auth", "token": token})

    def subscribe(self, conversation: str, *, after: int = 0) -> None:
        """Follow every message of a conversation, from any device, on this and later connections.

        `after` is the `seq` of the last page of its history, or of the last event that was kept; 0: from the beginning.
        """
        self._conversations[conversation] = after
        self._queue_subscribe(conversation)

    def unsubscribe(self, conversation: str) -> None:
        """Stop following a conversation; late events of it are not told."""
        self._drop_conversation(conversation)
        self._put({"type": "unsubscribe", "conversation": conversation})

    def subscribed(self, conversation: str) -> int | None:
        """`seq` of the last event that was told of a conversation; None if it is not subscribed to."""
        return self._conversations.get(conversation)

    def again(self, conversation: str) -> None:
        """Ask again for what was refused for now: the subscription, and pages that did not come."""
        if conversation in self._conversations:
            self._queue_subscribe(conversation)
        for page in self._pages:
            if page["conversation"] == conversation:
                self._put(page)

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
        frame: Map = {"type": "history", "conversation": conversation, "limit": limit}
        for name, value in (("before", before), ("after", after), ("branch", branch)):
            if value is not None:
                frame[name] = value
        self._pages.append(frame)
        self._put(frame)

    def save(self) -> list[Map]:
        """Everything a later session needs to go on with the open messages."""
        return [
            message.save()
            for message in self.messages.values()
            if message.state not in ENDED and message.state is not _DETACHED
        ]

    def restore(self, saved: list[Map]) -> None:
        """Take over what an earlier session saved; before `hello`. Raises `KeyError`, `TypeError` for anything else."""
        for message in [ClientMessage.restore(entry) for entry in saved]:
            self.messages.setdefault(message.id, message)

    # --- what the connection does -------------------------------------------------------------------------------

    @property
    def has_outgoing(self) -> bool:
        """Whether `outgoing` would return anything."""
        return self.open and bool(self._queue)

    def outgoing(self) -> list[Map]:
        """Frames to send now, in order; each is returned once. Empty before `welcome`."""
        if not self.open or not self._queue:
            return []
        frames, self._queue = self._queue, []
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
        self.open = False
        self._queue.clear()
        self._asked_for.clear()
        for message in self.messages.values():
            message._assembly = None
            message._pong_mark = None
            message._uncertain = message.state is _SENDING and message._transmitted

    # --- output -------------------------------------------------------------------------------------------------

    def _on_delta(self, frame: Map) -> list[Event]:
        message = self.messages.get(frame["id"])
        if message is None or message.state is not _FOLLOWING or message.cursor != frame["after"]:
            aside = self._delta_aside(message, frame)
            if isinstance(aside, list):
                return aside
            message = aside
        text = frame.get("text")
        reasoning = frame.get("reasoning")
        tool_calls = frame.get("tool_calls")
        message.cursor = frame["seq"]
        if text is not None and reasoning is None and tool_calls is None:
            message._visible.append(text)
        else:
            message._add(text, reasoning, tool_calls)
        return [Output(message, text, reasoning, tool_calls)]

    def _delta_aside(self, message: ClientMessage | None, frame: Map) -> ClientMessage | list[Event]:
        """A delta that does not simply continue: the message if it may be applied after all, else what to report."""
        if message is None:
            message = self._adopt(frame)
        if message is None or message.state in ENDED or message.state is _DETACHED:
            return []
        if frame["after"] == message.cursor and message.move(Trigger.DATA):
            return message
        if frame["seq"] <= message.cursor:
            return []
        return self._resync(message, "gap")

    def _on_attempt(self, frame: Map) -> list[Event]:
        message = self._live(frame)
        seq: int = frame["seq"]
        if message is None or seq <= message.cursor:
            return []
        info = AttemptInfo(frame["attempt"], frame["target"], frame["model"], frame["mode"], frame.get("reason"))
        if info.mode == "continue":
            if self._is_hole(message, frame):
                return self._resync(message, "gap")
        else:
            message._drop_output()
        message.move(Trigger.DATA)
        message.cursor = seq
        message.attempt = info.attempt
        message.attempts.append(info)
        message.server_state = "streaming"
        return [AttemptStarted(message, info)]

    def _on_snapshot(self, frame: Map) -> list[Event]:
        message = self._live(frame)
        if message is None:
            return []
        if frame["part"] == 1:
            message.move(Trigger.DATA)
            message._assembly = Assembly(frame["seq"], frame["attempt"])
        whole = message._assembly
        if whole is None or whole.next_part != frame["part"] or whole.seq != frame["seq"]:
            message._assembly = None
            return self._resync(message, "snapshot")
        whole.add(frame)
        if not frame["last"]:
            return []
        message._replace(whole)
        return [Replaced(message)]

    # --- gaps ---------------------------------------------------------------------------------------------------

    def _is_hole(self, message: ClientMessage, frame: Map, *, verified: bool = False) -> bool:
        """Whether events are missing before `frame`; without its `after`, a jump is believed once asked about."""
        after: int | None = frame.get("after")
        if after is not None:
            return after != message.cursor
        seq: int = frame["seq"]
        missing = seq - message.cursor - 1
        if missing <= 0:
            return False
        asked = message._asked_about == (message.cursor, seq) and message.state is _FOLLOWING
        if message.state is _FOLLOWING:
            message._asked_about = (message.cursor, seq)
        return not (asked and (verified or missing >= TAKEOVER_JUMP))

    def _resync(self, message: ClientMessage, reason: str) -> list[Event]:
        """Ask for everything after the cursor, once until it is answered."""
        if message._gap_at != message.cursor:
            message._gap_at, message._gaps = message.cursor, 0
        if not message.move(Trigger.GAP):
            return []
        message._gaps += 1
        if message._gaps > MAX_GAPS:
            return self._break(message, "the server keeps leaving out events")
        message.resyncs += 1
        self._queue_resume(message)
        return [Resyncing(message, reason)]

    def _start_over(self, message: ClientMessage) -> list[Event]:
        """The text is not what its hash says: drop it and ask for everything."""
        message._mismatches += 1
        if message._mismatches > MAX_MISMATCHES:
            return self._break(message, "the text does not match its hash")
        message._drop_output()
        message.cursor = 0
        return [*self._resume_now(message, "mismatch"), Replaced(message)]

    def _break(self, message: ClientMessage, why: str) -> list[Event]:
        message.move(Trigger.BREAK)
        message.error = {
            "code": "text_unverified",
            "class": "permanent",
            "status": 502,
            "message": why,
            "retryable": False,
        }
        self._put({"type": "detach", "id": message.id})
        return [MessageEnded(message)]

    # --- ends ---------------------------------------------------------------------------------------------------

    def _on_verified_end(self, frame: Map) -> list[Event]:
        """`done` and `cancelled`, which carry the hash of the text."""
        message = self._live(frame)
        if message is None or frame["seq"] <= message._reopened_at:
            return []
        verified = message._visible.matches(frame["text_bytes"], frame["text_sha256"])
        if self._is_hole(message, frame, verified=verified):
            return self._resync(message, "gap")
        if verified:
            return self._end(message, Trigger.DONE if frame["type"] == "done" else Trigger.CANCEL, frame)
        if message.state is _RESYNCING:
            return []
        return self._start_over(message)

    def _on_failed(self, frame: Map) -> list[Event]:
        message = self._live(frame)
        if message is None or frame["seq"] <= message._reopened_at:
            return []
        if self._is_hole(message, frame):
            return self._resync(message, "gap")
        return self._fail(message, frame)

    def _fail(self, message: ClientMessage, frame: Map) -> list[Event]:
        message.error = frame["error"]
        message.partial = frame.get("partial", False)
        return self._end(message, Trigger.FAIL, frame)

    def _end(self, message: ClientMessage, trigger: Trigger, frame: Map) -> list[Event]:
        message.move(trigger)
        message.cursor = frame["seq"]
        message.server_state = frame["type"]
        message.usage = frame.get("usage")
        message.end = frame
        message._assembly = None
        return [MessageEnded(message)]

    def _end_unsent(self, message: ClientMessage) -> list[Event]:
        """Cancelled before the server ever heard of it: nothing was generated, nothing is billed."""
        self._queue = [f for f in self._queue if not (f["type"] == "send" and f["id"] == message.id)]
        message.move(Trigger.CANCEL)
        return [MessageEnded(message)]

    # --- acceptance and errors ----------------------------------------------------------------------------------

    def _on_accepted(self, frame: Map) -> list[Event]:
        message = self._live(frame)
        if message is None:
            return []
        message.move(Trigger.ACCEPT)
        message._pong_mark = None
        message.server_state = frame["state"]
        message.queue_position = frame.get("queue_position")
        events: list[Event] = [MessageAccepted(message, frame["replay"]), *self._same_or_anew(message, frame)]
        if frame["state"] == "failed":
            message._reopened_at = -1
            if message._earlier_end is not None and frame["seq"] == message.cursor:
                events += self._fail(message, message._earlier_end)  # not reopened, so it is over, as it was
        return events

    def _same_or_anew(self, message: ClientMessage, head: Map) -> list[Event]:
        """Whether what the server tells the head of is what we followed; else its events begin anew at 1."""
        generation: str | None = head.get("generation")
        known, message._made = message._made, generation or message._made
        if head["seq"] >= message._reopened_at and (known is None or generation is None or known == generation):
            return []
        told = message.cursor > 0
        events = self._begin_anew(message)
        return [*events, *self._resume_now(message, "lost")] if told else events

    def _begin_anew(self, message: ClientMessage) -> list[Event]:
        """The server lost what it had told: nothing of it stands."""
        told = message.cursor > 0
        message.cursor, message.attempt = 0, 0
        message._reopened_at, message._gap_at, message._earlier_end, message._assembly = -1, -1, None, None
        if told:
            message._drop_output()
        return [Replaced(message)] if told else []

    def _on_error(self, frame: Map) -> list[Event]:
        error: Map = frame["error"]
        re: str | None = frame.get("re")
        message = self.messages.get(frame.get("id") or "")
        conversation: str | None = frame.get("conversation")
        if conversation is not None and re in ("subscribe", "history"):
            return self._on_conversation_error(conversation, re, error)
        if message is None or message.state in ENDED or message.state is _DETACHED or re in ("cancel", "detach"):
            return [ErrorReceived(message, re, error, conversation)]
        if message.state is _SENDING:
            return self._on_send_error(message, re, error)
        if error["code"] == "message_unknown" and re != "send":
            return self._ask_anew(message, error)
        if re == "send" and message.cursor == 0:
            return self._fail_here(message, Trigger.REFUSE, error)
        if error["retryable"]:
            message.move(Trigger.STALL)
            return [self._stalled(message, error)]
        return self._fail_here(message, Trigger.LOSE, error)

    def _on_conversation_error(self, conversation: str, re: str, error: Map) -> list[Event]:
        """What can't be had is not asked for any more; for what can be had later, see `again`."""
        if re == "subscribe":
            self._asked_for.discard(conversation)
        if not error["retryable"] and re == "subscribe":
            self._drop_conversation(conversation)
        elif not error["retryable"]:
            self._page_done(conversation)
        return [ErrorReceived(None, re, error, conversation)]

    def _on_send_error(self, message: ClientMessage, re: str | None, error: Map) -> list[Event]:
        code: str = error["code"]
        if re in ("hello", "resume") or (code == "message_unknown" and re != "send"):
            if code == "message_unknown" and message._probed:  # it never arrived, so ask for it
                message._probed = False
                return self._ask_again(message)
            return [ErrorReceived(message, re, error)]  # the request itself gets an answer of its own
        if code == "draining" and self.draining:
            message._transmitted = False
            return [ErrorReceived(message, re, error)]
        if message._uncertain and code in UNPROVEN:
            return [self._stalled(message, error)]
        return self._fail_here(message, Trigger.REFUSE, error)

    def _stalled(self, message: ClientMessage, error: Map) -> Stalled:
        after_ms: int | None = error.get("retry_after_ms")
        return Stalled(message, error, None if after_ms is None else after_ms / 1000)

    def _fail_here(self, message: ClientMessage, trigger: Trigger, error: Map) -> list[Event]:
        message.move(trigger)
        message.error = error
        message._assembly = None
        return [MessageEnded(message)]

    # --- the connection -----------------------------------------------------------------------------------------

    def _on_welcome(self, frame: Map) -> list[Event]:
        self.open, self.draining = True, False
        self._queue = []
        for name in self._conversations:
            self._queue_subscribe(name)
        self._queue += self._pages + self._waiting
        self._waiting = []
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
            events += self._reattach(message, known.get(message.id) if message._probed else None)
        return events

    def _reattach(self, message: ClientMessage, head: Map | None) -> list[Event]:
        """Pick a message up on a new connection; `head` is what `welcome` says of it, if it was asked about."""
        if message.state in ENDED or message.state is _DETACHED:
            return []
        if head is not None:
            message.move(Trigger.ACCEPT)
            message.server_state = head["state"]
            events: list[Event] = [MessageAccepted(message, True), *self._same_or_anew(message, head)]
        elif message.state is _SENDING:
            message._probed = False
            return self._ask_again(message)
        else:
            self._queue_resume(message)
            events = []
        if message.cancel_requested:
            self._put({"type": "cancel", "id": message.id})
        return events

    def _ask_again(self, message: ClientMessage) -> list[Event]:
        """The server may not have got it: the same request under the same id, or nothing if it was cancelled."""
        if not message.cancel_requested:
            self._queue_send(message)
            return []
        self._put({"type": "cancel", "id": message.id})  # in case it is on its way to another node
        message.move(Trigger.CANCEL)
        return [MessageEnded(message)]

    def _ask_anew(self, message: ClientMessage, error: Map) -> list[Event]:
        """The server lost a message that it had accepted: ask for it again, if it was this client that asked."""
        if message.request is None or message.asked_anew >= MAX_ASKED_ANEW:
            return self._fail_here(message, Trigger.LOSE, error)
        if message.cancel_requested:
            return self._ask_again(message)
        message.asked_anew += 1
        message.resyncs += 1
        message.move(Trigger.ASK_ANEW)
        message._transmitted, message._probed, message._pong_mark, message._made = False, False, None, None
        events = self._begin_anew(message)
        self._queue_send(message)
        return [*events, Resyncing(message, "lost")]

    def _on_goaway(self, frame: Map) -> list[Event]:
        self.draining = True
        self._queue = [queued for queued in self._queue if queued["type"] != "send"]
        return [GoingAway(frame.get("reason", ""), frame["reconnect_after_ms"] / 1000)]

    def _on_pong(self, frame: Map) -> list[Event]:
        heads = {head["id"]: head["seq"] for head in frame.get("open") or ()}
        events: list[Event] = []
        for message in self.messages.values():
            if message.state not in ENDED and message.state is not _DETACHED:
                events += self._compare_head(message, heads.get(message.id))
        events.append(PongReceived(frame.get("nonce")))
        return events

    def _compare_head(self, message: ClientMessage, head: int | None) -> list[Event]:
        """Whether the server's head and our cursor tell that something got lost.

        A pong overtakes data, so being behind is normal once; being behind at the same place twice is not.
        """
        if message.state is _SENDING and head is None:
            return self._count_unanswered(message)
        mark, reason = (message.cursor, 0), "unanswered"
        if message.state is _FOLLOWING:
            if head is None:
                return self._resume_now(message, "missing")
            if head <= message.cursor:
                message._pong_mark = None
                return []
            mark, reason = (message.cursor, 1), "behind"
        if message._pong_mark != mark:
            message._pong_mark = mark
            return []
        return self._resume_now(message, reason)

    def _count_unanswered(self, message: ClientMessage) -> list[Event]:
        """A request without an answer over several pongs is asked again; if it is only slow, that attaches to it."""
        _, count = message._pong_mark or (-1, 0)
        if not message._transmitted or count + 1 < UNANSWERED_PONGS:
            message._pong_mark = (-1, count + 1)
            return []
        message._pong_mark = None
        message.resyncs += 1
        self._queue_send(message)
        return [Resyncing(message, "unanswered")]

    def _resume_now(self, message: ClientMessage, reason: str) -> list[Event]:
        message._pong_mark = None
        if not (message.move(Trigger.RESUME) or message.move(Trigger.GAP)):
            return []
        message.resyncs += 1
        self._queue_resume(message)
        return [Resyncing(message, reason)]

    def _on_quota(self, frame: Map) -> list[Event]:
        return [QuotaChanged(frame["limits"])]

    def _on_conversation_message(self, frame: Map) -> list[Event]:
        return [ConversationMessage(frame)] if self._is_next(frame) else []

    def _on_conversation(self, frame: Map) -> list[Event]:
        """An answer (it moves no cursor), or something that happened to a conversation."""
        op = frame["op"]
        name: str = frame.get("conversation", "")
        if op == "subscribed":
            self._asked_for.discard(name)
        elif op in ("reset", "deleted"):
            if name not in self._conversations:
                return []
            self._conversations[name] = frame.get("seq", 0)
            if op == "deleted":
                self._drop_conversation(name)
        elif op not in CONVERSATION_REQUESTS and "seq" in frame and not self._is_next(frame):
            return []
        return [ConversationChanged(frame)]

    def _is_next(self, frame: Map) -> bool:
        """Whether this event continues the conversation's log; then it counts as told. A gap is asked about."""
        name, seq = frame["conversation"], frame["seq"]
        known = self._conversations.get(name)
        if known is None or seq <= known:
            return False
        if seq > known + 1:
            if name not in self._asked_for:
                self._queue_subscribe(name)
            return False
        self._conversations[name] = seq
        return True

    def _drop_conversation(self, name: str) -> None:
        self._conversations.pop(name, None)
        self._asked_for.discard(name)
        self._queue = [f for f in self._queue if not (f["type"] == "subscribe" and f["conversation"] == name)]

    def _queue_subscribe(self, name: str) -> None:
        after = self._conversations[name]
        frame: Map = {"type": "subscribe", "conversation": name}
        self._put(frame | {"after": after} if after else frame)
        if self.open:
            self._asked_for.add(name)

    def conversation(self, op: str, conversation: str | None = None, **fields: Any) -> None:
        """One operation on conversations (`create`, `list`, `rename`, …); the answer is a `ConversationChanged`.

        Without a connection it waits for the next one. One that was sent and not answered is not repeated: whether it
        was done is seen in the conversation's events.
        """
        named = {} if conversation is None else {"conversation": conversation}
        frame: Map = {"type": "conversation", "op": op, **named, **fields}
        if self.open:
            self._queue.append(frame)
        else:
            self._waiting.append(frame)

    def _on_history(self, frame: Map) -> list[Event]:
        self._page_done(frame["conversation"])
        return [HistoryReceived(frame)]

    def _page_done(self, conversation: str) -> None:
        """The oldest page asked for of this conversation needs not be asked for again."""
        for page in self._pages:
            if page["conversation"] == conversation:
                self._pages.remove(page)
                break

    # --- helpers ------------------------------------------------------------------------------------------------

    def _live(self, frame: Map) -> ClientMessage | None:
        """The message a frame is about, if it may still change."""
        message = self.messages.get(frame["id"]) or self._adopt(frame)
        if message is None or message.state in ENDED or message.state is _DETACHED:
            return None
        return message

    def _adopt(self, frame: Map) -> ClientMessage | None:
        """A message this client did not ask for: followed if a conversation is subscribed to, else ignored."""
        if not self._conversations or frame["id"] in self._forgotten:
            return None
        message = ClientMessage(frame["id"], None, _FOLLOWING)
        self.messages[message.id] = message
        return message

    def _put(self, frame: Map) -> None:
        if self.open:
            self._queue.append(frame)

    def _queue_send(self, message: ClientMessage) -> None:
        if self.draining:
            return
        frame = {"type": "send", "id": message.id, **(message.request or {})}
        if message._reopened_at >= 0:
            frame |= {"retry_of": message._reopened_at, "after": message.cursor}
        self._put(frame)

    def _queue_resume(self, message: ClientMessage) -> None:
        message._pong_mark = None
        self._put({"type": "resume", "id": message.id, "after": message.cursor})
