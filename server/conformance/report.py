"""What a run of checks found, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

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
