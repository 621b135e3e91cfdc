"""How fast and how often: handshakes, open sockets and frames, counted in this process.

These keep one client from occupying a node. What costs money is limited exactly, across all nodes, by the quotas.
Rates are kept by `throttled`, which reads the monotonic clock itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from throttled import MemoryStore, Quota, per_min, per_sec
from throttled.rate_limiter import GCRARateLimiter

from protocol.errors import ProtocolError
from server.config import ServerSettings, is_loopback

FRAME_BURST_SECONDS: Final = 5
"""How many seconds' worth of frames may come at once."""
HANDSHAKE_BURST_SECONDS: Final = 10
"""How many seconds' worth of handshakes may come at once."""
HANDSHAKE_BURST: Final = 10
"""Handshakes that may come at once, however low the rate: as many tabs as a browser restores."""
HANDLED_AT_ONCE: Final = 64
"""Frames of one user that one process handles at once: so many others wait behind at most, whoever floods."""
FIRST_PENALTY_SECONDS: Final = 0.01
LAST_PENALTY_SECONDS: Final = 0.5
REMEMBERED: Final = 50_000
"""Addresses, and apart from them users, whose handshakes are remembered: 380 bytes each, 19 MB. One is forgotten if so
many others come while it is silent: whoever has so many has the bursts of all of them, and gains nothing by it."""
TICK_SECONDS: Final = 1e-9
"""The wait that is told where rounding leaves none."""


class Pace:
    """At most so many events on average, and so many at once, of each key (GCRA, ITU-T I.371).

    Of more than `keys` keys the one that came longest ago is forgotten. What was refused has come, too.
    """

    __slots__ = ("_limiter",)

    def __init__(self, quota: Quota, keys: int = 1) -> None:
        self._limiter = GCRARateLimiter(quota, MemoryStore(options={"MAX_SIZE": keys}))

    def take(self, count: int = 1, key: str = "") -> float:
        """Take `count` events: 0, or the wait in seconds after which they fit. A refusal changes nothing.

        More than fit at once are always refused.
        """
        result = self._limiter.limit(key, count)
        return (result.state.retry_after or TICK_SECONDS) if result.limited else 0.0


def frame_pace(rate: int) -> Pace:
    """The limit for frames, `rate` of them per second."""
    return Pace(per_sec(rate, rate * FRAME_BURST_SECONDS))


def handshake_pace(rate: int) -> Pace:
    """The limit for handshakes of everybody, by address or user, `rate` of each per minute."""
    return Pace(per_min(rate, max(rate * HANDSHAKE_BURST_SECONDS // 60, HANDSHAKE_BURST)), REMEMBERED)


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
        self._addresses = handshake_pace(settings.handshakes_per_minute)
        self._users = handshake_pace(settings.handshakes_per_minute_per_user)
        """Apart: addresses cost nothing, and no flood of them may make us forget users."""
        self._open: Counter[Hashable] = Counter()
        self._shared: dict[Hashable, Allowance] = {}
        """Of each address and user with open sockets: what they have together."""

    def handshake(self, address: str) -> None:
        """Count a handshake of a client address. Raises `ProtocolError` (`rate_limited`)."""
        if not is_loopback(address) and (wait := self._addresses.take(key=address)):
            raise _limited("Too many new connections of this address.", wait)

    def greet_user(self, user: tuple[str, str, str]) -> None:
        """Count a handshake of a user, known by (tenant, kind, user). Raises `ProtocolError` (`rate_limited`)."""
        if wait := self._users.take(key=repr(user)):
            raise _limited("Too many new connections of this user.", wait)

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

    def _enter(self, key: tuple[str, Hashable], limit: int, frames_per_second: int) -> Allowance:
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
    return ProtocolError("rate_limited", message, retry_after_ms=math.ceil(wait_seconds * 1000))


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
