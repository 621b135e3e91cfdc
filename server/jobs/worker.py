"""The part of a node that runs items of jobs, beside the messages of people who wait and behind them.

Any node may run any item. A job that has something left to do is on one list; a node with room looks at the job that
was looked at longest ago, takes some items for a while (a lease), and asks for their messages. A node that dies stops
renewing its leases, and the items are taken again: by then their messages have a new owner, too, or have ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from protocol.errors import ProtocolError
from server.access.identity import Principal
from server.jobs.book import Book, Result
from server.jobs.item import Item, Later, collect, run
from server.jobs.job import Job, message_id
from server.jobs.pace import Pace
from server.jobs.share import Share, share_of
from server.jobs.told import as_job
from server.jobs.webhooks import GONE, Webhooks
from server.messages.service import Messages, payer_of
from server.quotas.base import Payer
from server.quotas.limits import for_route
from server.store.link import StoreError
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("jobs")

LEASE_SECONDS: Final = 6.0
"""How long a taken item outlives a worker that does not renew it."""
VISIT_MS: Final = 5_000
"""How long nobody else looks at a job that somebody looks at."""
IDLE_SECONDS: Final = 0.5
"""How often a node with room looks for work that it was not told of."""
LISTEN_SECONDS: Final = 0.05
"""How often it is looked at who else is served here, and how much the event loop has to do."""
RETRY_SECONDS: Final = 0.5
"""Until a step is repeated that Redis did not answer."""
MISSING_SECONDS: Final = 60.0
"""How long a listed job may be without a record before it is struck off: it may be in the making."""
SHARE_MS: Final = 200
"""When to look again after taking all that a user's limits allow: by then what was begun is counted."""
LOOK_AGAIN_MS: Final = 300_000
"""Longest wait until a job that waits is looked at again."""
COUNT_SECONDS: Final = 5.0
COUNTED_JOBS: Final = 1_000
"""How often, and of how many open jobs, the waiting items are counted for the metrics."""
HOOK_LEASE_MS: Final = 60_000
"""How long nobody else delivers a webhook that somebody delivers."""
HOOKS_AT_ONCE: Final = 16
CLOSE_SECONDS: Final = 5.0


class Watch(Protocol):
    """What is told of jobs, for metrics."""

    def jobs_waiting(self, jobs: int, items: int) -> None: ...  # noqa: D102
    def items_running(self, count: int) -> None: ...  # noqa: D102
    def item_ended(self, outcome: str) -> None: ...  # noqa: D102
    def item_put_off(self, why: str) -> None: ...  # noqa: D102
    def job_ended(self, status: str) -> None: ...  # noqa: D102
    def webhook_tried(self, outcome: str) -> None: ...  # noqa: D102


class Allowance(Protocol):
    """What a worker asks of quotas."""

    async def view(self, payer: Payer) -> list[dict[str, Any]]:
        """See `server.quotas.service.Quotas.view`."""
        ...


@dataclass(slots=True)
class Held:
    """The items of one job that this node runs."""

    who: Principal
    job: str
    tasks: dict[int, asyncio.Task[Any]]
    stop: str = ""


class Worker:
    """See the module."""

    def __init__(
        self,
        book: Book,
        messages: Messages,
        quotas: Allowance,
        webhooks: Webhooks,
        watch: Watch,
        pace: Pace,
        quota_reserve: float,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.book = book
        self.messages = messages
        self.quotas = quotas
        self.webhooks = webhooks
        self.pace = pace
        self._watch = watch
        self._reserve = quota_reserve
        self._lease_ms = round(lease_seconds * 1000)
        self._held: dict[str, Held] = {}
        self._parked: dict[str, float] = {}
        """Job → until when it waits for a quota, a target or the store, by the loop's clock."""
        self._missing: dict[str, float] = {}
        """Listed job without a record → since when."""
        self._hooks: set[str] = set()
        self._something = asyncio.Event()
        self._owner = TaskOwner("jobs")

    @property
    def running(self) -> int:
        """How many items run here."""
        return sum(len(held.tasks) for held in self._held.values())

    def start(self) -> None:
        """Begin to look for work; nothing if this node is to run no items."""
        self._owner.start(self._count(), "count")
        if self.pace.most:
            self._owner.start(self._run(), "run")
            self._owner.start(self._renew(), "leases")
            self._owner.start(self._listen(), "listen")

    def wake(self) -> None:
        """There may be work."""
        self._something.set()

    async def drain(self) -> None:
        """Begin nothing more and give back what is held: others go on with it at once.

        The messages of the items are the keeper's: they end here, or are handed over like all others.
        """
        await self._owner.close()
        held, self._held = self._held, {}
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for tag, items in held.items():
                    if items.tasks:
                        await self.book.give_back(tag, list(items.tasks))
                        await self.book.schedule(tag, 0, if_listed=True)
        except (StoreError, TimeoutError):
            log.info("items_not_given_back")  # their leases end

    async def close(self) -> None:
        """Stop. What was taken is taken again by others once its lease ends."""
        await self._owner.close()
        await self.webhooks.close()

    # --- finding work ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._something.clear()
            try:
                while (room := self._room()) > 0 and (tag := await self.book.due(VISIT_MS)) is not None:
                    await self._visit(tag, room)
                pause = self.pace.wait(loop.time()) or IDLE_SECONDS
            except (StoreError, TimeoutError) as error:
                log.info("work_not_found", error=str(error))
                pause = RETRY_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._something.wait()
            except TimeoutError:
                pass

    def _room(self) -> int:
        now = asyncio.get_running_loop().time()
        self.pace.people(now, self.messages.keeper.people)
        return self.pace.room(now, self.running)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked, before = loop.time(), time.thread_time()
            await asyncio.sleep(LISTEN_SECONDS)
            now, took = loop.time(), time.thread_time() - before
            self.pace.turned(now, now - asked - LISTEN_SECONDS, now - asked, took)
            self.pace.people(now, self.messages.keeper.people)

    async def _visit(self, tag: str, room: int) -> None:
        """Look at a job: take some of it, or see it off."""
        now = asyncio.get_running_loop().time()
        job = await self.book.job(tag)
        if job is None:
            if now - self._missing.setdefault(tag, now) > MISSING_SECONDS:
                del self._missing[tag]
                await self.book.strike_off(tag)
            return
        self._missing.pop(tag, None)
        if job.over:
            await self._see_off(job)
            return
        again_ms = 0
        if not job.stop and (left_ms := job.deadline_ms - round(time.time() * 1000)) > 0:
            share = await self._share(job, now)
            if share.wait_ms:
                await self.book.schedule(tag, min(share.wait_ms, left_ms, LOOK_AGAIN_MS), if_listed=True)
                return
            if share.items < room:
                room, again_ms = share.items, SHARE_MS
        taken = await self.book.take(tag, room, self._lease_ms)
        if taken == "gone" or taken == "over":
            await self.book.schedule(tag, 0, if_listed=True)
            return
        for index, data in taken.items:
            self._begin(job, index, data, taken.stop)
        await self.book.schedule(tag, again_ms if len(taken.items) == room else taken.wait_ms, if_listed=True)

    async def _share(self, job: Job, now: float) -> Share:
        """What its user's limits allow the job, and how long it has to wait for that, or for what it was refused."""
        parked = self._parked.get(job.tag, 0.0) - now
        if parked > 0:
            return Share(0, round(parked * 1000) + 1)
        self._parked.pop(job.tag, None)
        return share_of(for_route(await self.quotas.view(payer_of(job.who)), ""), self._reserve)

    # --- items -------------------------------------------------------------------------------------------------------

    def _begin(self, job: Job, index: int, data: bytes, stop: str) -> None:
        held = self._held.setdefault(job.tag, Held(job.who, job.id, {}))
        if index in held.tasks:
            return  # its lease ended while this node was paused, and it was taken here again
        held.stop = stop or held.stop
        self.pace.began(asyncio.get_running_loop().time())
        held.tasks[index] = self._owner.start(self._item(job, index, data, held), message_id(job.id, index))
        self._watch.items_running(self.running)

    async def _item(self, job: Job, index: int, data: bytes, held: Held) -> None:
        given_up = True
        try:
            await self._keep(job, index, await self._outcome(job, index, data, held))
        except asyncio.CancelledError:
            given_up = False  # `drain` gives it back
            raise
        finally:
            if given_up:
                self._let_go(job.tag, index, held)

    async def _outcome(self, job: Job, index: int, data: bytes, held: Held) -> Result | Later:
        if not data:
            return Result("")  # Redis lost the item: there is nothing to be asked
        item = Item.of(job, index, data)
        if held.stop:
            return await collect(self.messages, item, held.stop)
        return await run(self.messages, item, lambda: held.stop != "")

    def _let_go(self, tag: str, index: int, held: Held) -> None:
        held.tasks.pop(index, None)
        if not held.tasks and self._held.get(tag) is held:
            del self._held[tag]
        self._watch.items_running(self.running)
        self.wake()

    async def _keep(self, job: Job, index: int, ended: Result | Later) -> None:
        """Write down what became of an item, as often as it takes."""
        while True:
            try:
                if isinstance(ended, Later):
                    await self._put_off(job, index, ended)
                elif (status := await self.book.record(job.tag, index, ended)) is not None:
                    self._watch.job_ended(status)
                    log.info("job_ended", job=job.id, status=status)
                    await self.book.schedule(job.tag, 0, if_listed=True)
                break
            except (StoreError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
        if isinstance(ended, Result):
            self._watch.item_ended(ended.outcome or "not_begun")

    async def _put_off(self, job: Job, index: int, later: Later) -> None:
        self._watch.item_put_off("job" if later.whole_job else "item")
        if later.whole_job:
            wait_ms = min(later.after_ms, LOOK_AGAIN_MS)  # limits may be raised meanwhile
            until = asyncio.get_running_loop().time() + wait_ms / 1000
            self._parked[job.tag] = max(until, self._parked.get(job.tag, 0.0))
            await self.book.schedule(job.tag, wait_ms, if_listed=True)
        await self.book.give_back(job.tag, [index], 0 if later.whole_job else later.after_ms)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            for tag, held in list(self._held.items()):
                try:
                    stop = await self.book.renew(tag, list(held.tasks), self._lease_ms)
                    if stop:
                        await self._stop(held, stop)
                except (StoreError, TimeoutError) as error:
                    log.info("items_not_renewed", error=str(error))

    async def _stop(self, held: Held, stop: str) -> None:
        """The job was stopped: end what runs, unless only its time is over."""
        held.stop = stop
        if stop == "expired":
            return
        for index in list(held.tasks):
            try:
                await self.messages.cancel(held.who, message_id(held.job, index))
            except ProtocolError as error:
                log.debug("item_not_cancelled", code=error.code)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _see_off(self, job: Job) -> None:
        """A job that has ended: tell who wants to know; then nothing is left to do."""
        if job.webhook is None or job.webhook.state != "pending":
            await self.book.strike_off(job.tag)
        elif len(self._hooks) >= HOOKS_AT_ONCE:
            await self.book.schedule(job.tag, 1000, if_listed=True)
        elif job.tag not in self._hooks:
            await self.book.schedule(job.tag, HOOK_LEASE_MS, if_listed=True)
            self._hooks.add(job.tag)
            self._owner.start(self._tell(job, job.webhook.url), f"webhook of {job.id}")

    async def _tell(self, job: Job, url: str) -> None:
        try:
            tries = await self.book.hook_tried(job)
            payload = webhook_payload(job)
            status = await self.webhooks.deliver(job.who.tenant, url, job.id, int(time.time()), payload)
            again_ms = self.webhooks.again_after_ms(tries)
            if status is not None and 200 <= status < 300:
                await self._told(job, "delivered")
            elif status == GONE or again_ms is None:
                log.warning("webhook_given_up", job=job.id, tries=tries, status=status)
                await self._told(job, "given_up")
            else:
                self._watch.webhook_tried("failed")
                await self.book.schedule(job.tag, again_ms, if_listed=True)
        except (StoreError, TimeoutError) as error:
            log.info("webhook_put_off", job=job.id, error=str(error))  # it is looked at again when its lease ends
        finally:
            self._hooks.discard(job.tag)

    async def _told(self, job: Job, state: str) -> None:
        self._watch.webhook_tried(state)
        await self.book.hook_settled(job, state)
        await self.book.strike_off(job.tag)

    async def _count(self) -> None:
        while True:
            try:
                self._watch.jobs_waiting(*await self.book.waiting(COUNTED_JOBS))
            except (StoreError, TimeoutError):
                log.debug("jobs_not_counted")
            await asyncio.sleep(COUNT_SECONDS)


def webhook_payload(job: Job) -> Mapping[str, Any]:
    """What is told of the end: the job as `GET /v1/jobs/{id}` tells it. Pure."""
    assert job.ended_ms is not None
    ended = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(job.ended_ms // 1000)) + f".{job.ended_ms % 1000:03d}Z"
    return {"type": f"job.{job.status}", "timestamp": ended, "data": as_job(job)}
