"""What a chaos run counts and measures, and how it is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ZEROS = ("lost", "doubled", "repeated", "double_billed", "misbooked", "wrong", "stuck")
"""What must be none for a run to pass."""


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values lie; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(slots=True)
class Figures:
    """Of one run; times in seconds."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    """From the kill of its owner to a message's first new delta at a client, whatever else keeps that client away."""
    takeover: list[float] = field(default_factory=list)
    """From the kill of its owner to the survivor's call upstream, by the upstream's log."""
    resume: list[float] = field(default_factory=list)
    """From `hello` to the first frame of a resumed message."""
    added: list[float] = field(default_factory=list)
    """From the upstream's writing of a token to the client's receiving it, over everything that happened."""
    added_calm: list[float] = field(default_factory=list)
    """The same in messages that no fault touched."""

    def problem(self, kind: str, text: str) -> None:
        """Something that must not be."""
        self.counts[kind] += 1
        self.problems.append(f"{kind}: {text}")

    @property
    def passed(self) -> bool:
        """Whether every zero is zero."""
        return not any(self.counts[kind] for kind in ZEROS)

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        events = self.counts["events"] or 1
        return {
            "passed": self.passed,
            "counts": {**dict.fromkeys(ZEROS, 0), **dict(sorted(self.counts.items()))},
            "takeover_seconds": _spread(self.takeover),
            "recovery_seconds": _spread(self.recovery),
            "resume_seconds": _spread(self.resume),
            "added_delay_seconds": _spread(self.added),
            "added_delay_calm_seconds": _spread(self.added_calm),
            "per_million_events": {
                "lost": self.counts["lost"] * 1e6 / events,
                "doubled": self.counts["doubled"] * 1e6 / events,
                "repeated": self.counts["repeated"] * 1e6 / events,
                "gaps_healed": self.counts["gaps_healed"] * 1e6 / events,
            },
            "problems": self.problems[:50],
        }

    def table(self) -> str:
        """For people."""
        count, told = self.counts, self.as_dict()
        rows = [
            ("messages", f"{count['messages']} ({count['twice']} sent twice, {count['cancelled']} cancelled)"),
            ("events delivered", str(count["events"])),
            ("kills / stops / drains", f"{count['kill']} / {count['stop']} / {count['drain']}"),
            ("cuts / half-closed / delayed / black holes", " / ".join(
                str(count[kind]) for kind in ("cut", "half_close", "delay", "black_hole"))),
            ("Redis: freezes / restarts / failovers", " / ".join(
                str(count[kind]) for kind in ("freeze", "restart", "failover"))),
            ("reconnects / takeovers / refused and asked again", f"{count['reconnects']} / {count['takeovers']}"
                f" / {count['refused']}"),
            *((kind.replace("_", "-"), str(count[kind])) for kind in ZEROS),
            ("claims that Redis lost; calls made again for them", f"{count['forgotten']}; {count['generated_again']}"),
            ("output tokens: told upstream / booked as told / unheard", f"{count['tokens_told']} /"
                f" {count['tokens_booked']} / {count['tokens_unheard']}"),
            ("from a kill to the survivor's call upstream", _told(told["takeover_seconds"])),
            ("from a kill to the first new delta at a client", _told(told["recovery_seconds"])),
            ("resume latency", _told(told["resume_seconds"])),
            ("added delay per delta", _told(told["added_delay_seconds"])),
            ("  in untouched messages", _told(told["added_delay_calm_seconds"])),
            ("lost, doubled per million events", f"{told['per_million_events']['lost']:.1f},"
                f" {told['per_million_events']['doubled']:.1f}"),
            ("gaps healed by clients", str(count["gaps_healed"])),
        ]  # fmt: skip
        return "\n".join(f"  {name:50} {value}" for name, value in rows)

    def write(self, path: str) -> None:
        """As JSON."""
        with open(path, "w") as file:
            json.dump(self.as_dict(), file, indent=2)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
    return {"count": len(values), "p50": p50, "p99": p99, "worst": max(values, default=None)}


def _told(spread: dict[str, Any]) -> str:
    if not spread["count"]:
        return "-"
    return f"p50 {spread['p50'] * 1000:.0f} ms, p99 {spread['p99'] * 1000:.0f} ms ({spread['count']})"
