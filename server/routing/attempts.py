"""Which target comes next, and how what follows relates to what was shown. Pure.

Nothing is shown before an attempt's first content, so early failures stay silent; a failure after it is followed by a
visible attempt: `restart` (text so far is dropped), `continue` (it goes on) or none (`fail`: it ends with what stands).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.errors import ERRORS, ErrorClass

Mode = Literal["fresh", "restart", "continue"]
OnMidstream = Literal["restart", "continue", "fail"]


@dataclass(frozen=True, slots=True)
class Route:
    """An ordered chain of targets under the name that clients ask for as `model`."""

    name: str
    targets: tuple[str, ...]
    on_midstream_failure: OnMidstream = "restart"
    prefill: frozenset[str] = frozenset()
    """Those of the targets that go on with a trailing assistant message."""


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


@dataclass(slots=True)
class Shown:
    """What followers have seen of the message so far."""

    anything: bool = False
    structured: bool = False
    """Tool calls or structured output: these can only be restarted, never continued."""


@dataclass(slots=True)
class Plan:
    """The attempts of one run of one message."""

    route: Route
    made: int = 0
    """Attempts of earlier runs and owners: numbers go on from here."""
    failures: list[tuple[str, Reason]] = field(default_factory=list)

    def first(self, shown: Shown, reason: Reason | None = None) -> Try | GiveUp:
        """The attempt to begin with; after a takeover or reopening `reason` says why and `shown` what stands."""
        if reason is not None and reason.code == "owner_lost" and self._ends_with_what_stands(shown):
            return GiveUp("internal", reason.message, "temporary")
        return self._try(self.route.targets[0], shown, reason)

    def after_failure(self, target: str, reason: Reason, may_retry: bool, shown: Shown) -> Try | GiveUp:
        """What follows the failure of `target`; `may_retry` is false where another target would refuse, too."""
        self.failures.append((target, reason))
        if not may_retry or self._ends_with_what_stands(shown):
            return GiveUp(reason.code, reason.message, reason.error_class, reason.retry_after_ms)
        tried = {name for name, _ in self.failures}
        following = next((name for name in self.route.targets if name not in tried), None)
        if following is None:
            return self._all_failed()
        return self._try(following, shown, reason)

    def _ends_with_what_stands(self, shown: Shown) -> bool:
        return shown.anything and self.route.on_midstream_failure == "fail"

    def _try(self, target: str, shown: Shown, reason: Reason | None) -> Try:
        self.made += 1
        if not shown.anything:
            return Try(self.made, target, "fresh", reason)
        goes_on = (
            self.route.on_midstream_failure == "continue" and target in self.route.prefill and not shown.structured
        )
        return Try(self.made, target, "continue" if goes_on else "restart", reason)

    def _all_failed(self) -> GiveUp:
        reasons = [reason for _, reason in self.failures]
        waits = [reason.retry_after_ms for reason in reasons if reason.retry_after_ms is not None]
        if len(reasons) == 1:
            only = reasons[0]
            return GiveUp(only.code, only.message, only.error_class, only.retry_after_ms)
        permanent = all(reason.error_class == "permanent" for reason in reasons)
        return GiveUp(
            "all_targets_failed",
            f"every target of {self.route.name!r} failed",
            "permanent" if permanent else ERRORS["all_targets_failed"].error_class,
            min(waits) if waits else None,
            {"attempts": [{"target": name, "code": reason.code} for name, reason in self.failures]},
        )
