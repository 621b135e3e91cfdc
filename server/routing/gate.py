"""What attempts ask before they call a target, and tell when they are through: the one interface to the breakers.

`enter` gives a `Ticket` or says how long the target is held. A ticket is told how its call went exactly once; telling
it again does nothing. `OpenGate` lets everybody in, for places without breakers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from server.routing.attempts import Route
from server.upstreams.base import Fault


@dataclass(frozen=True, slots=True)
class Held:
    """The target is not to be called now."""

    wait_seconds: float
    """When it is worth asking again; 0: at any time."""
    state: str
    """How it stands, for error details."""


class Ticket(Protocol):
    """One admitted call."""

    def late(self) -> bool:
        """Whether what was granted would no longer last to the end of the call's longest silence: it is not to begin.

        So it is with a probe whose lease ran while something else was waited for.
        """
        ...

    def began(self, seconds: float) -> None:
        """Its first content came after `seconds`."""
        ...

    def well(self, longest_gap_seconds: float) -> None:
        """It was answered to the end."""
        ...

    def failed(self, fault: Fault, retry_after_seconds: float | None) -> None:
        """It failed."""
        ...

    def void(self, silent_seconds: float = 0.0) -> None:
        """It was given up by us; `silent_seconds`: after so long without content, if that was why."""
        ...


class Gate(Protocol):
    """Admission to all targets of the node."""

    async def enter(self, target: str) -> Ticket | Held:
        """Ask to call `target`."""
        ...

    def wait_seconds(self, target: str) -> float:
        """How long `target` is held now; 0: it is not."""
        ...

    def hedge_after(self, route: Route, target: str) -> float | None:
        """A call of `route` begins at `target`: after how many silent seconds the next may be asked; None: never."""
        ...

    def may_hedge(self, route: Route) -> bool:
        """Take one hedge out of the route's budget; False if it is used up."""
        ...

    def hedged(self, route: Route, won: bool) -> None:
        """A hedge is over; `won`: the second target was faster."""
        ...


class BreakerWatch(Protocol):
    """What is told of breakers, for metrics."""

    def target_state(self, target: str, state: str) -> None: ...  # noqa: D102
    def breaker_moved(self, target: str, state: str, why: str) -> None: ...  # noqa: D102
    def target_alarm(self, target: str, why: str) -> None: ...  # noqa: D102
    def target_held(self, target: str, state: str) -> None: ...  # noqa: D102
    def probe_ended(self, target: str, outcome: str) -> None: ...  # noqa: D102
    def hedge_ended(self, route: str, winner: str) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class TargetState:
    """How one target stands, as people are shown it."""

    name: str
    model: str
    state: str
    why: str
    """What it opened for; empty while it is in use."""
    retry_after_ms: int
    """When a call may be tried again; 0: now."""
    share: float
    """Share of the calls that are admitted: 1 closed, 0 open, between while ramping."""
    probes: int
    """Trial calls under way, on all nodes."""
    openings: int
    """How often it opened since it was last wholly in use."""
    calls: int
    """Calls of this node in the window; also the next two."""
    failed: int
    slow: int
    first_token_p95_ms: int | None
    """Of the recent answers of this node; None without enough of them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}
