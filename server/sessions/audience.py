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
    async def standing(self, payer: Payer) -> tuple[list[dict[str, Any]], int]: ...  # noqa: D102


@dataclass(slots=True)
class _Crowd:
    """One user's sessions."""

    channel: bytes
    tuned: asyncio.Future[None]
    sessions: dict[Listener, int] = field(default_factory=dict)
    """Session → when the figures stood that it was told last, in microseconds."""


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
        crowd.sessions.setdefault(session, 0)

    def leave(self, user: str, session: Listener) -> None:
        """The session has ended."""
        crowd = self._crowds.get(user)
        if crowd is None:
            return
        crowd.sessions.pop(session, None)
        if not crowd.sessions:
            del self._crowds[user]
            self._radio.unlisten(crowd.channel)

    async def limits(self, payer: Payer, session: Listener) -> list[dict[str, Any]]:
        """What is left now, for a session that has joined: of every later change it will be told."""
        crowd = self._crowds[payer.user]
        if not crowd.tuned.done():
            await asyncio.wait([crowd.tuned], timeout=TUNE_SECONDS)
        if not crowd.tuned.done():
            crowd.tuned.add_done_callback(lambda tuned: self._late(payer, tuned))
        limits, at_us = await self._source.standing(payer)
        if not at_us:
            self._source.heard(payer, b"")  # to be told as soon as Redis answers
        elif session in crowd.sessions:
            crowd.sessions[session] = max(crowd.sessions[session], at_us)
        return limits

    def _late(self, payer: Payer, tuned: asyncio.Future[None]) -> None:
        """The subscription was not waited for: what was changed before it is looked for now."""
        if not tuned.cancelled():
            self._source.heard(payer, b"")

    def tell(self, payer: Payer, limits: list[dict[str, Any]], at_us: int) -> None:
        """Tell every session of the user that does not know better: two nodes' words may overtake each other."""
        crowd = self._crowds.get(payer.user)
        if crowd is None:
            return
        for session, known_us in crowd.sessions.items():
            if not 0 < known_us - at_us < ORDER_US:
                crowd.sessions[session] = at_us
                session.tell_limits(limits)
