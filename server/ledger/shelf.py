"""The ledger's database as the event loop sees it: opened by the first who needs it, used from threads of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from server.ledger.book import Book

T = TypeVar("T")

READERS: Final = 2
"""Reports made at once by one process."""
MEMORY_URLS: Final = ("sqlite:///", "sqlite:///:memory:")


class Shelf:
    """One per process. Loading SQL and opening the database happen in a thread, with the first record or report."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._book: Book | None = None
        self._writer = ThreadPoolExecutor(1, "ledger")
        """One: a database sees one writer of this process."""
        shared = url in MEMORY_URLS  # one connection, which must not be used twice at once
        self._readers = self._writer if shared else ThreadPoolExecutor(READERS, "ledger-reports")

    @property
    def opened(self) -> bool:
        """Whether the database is open."""
        return self._book is not None

    async def write(self, work: Callable[[Book], T]) -> T:
        """What `work` makes of the book, in the writer's thread. Raises `LedgerUnavailable` and what it raises."""
        return await self._in(self._writer, work)

    async def read(self, work: Callable[[Book], T]) -> T:
        """The same in a reader's thread."""
        return await self._in(self._readers, work)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[Book], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, lambda: work(self._opened_book()))

    def _opened_book(self) -> Book:
        with self._lock:
            if self._book is None:
                from server.ledger.book import Book

                self._book = Book.open(self._url)
            return self._book

    def close(self) -> None:
        """Let go of the database once what is under way has ended."""
        for threads in {self._writer, self._readers}:
            threads.shutdown(wait=False)
        if self._book is not None:
            threading.Thread(target=self._close_behind, name="ledger-close").start()

    def _close_behind(self) -> None:
        for threads in {self._writer, self._readers}:
            threads.shutdown(wait=True)
        if self._book is not None:
            self._book.close()
