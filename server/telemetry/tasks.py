"""Who owns a task: every `asyncio` task of the server is made by a `TaskOwner`, which waits for it or ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger("tasks")


class TaskOwner:
    """Owns tasks that outlive the call that starts them.

    A task that dies of an exception is logged as a defect; the others go on. `close` cancels what still runs and
    waits for it. Use `asyncio.TaskGroup` where the tasks end with the block that starts them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in a task of this owner. Raises `RuntimeError` once closed."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self.name} is closed")
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_died", task=task.get_name(), exc_info=error)

    async def wait(self) -> None:
        """Wait until every task has ended by itself."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what still runs and wait for it. Idempotent."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await self.wait()
