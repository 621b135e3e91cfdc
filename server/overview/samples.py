"""The samples of all nodes: one capped stream in Redis. A node writes one every `SAMPLE_SECONDS`; any node reads them.

They are for looking at, not for billing: a sample that could not be written is dropped, and what is older than the
window is gone. The ledger has the books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog

from server.store.keys import SAMPLES
from server.store.link import StoreError
from server.store.store import Store
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("overview")

SAMPLE_SECONDS: Final = 2.0
KEPT_SECONDS: Final = 900
"""How far back samples go."""
KEPT_MOST: Final = 20_000
"""About so many are kept, of all nodes together."""
READ_MOST: Final = 2_000
"""Most that one read returns."""
WRITE_SECONDS: Final = 1.0
READ_SECONDS: Final = 2.0


class Recorder:
    """Writes this node's samples."""

    def __init__(self, store: Store, sample: Callable[[], dict[str, Any]]) -> None:
        self._store = store
        self._sample = sample
        self._owner = TaskOwner("overview")

    def start(self) -> None:
        """Begin to write."""
        self._owner.start(self._write_forever(), "samples")

    async def close(self) -> None:
        """Stop. Idempotent."""
        await self._owner.close()

    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            try:
                await self._write(orjson.dumps(self._sample()))
            except (StoreError, TimeoutError) as error:
                log.info("sample_dropped", error=str(error))

    async def _write(self, sample: bytes) -> None:
        await self._store.call(
            SAMPLES, "XADD", SAMPLES, "MAXLEN", "~", KEPT_MOST, "*", "s", sample, seconds=WRITE_SECONDS
        )
        await self._store.call(SAMPLES, "EXPIRE", SAMPLES, KEPT_SECONDS, seconds=WRITE_SECONDS)


async def read(store: Store, after: str | None, seconds: float, now: float) -> list[dict[str, Any]]:
    """The samples after the one with the id `after`, or of the last `seconds`; oldest first, at most `READ_MOST`.

    `now` is Unix time. Raises `StoreError`, `TimeoutError`.
    """
    since = f"({after}" if after is not None else str(max(0, round((now - seconds) * 1000)))
    found = await store.call(SAMPLES, "XRANGE", SAMPLES, since, "+", "COUNT", READ_MOST, seconds=READ_SECONDS)
    return [{"id": key.decode(), **orjson.loads(fields[1])} for key, fields in found]
