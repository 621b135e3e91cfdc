"""From a settlement in Redis to one row in a database, whatever stands still or dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from server.ledger import scripts
from server.ledger.book import Book, Conflict
from server.ledger.drain import LEASE_MS, SETTLE_MS, Drain
from server.ledger.errors import LedgerRefused, LedgerUnavailable
from server.ledger.record import Row
from server.ledger.scripts import LEASE
from server.store.keys import LEDGER_LEASE, usage_stream
from server.store.store import Store
from tests.usage_records import account, attempt, rows


class Noting:
    """What the drain tells for metrics."""

    def __init__(self) -> None:
        self.records = 0
        self.lag = 0.0
        self.trouble: dict[str, int] = {}

    def ledger_drained(self, records: int, lag_seconds: float) -> None:
        self.records += records
        self.lag = lag_seconds

    def ledger_trouble(self, kind: str, count: int = 1) -> None:
        self.trouble[kind] = self.trouble.get(kind, 0) + count


class Wayward:
    """A book that does what a database at its worst does."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.down = False
        self.dies_after_commit = False
        self.refuses = ""

    def insert(self, some: Iterable[Row]) -> list[Conflict]:
        given = list(some)
        if self.down:
            raise LedgerUnavailable("it is down")
        if any(row["message_id"] == self.refuses for row in given):
            raise LedgerRefused("out of range")
        conflicts = self.book.insert(given)
        if self.dies_after_commit:
            raise LedgerUnavailable("the connection was lost after the commit")
        return conflicts


class Shelf:
    """Lends the wayward book out, in a thread."""

    opened = True

    def __init__(self, book: Wayward) -> None:
        self.book = book

    async def write(self, work: Any) -> Any:
        return await asyncio.to_thread(work, self.book)


class Bench:
    def __init__(self, store: Store, book: Book) -> None:
        self.store = store
        self.book = book
        self.wayward = Wayward(book)
        self.watch = Noting()
        self.drain = self.another("n1")

    def another(self, node: str) -> Drain:
        shelf: Any = Shelf(self.wayward)
        return Drain(self.store, node, shelf, self.watch)

    async def put(self, message_id: str, *attempts: dict[str, Any], stream: int = 7) -> None:
        await self.put_raw(account(message_id).entry(attempts or [attempt()]), stream)

    async def put_raw(self, data: bytes, stream: int = 7) -> None:
        key = usage_stream(f"q{stream}")
        await self.store.call(key, "XADD", key, "*", "e", data)

    async def waiting(self, stream: int = 7, suffix: bytes = b"") -> int:
        key = usage_stream(f"q{stream}") + suffix
        return int(await self.store.call(key, "XLEN", key))

    async def round(self, drain: Drain | None = None) -> None:
        await (drain or self.drain).round(None, [usage_stream(f"q{n}") for n in range(256)])

    def ids(self) -> list[str]:
        return sorted(row["message_id"] for row in self.book.rows())


@pytest.fixture
async def bench(valkey_url: str, book: Book) -> AsyncIterator[Bench]:
    store = await Store.connect(valkey_url, scripts.ALL)
    yield Bench(store, book)
    await store.close()


async def test_what_is_committed_leaves_the_stream(bench: Bench) -> None:
    for number in range(5):
        await bench.put(f"m{number}", attempt(1, payer="operator"), attempt(2), stream=50 * number)
    await bench.round()
    assert len(bench.book.rows()) == 10
    assert [await bench.waiting(50 * number) for number in range(5)] == [0] * 5
    assert (bench.watch.records, bench.watch.trouble) == (10, {})


async def test_a_database_that_is_down_loses_nothing(bench: Bench) -> None:
    bench.wayward.down = True
    await bench.put("m1")
    await bench.round()
    assert (bench.ids(), await bench.waiting(), bench.watch.trouble) == ([], 1, {"unavailable": 1})
    await bench.put("m2")
    bench.wayward.down = False
    await bench.round()
    assert (bench.ids(), await bench.waiting()) == (["m1", "m2"], 0)


async def test_dying_between_commit_and_acknowledgement_leaves_one_row(bench: Bench) -> None:
    bench.wayward.dies_after_commit = True
    await bench.put("m1")
    await bench.round()
    assert (bench.ids(), await bench.waiting()) == (["m1"], 1)
    bench.wayward.dies_after_commit = False
    await bench.round(bench.another("n2"))
    assert (bench.ids(), await bench.waiting(), bench.watch.trouble) == (["m1"], 0, {"unavailable": 1})


async def test_other_content_under_one_key_raises_an_alarm(bench: Bench) -> None:
    await bench.put("m1")
    await bench.round()
    await bench.put("m1", attempt(output_tokens=99))
    await bench.put("m2")
    await bench.round()
    assert (bench.ids(), bench.watch.trouble) == (["m1", "m2"], {"conflict": 1})
    assert bench.book.rows()[0]["output_tokens"] == 20
    assert await bench.waiting() == 0


async def test_what_cannot_be_booked_is_set_aside_and_delays_nothing(bench: Bench) -> None:
    bench.wayward.refuses = "poison"
    for message_id in ("m1", "poison", "m2"):
        await bench.put(message_id)
    for data in (b"", b"\xc1", b"\x91\x02", account().entry([{"attempt": 1}])):
        await bench.put_raw(data)
    await bench.round()
    assert bench.ids() == ["m1", "m2"]
    assert bench.watch.trouble == {"malformed": 4, "refused": 1}
    assert (await bench.waiting(), await bench.waiting(suffix=b":aside")) == (0, 5)


async def test_fresh_entries_wait_until_redis_has_them_on_disk(bench: Bench) -> None:
    await bench.put("m1")
    _, now = await bench.store.run(LEASE, [LEDGER_LEASE], ["n1", LEASE_MS])
    await bench.drain.round(int(now) - SETTLE_MS, [usage_stream("q7")], int(now))
    assert (bench.ids(), await bench.waiting()) == ([], 1)
    await bench.drain.round(int(now) + 1, [usage_stream("q7")], int(now) + 3000)
    assert bench.ids() == ["m1"]
    assert 2.5 < bench.watch.lag < 3.5


async def test_one_node_drains_and_another_follows_it(bench: Bench) -> None:
    first, second = bench.another("n1"), bench.another("n2")
    assert await first._lease() is not None
    assert await second._lease() is None
    assert await first._lease() is not None
    await first.close()
    assert await second._lease() is not None
    await second.close()


async def test_by_itself_it_drains_every_stream(bench: Bench) -> None:
    drains = [bench.another("n1"), bench.another("n2")]
    for stream in (0, 63, 64, 255):
        await bench.put(f"m{stream}", stream=stream)
    for drain in drains:
        drain.start()
    async with asyncio.timeout(20):
        while len(bench.ids()) < 4:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.1)
    await bench.put("late", stream=9)
    for drain in drains:
        await drain.close()
    assert bench.ids() == ["m0", "m255", "m63", "m64"]
    assert await bench.waiting(9) == 1, "what Redis may yet lose was booked at the end"
    assert rows()[0]["attempt"] == 1
