"""A real Valkey Cluster and a real Sentinel group, each as a block, on free ports of loopback.

    with cluster(replicas=True) as group:
        nodes = serving_processes(serve_config(group.url, upstream), 2)
        group.fail_over(0)

Everything is the one binary that the package brings; no command-line tools are needed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError

from server.store.embedded import binary_path
from tests.servers import VALKEY, RedisServer, free_port

SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 1_500
DOWN_AFTER_MS: Final = 1_000
FORM_SECONDS: Final = 30.0
FAILOVER_SECONDS: Final = 30.0
SERVICE: Final = "mymaster"


def _client(port: int) -> Redis:
    return Redis(port=port, socket_timeout=2.0, socket_connect_timeout=2.0, protocol=2, decode_responses=True)


def _ask(port: int, *command: Any) -> Any:
    with _client(port) as client:
        return client.execute_command(*command)


def _until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (RedisError, OSError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {seconds:.0f} s")
        time.sleep(0.02)


class Cluster:
    """Three primaries, each with a replica if wished; `servers` are all of them."""

    def __init__(self, primaries: list[RedisServer], replicas: list[RedisServer]) -> None:
        self.servers = [*primaries, *replicas]
        self.seeds = primaries

    @property
    def url(self) -> str:
        """Where nodes connect."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.seeds)

    def alive(self) -> list[RedisServer]:
        """The servers that run."""
        return [server for server in self.servers if server.process is not None and server.process.poll() is None]

    def primaries(self) -> list[RedisServer]:
        """Who holds slots now, by their first slot."""
        rows = _slots(self.alive()[0].port)
        ports = list(dict.fromkeys(port for _, port in sorted(rows)))
        return [server for port in ports for server in self.servers if server.port == port]

    def urls(self) -> list[str]:
        """URL of every primary."""
        return [server.url for server in self.primaries()]

    def fail_over(self, index: int) -> RedisServer:
        """Kill a primary and wait until its replica has taken its place; the killed one."""
        dead = self.primaries()[index]
        dead.kill()

        def over() -> bool:
            ports = {port for _, port in _slots(self.alive()[0].port)}
            return dead.port not in ports and self.whole()

        _until(over, FAILOVER_SECONDS, "the failover")
        return dead

    def whole(self) -> bool:
        """Whether every slot is served, as every living server sees it."""
        return all("cluster_state:ok" in _text(_ask(s.port, "CLUSTER INFO")) for s in self.alive())

    def replicated(self) -> bool:
        """Whether every replica that lives follows its primary."""
        replicas = [role for role in (_ask(s.port, "ROLE") for s in self.alive()) if role[0] == "slave"]
        return all(role[3] == "connected" for role in replicas)


def _slots(port: int) -> list[tuple[int, int]]:
    """(first slot, port of the primary) of every range."""
    rows = _ask(port, "CLUSTER SLOTS")
    if isinstance(rows, dict):
        return [(int(first), int(value["primary"][1])) for (first, _), value in rows.items()]
    return [(int(row[0]), int(row[2][1])) for row in rows]


def _text(answer: Any) -> str:
    if isinstance(answer, dict):
        return "\n".join(f"{key}:{value}" for key, value in answer.items())
    return answer.decode() if isinstance(answer, bytes) else str(answer)


@contextmanager
def cluster(*, primaries: int = 3, replicas: bool = False) -> Iterator[Cluster]:
    """A cluster that serves every slot."""
    with ExitStack() as stack:
        count = primaries * 2 if replicas else primaries
        buses = [free_port() for _ in range(count)]
        servers = [stack.enter_context(RedisServer(VALKEY, options=_cluster_options(bus))) for bus in buses]
        for index in range(primaries):
            first, last = index * SLOTS // primaries, (index + 1) * SLOTS // primaries - 1
            _ask(servers[index].port, "CLUSTER ADDSLOTSRANGE", first, last)
            _ask(servers[index].port, "CLUSTER SET-CONFIG-EPOCH", index + 1)
        for server, bus in zip(servers[1:], buses[1:], strict=True):
            _ask(servers[0].port, "CLUSTER MEET", "127.0.0.1", server.port, bus)
        group = Cluster(servers[:primaries], servers[primaries:])
        known = f"cluster_known_nodes:{count}"
        _until(lambda: all(known in _text(_ask(s.port, "CLUSTER INFO")) for s in servers), FORM_SECONDS, "the meeting")
        for primary, replica in zip(group.seeds, servers[primaries:], strict=False):
            _ask(replica.port, "CLUSTER REPLICATE", _text(_ask(primary.port, "CLUSTER MYID")))
        _until(lambda: group.whole() and group.replicated(), FORM_SECONDS, "the cluster")
        if replicas:
            _until(lambda: _count_replicas(group) == primaries, FORM_SECONDS, "the replicas")
        yield group


def _count_replicas(group: Cluster) -> int:
    return sum(_ask(server.port, "ROLE")[0] == "slave" for server in group.alive())


def _cluster_options(bus: int) -> tuple[str, ...]:
    return (
        "--cluster-enabled", "yes",
        "--cluster-port", str(bus),
        "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
        "--cluster-require-full-coverage", "no",
        "--cluster-allow-replica-migration", "no",
        "--repl-diskless-sync-delay", "0",
    )  # fmt: skip


class Sentinels:
    """A primary, its replica, and three sentinels that watch over them."""

    def __init__(self, primary: RedisServer, replica: RedisServer, ports: list[int]) -> None:
        self.servers = [primary, replica]
        self.ports = ports

    @property
    def url(self) -> str:
        """Where nodes connect."""
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self.ports) + f"/{SERVICE}"

    def primary(self) -> RedisServer:
        """Whom the sentinels name."""
        _, port = _ask(self.ports[0], "SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def urls(self) -> list[str]:
        """URL of the primary."""
        return [self.primary().url]

    def fail_over(self) -> RedisServer:
        """Kill the primary and wait until the replica has taken its place; the killed one."""
        dead = self.primary()
        dead.kill()
        _until(
            lambda: self.primary() is not dead and _ask(self.primary().port, "ROLE")[0] == "master",
            FAILOVER_SECONDS,
            "the failover",
        )
        return dead


@contextmanager
def sentinels() -> Iterator[Sentinels]:
    """Three sentinels that agree on a primary with a replica in step."""
    with ExitStack() as stack:
        options = ("--repl-diskless-sync-delay", "0")
        primary = stack.enter_context(RedisServer(VALKEY, options=options))
        follow = ("--replicaof", f"127.0.0.1 {primary.port}")
        replica = stack.enter_context(RedisServer(VALKEY, options=(*options, *follow)))
        _until(lambda: _ask(replica.port, "ROLE")[3] == "connected", FORM_SECONDS, "the replication")
        ports = [free_port() for _ in range(3)]
        for port in ports:
            stack.enter_context(_sentinel(port, primary.port))
        _until(lambda: all(_sees_all(port) for port in ports), FORM_SECONDS, "the sentinels")
        yield Sentinels(primary, replica, ports)


def _sees_all(port: int) -> bool:
    found = _ask(port, "SENTINEL MASTER", SERVICE)
    state = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
    return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (1, 2)


@contextmanager
def _sentinel(port: int, primary: int) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="tidewire-test-sentinel-"))
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n"
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
        f"sentinel failover-timeout {SERVICE} 5000\n"
    )
    with (folder / "sentinel.log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary_path()), str(config), "--sentinel"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _until(lambda: bool(_ask(port, "PING")), FORM_SECONDS, "a sentinel's start")
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
