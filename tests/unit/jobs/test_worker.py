"""What of a user's limits jobs leave to everything else."""

from __future__ import annotations

from typing import Any

import pytest

from server.jobs.worker import share_wait_ms


def row(name: str, limit: float, remaining: float, reset_seconds: float = 0.0) -> dict[str, Any]:
    return {"name": name, "limit": limit, "remaining": remaining, "reset_seconds": reset_seconds}


@pytest.mark.parametrize(
    ("limits", "wait_ms"),
    [
        ([], 0),
        ([row("tokens_per_minute", 1000, 200, 48)], 0),
        ([row("tokens_per_minute", 1000, 100, 54)], 6000),
        ([row("tokens_per_minute", 1000, 199.9, 48)], 100),
        ([row("tenant_requests_per_minute", 60, 0, 60)], 12_000),
        ([row("concurrent_messages", 10, 3)], 0),
        ([row("concurrent_messages", 10, 2)], 1000),
        ([row("concurrent_messages", 1, 1)], 0),
        ([row("concurrent_messages", 1, 0)], 1000),
        ([row("monthly_usd", 10, 0, 1e6)], 0),
        ([row("tokens_per_minute", 1000, 100, 54), row("concurrent_messages", 10, 2)], 6000),
    ],
)
def test_a_fifth_of_every_limit_is_left(limits: list[dict[str, Any]], wait_ms: int) -> None:
    assert share_wait_ms(limits, 0.2) == wait_ms
