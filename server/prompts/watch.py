"""Takes what is released while a node serves: a folder is read anew when its lock changes.

Only the lock is looked at, since a released version never changes and a draft serves nobody. A folder that cannot be
served, as one that is half copied, changes nothing: the node goes on with what it has, says why, and looks again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import structlog

from server.prompts import lock
from server.prompts.registry import BadRegistry
from server.prompts.service import Prompts
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("prompts")

LOOK_SECONDS: Final = 2.0
"""How often the lock is looked at."""

Stamp = tuple[int, int, int]


class Watch:
    """See the module. `start`, `close`."""

    def __init__(self, prompts: Prompts, seconds: float = LOOK_SECONDS) -> None:
        self.prompts = prompts
        self._seconds = seconds
        self._owner = TaskOwner("prompts")

    def start(self) -> None:
        """Begin to look; nothing if there is no folder."""
        folder = self.prompts.registry.folder
        if folder is not None:
            self._owner.start(self._look(folder), "lock")

    async def _look(self, folder: Path) -> None:
        taken, told = None, ""
        while True:
            stamp = await asyncio.to_thread(_stamp, folder)
            if stamp != taken:
                try:
                    fresh = await asyncio.to_thread(self.prompts.read_again)
                except BadRegistry as error:
                    if str(error) != told:
                        told = str(error)
                        log.error("prompts_not_read", problems=error.problems)
                else:
                    taken, told = stamp, ""
                    if fresh:
                        log.info("prompts_read", new=fresh)
            await asyncio.sleep(self._seconds)

    async def close(self) -> None:
        """Stop looking."""
        await self._owner.close()


def _stamp(folder: Path) -> Stamp | None:
    """What changes with the lock, also where the folder is a link that is moved; None: there is none."""
    try:
        found = (folder / lock.LOCK_NAME).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
