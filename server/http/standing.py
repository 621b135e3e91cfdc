"""A message as it stands, read once; and waiting for its end without holding anything but a place in line."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from protocol.errors import ProtocolError
from server.http.errors import stored_error
from server.messages.events import merge_calls
from server.messages.reader import Details
from server.messages.service import Found, Messages, unavailable, unknown
from server.sessions.outbound import DELTA_BYTES
from server.store.link import StoreError


@dataclass(frozen=True, slots=True)
class Whole:
    """What stands of a message."""

    details: Details
    text: str
    reasoning: str
    calls: list[dict[str, Any]]
    """Tool calls, merged, with their `index`."""


async def details_of(messages: Messages, found: Found) -> Details:
    """What is told beside the text. Raises `ProtocolError`: `message_unknown`, `store_unavailable`."""
    try:
        details = await messages.reader.details(found.keys)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    if details is None:
        raise unknown(found.id)
    return details


async def read_whole(messages: Messages, found: Found) -> Whole:
    """The message at some moment: text, reasoning, calls and record belong together. Raises like `details_of`."""
    while True:
        details = await details_of(messages, found)
        text: list[str] = []
        reasoning: list[str] = []
        calls: list[dict[str, Any]] = []
        try:
            parts = messages.reader.snapshot(found.id, found.keys, details.record, DELTA_BYTES)
            async with aclosing(parts):
                async for part in parts:
                    text.append(part["text"])
                    reasoning.append(part.get("reasoning", ""))
                    merge_calls(calls, part.get("tool_calls", ()))
                    if part["last"]:
                        return Whole(details, "".join(text), "".join(reasoning), calls)
        except (StoreError, TimeoutError):
            raise unavailable() from None


class Ending:
    """Waits until a message has ended; a `Follower` that wants nothing but that."""

    def __init__(self, messages: Messages, found: Found) -> None:
        self._messages = messages
        self._found = found
        self._something = asyncio.Event()
        self._gone: ProtocolError | None = None

    def wake(self, tag: str) -> None:
        """See `Follower`."""
        self._something.set()

    def replaced(self, tag: str) -> None:
        """See `Follower`."""
        self._something.set()

    def gone(self, tag: str, error: dict[str, Any] | None) -> None:
        """See `Follower`."""
        self._gone = stored_error(error, error.get("retry_after_ms")) if error else unknown(self._found.id)
        self._something.set()

    async def wait(self) -> None:
        """Return at the end. Raises `ProtocolError` if the claim was taken back, or Redis does not answer."""
        found, hub = self._found, self._messages.means.hub
        try:
            channel = await hub.follow(found.tag, found.keys, self, found.head, found.ended)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        try:
            while not channel.ended:
                if self._gone is not None:
                    raise self._gone
                self._something.clear()
                await self._something.wait()
        finally:
            hub.unfollow(found.tag, self)
