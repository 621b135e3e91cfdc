"""Which primary holds which slot: one server, a Sentinel group or a cluster, told apart by the URL alone.

redis-py asks the questions; the answers are addresses for our links. A topology is asked again whenever a primary is
lost or says that it is not the one.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from server.store.link import Address, StoreUnavailable

log = structlog.get_logger("store")

SLOTS: Final = 16_384
ASK_SECONDS: Final = 1.0
"""How long one server may take to tell the topology."""
CLUSTER: Final = "redis+cluster://"
SENTINEL: Final = "redis+sentinel://"


class Topology(Protocol):
    """Where the primaries are."""

    async def ask(self) -> list[tuple[int, int, Address]]:
        """`(first slot, last slot, primary)` of every range. Raises `StoreUnavailable` if nobody can tell."""
        ...


class SingleTopology:
    """One server, for ever."""

    def __init__(self, address: Address) -> None:
        self.address = address

    async def ask(self) -> list[tuple[int, int, Address]]:
        """See `Topology`."""
        return [(0, SLOTS - 1, self.address)]


class SentinelTopology:
    """`redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`: the primary that the sentinels name."""

    def __init__(self, sentinels: Sequence[tuple[str, int]], service: str, like: Address) -> None:
        self.sentinels = sentinels
        self.service = service
        self.like = like

    async def ask(self) -> list[tuple[int, int, Address]]:
        """See `Topology`."""
        sentinel = Sentinel(list(self.sentinels), socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS)  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self.service)
        except RedisError as error:
            raise StoreUnavailable(f"no sentinel names a primary for {self.service!r}: {error}") from None
        finally:
            for client in sentinel.sentinels:
                await client.aclose()
        return [(0, SLOTS - 1, _at(self.like, host, port))]


class ClusterTopology:
    """`redis+cluster://[user:password@]host:port[,host:port…]`: the primaries of a Redis or Valkey Cluster."""

    def __init__(self, seeds: Sequence[tuple[str, int]], like: Address) -> None:
        self.seeds = list(seeds)
        self.like = like

    async def ask(self) -> list[tuple[int, int, Address]]:
        """See `Topology`. Every node that was ever seen may be asked, those that were silent last."""
        for host, port in list(self.seeds):
            try:
                ranges = await self._ask_one(host, port)
            except (RedisError, OSError, TimeoutError) as error:
                log.info("cluster_node_silent", host=host, port=port, error=str(error))
                self.seeds.remove((host, port))
                self.seeds.append((host, port))
                continue
            if ranges:
                return ranges
        raise StoreUnavailable(f"no node of the cluster answers (asked {len(self.seeds)})")

    async def _ask_one(self, host: str, port: int) -> list[tuple[int, int, Address]]:
        client = Redis(
            host=host,
            port=port,
            username=self.like.username,
            password=self.like.password,
            ssl=self.like.tls is not None,
            socket_timeout=ASK_SECONDS,
            socket_connect_timeout=ASK_SECONDS,
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # there are others to ask
        )
        try:
            slots: list[Any] = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()
        return self._ranges(slots, host)

    def _ranges(self, slots: Any, asked: str) -> list[tuple[int, int, Address]]:
        rows = slots if isinstance(slots, list) else [[*key, value["primary"]] for key, value in slots.items()]
        ranges = []
        for first, last, primary, *replicas in rows:
            for node in (primary, *replicas):
                seed = (_text(node[0]) or asked, int(node[1]))
                if seed not in self.seeds:
                    self.seeds.append(seed)
            ranges.append((int(first), int(last), _at(self.like, _text(primary[0]) or asked, int(primary[1]))))
        return ranges


def topology_of(url: str) -> Topology:
    """The topology behind a `redis.url`. Raises `ValueError` for one that cannot be read."""
    if url.startswith(CLUSTER):
        hosts, _, like = _parts(url)
        return ClusterTopology(hosts, like)
    if url.startswith(SENTINEL):
        hosts, path, like = _parts(url)
        if not path:
            raise ValueError("a sentinel URL needs the service's name: redis+sentinel://host:26379/mymaster")
        return SentinelTopology(hosts, path[0], _with_db(like, int(path[1]) if len(path) > 1 else 0))
    return SingleTopology(address_of(url))


def address_of(url: str) -> Address:
    """The address in a `redis://`, `rediss://` or `unix://` URL. Raises `ValueError` for others."""
    parts: dict[str, Any] = dict(parse_url(url))
    return Address(
        host=parts.get("host", "127.0.0.1"),
        port=parts.get("port", 6379),
        path=parts.get("path"),
        username=parts.get("username"),
        password=parts.get("password"),
        db=parts.get("db", 0),
        tls=_tls(parts.get("ssl_ca_certs")) if url.startswith("rediss://") else None,
    )


def slot_of(key: bytes) -> int:
    """The cluster slot of a key (its hash tag if it has one)."""
    return int(key_slot(key))


def _parts(url: str) -> tuple[list[tuple[str, int]], list[str], Address]:
    split = urlsplit(url)
    credentials, _, hosts = split.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    query = parse_qs(split.query)
    default = 26_379 if url.startswith(SENTINEL) else 6379
    found = []
    for item in hosts.split(","):
        host, _, port = item.rpartition(":") if item.rpartition(":")[2].isdigit() else (item, "", str(default))
        if not host.strip("[]"):
            raise ValueError("a Redis URL needs a host")
        found.append((host.strip("[]"), int(port)))
    like = Address(
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls=_tls(query.get("ssl_ca_certs", [None])[0]) if query.get("ssl") in (["true"], ["1"]) else None,
    )
    return found, [part for part in split.path.split("/") if part], like


def _tls(ca_file: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def _at(like: Address, host: str, port: int) -> Address:
    return Address(host, port, None, like.username, like.password, like.db, like.tls)


def _with_db(like: Address, db: int) -> Address:
    return Address(like.host, like.port, None, like.username, like.password, db, like.tls)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
