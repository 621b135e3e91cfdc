"""A Redis that may evict keys is told of as a node starts, in the log and in its metrics."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.nodes import running_node, settings_for
from tests.servers import VALKEY, RedisServer

NOWHERE = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("forbidden", ["nothing", "config", "info", "both"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "noeviction"])
async def test_a_policy_that_evicts_is_told_at_the_start(policy: str, forbidden: str) -> None:
    """Also where the commands that tell it are forbidden, as they are in managed services."""
    with RedisServer(VALKEY, options=("--maxmemory-policy", policy)) as server:
        for command in {"nothing": (), "both": ("config", "info")}.get(forbidden, (forbidden,)):
            assert server.command(f"ACL SETUSER default -{command}".encode()) == b"+OK"
        with capture_logs() as logs:
            async with running_node(settings_for(server.url, NOWHERE)) as running:
                exposed = running.node.metrics.exposition().decode()
    told = [(line["event"], line["log_level"], line.get("policy")) for line in logs if "evict" in line["event"]]
    if forbidden == "both":
        assert told == [("eviction_policy_not_told", "warning", None)]
    elif policy == "noeviction":
        assert told == []
    else:
        assert told == [("redis_evicts", "error", policy)]
    evicts = policy != "noeviction" and forbidden != "both"
    assert f"tidewire_store_evicts {float(evicts)}\n" in exposed
