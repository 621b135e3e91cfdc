"""A short chaos run: everything breaks for a while, and nothing is lost, doubled, wrong or stuck."""

from __future__ import annotations

import pytest

from tests.chaos.faults import schedule
from tests.chaos.run import Plan, run

SECONDS = 12.0


@pytest.mark.slow
async def test_chaos_a_short_run_has_only_zeros() -> None:
    figures = await run(Plan(SECONDS, seed=4, nodes=3, clients=12, quiet=True))
    print(figures.table())
    assert figures.passed, figures.problems[:10]
    assert figures.counts["messages"] > 20


@pytest.mark.slow
async def test_chaos_a_short_run_on_a_cluster_has_only_zeros() -> None:
    figures = await run(Plan(SECONDS, seed=5, nodes=3, clients=8, store="cluster", quiet=True))
    print(figures.table())
    assert figures.passed, figures.problems[:10]


def test_chaos_the_same_seed_gives_the_same_faults() -> None:
    assert schedule(1, 60, "single") == schedule(1, 60, "single")
    assert schedule(1, 60, "single") != schedule(2, 60, "single")
    assert {fault.kind for fault in schedule(1, 60, "cluster")} & {"freeze", "restart"} == set()
