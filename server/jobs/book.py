"""Jobs as Redis keeps them: everything that is written about a job, and the way to read it back.

Every call raises `StoreError` or `TimeoutError` where Redis does not answer; each may be repeated.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from server.access.identity import Principal
from server.jobs.job import END_STATES, FIELDS, Job, job_of
from server.jobs.scripts import CANCEL, CREATE, DUE, GIVE_BACK, RECORD, RENEW, RESULTS, SCHEDULE, TAKE
from server.messages.scripts import CONVERSATION_REGISTER
from server.store.keys import OPEN_JOBS, JobKeys, job_index, user_tag
from server.store.store import Store

STEP_SECONDS: Final = 5.0
UPLOAD_BYTES: Final = 262_144
"""How much of an upload is gathered before it is written."""
UPLOAD_KEPT_MS: Final = 3_600_000
"""How long an upload may take at most; what a broken one left goes by itself."""
FIRST_LOOK_MS: Final = 2_000
"""A job is put on the list before it is made; workers look for it only after this time."""
PAGE_BYTES: Final = 262_144
"""How much of the results one read brings, about."""
PAGE_ITEMS: Final = 500

Outcome = Literal["done", "failed", "cancelled", ""]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a worker got of a job."""

    stop: str
    """`cancelled` or `expired`: these items only have to be brought to their end."""
    wait_ms: int
    """When there may be more."""
    items: list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Result:
    """How an item ended."""

    outcome: Outcome
    line: bytes = b""
    tokens: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Input, output, cached, reasoning."""
    nano_dollars: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the results."""

    job_status: str
    stop: str
    rows: list[tuple[int, bytes, str]]
    """Index, line (empty: the item has no result and will get none), `custom_id` of such an item."""
    next: int | None
    """Where the next page begins."""


class Upload:
    """Items on their way in: nobody sees them until `Book.create` makes a job of them, all at once."""

    def __init__(self, store: Store, keys: JobKeys) -> None:
        self.count = 0
        self.keys = keys.upload(secrets.token_hex(8))
        self._store = store
        self._items: list[Any] = []
        self._names: list[Any] = []
        self._size = 0

    async def add(self, item: bytes, name: str | None) -> None:
        """The next item."""
        self._items += [self.count, item]
        if name is not None:
            self._names += [self.count, name]
        self._size += len(item)
        self.count += 1
        if self._size >= UPLOAD_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what was gathered."""
        for key, values in zip(self.keys, (self._items, self._names), strict=True):
            if values:
                await self._store.call(key, "HSET", key, *values, seconds=STEP_SECONDS)
                await self._store.call(key, "PEXPIRE", key, UPLOAD_KEPT_MS, seconds=STEP_SECONDS)
        self._items, self._names, self._size = [], [], 0

    async def discard(self) -> None:
        """Forget it all."""
        for key in self.keys:
            await self._store.call(key, "DEL", key, seconds=STEP_SECONDS)


class Book:
    """See the module."""

    def __init__(self, store: Store, run_seconds: float, kept_seconds: float, most_per_user: int) -> None:
        self.store = store
        self._run_seconds = run_seconds
        self._kept_seconds = kept_seconds
        self._most = most_per_user

    # --- made and looked at ------------------------------------------------------------------------------------------

    async def create(
        self, who: Principal, job: str, tag: str, upload: Upload, fingerprint: str, webhook: str | None
    ) -> Literal["new", "have", "mismatch", "lost", "too_many"]:
        """Make the job of what was uploaded. `lost`: the upload took too long."""
        keys = JobKeys.of(tag)
        await upload.flush()
        user = user_tag(who.tenant, who.kind, who.user)
        known = await self.store.call(keys.record, "EXISTS", keys.record, seconds=STEP_SECONDS)
        if not known:
            if not await self._list(user, job):
                await upload.discard()
                return "too_many"
            await self.schedule(tag, FIRST_LOOK_MS)
        fields = ["id", job, "tenant", who.tenant, "kind", who.kind, "user", who.user, "tier", who.tier]
        if webhook is not None:
            fields += ["hook", webhook, "hook_state", "pending"]
        run_ms, kept_ms = round(self._run_seconds * 1000), round(self._kept_seconds * 1000)
        args = [fingerprint, run_ms, kept_ms, upload.count, *fields]
        answer: Any = (await self.store.run(CREATE, [*keys.all, *upload.keys], args, STEP_SECONDS)).decode()
        if answer in ("new", "have"):
            await self.schedule(tag, 0)
        return answer  # type: ignore[no-any-return]

    async def _list(self, user: str, job: str) -> bool:
        """Put the job on its user's list; False if there are too many."""
        index = job_index(user)
        now = int((await self.store.call(index, "TIME", seconds=STEP_SECONDS))[0])
        kept = round(self._run_seconds + self._kept_seconds)
        args = [job, now, kept, self._most]
        return bool(await self.store.run(CONVERSATION_REGISTER, [index], args, STEP_SECONDS))

    async def job(self, tag: str) -> Job | None:
        """The job with this tag; None if there is none."""
        record = JobKeys.of(tag).record
        return job_of(tag, await self.store.call(record, "HMGET", record, *FIELDS, seconds=STEP_SECONDS))

    async def listed(self, who: Principal, after: str | None, limit: int) -> list[str]:
        """Ids of a user's jobs, the newest first, after the one that the page before ended with."""
        index = job_index(user_tag(who.tenant, who.kind, who.user))
        first = 0
        if after is not None:
            rank = await self.store.call(index, "ZREVRANK", index, after, seconds=STEP_SECONDS)
            if rank is None:
                return []
            first = rank + 1
        last = first + limit - 1
        found = await self.store.call(index, "ZREVRANGE", index, first, last, seconds=STEP_SECONDS)
        return [job.decode() for job in found]

    async def states(self, job: Job, indices: Sequence[int]) -> list[tuple[str, str | None]]:
        """State and `custom_id` of items."""
        keys, store = job.keys, self.store
        if not indices:
            return []
        ended, names, taken = await asyncio.gather(
            store.call(keys.states, "HMGET", keys.states, *indices, seconds=STEP_SECONDS),
            store.call(keys.names, "HMGET", keys.names, *indices, seconds=STEP_SECONDS),
            store.call(keys.taken, "ZMSCORE", keys.taken, *indices, seconds=STEP_SECONDS),
        )
        rest = "queued" if not job.over else "failed" if job.stop == "expired" else "cancelled"
        return [
            (
                state.decode() if state is not None else "running" if lease is not None and not job.over else rest,
                None if name is None else name.decode(),
            )
            for state, name, lease in zip(ended, names, taken, strict=True)
        ]

    async def results(self, job: Job, first: int) -> Page | None:
        """A page of the results from item `first` on; None if the job is no more."""
        reply = await self.store.run(RESULTS, job.keys.all, [first, PAGE_BYTES, PAGE_ITEMS], STEP_SECONDS)
        if not reply:
            return None
        rows = [(int(reply[i]), reply[i + 1], reply[i + 2].decode()) for i in range(3, len(reply), 3)]
        return Page(reply[0].decode(), reply[1].decode(), rows, int(reply[2]) if reply[2] else None)

    async def inputs(self, job: Job) -> AsyncGenerator[tuple[int, bytes], None]:
        """Index and JSON of every item that has no result yet, in no order, some perhaps twice."""
        key, cursor = job.keys.items, b"0"
        while True:
            cursor, flat = await self.store.call(key, "HSCAN", key, cursor, "COUNT", 100, seconds=STEP_SECONDS)
            for i in range(0, len(flat), 2):
                yield int(flat[i]), flat[i + 1]
            if cursor == b"0":
                return

    async def cancel(self, job: Job) -> list[int]:
        """Begin no item of it any more; the items that are running."""
        reply = await self.store.run(CANCEL, job.keys.all, [], STEP_SECONDS)
        await self.schedule(job.tag, 0, True)
        return [int(index) for index in reply[1:]]

    async def erase(self, job: Job) -> list[int]:
        """Forget a job and all of its results; the items that were running."""
        index = job_index(user_tag(job.who.tenant, job.who.kind, job.who.user))
        running = await self.store.call(job.keys.taken, "ZRANGE", job.keys.taken, 0, -1, seconds=STEP_SECONDS)
        await self.store.call(job.keys.record, "DEL", *job.keys.all, seconds=STEP_SECONDS)
        await self.store.call(index, "ZREM", index, job.id, seconds=STEP_SECONDS)
        await self.strike_off(job.tag)
        return [int(item) for item in running]

    # --- worked at ---------------------------------------------------------------------------------------------------

    async def due(self, visit_ms: int) -> str | None:
        """The tag of the job to look at next; nobody else looks at it for `visit_ms`."""
        tag = await self.store.run(DUE, [OPEN_JOBS], [visit_ms], STEP_SECONDS)
        return None if tag is None else tag.decode()

    async def schedule(self, tag: str, after_ms: int, if_listed: bool = False) -> None:
        """Look at a job (again) after so long."""
        await self.store.run(SCHEDULE, [OPEN_JOBS], [tag, after_ms, int(if_listed)], STEP_SECONDS)

    async def strike_off(self, tag: str) -> None:
        """Nothing is left to do for a job."""
        await self.store.call(OPEN_JOBS, "ZREM", OPEN_JOBS, tag, seconds=STEP_SECONDS)

    async def take(self, tag: str, most: int, lease_ms: int) -> Taken | Literal["gone", "over"]:
        """Take up to `most` items of a job."""
        reply = await self.store.run(TAKE, JobKeys.of(tag).all, [most, lease_ms], STEP_SECONDS)
        if reply[0] != b"open":
            return "gone" if reply[0] == b"gone" else "over"
        items = [(int(reply[i]), reply[i + 1]) for i in range(3, len(reply), 2)]
        return Taken(reply[1].decode(), int(reply[2]), items)

    async def renew(self, tag: str, indices: Sequence[int], lease_ms: int) -> str:
        """Keep items that were taken; why no new one is to be begun, or `gone`, or nothing."""
        reply = await self.store.run(RENEW, JobKeys.of(tag).all, [lease_ms, *indices], STEP_SECONDS)
        return str(reply.decode())

    async def give_back(self, tag: str, indices: Sequence[int], after_ms: int = 0) -> None:
        """Let somebody take these again, after so long."""
        await self.store.run(GIVE_BACK, JobKeys.of(tag).all, [after_ms, *indices], STEP_SECONDS)

    async def record(self, tag: str, index: int, result: Result) -> str | None:
        """Keep a result; the status of the job, once it has ended."""
        nano = "" if result.nano_dollars is None else result.nano_dollars
        args = [index, result.outcome, result.line, *result.tokens, nano]
        reply = await self.store.run(RECORD, JobKeys.of(tag).all, args, STEP_SECONDS)
        status = None if reply is None else reply.decode()
        return status if status in END_STATES else None

    async def waiting(self, most: int) -> tuple[int, int]:
        """Open jobs, and items of (at most so many of) them that nobody has begun."""
        tags = await self.store.call(OPEN_JOBS, "ZRANGE", OPEN_JOBS, 0, most - 1, seconds=STEP_SECONDS)
        records = [JobKeys.of(tag.decode()).record for tag in tags]
        fields = ("total", "next", "status")
        found = await asyncio.gather(
            *(self.store.call(record, "HMGET", record, *fields, seconds=STEP_SECONDS) for record in records)
        )
        live = [(int(total), int(begun)) for total, begun, status in found if status in (b"queued", b"running")]
        return len(live), sum(total - begun for total, begun in live)

    # --- its webhook -------------------------------------------------------------------------------------------------

    async def hook_tried(self, job: Job) -> int:
        """Another delivery is about to be tried; how often that makes."""
        tries: int = await self.store.call(
            job.keys.record, "HINCRBY", job.keys.record, "hook_tries", 1, seconds=STEP_SECONDS
        )
        return tries

    async def hook_settled(self, job: Job, state: str) -> None:
        """It was delivered, or nobody tries any more."""
        await self.store.call(job.keys.record, "HSET", job.keys.record, "hook_state", state, seconds=STEP_SECONDS)
