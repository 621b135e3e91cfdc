"""How fast and how often: handshakes, open sockets and frames, counted in this process. Pure; time is handed in.

These keep one client from occupying a node. What costs money is limited exactly, across all nodes, by the quotas.

No library: the kept ones (`limits`, `aiolimiter`, `pyrate-limiter`) read the clock themselves, sleep instead of
refusing, or want a lock; what is needed of them is the one comparison in `Pace.take`.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from protocol.errors import ProtocolError
from server.config import ServerSettings, is_loopback

FRAME_BURST_SECONDS: Final = 5.0
"""How many seconds' worth of frames may come at once."""
HANDSHAKE_BURST_SECONDS: Final = 10.0
"""How many seconds' worth of handshakes may come at once."""
HANDSHAKE_BURST: Final = 10.0
"""Handshakes that may come at once, however low the rate: as many tabs as a browser restores."""
HANDLED_AT_ONCE: Final = 64
"""Frames of one user that one process handles at once: so many others wait behind at most, whoever floods."""
FIRST_PENALTY_SECONDS: Final = 0.01
LAST_PENALTY_SECONDS: Final = 0.5
SWEEP_ENTRIES: Final = 10_000
"""Addresses and users remembered before the idle ones are forgotten."""


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


class Penalty:
    """How long a socket is not read after what it sent was refused: longer each time, and less again for what is right.

    A refusal costs us more than sending the next frame costs the peer. Whoever goes on is stopped by TCP.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def refused(self, wait_seconds: float = 0.0) -> float:
        """Something was refused; for how long not to read, if it fits again after `wait_seconds`."""
        self.seconds = min(max(2 * self.seconds, wait_seconds, FIRST_PENALTY_SECONDS), LAST_PENALTY_SECONDS)
        return self.seconds

    def served(self) -> None:
        """Something was right."""
        self.seconds = self.seconds / 2 if self.seconds > FIRST_PENALTY_SECONDS else 0.0


@dataclass(slots=True)
class Allowance:
    """What all sockets of one address or user have together."""

    frames: Pace
    handling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(HANDLED_AT_ONCE))
    """Of a user: the frames that may be handled at once."""


class ConnectionLimits:
    """Who may open another socket. Loopback addresses are exempt: they are proxies, or nobody else's business."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._paces: dict[Hashable, Pace] = {}
        """Of each address and user that came lately: the pace of their handshakes."""
        self._open: Counter[Hashable] = Counter()
        self._shared: dict[Hashable, Allowance] = {}
        """Of each address and user with open sockets: what they have together."""

    def handshake(self, address: str, now: float) -> None:
        """Count a handshake of a client address. Raises `ProtocolError` (`rate_limited`)."""
        if not is_loopback(address):
            self._handshake(("address", address), self._settings.handshakes_per_minute, now)

    def greet_user(self, user: Hashable, now: float) -> None:
        """Count a handshake of a user, known by (tenant, kind, user). Raises `ProtocolError` (`rate_limited`)."""
        self._handshake(("user", user), self._settings.handshakes_per_minute_per_user, now)

    def _handshake(self, key: tuple[str, Hashable], per_minute: int, now: float) -> None:
        if len(self._paces) >= SWEEP_ENTRIES:
            self._paces = {known: pace for known, pace in self._paces.items() if not pace.is_idle(now)}
        rate = per_minute / 60
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = Pace(rate, max(rate * HANDSHAKE_BURST_SECONDS, HANDSHAKE_BURST))
        if wait := pace.take(now):
            raise _limited(f"Too many new connections of this {key[0]}.", wait)

    def enter_address(self, address: str) -> Pace | None:
        """Count an open socket of an address; pair with `leave_address`. Raises `rate_limited`.

        The pace of the frames that its sockets may send together; None: any.
        """
        if is_loopback(address):
            return None
        settings, key = self._settings, ("address", address)
        return self._enter(key, settings.max_connections_per_address, settings.frames_per_second_per_address).frames

    def leave_address(self, address: str) -> None:
        """The socket is closed."""
        if not is_loopback(address):
            self._leave(("address", address))

    def enter_user(self, user: Hashable) -> Allowance:
        """Count an open socket of a user, known by (tenant, kind, user); pair with `leave_user`. Raises `rate_limited`.

        What the user's sockets have together.
        """
        settings = self._settings
        return self._enter(("user", user), settings.max_connections_per_user, settings.frames_per_second_per_user)

    def leave_user(self, user: Hashable) -> None:
        """The socket is closed."""
        self._leave(("user", user))

    def _enter(self, key: tuple[str, Hashable], limit: int, frames_per_second: float) -> Allowance:
        if self._open[key] >= limit:
            raise _limited(f"Too many open connections of this {key[0]} (at most {limit}).", 1.0)
        self._open[key] += 1
        if key not in self._shared:
            self._shared[key] = Allowance(frame_pace(frames_per_second))
        return self._shared[key]

    def _leave(self, key: Hashable) -> None:
        self._open[key] -= 1
        if self._open[key] <= 0:
            del self._open[key], self._shared[key]


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
