"""Real nodes in this process, for integration tests: each on a free port, with its own hub, journal and drivers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from server.config import Settings, parse
from server.demo.parts import DemoParts
from server.node import Node, NodeParts
from server.process import _serve_node
from server.telemetry.tasks import TaskOwner
from server.upstreams.registry import Addresses
from tests.processes import serve_config


def settings_for(redis_url: str, upstream: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of a node with one scripted target behind the routes `default` and `scripted`."""
    return parse(serve_config(redis_url, upstream, **(overrides or {})), {})


@dataclass(slots=True)
class RunningNode:
    """A node that serves."""

    node: Node
    port: int
    stop: asyncio.Event

    @property
    def url(self) -> str:
        """Where WebSocket clients connect."""
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    @property
    def http(self) -> str:
        """Where HTTP clients connect."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def running_node(
    settings: Settings, upstreams: Addresses | None = None, demo: DemoParts | None = None
) -> AsyncIterator[RunningNode]:
    """Serve with `settings` until the block ends; `upstreams`: the child processes that its targets need; `demo`: it
    is a demo's node."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    node = Node(settings, NodeParts(settings.redis.url, upstreams or Addresses(), demo), {})
    stop, up = asyncio.Event(), asyncio.Event()
    owner = TaskOwner("test node")
    task = owner.start(_serve_node(node, listener, stop, up.set), "serve")
    started = owner.start(up.wait(), "up")
    await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield RunningNode(node, listener.getsockname()[1], stop)
    finally:
        stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.wait({task})
        await owner.close()
