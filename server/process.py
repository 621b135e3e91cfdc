"""The processes of `tidewire serve`: one node, or a supervisor over the embedded parts and several nodes.

Where nothing is embedded and one node is asked for, the node is the process itself. Otherwise the embedded Redis,
the embedded model and the litellm workers belong to a supervisor, never to a node, so that a node may die and be
replaced without them; nodes end when their supervisor does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final

import orjson
import structlog
import uvicorn
import uvloop

from server.access.credentials import target_specs
from server.app import build
from server.config import Settings
from server.demo.parts import DemoSupervisor
from server.demo.pipes import Pipes
from server.http.transport import DroppableProtocol
from server.node import Node, NodeParts
from server.prompts.service import Prompts
from server.sessions.transport import DroppingProtocol
from server.store.embedded import EmbeddedRedis
from server.store.link import StoreError
from server.telemetry.metrics import counting_together, forget_process
from server.telemetry.tasks import TaskOwner
from server.upstreams.registry import Addresses, LocalProcesses

log = structlog.get_logger("process")

BACKLOG: Final = 2048
READY: Final = b"ready"
"""A node's first word to its supervisor."""
RESTART_SECONDS: Final = 1.0
"""How long after its death a node is replaced."""
CLOSE_SECONDS: Final = 5
"""How long connections may take to end once a node has drained."""


class CannotStart(Exception):
    """The server could not start; the text says what to do."""


def say(address: str) -> None:
    """Tell a person where to go."""
    print(f"Tidewire serves at {address} (Ctrl-C stops it)", flush=True)


def serve(
    settings: Settings,
    announce: Callable[[str], None] = say,
    demo: Callable[[str], DemoSupervisor] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `announce` is told the address once requests are served.

    `demo` makes what `tidewire demo` has beside, once the address is known. Raises `CannotStart` or
    `BadRegistry`.
    """
    Prompts.of(settings)  # a folder that can't be served is told here, once, and not by every node
    listener = _bind(settings.server.host, settings.server.port)
    with listener:
        if demo is not None:
            return uvloop.run(_supervise(settings, listener, announce, demo(address_of(listener))))
        needs_supervisor = settings.server.workers > 1 or settings.redis.url == "embedded" or _embeds(settings)
        run = _supervise if needs_supervisor else _single
        return uvloop.run(run(settings, listener, announce))


def _embeds(settings: Settings) -> bool:
    return any(target.driver != "openai" for target in settings.targets.values())


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
    return f"http://{shown}:{port}"


# --- one node -------------------------------------------------------------------------------------------------------


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: the node drains first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; tells when it is done."""
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _serve_node(node: Node, listener: socket.socket, stop: asyncio.Event, started: Callable[[], None]) -> None:
    """Serve until `stop`, then drain and close."""
    settings = node.settings.server
    server = _Uvicorn(
        uvicorn.Config(
            build(node),
            http=DroppableProtocol,
            ws=DroppingProtocol,
            ws_max_size=settings.max_frame_bytes,
            ws_ping_interval=settings.heartbeat_seconds,
            ws_ping_timeout=settings.heartbeat_seconds,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )
    owner = TaskOwner("server")
    serving = owner.start(server.serve([listener]), "uvicorn")
    up = owner.start(server.up.wait(), "up")
    stopping = owner.start(stop.wait(), "stop")
    try:
        await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            raise CannotStart("the node did not start; see the log")
        started()
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await node.drain()
        server.should_exit = True
        await asyncio.wait({serving})
    finally:
        await owner.close()


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask to stop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _single(settings: Settings, listener: socket.socket, announce: Callable[[str], None]) -> int:
    stop = asyncio.Event()
    parts = NodeParts(settings.redis.url, Addresses())
    with _signals(stop):
        node = Node(settings, parts, os.environ)
        await _check_redis(parts.redis_url)
        await _serve_node(node, listener, stop, lambda: announce(address_of(listener)))
    return 0


async def _check_redis(url: str) -> None:
    from server.store.store import Store

    try:
        store = await Store.connect(url, ())
    except (StoreError, ValueError) as error:
        raise CannotStart(f"{error}. Is it running? `tidewire doctor` checks it.") from None
    await store.close()


# --- a supervisor over several --------------------------------------------------------------------------------------


@asynccontextmanager
async def _parts(settings: Settings, demo: DemoSupervisor | None) -> AsyncGenerator[NodeParts, None]:
    """Start what is embedded; stop it at the end, after the nodes."""
    async with AsyncExitStack() as stack:
        url = settings.redis.url
        if url == "embedded":
            redis = await stack.enter_async_context(EmbeddedRedis(settings.redis.data_dir))
            url = redis.url
        processes = LocalProcesses(list(target_specs(settings, os.environ).values()))
        stack.push_async_callback(processes.stop)
        addresses = await processes.start()
        if demo is not None and addresses.embedded is not None:
            stack.push_async_callback(demo.primary.stop)
            await demo.primary.start(addresses.embedded)
        yield NodeParts(url, addresses, None if demo is None else demo.parts)


async def _supervise(
    settings: Settings, listener: socket.socket, announce: Callable[[str], None], demo: DemoSupervisor | None = None
) -> int:
    stop = asyncio.Event()
    pipes = Pipes(demo)
    with _signals(stop), counting_together(os.environ):
        async with _parts(settings, demo) as parts:
            await _check_redis(parts.redis_url)
            async with asyncio.TaskGroup() as nodes:
                ready = asyncio.Event()
                for number in range(settings.server.workers):
                    nodes.create_task(_keep_node(number, settings, parts, listener, stop, ready.set, pipes))
                first = nodes.create_task(ready.wait())
                over = nodes.create_task(stop.wait())
                await asyncio.wait({first, over}, return_when=asyncio.FIRST_COMPLETED)
                if not stop.is_set():
                    announce(address_of(listener) if demo is None else demo.parts.address + demo.behind_address)
                first.cancel()
    return 0


async def _keep_node(
    number: int,
    settings: Settings,
    parts: NodeParts,
    listener: socket.socket,
    stop: asyncio.Event,
    ready: Callable[[], None],
    pipes: Pipes,
) -> None:
    """Run one node process, replace it when it dies, ask it to drain when `stop` is set."""
    context = get_context("spawn")
    while not stop.is_set():
        ours, theirs = context.Pipe()
        process = context.Process(target=_node_process, args=(settings, parts, listener, theirs), name=f"node-{number}")
        process.start()
        theirs.close()
        try:
            await _watch_node(process, ours, stop, ready, pipes)
        finally:
            pipes.remove(ours)
            if process.is_alive():
                process.kill()
            process.join()
            forget_process(process.pid, os.environ)
            ours.close()
        if not stop.is_set():
            log.error("node_died", node=number, exit_code=process.exitcode)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_SECONDS):
                    await stop.wait()


async def _watch_node(
    process: Any, pipe: Connection, stop: asyncio.Event, ready: Callable[[], None], pipes: Pipes
) -> None:
    loop = asyncio.get_running_loop()
    dead = asyncio.Event()

    def heard() -> None:
        try:
            said = pipe.recv_bytes()
            if said == READY:
                ready()
                pipes.add(pipe)
            else:
                pipes.heard(orjson.loads(said))
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())

    loop.add_reader(process.sentinel, dead.set)
    loop.add_reader(pipe.fileno(), heard)
    try:
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(stop.wait())
            died = group.create_task(dead.wait())
            await asyncio.wait({asked, died}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and not died.done():
                process.terminate()
            await died
            asked.cancel()
    finally:
        loop.remove_reader(process.sentinel)
        loop.remove_reader(pipe.fileno())


def _node_process(settings: Settings, parts: NodeParts, listener: socket.socket, pipe: Connection) -> None:
    """The body of a node process."""
    from server.telemetry.logs import configure

    configure(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    listener.setblocking(False)
    uvloop.run(_child_node(settings, parts, listener, pipe))


async def _child_node(settings: Settings, parts: NodeParts, listener: socket.socket, pipe: Connection) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    node = Node(settings, parts, os.environ)

    def heard() -> None:
        try:
            word = pipe.recv_bytes()
        except (EOFError, OSError):
            log.error("supervisor_gone")
            os._exit(1)
        if node.demo is not None:
            node.demo.heard(orjson.loads(word))

    if node.demo is not None:
        node.demo.say = lambda wish: pipe.send_bytes(orjson.dumps(wish))
    loop.add_reader(pipe.fileno(), heard)
    await _serve_node(node, listener, stop, lambda: pipe.send_bytes(READY))
    loop.remove_reader(pipe.fileno())
