"""A short chaos run: everything breaks for a while, and nothing is lost, doubled, wrong or stuck."""

from __future__ import annotations

import pytest

from tests.chaos.faults import schedule
from tests.chaos.run import Plan, run

SECONDS = 12.0
CLIENTS = 12
SEED = 22
"""Of a schedule that drains, cuts, kills, half-closes, freezes Redis, stops and restarts Redis, in this order."""


@pytest.mark.timeout(300)  # not slow, though it takes half a minute: nothing else tries everything at once
async def test_chaos_a_short_run_has_only_zeros() -> None:
    figures = await run(Plan(SECONDS, SEED, nodes=3, clients=CLIENTS, quiet=True))
    print(figures.table())
    assert figures.passed, figures.problems[:10]
    # a stop may find only one node that serves, where starting one takes long
    broken = {kind: figures.counts[kind] for kind in ("drain", "cut", "kill", "half_close", "freeze", "restart")}
    assert all(broken.values()), f"something was not broken: {broken}"
    assert figures.counts["messages"] >= CLIENTS
    assert figures.counts["reconnects"] > 0


@pytest.mark.slow
async def test_chaos_a_short_run_on_a_cluster_has_only_zeros() -> None:
    figures = await run(Plan(SECONDS, seed=5, nodes=3, clients=8, store="cluster", quiet=True))
    print(figures.table())
    assert figures.passed, figures.problems[:10]


def test_chaos_the_same_seed_gives_the_same_faults() -> None:
    assert schedule(1, 60, "single") == schedule(1, 60, "single")
    assert schedule(1, 60, "single") != schedule(2, 60, "single")
    assert {fault.kind for fault in schedule(1, 60, "cluster")} & {"freeze", "restart"} == set()
