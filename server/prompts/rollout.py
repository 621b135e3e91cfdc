"""Shares: which per cent of users each version is for, the same on all nodes at once.

They lie in Redis, not in the folder of prompts: a rollback has to hold on every node within moments, however long a
deployment takes. A node reads them at its start, whenever one is set, and every two seconds in case it did not hear of
it; while Redis is away it keeps what it knows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from server.prompts.prompt import Prompt
from server.store.keys import PROMPT_AUDIT, PROMPT_CHANNEL, PROMPT_SHARES
from server.store.link import StoreError
from server.store.store import Script, Store
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("prompts")

SET_SHARE: Final = Script.load(Path(__file__).parent / "lua" / "set_share_v1.lua")
ALL: Final = (SET_SHARE,)
POLL_SECONDS: Final = 2.0
"""How often a node reads the shares, in case a notification was lost."""
READ_SECONDS: Final = 5.0
AUDIT_STEPS: Final = 10_000
"""About how many steps the audit log keeps."""


class Shares:
    """What was set by `tidewire prompts rollout`, as this process knows it; else what the prompt's file says."""

    def __init__(self, known: Mapping[str, float] | None = None) -> None:
        self.known = dict(known or {})
        """`name@version` → per cent."""

    def of(self, prompt: Prompt) -> float:
        """The share of a version."""
        return self.known.get(prompt.id, prompt.declared.rollout_percent)


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the audit log."""

    prompt: str
    """`name@version`"""
    before: float
    after: float
    who: str
    what: str
    """`rollout` or `rollback`"""
    at: float
    """Unix seconds."""


async def read_shares(store: Store) -> dict[str, float]:
    """What was set. Raises `StoreError` or `TimeoutError`."""
    flat = await store.call(PROMPT_SHARES, "HGETALL", PROMPT_SHARES, seconds=READ_SECONDS)
    return {flat[i].decode(): float(flat[i + 1]) for i in range(0, len(flat), 2)}


async def set_share(store: Store, prompt: Prompt, percent: float, who: str, what: str) -> Step:
    """Set a share for all nodes. Raises `StoreError` or `TimeoutError`."""
    now = time.time()
    keys = [PROMPT_SHARES, PROMPT_AUDIT, PROMPT_CHANNEL]
    args = [prompt.id, _number(percent), _number(prompt.declared.rollout_percent), who, what, repr(now), AUDIT_STEPS]
    before = await store.run(SET_SHARE, keys, args, seconds=READ_SECONDS)
    return Step(prompt.id, float(before), percent, who, what, now)


async def read_audit(store: Store, name: str | None, count: int) -> list[Step]:
    """The newest steps, oldest first; of one prompt, or of all. Raises `StoreError` or `TimeoutError`."""
    entries = await store.call(PROMPT_AUDIT, "XREVRANGE", PROMPT_AUDIT, "+", "-", seconds=READ_SECONDS)
    steps = [_step(fields) for _, fields in entries]
    wanted = [step for step in steps if name is None or step.prompt.partition("@")[0] == name]
    return wanted[:count][::-1]


def _step(flat: list[bytes]) -> Step:
    found: dict[str, Any] = {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
    return Step(
        found["prompt"], float(found["from"]), float(found["to"]), found["who"], found["what"], float(found["at"])
    )


def _number(percent: float) -> str:
    return f"{percent:g}"


class Rollouts:
    """Keeps a node's `Shares` up to date."""

    def __init__(self, store: Store, shares: Shares) -> None:
        self.store = store
        self.shares = shares
        self._changed = asyncio.Event()
        self._owner = TaskOwner("rollouts")

    async def start(self) -> None:
        """Read what is set, then keep looking. Raises `StoreError` or `TimeoutError`."""
        self.shares.known = await read_shares(self.store)
        self._owner.start(self._look(), "shares")

    def wake(self) -> None:
        """Something was set: look now."""
        self._changed.set()

    async def _look(self) -> None:
        while True:
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                self._take(await read_shares(self.store))
            except (StoreError, TimeoutError):
                continue  # what is known stays true until Redis says otherwise

    def _take(self, found: dict[str, float]) -> None:
        for prompt, percent in found.items():
            if self.shares.known.get(prompt) != percent:
                log.info("prompt_share", prompt=prompt, percent=percent)
        self.shares.known = found

    async def close(self) -> None:
        """Stop looking."""
        await self._owner.close()
