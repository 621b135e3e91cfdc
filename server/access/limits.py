"""How fast and how often: handshakes, open sockets and frames, counted in this process. Pure; time is handed in.

These keep one client from occupying a node. What costs money is limited exactly, across all nodes, by the quotas.

No library: the kept ones (`limits`, `aiolimiter`, `pyrate-limiter`) read the clock themselves, sleep instead of
refusing, or want a lock; what is needed of them is the one comparison in `Pace.take`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Final

from protocol.errors import ProtocolError
from server.config import ServerSettings, is_loopback

FRAME_BURST_SECONDS: Final = 5.0
"""How many seconds' worth of frames may come at once."""
HANDSHAKE_BURST_SECONDS: Final = 10.0
"""How many seconds' worth of handshakes may come at once."""
SWEEP_ENTRIES: Final = 10_000
"""Addresses remembered before the idle ones are forgotten."""


class Pace:
    """At most `rate` events per second on average, `burst` at once (GCRA, ITU-T I.371): one number of state."""

    __slots__ = ("_due", "_interval", "_slack")

    def __init__(self, rate: float, burst: float) -> None:
        self._interval = 1.0 / rate
        self._slack = max(burst - 1.0, 0.0) * self._interval
        self._due = float("-inf")
        """When the bucket will be full again."""

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` events: 0, or the wait in seconds after which they fit. A refusal changes nothing."""
        due = max(self._due, now) + self._interval * (count - 1)
        wait = due - self._slack - now
        if wait > 1e-9:
            return wait
        self._due = due + self._interval
        return 0.0

    def is_idle(self, now: float) -> bool:
        """Whether a new one would answer the same."""
        return self._due <= now


def frame_pace(rate: float) -> Pace:
    """The limit for frames, `rate` of them per second."""
    return Pace(rate, rate * FRAME_BURST_SECONDS)


class ConnectionLimits:
    """Who may open another socket. Loopback addresses are exempt: they are proxies, or nobody else's business."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._paces: dict[str, Pace] = {}
        self._open: Counter[Hashable] = Counter()
        self._frames: dict[Hashable, Pace] = {}
        """Of each address and user with open sockets: the pace of their frames together."""

    def handshake(self, address: str, now: float) -> None:
        """Count a handshake of a client address. Raises `ProtocolError` (`rate_limited`)."""
        if is_loopback(address):
            return
        if len(self._paces) >= SWEEP_ENTRIES:
            self._paces = {key: pace for key, pace in self._paces.items() if not pace.is_idle(now)}
        rate = self._settings.handshakes_per_minute / 60
        pace = self._paces.setdefault(address, Pace(rate, max(rate * HANDSHAKE_BURST_SECONDS, 10)))
        if wait := pace.take(now):
            raise _limited("Too many new connections from this address.", wait)

    def enter_address(self, address: str) -> Pace | None:
        """Count an open socket of an address; pair with `leave_address`. Raises `rate_limited`.

        The pace of the frames that its sockets may send together; None: any.
        """
        if is_loopback(address):
            return None
        settings, key = self._settings, ("address", address)
        return self._enter(key, settings.max_connections_per_address, settings.frames_per_second_per_address)

    def leave_address(self, address: str) -> None:
        """The socket is closed."""
        if not is_loopback(address):
            self._leave(("address", address))

    def enter_user(self, user: Hashable) -> Pace:
        """Count an open socket of a user, known by (tenant, kind, user); pair with `leave_user`. Raises `rate_limited`.

        The pace of the frames that the user's sockets may send together.
        """
        settings = self._settings
        return self._enter(("user", user), settings.max_connections_per_user, settings.frames_per_second_per_user)

    def leave_user(self, user: Hashable) -> None:
        """The socket is closed."""
        self._leave(("user", user))

    def _enter(self, key: tuple[str, Hashable], limit: int, frames_per_second: float) -> Pace:
        if self._open[key] >= limit:
            raise _limited(f"Too many open connections of this {key[0]} (at most {limit}).", 1.0)
        self._open[key] += 1
        if key not in self._frames:
            self._frames[key] = frame_pace(frames_per_second)
        return self._frames[key]

    def _leave(self, key: Hashable) -> None:
        self._open[key] -= 1
        if self._open[key] <= 0:
            del self._open[key], self._frames[key]


def _limited(message: str, wait_seconds: float) -> ProtocolError:
    return ProtocolError("rate_limited", message, retry_after_ms=max(1, round(wait_seconds * 1000)))


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[str]) -> str:
    """The client's address: the last one in `X-Forwarded-For` that no trusted proxy has, if the peer is one.

    Only what a trusted proxy wrote is believed; a client can put anything in front of that.
    """
    if not forwarded_for or not _is_trusted(peer, tuple(trusted)):
        return peer
    address = peer
    for hop in reversed([part.strip() for part in forwarded_for.split(",")]):
        if not _is_address(hop):
            break
        address = hop
        if not _is_trusted(hop, tuple(trusted)):
            break
    return address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    if not _is_address(address):
        return False
    parsed = ipaddress.ip_address(address)
    return any(parsed in ipaddress.ip_network(network) for network in trusted)
