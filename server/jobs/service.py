"""What the doors ask of jobs: make, look at, list, stop; and the worker of this node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from protocol.errors import ProtocolError
from server.access.identity import Principal
from server.config import JobsSettings
from server.jobs.book import Book, Upload
from server.jobs.item import line_without_message
from server.jobs.job import Job, job_id, message_id, tag_of
from server.jobs.pace import Pace
from server.jobs.webhooks import Unwelcome, Webhooks, checked_url
from server.jobs.worker import Allowance, Watch, Worker
from server.messages.service import Messages, unavailable
from server.store.keys import JobKeys
from server.store.link import StoreError

FULL_RETRY_MS: Final = 60_000
"""When to ask again who has too many jobs: old ones go by themselves."""


@dataclass(frozen=True, slots=True)
class ItemState:
    """One row of a job's items."""

    index: int
    message_id: str
    custom_id: str | None
    status: str


class Jobs:
    """See the module."""

    def __init__(
        self, settings: JobsSettings, messages: Messages, quotas: Allowance, webhooks: Webhooks, watch: Watch
    ) -> None:
        self.settings = settings
        self.webhooks = webhooks
        self._messages = messages
        store = messages.means.store
        self.book = Book(store, settings.run_seconds, settings.retention_seconds, settings.max_per_user)
        pace = Pace(settings.concurrency)
        self.worker = Worker(self.book, messages, quotas, webhooks, watch, pace, settings.quota_reserve)

    def start(self) -> None:
        """Begin to run items."""
        self.worker.start()

    async def drain(self) -> None:
        """Begin nothing more; hand over what is held."""
        await self.worker.drain()

    async def close(self) -> None:
        """Stop."""
        await self.worker.close()

    # --- make --------------------------------------------------------------------------------------------------------

    def upload(self, who: Principal, key: str | None) -> NewJob:
        """Begin a job: add items, then `make` it."""
        if self._messages.draining:
            raise ProtocolError("draining", "this node is shutting down; ask again", retry_after_ms=1000)
        return NewJob(self, who, job_id(key))

    def check_webhook(self, who: Principal, url: str) -> None:
        """Raises `Unwelcome` if this server does not call that address for this tenant."""
        checked_url(url, self.webhooks.allow_private)
        if not self.webhooks.signs_for(who.tenant):
            raise Unwelcome("this server has no webhook secret (`jobs.webhook_secret_env`), so it sends none")

    # --- look, stop --------------------------------------------------------------------------------------------------

    async def find(self, who: Principal, job: str) -> Job:
        """The job as it stands. Raises `ProtocolError`: `job_unknown`, `store_unavailable`."""
        try:
            found = await self.book.job(tag_of(who, job))
        except (StoreError, TimeoutError):
            raise unavailable() from None
        if found is None:
            raise unknown(job)
        return found

    async def page(self, who: Principal, after: str | None, limit: int) -> tuple[list[Job], bool]:
        """A page of a user's jobs, the newest first; whether there are more. Raises `store_unavailable`."""
        try:
            ids = await self.book.listed(who, after, limit + 1)
            found = await asyncio.gather(*(self.book.job(tag_of(who, job)) for job in ids[:limit]))
            return [job for job in found if job is not None], len(ids) > limit
        except (StoreError, TimeoutError):
            raise unavailable() from None

    async def items(self, job: Job, first: int, limit: int) -> list[ItemState]:
        """Items from `first` on, each with the id of its message. Raises `store_unavailable`."""
        indices = range(first, min(job.total, first + limit))
        try:
            states = await self.book.states(job, indices)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        return [
            ItemState(index, message_id(job.id, index), name, state)
            for index, (state, name) in zip(indices, states, strict=True)
        ]

    async def results(self, job: Job) -> AsyncGenerator[bytes, None]:
        """The results there are, in the order of the items, some lines at a time. Raises `store_unavailable`."""
        first: int | None = 0
        while first is not None:
            try:
                page = await self.book.results(job, first)
            except (StoreError, TimeoutError):
                raise unavailable() from None
            if page is None:
                raise unknown(job.id)
            lines = [line or line_without_message(job.id, page.stop, i, name or None) for i, line, name in page.rows]
            if lines:
                yield b"\n".join(lines) + b"\n"
            first = page.next

    async def cancel(self, who: Principal, job: str) -> Job:
        """Begin no item any more, and stop those that run. Raises like `find`."""
        found = await self.find(who, job)
        try:
            running = await self.book.cancel(found)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        await self._stop(found, running)
        self.worker.wake()
        return await self.find(who, job)

    async def erase(self, job: Job) -> None:
        """Delete a job and its results, whatever its state; what runs is stopped. Raises `store_unavailable`."""
        try:
            running = await self.book.erase(job)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        await self._stop(job, running)

    async def _stop(self, job: Job, running: list[int]) -> None:
        for index in running:
            try:
                await self._messages.cancel(job.who, message_id(job.id, index))
            except ProtocolError as error:
                if error.code != "message_unknown":  # its worker asks for it just now, and will hear of the stop
                    raise


class NewJob:
    """A job in the making: nobody sees it before `make`, and nothing is left of it without."""

    def __init__(self, jobs: Jobs, who: Principal, job: str) -> None:
        self.id = job
        self._jobs = jobs
        self._who = who
        self._tag = tag_of(who, job)
        self._upload = Upload(jobs.book.store, JobKeys.of(self._tag))

    @property
    def count(self) -> int:
        """How many items it has."""
        return self._upload.count

    async def add(self, item: bytes, custom_id: str | None) -> None:
        """The next item (`server.jobs.item.packed`). Raises `store_unavailable`."""
        try:
            await self._upload.add(item, custom_id)
        except (StoreError, TimeoutError):
            raise unavailable() from None

    async def discard(self) -> None:
        """It is not to be."""
        with contextlib.suppress(StoreError, TimeoutError):  # then it goes by itself
            await self._upload.discard()

    async def make(self, fingerprint: str, webhook: str | None) -> Job:
        """Make it, or find the one that was made of the same upload under the same key.

        Raises `ProtocolError`: `idempotency_mismatch`, `too_many_jobs`, `store_unavailable`.
        """
        try:
            answer = await self._jobs.book.create(self._who, self.id, self._tag, self._upload, fingerprint, webhook)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        if answer == "mismatch":
            raise ProtocolError("idempotency_mismatch", "this Idempotency-Key was used before, for a different job")
        if answer == "too_many":
            most = self._jobs.settings.max_per_user
            raise ProtocolError(
                "too_many_jobs",
                f"at most {most} jobs are kept for a user",
                retry_after_ms=FULL_RETRY_MS,
                details={"limit": most},
            )
        if answer == "lost":
            raise unavailable()
        self._jobs.worker.wake()
        return await self._jobs.find(self._who, self.id)


def unknown(job: str) -> ProtocolError:
    """No such job of this user: the same words whether it is another's, has expired, or never was."""
    return ProtocolError("job_unknown", f"there is no job {job!r}")
