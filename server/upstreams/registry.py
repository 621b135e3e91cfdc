"""From a target's settings to its driver, and the child processes that drivers need.

`LocalProcesses` belongs to the process that supervises: it owns the litellm workers and the embedded model, if any
target needs them. What it learns goes as `Addresses` to each server process, which makes `Parts` of them and builds a
driver per target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.upstreams.base import Driver, TargetSpec
from server.upstreams.embedded import EmbeddedDriver, EmbeddedModel
from server.upstreams.litellm import LitellmClient, LitellmDriver, LitellmPool
from server.upstreams.openai import HttpClient, OpenAIDriver


class MissingPart(Exception):
    """A target needs a process that was not started; a defect of the wiring."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the child processes are reached. Plain values, so that they can be handed to other processes."""

    litellm: tuple[str, ...] = ()
    """Paths of Unix sockets."""
    embedded: str | None = None
    """Base URL."""


@dataclass(slots=True)
class Parts:
    """What the drivers of one server process share. Close it after them."""

    http: HttpClient = field(default_factory=HttpClient)
    litellm: LitellmClient | None = None
    embedded: str | None = None

    @classmethod
    def of(cls, addresses: Addresses) -> Parts:
        """The parts for these addresses. Nothing is connected yet."""
        client = LitellmClient([Path(path) for path in addresses.litellm]) if addresses.litellm else None
        return cls(litellm=client, embedded=addresses.embedded)

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self.http.close()
        if self.litellm is not None:
            await self.litellm.close()


def build(spec: TargetSpec, parts: Parts) -> Driver:
    """The driver of a target. Raises `MissingPart`."""
    match spec.driver:
        case "openai":
            return OpenAIDriver(spec, parts.http)
        case "litellm":
            if parts.litellm is None:
                raise MissingPart(f"target {spec.name} needs litellm workers")
            return LitellmDriver(spec, parts.litellm)
        case "embedded":
            address = spec.base_url or parts.embedded
            if address is None:
                raise MissingPart(f"target {spec.name} needs the embedded model")
            return EmbeddedDriver(spec, address, parts.http)


class LocalProcesses:
    """The child processes that these targets need: none, litellm workers, the embedded model."""

    def __init__(self, specs: Sequence[TargetSpec], litellm_processes: int = 1) -> None:
        through_litellm = [spec for spec in specs if spec.driver == "litellm"]
        self.litellm = LitellmPool(through_litellm, litellm_processes) if through_litellm else None
        embedded = any(spec.driver == "embedded" and spec.base_url is None for spec in specs)
        self.embedded = EmbeddedModel() if embedded else None

    async def start(self) -> Addresses:
        """Start them. The embedded model is waited for (a second), litellm is not: early calls wait by themselves."""
        if self.litellm is not None:
            self.litellm.start()
        address = await self.embedded.ready() if self.embedded is not None else None
        paths = tuple(map(str, self.litellm.paths)) if self.litellm is not None else ()
        return Addresses(litellm=paths, embedded=address)

    async def ready(self) -> None:
        """Wait until all of them serve. Raises `ChildError`, alone or in an `ExceptionGroup`."""
        async with asyncio.TaskGroup() as group:
            if self.litellm is not None:
                group.create_task(self.litellm.ready())
            if self.embedded is not None:
                group.create_task(self.embedded.ready())

    async def stop(self) -> None:
        """End them. Idempotent."""
        async with asyncio.TaskGroup() as group:
            if self.litellm is not None:
                group.create_task(self.litellm.stop())
            if self.embedded is not None:
                group.create_task(self.embedded.stop())
