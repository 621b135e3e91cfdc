"""What a run of checks found, as a table and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

Outcome = Literal["passed", "failed", "skipped"]
_SIGNS = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}


class CheckFailed(Exception):
    """The peer did something that the protocol forbids, or not what it demands; the text says what."""


class CheckSkipped(Exception):
    """The check could not be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """One check, once."""

    name: str
    codec: str
    """The subprotocol it was made with."""
    outcome: Outcome
    about: str
    """What was checked."""
    detail: str = ""
    """What was wrong, or why it was skipped."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one peer."""

    subject: str
    """Address of the server, or command of the client."""
    results: Sequence[Result]

    def count(self, outcome: Outcome) -> int:
        """How many ended so."""
        return sum(result.outcome == outcome for result in self.results)

    @property
    def exit_code(self) -> int:
        """0: nothing failed and something passed; else 1."""
        return int(self.count("failed") > 0 or self.count("passed") == 0)

    def as_json(self) -> str:
        """For programs."""
        counts = {outcome: self.count(outcome) for outcome in ("passed", "failed", "skipped")}
        found = {"subject": self.subject, **counts, "results": [asdict(result) for result in self.results]}
        return json.dumps(found, indent=2, ensure_ascii=False)

    def as_table(self) -> str:
        """For people: one line a check, and the reason under what failed."""
        width = max((len(result.name) for result in self.results), default=0)
        lines = []
        for result in self.results:
            codec = result.codec.rpartition(".")[2]
            lines.append(f"{_SIGNS[result.outcome]}  {result.name:<{width}}  {codec:<7}  {result.about}")
            lines += [f"      {line}" for line in result.detail.splitlines()]
        passed, failed, skipped = self.count("passed"), self.count("failed"), self.count("skipped")
        return "\n".join([*lines, f"{self.subject}: {passed} passed, {failed} failed, {skipped} skipped"])


def chosen(checks: Mapping[str, T], only: Sequence[str], kind: str, listed: bool = True) -> dict[str, T]:
    """The checks that are named, or all. Raises `ValueError` for a name that is none of theirs; `listed`: which are."""
    if unknown := sorted(set(only) - checks.keys()):
        there = f"; there are {', '.join(checks)}" if listed else ""
        raise ValueError(f"no such {kind}: {', '.join(unknown)}{there}")
    return {name: check for name, check in checks.items() if not only or name in only}


async def judged(name: str, codec: str, about: str, check: Awaitable[None]) -> Result:
    """Make one check, and say how it ended."""
    began = time.monotonic()
    outcome: Outcome = "passed"
    detail = ""
    try:
        await check
    except CheckSkipped as reason:
        outcome, detail = "skipped", str(reason)
    except CheckFailed as failure:
        outcome, detail = "failed", str(failure)
    return Result(name, codec, outcome, about, detail, round(time.monotonic() - began, 3))
