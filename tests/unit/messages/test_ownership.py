"""Who is dead, as one observer judges it; and how what it had open is taken over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.messages.openlist import OpenList
from server.messages.ownership import BEAT_SECONDS, PAUSE_SECONDS, SLOW_READ_SECONDS, Adopt, Observer, Ownership
from server.store.keys import GONE, NODES
from server.store.link import Address, Waiting
from server.store.store import Store
from server.store.topology import SLOTS, ClusterTopology
from tests.simulation.redis import Keyspace
from tests.wire import eventually

TAKEOVER = 3.0
READ = 0.002
DEAD = "dead"
ADDRESSES = [Address(port=port) for port in (1, 2, 3)]


def watch(observer: Observer, counters: dict[str, int], start: float, seconds: float) -> tuple[set[str], float]:
    """Read unchanging counters until somebody is dead, at most for `seconds`."""
    now = start
    while now < start + seconds:
        dead = observer.read(counters, now, now + READ)
        if dead:
            return dead, now
        now += BEAT_SECONDS
    return set(), now


def test_a_counter_that_stands_still_is_a_dead_node() -> None:
    dead, when = watch(Observer(TAKEOVER), {"a": 7}, 100.0, 10.0)
    assert dead == {"a"}
    assert TAKEOVER <= when - 100.0 <= TAKEOVER + 2 * BEAT_SECONDS


def test_a_node_without_a_counter_is_judged_the_same() -> None:
    observer = Observer(TAKEOVER)
    now, dead = 0.0, set()
    while not dead and now < 10:
        dead = observer.read({"a": None}, now, now + READ)
        now += BEAT_SECONDS
    assert dead == {"a"}
    assert now > TAKEOVER


@given(st.lists(st.floats(min_value=0.0, max_value=TAKEOVER - 0.01), min_size=1, max_size=50))
def test_a_counter_that_moves_in_time_never_dies(gaps: list[float]) -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for counter, gap in enumerate(gaps):
        end = now + gap
        while now < end:
            assert not observer.read({"a": counter}, now, now + READ)
            now += BEAT_SECONDS
        now = end


def test_a_pause_of_the_observer_kills_nobody() -> None:
    observer = Observer(TAKEOVER)
    observer.read({"a": 1}, 0.0, READ)
    assert not observer.read({"a": 1}, 30.0, 30.0 + READ), "the pause is the observer's own"
    dead, when = watch(observer, {"a": 1}, 30.0 + BEAT_SECONDS, 10.0)
    assert dead == {"a"}
    assert when - 30.0 >= TAKEOVER


def test_a_slow_read_proves_nothing() -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for _ in range(20):
        assert not observer.read({"a": 1}, now, now + SLOW_READ_SECONDS + 0.01)
        now += SLOW_READ_SECONDS + 0.02


def test_an_error_begins_the_observation_anew() -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for turn in range(40):
        if turn % 8 == 7:
            observer.interrupted()
        assert not observer.read({"a": 1}, now, now + READ)
        now += BEAT_SECONDS


@given(
    st.lists(
        st.tuples(st.floats(0.0, 40.0), st.floats(0.0, 2.0), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_nobody_is_dead_before_an_uninterrupted_takeover_time(steps: list[tuple[float, float, bool]]) -> None:
    """Whatever the readings: a verdict needs `takeover_seconds` of readings that were close, fast and without error."""
    observer = Observer(TAKEOVER)
    now = 0.0
    watched_since: float | None = None
    last_end: float | None = None
    for gap, slowness, error in steps:
        now += gap
        if error:
            observer.interrupted()
            watched_since = last_end = None
        ended = now + slowness
        if slowness > SLOW_READ_SECONDS or (last_end is not None and now - last_end > PAUSE_SECONDS):
            watched_since = None
        dead = observer.read({"a": 1}, now, ended)
        if watched_since is None:
            watched_since = ended
        if dead:
            assert now - watched_since >= TAKEOVER
        last_end = now = ended


def test_a_node_that_left_the_list_is_forgotten() -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for _ in range(8):
        observer.read({"a": 1}, now, now + READ)
        now += BEAT_SECONDS
    observer.read({}, now, now + READ)
    now += BEAT_SECONDS
    assert not observer.read({"a": 1}, now, now + READ), "it is seen for the first time again"


# --- taking over ------------------------------------------------------------------------------------------------------


class Primary(Waiting):
    """A link to a modelled Redis, which answers at once."""

    available = connected = True

    def __init__(self, address: Address, *_: Any) -> None:
        super().__init__(address)
        self.space = Keyspace(time.time)
        self.commands: list[tuple[Any, ...]] = []

    async def ready(self, timeout_seconds: float) -> None:
        """See `Waiting`: at once."""

    async def close(self) -> None:
        """See `Link`."""

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """See `Link`."""
        self.commands.append(command)
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(self.space.execute(*command))
        return answer


class Thirds(ClusterTopology):
    """A cluster of three primaries."""

    async def ask(self) -> list[tuple[int, int, Address]]:
        """See `Topology`."""
        bounds = [SLOTS * number // 3 for number in range(4)]
        return [(bounds[n], bounds[n + 1] - 1, address) for n, address in enumerate(ADDRESSES)]


@asynccontextmanager
async def three_primaries() -> AsyncIterator[Store]:
    store = Store(Thirds([], Address()), (), make_link=Primary)  # type: ignore[arg-type]
    await store.start()
    for key in (NODES, GONE):
        await store.call(key, "SADD", key, DEAD)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def survivor(store: Store, adopt: Adopt) -> AsyncIterator[None]:
    ownership = Ownership(store, "survivor", TAKEOVER, adopt)
    await ownership.start()
    try:
        yield
    finally:
        await ownership.close()


def port_of(store: Store, tag: str) -> int:
    return store.link(b"{%s}" % tag.encode()).address.port


async def test_the_lists_of_a_dead_node_are_read_once_for_all_primaries() -> None:
    async with three_primaries() as store:
        tags = {f"m{number}" for number in range(12)}
        await OpenList(store, DEAD).add(*tags)
        reads: list[int] = []
        adopted: set[str] = set()

        async def adopt(tag: str, _node: str) -> bool:
            asked = [command for link in store.links() for command in link.commands]  # type: ignore[attr-defined]
            reads.append(sum(command[0] == "SMEMBERS" and command[1] not in (NODES, GONE) for command in asked))
            adopted.add(tag)
            return True

        assert {port_of(store, tag) for tag in tags} == {1, 2, 3}
        async with survivor(store, adopt):
            await eventually(lambda: adopted == tags)
        assert reads[: len(tags)] == [len(store.lanes())] * len(tags)


async def test_what_hangs_on_one_primary_holds_up_no_other() -> None:
    async with three_primaries() as store:
        tags = {f"m{number}" for number in range(12)}
        mute = {tag for tag in tags if port_of(store, tag) == 2}
        late = next(f"l{number}" for number in range(99) if port_of(store, f"l{number}") == 1)
        await OpenList(store, DEAD).add(*tags)
        adopted: list[str] = []

        async def adopt(tag: str, _node: str) -> bool:
            adopted.append(tag)
            if tag in mute:
                await asyncio.Event().wait()
            return True

        async with survivor(store, adopt):
            await eventually(lambda: set(adopted) == tags)
            await OpenList(store, DEAD).add(late)  # it was on its way as the node died
            await eventually(lambda: late in adopted)
        assert len(adopted) == len(tags) + 1, "one was taken over twice at once"
