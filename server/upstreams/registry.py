"""From a target's settings to its driver, and who owns the processes that drivers need."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from server.upstreams.base import Driver, TargetSpec
from server.upstreams.embedded import EmbeddedDriver, EmbeddedModel
from server.upstreams.openai import HttpClient, OpenAIDriver


@dataclass(frozen=True, slots=True)
class UpstreamParts:
    """Where the processes that drivers need listen; picklable, so that a supervisor can hand it to its nodes."""

    embedded_address: str | None = None
    """Base address of the embedded model's server."""
    litellm_socket: str | None = None
    """Unix socket of the litellm workers."""


def build(spec: TargetSpec, parts: UpstreamParts, http: HttpClient) -> Driver:
    """The driver of a target. Raises `ValueError` if a part it needs was not started."""
    if spec.driver == "openai":
        return OpenAIDriver(spec, http)
    if spec.driver == "embedded":
        if parts.embedded_address is None:
            raise ValueError("the embedded model was not started")
        return EmbeddedDriver(spec, parts.embedded_address, http)
    raise ValueError(f"no driver {spec.driver!r}")


class UpstreamOwner:
    """Owns the child processes that the given targets need; `parts` tells where they listen once entered."""

    def __init__(self, specs: Mapping[str, TargetSpec]) -> None:
        self._specs = specs
        self._stack = AsyncExitStack()
        self.parts = UpstreamParts()

    async def __aenter__(self) -> Self:
        embedded = address = None
        if any(spec.driver == "embedded" for spec in self._specs.values()):
            embedded = EmbeddedModel()
            embedded.start()
            self._stack.push_async_callback(embedded.stop)
            address = await embedded.ready()
        self.parts = UpstreamParts(embedded_address=address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
