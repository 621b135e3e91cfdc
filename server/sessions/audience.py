"""The sessions of each user on this node, and what all of them are told: the user's limits."""

from __future__ import annotations

from typing import Any, Protocol

from server.quotas.base import Payer


class Listener(Protocol):
    """A session, as far as this goes."""

    def tell_limits(self, limits: list[dict[str, Any]]) -> None:
        """Send a `quota` frame; one that is still unsent is replaced."""
        ...


class Audience:
    """Sessions by user. One for the whole process."""

    def __init__(self) -> None:
        self._sessions: dict[str, set[Listener]] = {}

    def join(self, user: str, session: Listener) -> None:
        """The session is this user's. Idempotent; pair with `leave`."""
        self._sessions.setdefault(user, set()).add(session)

    def leave(self, user: str, session: Listener) -> None:
        """The session has ended."""
        sessions = self._sessions.get(user, set())
        sessions.discard(session)
        if not sessions:
            self._sessions.pop(user, None)

    def tell(self, payer: Payer, limits: list[dict[str, Any]]) -> None:
        """Tell every session of the user."""
        for session in self._sessions.get(payer.user, ()):
            session.tell_limits(limits)
