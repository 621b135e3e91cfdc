"""How much of a user's limits jobs may use, so that people who ask meanwhile are not refused. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_ITEMS: Final = 1_000_000
"""More than any node has room for."""
SLOT_SECONDS: Final = 1.0
"""When to look again for a slot: nobody knows when the next one is free."""
SHORTEST_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Share:
    """What a user's limits leave to jobs."""

    items: int
    """So many may begin now."""
    wait_ms: int
    """Until some may, if none may now."""


def share_of(limits: Sequence[Mapping[str, Any]], reserve: float) -> Share:
    """What jobs may take of a user's limits: all but a share of each. Pure.

    The only slot of a limit of one may be used, else nothing would ever run. Money is not refilled soon, so none of it
    is set apart. How many tokens an item will reserve is not known here: it begins while more than the share is left.
    """
    items, wait_seconds = MOST_ITEMS, 0.0
    for row in limits:
        limit, left, reset = row["limit"], row["remaining"], row["reset_seconds"]
        kind = row["name"].removeprefix("tenant_")
        if kind == "monthly_usd":
            continue
        if kind == "concurrent_messages":
            free, wait = left - min(limit - 1, math.ceil(limit * reserve)), SLOT_SECONDS
        else:
            free = left - limit * reserve
            wait = max(SHORTEST_SECONDS, reset * -free / max(limit - left, 1))
            if kind == "tokens_per_minute" and free >= 0:
                continue
        items = min(items, max(0, math.floor(free)))
        if free < 1:
            wait_seconds = max(wait_seconds, wait)
    return Share(items, 0 if items else round(wait_seconds * 1000))
