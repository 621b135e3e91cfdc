"""Which target comes next, and how what follows relates to what was shown. Pure.

Nothing is shown before an attempt's first content, so early failures stay silent; a failure after it is followed by a
visible attempt: `restart` (text so far is dropped), `continue` (it goes on) or none (`fail`: it ends with what stands).

A `Plan` names a `candidate`; whoever drives it asks the gate, and either starts an attempt there (`start`) or says that
it is held (`hold`). A failure (`failed`) makes the next candidate, or ends it. Without a candidate the plan is
`exhausted`. A held target is never called: the breaker is not bypassed, however little is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from protocol.errors import ATTEMPT_REASONS, ERRORS, ErrorClass
from server.upstreams.base import Fault
from server.upstreams.faults import Consequence

Mode = Literal["fresh", "restart", "continue"]
OnMidstream = Literal["restart", "continue", "fail"]

RETRY_SECONDS: Final = 1.0
"""When to come back to a target that has just failed and is not held; no temporary end is without such a time."""
_NO_PREFILL: Final = frozenset({Fault.REJECTED, Fault.EMPTY, Fault.CONTEXT_LENGTH})
"""How a target answers that does not go on with a text after all: it refuses, has nothing to add, or no room."""


@dataclass(frozen=True, slots=True)
class Route:
    """An ordered chain of targets under the name that clients ask for as `model`."""

    name: str
    targets: tuple[str, ...]
    on_midstream_failure: OnMidstream = "restart"
    prefill: frozenset[str] = frozenset()
    """Those of the targets that go on with a trailing assistant message."""
    context_tokens: Mapping[str, int] = field(default_factory=dict)
    """Size of the context, of those targets where it is known."""
    hedge_after_seconds: float | None = None
    """Silence after which the next target is asked too; None: never."""
    hedge_at_p95: bool = False
    """Take the 95th percentile of the target's recent answers instead, once it is known."""
    hedge_budget: float = 0.05
    """Largest share of calls that may be hedged."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an attempt follows another; what `attempt.reason` shows."""

    code: str
    message: str
    error_class: ErrorClass = "temporary"
    retry_after_ms: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The wire form."""
        return {"code": self.code, "message": self.message}


HEDGED: Final = Reason("hedged", ATTEMPT_REASONS["hedged"])


@dataclass(frozen=True, slots=True)
class Try:
    """The next attempt."""

    number: int
    target: str
    mode: Mode
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No attempt follows; the message fails with this."""

    code: str
    message: str
    error_class: ErrorClass
    retry_after_ms: int | None = None
    details: Mapping[str, Any] | None = None

    @classmethod
    def for_now(cls, code: str, message: str, retry_after_ms: int | None = None) -> GiveUp:
        """One that may be asked for again, at least after a moment."""
        wait = round(RETRY_SECONDS * 1000) if retry_after_ms is None else retry_after_ms
        return cls(code, message, "temporary", wait)


@dataclass(slots=True)
class Shown:
    """What followers have seen of the message so far."""

    anything: bool = False
    structured: bool = False
    """It is, or may become, more than plain text: such an answer can only be restarted, never continued."""


@dataclass(slots=True)
class Plan:
    """The attempts of one run of one message."""

    route: Route
    made: int = 0
    """Attempts of earlier runs and owners: numbers go on from here."""
    least_tokens: int = 0
    """The input has at least so many tokens."""
    failures: list[tuple[str, Reason]] = field(default_factory=list)
    held: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Target → seconds until it may be asked, and its state."""
    reason: Reason | None = None
    """Why the next attempt follows."""
    may_continue: bool = True
    _passed: set[str] = field(default_factory=set)
    _nearest: tuple[Reason, Mapping[str, int]] | None = None
    """Why the input did not fit the target that has most room of those it did not fit, and the counts."""
    _too_small: int = 0
    """A context of this size was not enough."""

    def opening(self, shown: Shown, reason: Reason | None = None) -> GiveUp | None:
        """Before the first attempt; after a takeover or reopening `reason` says why and `shown` what stands."""
        self.reason = reason
        if reason is not None and reason.code == "owner_lost" and self._ends_with_what_stands(shown):
            return GiveUp.for_now("internal", reason.message)
        return None

    def candidate(self) -> str | None:
        """The next target that has not been asked, and whose context may be large enough."""
        return next((name for name in self.route.targets if name not in self._passed and self._may_fit(name)), None)

    def hold(self, target: str, wait_seconds: float, state: str) -> None:
        """`target` is not to be called now."""
        self._passed.add(target)
        self.held[target] = (wait_seconds, state)

    def too_long(self, target: str, reason: Reason, counts: Mapping[str, int]) -> None:
        """What must be sent does not fit `target`; `counts`: `input_tokens`, `room_tokens`."""
        self._passed.add(target)
        self.failures.append((target, reason))
        if self._nearest is None or counts["room_tokens"] > self._nearest[1]["room_tokens"]:
            self._nearest = reason, counts

    def start(self, target: str, shown: Shown, reason: Reason | None = None) -> Try:
        """The attempt at `target`; `reason`, if it is another than that of the last failure."""
        self.made += 1
        self._passed.add(target)
        mode: Mode = "fresh"
        if shown.anything:
            mode = "continue" if self._continues(target, shown) else "restart"
        return Try(self.made, target, mode, reason or self.reason)

    def failed(self, step: Try, row: Consequence, reason: Reason, shown: Shown) -> GiveUp | None:
        """An attempt failed; None: go on with the next candidate."""
        self.failures.append((step.target, reason))
        self.reason = reason
        if step.mode == "continue" and row.fault in _NO_PREFILL:
            self.may_continue = False
            self._passed.discard(step.target)
            return None
        if row.next_step == "end" or self._ends_with_what_stands(shown):
            if reason.error_class == "temporary":
                return GiveUp.for_now(reason.code, reason.message, reason.retry_after_ms)
            return GiveUp(reason.code, reason.message, reason.error_class)
        if row.next_step == "larger_target":
            self._too_small = max(self._too_small, self.route.context_tokens.get(step.target, 0))
        return None

    def exhausted(self, wait_seconds: Callable[[str], float]) -> GiveUp:
        """There is no candidate; `wait_seconds` tells how long each target is held by now."""
        lasting = [reason for _, reason in self.failures if reason.error_class == "permanent"]
        if not self.held and len(lasting) == len(self.failures):
            return self._permanently(lasting)
        waits = [seconds or RETRY_SECONDS for seconds, _ in self.held.values()]
        for target, reason in self.failures:
            if reason.error_class == "temporary":
                told = (reason.retry_after_ms or 0) / 1000
                waits.append(max(told, wait_seconds(target)) or RETRY_SECONDS)
        earliest = round(min(waits) * 1000)
        if len(self.failures) == 1 and not self.held:
            only = self.failures[0][1]
            return GiveUp(only.code, only.message, only.error_class, earliest)
        return self._all_failed("temporary", earliest)

    def _permanently(self, reasons: list[Reason]) -> GiveUp:
        row = ERRORS["context_length_exceeded"]
        if not reasons:
            room = max(self.route.context_tokens.values())
            text = f"the input takes at least {self.least_tokens} tokens; the largest context has {room}"
            counts = {"input_tokens": self.least_tokens, "room_tokens": room}
            return GiveUp(row.code, text, row.error_class, details=counts)
        if len({reason.code for reason in reasons}) == 1:
            reason, details = reasons[0], None
            if self._nearest is not None:
                reason, details = self._nearest
            return GiveUp(reason.code, reason.message, "permanent", details=details)
        return self._all_failed("permanent", None)

    def _all_failed(self, error_class: ErrorClass, retry_after_ms: int | None) -> GiveUp:
        held = [
            {"target": target, "state": state, "retry_after_ms": round(seconds * 1000)}
            for target, (seconds, state) in self.held.items()
        ]
        details: dict[str, Any] = {
            "attempts": [{"target": name, "code": reason.code} for name, reason in self.failures],
            **({"held": held} if held else {}),
        }
        what = (
            f"no target of {self.route.name!r} can be asked"
            if not self.failures
            else (f"every target of {self.route.name!r} failed")
        )
        return GiveUp("all_targets_failed", what, error_class, retry_after_ms, details)

    def _may_fit(self, target: str) -> bool:
        size = self.route.context_tokens.get(target)
        return size is None or (size > self._too_small and size >= self.least_tokens)

    def _continues(self, target: str, shown: Shown) -> bool:
        wished = self.route.on_midstream_failure == "continue" and self.may_continue
        return wished and target in self.route.prefill and not shown.structured

    def _ends_with_what_stands(self, shown: Shown) -> bool:
        return shown.anything and self.route.on_midstream_failure == "fail"
