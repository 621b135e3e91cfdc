"""What of a user's limits jobs leave to everything else."""

from __future__ import annotations

from typing import Any

import pytest

from server.jobs.share import MOST_ITEMS, Share, share_of


def row(name: str, limit: float, remaining: float, reset_seconds: float = 0.0) -> dict[str, Any]:
    return {"name": name, "limit": limit, "remaining": remaining, "reset_seconds": reset_seconds}


@pytest.mark.parametrize(
    ("limits", "share"),
    [
        ([], Share(MOST_ITEMS, 0)),
        ([row("tokens_per_minute", 1000, 200, 48)], Share(MOST_ITEMS, 0)),
        ([row("tokens_per_minute", 1000, 100, 54)], Share(0, 6000)),
        ([row("tokens_per_minute", 1000, 199.9, 48)], Share(0, 100)),
        ([row("requests_per_minute", 60, 20, 40)], Share(8, 0)),
        ([row("tenant_requests_per_minute", 60, 0, 60)], Share(0, 12_000)),
        ([row("concurrent_messages", 10, 10)], Share(8, 0)),
        ([row("concurrent_messages", 10, 3)], Share(1, 0)),
        ([row("concurrent_messages", 10, 2)], Share(0, 1000)),
        ([row("concurrent_messages", 4, 4)], Share(3, 0)),
        ([row("concurrent_messages", 2, 2)], Share(1, 0)),
        ([row("concurrent_messages", 1, 1)], Share(1, 0)),
        ([row("concurrent_messages", 1, 0)], Share(0, 1000)),
        ([row("monthly_usd", 10, 0, 1e6)], Share(MOST_ITEMS, 0)),
        ([row("tokens_per_minute", 1000, 100, 54), row("concurrent_messages", 10, 2)], Share(0, 6000)),
        ([row("concurrent_messages", 10, 9), row("tenant_concurrent_messages", 20, 6)], Share(2, 0)),
    ],
)
def test_a_fifth_of_every_limit_is_left(limits: list[dict[str, Any]], share: Share) -> None:
    assert share_of(limits, 0.2) == share


def test_nothing_is_left_where_nothing_is_set_apart() -> None:
    assert share_of([row("concurrent_messages", 10, 10)], 0.0) == Share(10, 0)
    assert share_of([row("requests_per_minute", 10, 0.5, 57)], 0.0) == Share(0, 100)
