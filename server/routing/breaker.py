"""The breaker of one target: when it is left alone, tried, and trusted again. Pure: time and chance are arguments.

Theory of operation. What all nodes share of a target is one `Condition`, a small immutable value with a version. Each
transition makes the next one from it (`advance`) by the table below; `server.routing.shared_breaker` makes it that of
all nodes by compare-and-set on the version. What a node keeps for itself is the evidence: a sliding window of the calls
it made (`Breaker`), emptied by every transition. `ramping` and `throttled` end by themselves (`settled`), without a
write.

All times are seconds of the clock that the conditions' owners share. A probe is a trial call with a lease in the
condition; at most `probes` leases are alive, and a lease outlives every possible silence of its call, so even probes
that hang are never more than that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal

from server.config.sections import BreakerSettings

JITTER: Final = 0.2
"""Pauses are spread by this share up and down, so that targets and clusters do not probe in step."""
BUCKETS: Final = 10
"""Parts of the window: calls leave it in steps of a tenth."""
FIRST_SHARE: Final = 0.1
"""Share of calls admitted when the ramp begins."""
RAMP_CALLS: Final = 5
"""While ramping, so few calls in the window are enough to open again."""
PROLONG_SECONDS: Final = 1.0
"""A throttling that another answer would prolong by less stays as it is: a burst of them is told once."""
PROBE_RETRY_SECONDS: Final = 1.0
"""When to ask again while others probe: most verdicts are there by then."""
BAR_FACTOR: Final = 2.0
"""A refused credential or a missing model is for a person to mend: the pause begins this much longer."""


class State(StrEnum):
    """How a target stands."""

    CLOSED = "closed"
    """In use."""
    THROTTLED = "throttled"
    """Its credential hit the provider's rate limit; left alone until the time that the provider gave."""
    OPEN = "open"
    """Left alone."""
    HALF_OPEN = "half_open"
    """Tried by probes only."""
    RAMPING = "ramping"
    """A probe went well: admitted are 10 % of the calls, then more, up to all."""


class Happening(StrEnum):
    """What moves a breaker."""

    TRIP = "trip"
    """Too many calls in the window failed, or were slow."""
    BAR = "bar"
    """401, 403 or 404: every call would fail until a person mends it."""
    THROTTLE = "throttle"
    """429. A target that is not in use anyway is left alone for at least as long, and then tried as before."""
    PROBE = "probe"
    """The pause is over and a probe got its lease."""
    RETURN = "return"
    """A probe ended without a verdict (the client cancelled it, the request was at fault)."""
    WELL = "well"
    """A probe was answered."""
    ILL = "ill"
    """A probe failed."""
    LAPSE = "lapse"
    """The time of the state is over."""


TRANSITIONS: Final[dict[tuple[State, Happening], State]] = {
    (State.CLOSED, Happening.TRIP): State.OPEN,
    (State.CLOSED, Happening.BAR): State.OPEN,
    (State.CLOSED, Happening.THROTTLE): State.THROTTLED,
    (State.THROTTLED, Happening.THROTTLE): State.THROTTLED,
    (State.THROTTLED, Happening.TRIP): State.OPEN,
    (State.THROTTLED, Happening.BAR): State.OPEN,
    (State.THROTTLED, Happening.LAPSE): State.CLOSED,
    (State.OPEN, Happening.PROBE): State.HALF_OPEN,
    (State.OPEN, Happening.THROTTLE): State.OPEN,
    (State.HALF_OPEN, Happening.PROBE): State.HALF_OPEN,
    (State.HALF_OPEN, Happening.RETURN): State.HALF_OPEN,
    (State.HALF_OPEN, Happening.WELL): State.RAMPING,
    (State.HALF_OPEN, Happening.ILL): State.OPEN,
    (State.HALF_OPEN, Happening.BAR): State.OPEN,
    (State.HALF_OPEN, Happening.THROTTLE): State.OPEN,
    (State.RAMPING, Happening.TRIP): State.OPEN,
    (State.RAMPING, Happening.BAR): State.OPEN,
    (State.RAMPING, Happening.THROTTLE): State.THROTTLED,
    (State.RAMPING, Happening.LAPSE): State.CLOSED,
}
"""Every transition there is; what is not here leaves the condition as it is."""


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> closed"]
    lines += [f"    {old} --> {new}: {what}" for (old, what), new in TRANSITIONS.items()]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Lease:
    """A probe's permit."""

    id: str
    expires: float


@dataclass(frozen=True, slots=True)
class Condition:
    """What is shared of one target."""

    state: State = State.CLOSED
    since: float = 0.0
    until: float = 0.0
    """When the pause, the throttling or the ramp ends; 0 where nothing ends by itself."""
    streak: int = 0
    """How often it opened since it was last wholly in use; doubles the pause."""
    why: str = ""
    """What opened it: a code of the fault table, or `slow`."""
    leases: tuple[Lease, ...] = ()

    def settled(self, now: float) -> Condition:
        """The condition as it is at `now`: throttling and ramp end by themselves."""
        if self.until <= now and (lapsed := TRANSITIONS.get((self.state, Happening.LAPSE))) is not None:
            return Condition(lapsed, self.until)
        return self

    def living(self, now: float) -> tuple[Lease, ...]:
        """The leases that have not expired."""
        return tuple(lease for lease in self.leases if lease.expires > now)

    def share(self, now: float) -> float:
        """Share of the calls that may go there, probes aside."""
        match self.state:
            case State.CLOSED:
                return 1.0
            case State.RAMPING:
                done = (now - self.since) / max(self.until - self.since, 1e-9)
                return min(1.0, FIRST_SHARE + (1.0 - FIRST_SHARE) * max(0.0, done))
            case _:
                return 0.0

    def wait(self, now: float, probes: int) -> float:
        """Seconds until it is worth asking again; 0: now."""
        match self.state:
            case State.CLOSED | State.RAMPING:
                return 0.0
            case State.THROTTLED:
                return max(0.0, self.until - now)
        pause = max(0.0, self.until - now) if self.state is State.OPEN else 0.0
        living = self.living(now)  # also of an earlier trial: probes that hang are not over because another one failed
        if len(living) < probes:
            return pause
        return max(pause, min(PROBE_RETRY_SECONDS, min(lease.expires for lease in living) - now))


@dataclass(frozen=True, slots=True)
class Cause:
    """What a happening brings along."""

    why: str = ""
    wait_seconds: float | None = None
    """The provider's Retry-After."""
    lease: Lease | None = None
    """PROBE: the lease wished for. RETURN, WELL, ILL, THROTTLE: the one that was held, if it was a probe."""


def advance(
    known: Condition, happening: Happening, cause: Cause, now: float, chance: float, settings: BreakerSettings
) -> Condition | None:
    """The condition after `happening`; None if it changes nothing. `chance` is in [0, 1)."""
    before = known.settled(now)
    state = TRANSITIONS.get((before.state, happening))
    if state is None:
        return None
    match happening:
        case Happening.TRIP | Happening.BAR | Happening.ILL:
            pause = _pause(before.streak, happening, cause, chance, settings)
            hang = _without(before, cause.lease) if happening is Happening.ILL else ()
            return Condition(state, now, now + pause, before.streak + 1, cause.why, hang)
        case Happening.THROTTLE:
            wait = cause.wait_seconds
            until = now + (_spread(settings.open_seconds, chance) if wait is None else wait)
            longer = until > before.until + PROLONG_SECONDS or before.state not in (State.THROTTLED, State.OPEN)
            if not longer:
                return None
            if state is State.OPEN:  # it has not been trusted since it opened: a probe comes before anybody else
                since = before.since if before.state is State.OPEN else now
                return Condition(state, since, until, before.streak, cause.why, _without(before, cause.lease))
            return Condition(state, now, until, before.streak, cause.why)
        case Happening.PROBE:
            return _probed(before, cause.lease, now, settings)
        case Happening.RETURN:
            rest = _without(before, cause.lease)
            return replace(before, leases=rest) if rest != before.leases else None
        case Happening.WELL:
            return Condition(state, now, now + settings.ramp_seconds, before.streak, before.why)
        case Happening.LAPSE:
            return None  # `settled` has done it, if it was due


def _pause(streak: int, happening: Happening, cause: Cause, chance: float, settings: BreakerSettings) -> float:
    first = settings.open_seconds * (BAR_FACTOR if happening is Happening.BAR else 1.0)
    doubled = min(first * 2.0 ** min(streak, 32), settings.open_seconds_max)
    return max(min(_spread(doubled, chance), settings.open_seconds_max), cause.wait_seconds or 0.0)


def _spread(seconds: float, chance: float) -> float:
    return seconds * (1.0 - JITTER + 2.0 * JITTER * chance)


def _probed(before: Condition, lease: Lease | None, now: float, settings: BreakerSettings) -> Condition | None:
    living = before.living(now)
    pausing = before.state is State.OPEN and now < before.until
    if lease is None or pausing or len(living) >= settings.probes:
        return None
    since = now if before.state is State.OPEN else before.since
    return Condition(State.HALF_OPEN, since, 0.0, before.streak, before.why, (*living, lease))


def _without(before: Condition, lease: Lease | None) -> tuple[Lease, ...]:
    return tuple(held for held in before.leases if lease is None or held.id != lease.id)


# --- the evidence -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Counts:
    """Calls of one stretch of time."""

    calls: int = 0
    failed: int = 0
    slow: int = 0


class Window:
    """The calls of the last `seconds`, in `BUCKETS` parts; memory does not grow with the calls."""

    __slots__ = ("_buckets", "_part")

    def __init__(self, seconds: float) -> None:
        self._part = seconds / BUCKETS
        self._buckets: deque[tuple[int, Counts]] = deque()

    def add(self, now: float, *, failed: bool, slow: bool) -> None:
        """Count one call."""
        number = int(now / self._part)
        if not self._buckets or self._buckets[-1][0] < number:
            self._buckets.append((number, Counts()))
        counts = self._buckets[-1][1]
        counts.calls += 1
        counts.failed += failed
        counts.slow += slow
        self._forget(number)

    def counts(self, now: float) -> Counts:
        """What lies within the window."""
        self._forget(int(now / self._part))
        found = Counts()
        for _, counts in self._buckets:
            found.calls += counts.calls
            found.failed += counts.failed
            found.slow += counts.slow
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()

    def _forget(self, newest: int) -> None:
        while self._buckets and self._buckets[0][0] <= newest - BUCKETS:
            self._buckets.popleft()


Verdict = Literal["admitted", "held", "needs_lease"]


class Breaker:
    """One node's view of one target: the shared condition, and its own evidence."""

    __slots__ = ("_in_a_row", "condition", "running", "settings", "window")

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self.condition = Condition()
        self.window = Window(settings.window_seconds)
        self.running = 0
        """Calls of this node now at the target."""
        self._in_a_row = 0
        """So many of the newest calls failed."""

    def ask(self, now: float, chance: float) -> Verdict:
        """Whether a call may go there now. While ramping, one at a time always may: else a quiet node would refuse."""
        condition = self.condition.settled(now)
        share = condition.share(now)
        if share > 0.0:
            return "admitted" if chance < share or not self.running else "held"
        if condition.state is State.THROTTLED or condition.wait(now, self.settings.probes) > 0.0:
            return "held"
        return "needs_lease"

    def wait(self, now: float) -> float:
        """Seconds until it is worth asking again."""
        return self.condition.settled(now).wait(now, self.settings.probes)

    def adopt(self, condition: Condition) -> bool:
        """Take over what is shared; the evidence of another state says nothing about this one. True if it moved."""
        moved = condition.state is not self.condition.state or condition.since != self.condition.since
        self.condition = condition
        if moved:
            self.window.clear()
            self._in_a_row = 0
        return moved

    def count(self, now: float, *, failed: bool, slow: bool) -> bool:
        """Count a call that ended (or was too slow); True if the rates now say `TRIP`.

        So do `minimum_calls` failures in a row: a window full of good calls would hide a dead target for half of its
        length. Calls that began before the target was left alone are no news, and are not counted.
        """
        state = self.condition.settled(now).state
        if state in (State.OPEN, State.HALF_OPEN):
            return False
        self.window.add(now, failed=failed, slow=slow)
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if not failed and not slow:
            return False  # good news trips nothing, even where it makes up the least number of calls
        counts, settings = self.window.counts(now), self.settings
        least = min(settings.minimum_calls, RAMP_CALLS) if state is State.RAMPING else settings.minimum_calls
        if counts.calls < least:
            return False
        return (
            self._in_a_row >= least
            or _reaches(counts.failed, settings.failure_rate, counts.calls)
            or _reaches(counts.slow, settings.slow_rate, counts.calls)
        )


def _reaches(some: int, rate: float, all_: int) -> bool:
    return some > 0 and some >= rate * all_
