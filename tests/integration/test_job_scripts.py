"""The scripts of jobs on Valkey and on Redis: who has an item, which result counts, when a job is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.access.identity import Principal
from server.jobs import scripts
from server.jobs.book import Book, Result, Taken, Upload
from server.jobs.job import Job, job_id, tag_of
from server.messages import scripts as message_scripts
from server.store.keys import OPEN_JOBS, JobKeys
from server.store.store import Store

WHO = Principal("acme", "sub", "anna", "free", frozenset({"jobs"}), None)
LEASE_MS = 60_000
DONE = Result("done", b'{"n":1}', (3, 5, 1, 2), 40)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    connected = await Store.connect(redis_url, (*scripts.ALL, *message_scripts.ALL))
    yield connected
    await connected.close()


async def make(book: Book, count: int, key: str = "k", fingerprint: str = "f") -> str:
    """A job of `count` items; what `create` said, if it is not a new one."""
    job = job_id(key)
    tag = tag_of(WHO, job)
    upload = Upload(book.store, JobKeys.of(tag))
    for number in range(count):
        await upload.add(b"item %d" % number, f"c{number}" if number % 2 else None)
    answer = await book.create(WHO, job, tag, upload, fingerprint, None)
    return tag if answer == "new" else answer


async def look(book: Book, tag: str) -> Job:
    job = await book.job(tag)
    assert job is not None
    return job


async def take(book: Book, tag: str, most: int, lease_ms: int = LEASE_MS) -> list[int]:
    taken = await book.take(tag, most, lease_ms)
    return [index for index, _ in taken.items] if isinstance(taken, Taken) else []


def book_on(store: Store, run_seconds: float = 100.0, most: int = 100) -> Book:
    return Book(store, run_seconds, 50.0, most)


async def test_a_job_is_made_once(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 3)
    assert await make(book, 3) == "have"
    assert await make(book, 2, fingerprint="other") == "mismatch"
    found = await look(book, tag)
    assert (found.total, found.status, found.who.user) == (3, "queued", "anna")
    assert await book.listed(WHO, None, 10) == [found.id]
    (link,) = store.links()
    assert not [key for key in await link.call("KEYS", "*") if key.count(b":") > 2 and b"{j" in key], "uploads left"


async def test_an_upload_that_expired_makes_no_job(store: Store) -> None:
    book = book_on(store)
    tag = tag_of(WHO, job_id("k"))
    upload = Upload(store, JobKeys.of(tag))
    await upload.add(b"item", None)
    await upload.flush()
    await store.call(upload.keys[0], "DEL", upload.keys[0])
    assert await book.create(WHO, job_id("k"), tag, upload, "f", None) == "lost"
    assert await book.job(tag) is None


async def test_a_user_has_a_bounded_number_of_jobs(store: Store) -> None:
    book = book_on(store, most=2)
    await make(book, 1, "a")
    await make(book, 1, "b")
    assert await make(book, 1, "c") == "too_many"
    assert await make(book, 1, "a") == "have"


async def test_items_are_taken_once_and_again_when_the_lease_ends(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 5)
    assert await take(book, tag, 2) == [0, 1]
    assert await take(book, tag, 2, lease_ms=1) == [2, 3]
    assert (await look(book, tag)).status == "running"
    await asyncio.sleep(0.05)
    assert await take(book, tag, 9) == [2, 3, 4]
    assert await take(book, tag, 9) == []


async def test_a_renewed_item_is_nobody_elses(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 1)
    assert await take(book, tag, 1, lease_ms=200) == [0]
    assert await book.renew(tag, [0], LEASE_MS) == ""
    await asyncio.sleep(0.3)
    assert await take(book, tag, 1) == []


async def test_what_is_given_back_is_taken_when_its_wait_is_over(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 2)
    await take(book, tag, 2)
    await book.give_back(tag, [0], 100)
    await book.give_back(tag, [1])
    taken = await book.take(tag, 5, LEASE_MS)
    assert isinstance(taken, Taken)
    assert [index for index, _ in taken.items] == [1]
    assert 0 < taken.wait_ms <= 100
    await asyncio.sleep(0.15)
    assert await take(book, tag, 5) == [0]


async def test_the_first_result_counts(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 2)
    await take(book, tag, 2)
    assert await book.record(tag, 0, DONE) is None
    assert await book.record(tag, 0, Result("failed", b'{"n":2}', (9, 9, 9, 9), 9)) is None
    assert await book.record(tag, 1, Result("failed", b'{"n":3}', (1, 1, 0, 0))) == "done"
    assert await book.record(tag, 1, DONE) == "done"
    found = await look(book, tag)
    assert (found.done, found.failed, found.cancelled, found.nano_dollars) == (1, 1, 0, 40)
    assert found.usage["output_tokens"] == 6
    page = await book.results(found, 0)
    assert page is not None
    assert [line for _, line, _ in page.rows] == [b'{"n":1}', b'{"n":3}']
    assert await book.take(tag, 5, LEASE_MS) == "over"


async def test_one_item_that_was_stopped_does_not_make_the_job_cancelled(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 2)
    await take(book, tag, 2)
    await book.record(tag, 0, Result("cancelled", b"{}"))
    assert await book.record(tag, 1, DONE) == "done"
    other = await make(book, 1, "other")
    await take(book, other, 1)
    assert await book.record(other, 0, Result("cancelled", b"{}")) == "cancelled"


async def test_a_lost_workers_item_that_ended_late_is_written_once(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 1)
    await take(book, tag, 1, lease_ms=1)
    await asyncio.sleep(0.02)
    assert await take(book, tag, 1) == [0]
    assert await book.record(tag, 0, DONE) == "done"
    assert await book.record(tag, 0, DONE) == "done"
    assert (await look(book, tag)).done == 1


async def test_cancel_ends_at_once_what_nobody_runs(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 4)
    assert await book.cancel(await look(book, tag)) == []
    found = await look(book, tag)
    assert (found.status, found.cancelled) == ("cancelled", 4)
    page = await book.results(found, 0)
    assert page is not None
    assert [(index, line, name) for index, line, name in page.rows] == [
        (0, b"", ""), (1, b"", "c1"), (2, b"", ""), (3, b"", "c3"),
    ]  # fmt: skip


async def test_cancel_waits_for_what_runs_also_at_a_node_that_died(store: Store) -> None:
    book = book_on(store)
    tag = await make(book, 4)
    await take(book, tag, 1)
    await take(book, tag, 1, lease_ms=1)
    await book.record(tag, 0, DONE)
    assert await book.cancel(await look(book, tag)) == [1]
    assert (await look(book, tag)).status == "running"
    await asyncio.sleep(0.02)
    taken = await book.take(tag, 9, LEASE_MS)
    assert isinstance(taken, Taken)
    assert (taken.stop, [index for index, _ in taken.items]) == ("cancelled", [1])
    assert await book.renew(tag, [1], LEASE_MS) == "cancelled"
    assert await book.record(tag, 1, Result("")) == "cancelled"
    found = await look(book, tag)
    assert (found.done, found.cancelled) == (1, 3)


async def test_a_job_whose_time_is_over_begins_nothing(store: Store) -> None:
    book = book_on(store, run_seconds=0.05)
    tag = await make(book, 3)
    await take(book, tag, 1)
    await asyncio.sleep(0.1)
    assert await take(book, tag, 5) == []
    assert (await look(book, tag)).status == "running"
    assert await book.record(tag, 0, DONE) == "failed"
    found = await look(book, tag)
    assert (found.stop, found.done, found.failed) == ("expired", 1, 2)


async def test_jobs_are_looked_at_in_turns(store: Store) -> None:
    book = book_on(store)
    tags = [await make(book, 1, key) for key in "abc"]
    await asyncio.sleep(0.01)
    seen = [await book.due(LEASE_MS) for _ in range(4)]
    assert sorted(tag for tag in seen if tag) == sorted(tags)
    assert seen[3] is None
    await book.schedule(tags[1], 0, if_listed=True)
    assert await book.due(LEASE_MS) == tags[1]
    await book.strike_off(tags[1])
    await book.schedule(tags[1], 0, if_listed=True)
    assert await book.due(LEASE_MS) is None
    assert await store.call(OPEN_JOBS, "ZCARD", OPEN_JOBS) == 2


async def test_everything_goes_after_the_end(store: Store) -> None:
    book = Book(store, 100.0, 0.2, 100)
    tag = await make(book, 2)
    await take(book, tag, 2)
    await book.record(tag, 0, DONE)
    await book.record(tag, 1, DONE)
    await asyncio.sleep(0.4)
    assert await book.job(tag) is None
    (link,) = store.links()
    assert not await link.call("KEYS", f"tw:{{{tag}}}*")
