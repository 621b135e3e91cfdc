"""The sessions of each user on this node, and what all of them are told: the user's limits, whoever changed them.

The shard channel of a user is subscribed while there is a session here. What this node changes itself it tells at once;
what others publish it hears. A lost notification costs a stale figure until the next one, nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from server.quotas.base import Payer

TUNE_SECONDS: Final = 0.1
"""How long a `welcome` waits for the subscription, so that what it tells is the last thing not heard otherwise."""
ORDER_US: Final = 5_000_000
"""Figures so much older than the last ones came late. Beyond that, Redis has lost its clock, and they are news."""


class Listener(Protocol):
    """A session, as far as this goes."""

    def tell_limits(self, limits: list[dict[str, Any]]) -> None:
        """Send a `quota` frame; one that is still unsent is replaced."""
        ...


class Radio(Protocol):
    """Shard channels (`server.messages.hub.Hub`)."""

    def listen(self, name: bytes, heard: Callable[[bytes], None]) -> asyncio.Future[None]: ...  # noqa: D102
    def unlisten(self, name: bytes) -> None: ...  # noqa: D102


class Source(Protocol):
    """Where limits come from (`server.quotas.service.Quotas`)."""

    say: Callable[[Payer, list[dict[str, Any]], int], None]

    def channel(self, payer: Payer) -> bytes: ...  # noqa: D102
    def heard(self, payer: Payer, data: bytes) -> None: ...  # noqa: D102
    async def view(self, payer: Payer) -> list[dict[str, Any]]: ...  # noqa: D102


@dataclass(slots=True)
class _Crowd:
    """One user's sessions."""

    channel: bytes
    tuned: asyncio.Future[None]
    sessions: set[Listener] = field(default_factory=set)
    at_us: int = 0
    """When the figures stood that they were told last."""


class Audience:
    """See the module. One for the whole process."""

    def __init__(self, radio: Radio, source: Source) -> None:
        self._radio = radio
        self._source = source
        self._crowds: dict[str, _Crowd] = {}
        source.say = self.tell

    def join(self, payer: Payer, session: Listener) -> None:
        """The session is this user's. Idempotent; pair with `leave`."""
        crowd = self._crowds.get(payer.user)
        if crowd is None:
            channel = self._source.channel(payer)
            tuned = self._radio.listen(channel, lambda data: self._source.heard(payer, data))
            crowd = self._crowds[payer.user] = _Crowd(channel, tuned)
        crowd.sessions.add(session)

    def leave(self, user: str, session: Listener) -> None:
        """The session has ended."""
        crowd = self._crowds.get(user)
        if crowd is None:
            return
        crowd.sessions.discard(session)
        if not crowd.sessions:
            del self._crowds[user]
            self._radio.unlisten(crowd.channel)

    async def limits(self, payer: Payer) -> list[dict[str, Any]]:
        """What is left now, for a session that has joined: every later change it will be told."""
        crowd = self._crowds.get(payer.user)
        if crowd is not None and not crowd.tuned.done():
            await asyncio.wait([crowd.tuned], timeout=TUNE_SECONDS)
        return await self._source.view(payer)

    def tell(self, payer: Payer, limits: list[dict[str, Any]], at_us: int) -> None:
        """Tell every session of the user, unless they know better: two nodes' words may overtake each other."""
        crowd = self._crowds.get(payer.user)
        if crowd is None or 0 < crowd.at_us - at_us < ORDER_US:
            return
        crowd.at_us = at_us
        for session in crowd.sessions:
            session.tell_limits(limits)
