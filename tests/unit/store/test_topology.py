"""URLs: which server, group or cluster they mean."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from server.store.link import Address
from server.store.topology import (
    SLOTS,
    ClusterTopology,
    SentinelTopology,
    SingleTopology,
    address_of,
    slot_of,
    topology_of,
)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", Address("localhost", 6379)),
        ("redis://h:7000/3", Address("h", 7000, db=3)),
        ("redis://:secret@h", Address("h", 6379, password="secret")),
        ("redis://anna:p%40ss@h:1/2", Address("h", 1, None, "anna", "p@ss", 2)),
        ("redis://[::1]:7000", Address("::1", 7000)),
        ("unix:///run/redis.sock", Address(path="/run/redis.sock")),
        ("unix:///run/redis.sock?db=4", Address(path="/run/redis.sock", db=4)),
    ],
)
def test_one_server(url: str, address: Address) -> None:
    topology = topology_of(url)
    assert isinstance(topology, SingleTopology)
    assert topology.address == address


async def test_one_server_holds_every_slot() -> None:
    address = Address("h")
    assert await SingleTopology(address).ask() == [(0, SLOTS - 1, address)]


def test_rediss_is_encrypted_and_checks_the_certificate() -> None:
    tls = address_of("rediss://h").tls
    assert tls is not None
    assert tls.check_hostname
    assert address_of("redis://h").tls is None


def test_a_cluster() -> None:
    topology = topology_of("redis+cluster://anna:secret@a:7000,b,c:7002")
    assert isinstance(topology, ClusterTopology)
    assert topology.seeds == [("a", 7000), ("b", 6379), ("c", 7002)]
    assert (topology.like.username, topology.like.password, topology.like.tls) == ("anna", "secret", None)


def test_sentinels() -> None:
    topology = topology_of("redis+sentinel://:secret@a,b:26380/mymaster/2")
    assert isinstance(topology, SentinelTopology)
    assert topology.sentinels == [("a", 26379), ("b", 26380)]
    assert (topology.service, topology.like.db, topology.like.password) == ("mymaster", 2, "secret")


def test_credentials_are_decoded_alike_everywhere() -> None:
    """A password with a sign that a URL cannot hold as it is."""
    for url in ("redis://anna:p%40ss@h:1", "redis+cluster://anna:p%40ss@h:1", "redis+sentinel://anna:p%40ss@h:1/m"):
        topology = topology_of(url)
        like = topology.address if isinstance(topology, SingleTopology) else topology.like  # type: ignore[attr-defined]
        assert (like.username, like.password) == ("anna", "p@ss"), url


def test_several_hosts_may_be_ipv6() -> None:
    topology = topology_of("redis+cluster://[::1]:7000,[fe80::2]:7001")
    assert isinstance(topology, ClusterTopology)
    assert topology.seeds == [("::1", 7000), ("fe80::2", 7001)]


@pytest.mark.parametrize(
    "url",
    ["", "h", "http://h", "redis+sentinel://h", "redis+cluster://", "redis+cluster://:7000", "redis+sentinel:///m"],
)
def test_what_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        topology_of(url)


def test_no_url_shows_its_password() -> None:
    for url in ("redis://u:secret@h", "redis+cluster://u:secret@h", "redis+sentinel://u:secret@h/m"):
        topology = topology_of(url)
        for value in vars(topology).values():
            assert "secret" not in repr(value)


@pytest.mark.parametrize("key", [b"a", b"tw:{x}:m", b"{x}", b"{}x", b"{", b"}{x}", b"a{b}c{d}", b""])
def test_slots_are_redis_own(key: bytes) -> None:
    assert slot_of(key) == key_slot(key)
    assert 0 <= slot_of(key) < SLOTS


def test_the_tag_alone_decides() -> None:
    assert slot_of(b"tw:{x}:m") == slot_of(b"{x}other") == slot_of(b"x")
