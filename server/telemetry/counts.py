"""What one node did since it last told, and how it stands: one sample. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TENANTS_TOLD: Final = 20
"""Tenants named in one sample; the others are told as one."""
REST: Final = "(others)"


@dataclass(slots=True)
class Counts:
    """What is counted between two samples; everybody who counts has a reference to the same one."""

    chunks: int = 0
    """Pieces of output that models sent; about a token each."""
    refused: int = 0
    """Messages refused for a quota."""
    ended: dict[str, int] = field(default_factory=dict)
    """Messages by how they ended."""
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Target → attempts by how they ended."""
    spent: dict[str, list[int]] = field(default_factory=dict)
    """Tenant → messages settled, tokens, nano-dollars."""

    def message_ended(self, state: str) -> None:
        """A message reached its end."""
        state = str(state)  # it may be a member of an enumeration
        self.ended[state] = self.ended.get(state, 0) + 1

    def attempt_ended(self, target: str, outcome: str) -> None:
        """An attempt ended."""
        mine = self.outcomes.setdefault(target, {})
        outcome = str(outcome)
        mine[outcome] = mine.get(outcome, 0) + 1

    def quota(self, outcome: str) -> None:
        """A reservation or settlement ended so."""
        if outcome in ("refused", "too_large"):
            self.refused += 1

    def settled(self, tenant: str, tokens: int, nano_dollars: int) -> None:
        """A tenant's message was settled with so much."""
        row = self.spent.setdefault(tenant, [0, 0, 0])
        for index, value in enumerate((1, tokens, nano_dollars)):
            row[index] += value

    def take(self) -> dict[str, Any]:
        """What was counted since the last time, as plain values; counting begins anew."""
        told = {
            "chunks": self.chunks,
            "refused": self.refused,
            "ended": self.ended,
            "outcomes": self.outcomes,
            "spent": _largest(self.spent),
        }
        self.chunks = self.refused = 0
        self.ended, self.outcomes, self.spent = {}, {}, {}
        return told


def _largest(spent: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Those who spent most by name, the rest together."""
    if len(spent) <= TENANTS_TOLD:
        return dict(spent)
    order = sorted(spent, key=lambda tenant: spent[tenant][2:] + spent[tenant][1:2], reverse=True)
    named = {tenant: spent[tenant] for tenant in order[:TENANTS_TOLD]}
    rest = [spent[tenant] for tenant in order[TENANTS_TOLD:]]
    return {**named, REST: [sum(column) for column in zip(*rest, strict=True)]}
