"""Breakers of several nodes over a real store: one opening is everybody's, and so are the probes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis.asyncio

from server.config.sections import BreakerSettings
from server.routing import shared_breaker
from server.routing.attempts import Route
from server.routing.breaker import Condition, Lease, State
from server.routing.gate import Held, Ticket
from server.routing.shared_breaker import SharedBreakers, Watched, pack, unpack
from server.store.keys import BREAKERS_CHANNEL, breaker
from server.store.store import Store
from server.upstreams.base import Fault, TargetSpec
from tests.servers import VALKEY, RedisServer
from tests.wire import eventually

PATIENT = BreakerSettings(minimum_calls=4, open_seconds=60.0)
QUICK = BreakerSettings(minimum_calls=4, open_seconds=0.05, probes=2, ramp_seconds=0.2, slow_first_token_seconds=5.0)
FIRST = Watched("first", "m1", ("shared",), 30.0)
SECOND = Watched("second", "m2", ("shared",), 30.0)
THIRD = Watched("third", "m3", ("own",), 30.0)


@dataclass
class Heard:
    """What the metrics of one node are told."""

    events: list[tuple[Any, ...]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*values: str) -> None:
            self.events.append((name, *values))

        return note

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == name]


@dataclass
class Node:
    board: SharedBreakers
    heard: Heard
    store: Store

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait for what time or other nodes bring about."""
        await eventually(condition, seconds)

    def state(self, target: str = "first") -> str:
        return next(state.state for state in self.board.target_states() if state.name == target)

    async def is_in(self, state: State, target: str = "first") -> None:
        await self.until(lambda: self.state(target) == state)

    async def enter(self, target: str = "first") -> Ticket:
        ticket = await self.board.enter(target)
        assert not isinstance(ticket, Held), ticket
        return ticket

    async def fail(self, target: str = "first", fault: Fault = Fault.SERVER_ERROR, times: int = 4) -> None:
        for ticket in [await self.enter(target) for _ in range(times)]:
            ticket.failed(fault, None)

    async def pause_over(self, target: str = "first") -> None:
        """Until a probe may be asked for: a wait whose end the board itself tells, and may put off by its clock."""
        while wait := self.board.wait_seconds(target):  # noqa: ASYNC110 - time alone brings it about
            await asyncio.sleep(wait + 0.002)


@asynccontextmanager
async def nodes(
    url: str, count: int = 2, settings: BreakerSettings = PATIENT, margin: float = 5.0, silence: float | None = None
) -> AsyncIterator[list[Node]]:
    targets = [FIRST, SECOND, THIRD]
    if silence is not None:
        targets = [Watched(t.name, t.model, t.credential, silence) for t in targets]
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            store = await Store.connect(url, shared_breaker.ALL)
            stack.push_async_callback(store.close)
            heard = Heard()
            routes = {"default": Route("default", ("first", "second", "third"))}
            board = SharedBreakers(targets, routes, settings, store, heard, random.Random(number), margin)
            await board.start()
            stack.push_async_callback(board.close)
            found.append(Node(board, heard, store))
        await listening(url, count)
        yield found


async def listening(url: str, count: int) -> None:
    """Until every node hears the others."""
    async with redis.asyncio.from_url(url) as client, asyncio.timeout(5):
        while (await client.execute_command("PUBSUB", "SHARDNUMSUB", BREAKERS_CHANNEL))[1] < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_what_one_node_opens_is_open_on_all(redis_url: str) -> None:
    async with nodes(redis_url, 4) as found:
        await found[0].fail()
        assert found[0].state() == State.OPEN, "here at once"
        for node in found[1:]:
            await node.is_in(State.OPEN)
            held = await node.board.enter("first")
            assert isinstance(held, Held)
            assert 45 < held.wait_seconds <= 72
            assert node.state("second") == State.CLOSED
        assert found[3].heard.of("breaker_moved") == [("first", "open", "server_error")]


async def test_nothing_is_read_per_call(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (node,), redis.asyncio.from_url(redis_url) as client:
        await client.config_resetstat()
        for _ in range(500):
            (await node.enter()).well(0.0)
        stats = await client.info("commandstats")
        assert stats.get("cmdstat_evalsha", {"calls": 0})["calls"] <= 1, "only the look of every two seconds"


async def test_a_node_that_comes_later_knows_it_from_the_start(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (one,):
        await one.fail()
        async with nodes(redis_url, 1) as (late,):
            await late.is_in(State.OPEN)


@pytest.mark.parametrize("count", [1, 8])
async def test_at_most_k_probes_in_all_even_if_they_hang(redis_url: str, count: int) -> None:
    async with nodes(redis_url, count, QUICK) as found:
        await found[0].fail()
        for node in found:
            await node.is_in(State.OPEN)
        await found[0].pause_over()
        asked = await asyncio.gather(*(node.board.enter("first") for node in found for _ in range(10)))
        assert sum(not isinstance(answer, Held) for answer in asked) == QUICK.probes
        again = await asyncio.gather(*(node.board.enter("first") for node in found for _ in range(10)))
        assert all(isinstance(answer, Held) for answer in again), "they hang"
        assert all(answer.wait_seconds <= 1.0 for answer in again if isinstance(answer, Held))


async def test_the_leases_of_a_node_that_died_expire_by_the_stores_clock(redis_url: str) -> None:
    async with nodes(redis_url, 2, QUICK, margin=0.3, silence=0.1) as (doomed, other):
        await doomed.fail()
        await other.is_in(State.OPEN)
        await doomed.pause_over()
        for _ in range(QUICK.probes):
            await doomed.enter()
        await other.is_in(State.HALF_OPEN)
        await doomed.board.close()
        assert isinstance(await other.board.enter("first"), Held)
        await other.pause_over()
        assert await other.enter(), "the leases are over"


async def test_a_probe_that_is_answered_ramps_up_everywhere(redis_url: str) -> None:
    async with nodes(redis_url, 3, QUICK) as found:
        await found[0].fail()
        await found[1].is_in(State.OPEN)
        await found[1].pause_over()
        probe = await found[1].enter()
        probe.began(0.01)
        probe.well(0.01)
        for node in found:
            await node.until(lambda: ("first", "ramping", "server_error") in node.heard.of("breaker_moved"))  # noqa: B023
        assert found[1].heard.of("probe_ended") == [("first", "well")]
        await found[2].is_in(State.CLOSED)


async def test_a_probe_that_fails_opens_it_for_twice_as_long(redis_url: str) -> None:
    settings = BreakerSettings(minimum_calls=4, open_seconds=0.05, open_seconds_max=1000.0)
    async with nodes(redis_url, 2, settings) as (one, two):
        await one.fail()
        pauses = []
        for _ in range(3):
            await two.is_in(State.OPEN)
            await two.pause_over()
            probe = await two.enter()
            probe.failed(Fault.FIRST_TOKEN_TIMEOUT, None)
            await one.is_in(State.OPEN)
            pauses.append(two.board.wait_seconds("first"))
        assert pauses[0] < pauses[1] < pauses[2]
        assert 0.4 * 0.79 <= pauses[2] <= 0.4 * 1.21


async def test_a_slow_probe_is_a_failed_one(redis_url: str) -> None:
    async with nodes(redis_url, 1, QUICK) as (node,):
        await node.fail()
        await node.pause_over()
        probe = await node.enter()
        probe.began(6.0)
        probe.well(0.0)
        assert node.state() == State.OPEN


async def test_a_cancelled_probe_gives_its_lease_back(redis_url: str) -> None:
    async with nodes(redis_url, 2, QUICK) as (one, two):
        await one.fail()
        await two.is_in(State.OPEN)
        await one.pause_over()
        probes = [await one.enter() for _ in range(QUICK.probes)]
        await two.until(lambda: two.board.target_states()[0].probes == QUICK.probes)
        probes[0].void()
        probes[1].failed(Fault.REJECTED, None)  # the request was at fault: no verdict
        await two.until(lambda: two.board.wait_seconds("first") == 0.0)
        assert await two.enter()
        assert one.state() == State.HALF_OPEN


async def test_a_probe_whose_caller_goes_away_while_it_asks_gives_its_lease_back(redis_url: str) -> None:
    async with nodes(redis_url, 1, QUICK) as (node,):
        await node.fail()
        await node.pause_over()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(node.board.enter("first"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asking.cancel()
        await node.is_in(State.HALF_OPEN)
        await node.until(lambda: node.board.target_states()[0].probes == 0)


async def test_a_probe_that_streams_on_is_well_before_it_ends(redis_url: str) -> None:
    async with nodes(redis_url, 1, QUICK, margin=0.2, silence=0.1) as (node,):
        await node.fail()
        await node.pause_over()
        probe = await node.enter()
        probe.began(0.01)
        await node.until(lambda: ("first", "well") in node.heard.of("probe_ended"))
        assert node.state() in (State.RAMPING, State.CLOSED)
        probe.failed(Fault.BROKEN_STREAM, None)
        assert node.board.target_states()[0].failed == 1, "from then on it counts like any call"


async def test_a_rate_limit_is_the_credentials(redis_url: str) -> None:
    async with nodes(redis_url, 2) as (one, two):
        (await one.enter()).failed(Fault.RATE_LIMITED, 7.0)
        for target in ("first", "second"):
            await two.is_in(State.THROTTLED, target)
            held = await two.board.enter(target)
            assert isinstance(held, Held)
            assert 0.0 < held.wait_seconds <= 7.5
        assert two.state("third") == State.CLOSED
        assert one.heard.of("target_alarm") == []


async def test_a_probe_that_meets_a_rate_limit_makes_a_pause_of_that_length_for_all(redis_url: str) -> None:
    async with nodes(redis_url, 2, QUICK) as (one, two):
        await one.fail()
        await two.is_in(State.OPEN)
        await one.pause_over()
        (await one.enter()).failed(Fault.RATE_LIMITED, 30.0)
        await two.until(lambda: two.state() == State.OPEN and two.board.wait_seconds("first") > 25.0)
        assert two.board.target_states()[0].probes == 0, "its lease is free"
        assert isinstance(await two.board.enter("first"), Held)


async def test_a_rate_limit_told_late_prolongs_a_pause_for_all(redis_url: str) -> None:
    async with nodes(redis_url, 2) as (one, two):
        earlier = await one.enter()
        await one.fail()
        await two.is_in(State.OPEN)
        earlier.failed(Fault.RATE_LIMITED, 600.0)
        await two.until(lambda: two.board.wait_seconds("first") > 500.0)
        assert two.state() == State.OPEN


async def test_a_probe_is_late_when_its_call_would_outlive_its_lease(redis_url: str) -> None:
    async with nodes(redis_url, 1, QUICK, margin=0.1, silence=30.0) as (node,):
        ordinary = await node.enter()
        await node.fail()
        await node.pause_over()
        probe = await node.enter()
        assert not probe.late()
        await node.until(probe.late)
        assert not ordinary.late(), "it has no lease to outlive"


async def test_a_short_rate_limit_ends_without_a_probe(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (node,):
        (await node.enter()).failed(Fault.RATE_LIMITED, 0.05)
        await node.pause_over()
        assert node.state() == State.CLOSED
        assert await node.enter()


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.NOT_FOUND])
async def test_a_refused_credential_opens_at_once_and_raises_an_alarm(redis_url: str, fault: Fault) -> None:
    async with nodes(redis_url, 2) as (one, two):
        (await one.enter()).failed(fault, None)
        assert one.state() == State.OPEN
        await two.is_in(State.OPEN)
        assert one.heard.of("target_alarm") == [("first", fault.value)]
        assert two.heard.of("target_alarm") == []


@pytest.mark.parametrize("fault", [Fault.REJECTED, Fault.CONTEXT_LENGTH, Fault.CONTENT_FILTER])
async def test_requests_at_fault_and_cancelled_calls_do_not_count(redis_url: str, fault: Fault) -> None:
    async with nodes(redis_url, 1) as (node,):
        await node.fail(fault=fault, times=50)
        for _ in range(50):
            (await node.enter()).void()
        assert node.state() == State.CLOSED
        assert node.board.target_states()[0].calls == 0


async def test_hedged_calls_count_as_slow_only_if_they_were(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (node,):
        for silent in (1.0, 11.0):
            (await node.enter()).void(silent)
        assert node.board.target_states()[0].slow == 1


async def test_a_lost_notification_is_made_up_for(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (node,), redis.asyncio.from_url(redis_url) as client:
        now = node.board.now()
        condition = Condition(State.OPEN, now, now + 60.0, 1, "server_error")
        await client.hset(breaker("first"), mapping={"v": 41, "c": pack(condition)})
        await node.is_in(State.OPEN)
        assert node.board.target_states()[0].why == "server_error"


async def test_a_copy_that_is_behind_loses_its_compare_and_set(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (node,), redis.asyncio.from_url(redis_url) as client:
        now = node.board.now()
        barred = Condition(State.OPEN, now, now + 1000.0, 3, "unauthorized")
        await client.hset(breaker("first"), mapping={"v": 7, "c": pack(barred)})
        await node.fail()
        await node.until(lambda: node.board.target_states()[0].why == "unauthorized")
        assert unpack(await client.hget(breaker("first"), "c")) == barred


async def test_without_the_store_each_node_goes_on_alone_and_tells_it_later() -> None:
    settings = BreakerSettings(minimum_calls=4, open_seconds=0.4, probes=2)
    with RedisServer(VALKEY) as server:
        async with nodes(server.url, 2, settings) as (one, two):
            server.kill()
            await one.fail()
            assert one.state() == State.OPEN
            await one.pause_over()
            asked = [await one.board.enter("first") for _ in range(5)]
            assert sum(not isinstance(answer, Held) for answer in asked) == settings.probes
            (probe, *_) = [answer for answer in asked if not isinstance(answer, Held)]
            probe.failed(Fault.REFUSED, 600.0)
            assert one.board.wait_seconds("first") > 500
            assert two.state() == State.CLOSED
            server.start()
            await two.until(lambda: two.state() == State.OPEN, 15.0)
            assert two.board.wait_seconds("first") > 500


def test_conditions_survive_packing() -> None:
    condition = Condition(State.HALF_OPEN, 1.25, 2.5, 3, "slow", (Lease("a", 7.125), Lease("b", 8.0)))
    assert unpack(pack(condition)) == condition
    assert unpack(b"") == Condition()


def test_targets_share_a_credential_only_if_they_have_one() -> None:
    one = TargetSpec("one", "openai", "m", "http://a/v1", api_key="k")
    assert (
        Watched.of(one).credential
        == Watched.of(TargetSpec("two", "openai", "n", "http://a/v1", api_key="k")).credential
    )
    assert (
        Watched.of(one).credential
        != Watched.of(TargetSpec("two", "openai", "m", "http://b/v1", api_key="k")).credential
    )
    free = Watched.of(TargetSpec("one", "openai", "m", "http://a/v1"))
    assert free.credential != Watched.of(TargetSpec("two", "openai", "m", "http://a/v1")).credential
