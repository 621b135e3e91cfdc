"""The conversations that a client follows, each with its own cursor, and what it asked about conversations."""

from __future__ import annotations

from typing import Any, Final

from protocol.client.events import ConversationChanged, ConversationMessage, ErrorReceived, Event, HistoryReceived
from protocol.client.outbox import Outbox

Map = dict[str, Any]
REQUESTS: Final = frozenset(
    {"create", "list", "get", "rename", "title", "delete", "choose", "pin", "unpin", "waiting", "answer", "part"}
)
"""Every other `op` of a `conversation` frame with a `seq` is an event of the log, also one that is not known here."""


class Subscriptions:
    """Followed conversations and open questions about them, over any number of connections."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._cursors: dict[str, int] = {}
        """Subscribed conversation → the last `seq` of its log that was told."""
        self._asked_for: set[str] = set()
        """Conversations whose `subscribe` was sent on the present connection and not answered yet."""
        self._waiting: list[Map] = []
        """Operations that were asked for without a connection."""
        self._pages: list[Map] = []

    def __bool__(self) -> bool:
        """Whether any conversation is followed."""
        return bool(self._cursors)

    def cursor(self, conversation: str) -> int | None:
        """`seq` of the last event that was told; None if it is not followed."""
        return self._cursors.get(conversation)

    def save(self) -> dict[str, int]:
        """Every cursor, to be kept."""
        return dict(self._cursors)

    def restore(self, cursors: dict[str, int]) -> None:
        """Follow what an earlier session followed, from where it was."""
        self._cursors = {**cursors, **self._cursors}

    def follow(self, conversation: str, after: int) -> None:
        """Follow a conversation from the event `after` of its log on."""
        self._cursors[conversation] = after
        self._ask(conversation)

    def leave(self, conversation: str) -> None:
        """Stop following a conversation."""
        self._drop(conversation)
        self._outbox.put({"type": "unsubscribe", "conversation": conversation})

    def page(self, conversation: str, limit: int, **where: str | None) -> None:
        """Ask for a page; again on a new connection until it came."""
        given = {name: value for name, value in where.items() if value is not None}
        frame: Map = {"type": "history", "conversation": conversation, "limit": limit, **given}
        self._pages.append(frame)
        self._outbox.put(frame)

    def operate(self, op: str, conversation: str | None, fields: Map) -> None:
        """One operation; without a connection it waits for the next one."""
        named = {} if conversation is None else {"conversation": conversation}
        frame: Map = {"type": "conversation", "op": op, **named, **fields}
        if self._outbox.open:
            self._outbox.put(frame)
        else:
            self._waiting.append(frame)

    def again(self, conversation: str) -> None:
        """Ask again for what was refused for now: the subscription, and pages that did not come."""
        if conversation in self._cursors:
            self._ask(conversation)
        for page in self._pages:
            if page["conversation"] == conversation:
                self._outbox.put(page)

    def welcomed(self) -> None:
        """A connection was made."""
        for name in self._cursors:
            self._ask(name)
        for frame in self._pages + self._waiting:
            self._outbox.put(frame)
        self._waiting = []

    def disconnected(self) -> None:
        """The connection is gone."""
        self._asked_for.clear()

    def on_message(self, frame: Map) -> list[Event]:
        """A followed conversation got an entry, or one has ended."""
        return [ConversationMessage(frame)] if self._is_next(frame) else []

    def on_history(self, frame: Map) -> list[Event]:
        """A page came."""
        self._page_done(frame["conversation"])
        return [HistoryReceived(frame)]

    def on_conversation(self, frame: Map) -> list[Event]:
        """An answer (it moves no cursor), or something that happened to a conversation."""
        op = frame["op"]
        name: str = frame.get("conversation", "")
        if op == "subscribed":
            self._asked_for.discard(name)
        elif op in ("reset", "deleted"):
            if name not in self._cursors:
                return []
            self._cursors[name] = frame.get("seq", 0)
            if op == "deleted":
                self._drop(name)
        elif op not in REQUESTS and "seq" in frame and not self._is_next(frame):
            return []
        return [ConversationChanged(frame)]

    def on_error(self, conversation: str, re: str, error: Map) -> list[Event]:
        """What can't be had is not asked for any more; for what can be had later, see `again`."""
        if re == "subscribe":
            self._asked_for.discard(conversation)
        if not error["retryable"] and re == "subscribe":
            self._drop(conversation)
        elif not error["retryable"]:
            self._page_done(conversation)
        return [ErrorReceived(None, re, error, conversation)]

    def _page_done(self, conversation: str) -> None:
        """The oldest page asked for of this conversation needs not be asked for again."""
        for page in self._pages:
            if page["conversation"] == conversation:
                self._pages.remove(page)
                break

    def _is_next(self, frame: Map) -> bool:
        """Whether this event continues the conversation's log; then it counts as told. A gap is asked about."""
        name, seq = frame["conversation"], frame["seq"]
        known = self._cursors.get(name)
        if known is None or seq <= known:
            return False
        if seq > known + 1:
            if name not in self._asked_for:
                self._ask(name)
            return False
        self._cursors[name] = seq
        return True

    def _drop(self, name: str) -> None:
        self._cursors.pop(name, None)
        self._asked_for.discard(name)
        self._outbox.withdraw(lambda frame: frame["type"] == "subscribe" and frame["conversation"] == name)

    def _ask(self, name: str) -> None:
        after = self._cursors[name]
        frame: Map = {"type": "subscribe", "conversation": name}
        self._outbox.put(frame | {"after": after} if after else frame)
        if self._outbox.open:
            self._asked_for.add(name)
