"""Which pages may connect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.origins import OriginPolicy


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "chat.example.com", True),
        ("https://chat.example.com", "chat.example.com", True),
        ("https://CHAT.example.com", "chat.Example.com:443", True),
        ("http://localhost:8080", "localhost:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("https://evil.com", "chat.example.com", False),
        ("https://chat.example.com.evil.com", "chat.example.com", False),
        ("https://chat.example.com@evil.com", "chat.example.com", False),
        ("https://evil.com/https://chat.example.com", "chat.example.com", False),
        ("null", "chat.example.com", False),
        ("", "chat.example.com", False),
        ("https://chat.example.com", None, False),
        ("https://chat.example.com:x", "chat.example.com", False),
    ],
)
def test_without_a_list_only_the_own_origin(origin: str | None, host: str | None, allowed: bool) -> None:
    assert OriginPolicy().permits(origin, host) is allowed


def test_a_list() -> None:
    policy = OriginPolicy(["https://app.example.com", "http://localhost:3000", "capacitor://localhost"])
    assert policy.permits("https://app.example.com", "api.example.com")
    assert policy.permits("https://app.example.com:443", "api.example.com")
    assert policy.permits("capacitor://localhost", "api.example.com")
    assert policy.permits("https://api.example.com", "api.example.com"), "the own origin stays allowed"
    assert not policy.permits("http://app.example.com", "api.example.com")
    assert not policy.permits("https://app.example.com:8443", "api.example.com")
    assert not policy.permits("null", "api.example.com")


def test_a_star_allows_all() -> None:
    assert OriginPolicy(["*"]).permits("https://anything", "x")
    assert OriginPolicy(["*"]).permits("null", None)


def test_loopback_only_stops_dns_rebinding() -> None:
    policy = OriginPolicy(loopback_only=True)
    assert policy.permits("http://127.0.0.1:8080", "127.0.0.1:8080")
    assert policy.permits("http://localhost:8080", "localhost:8080")
    assert not policy.permits("http://evil.com:8080", "evil.com:8080")
    assert not policy.permits("http://127.0.0.1.evil.com", "127.0.0.1.evil.com")


@given(st.text(), st.text())
def test_never_fails(origin: str, host: str) -> None:
    assert OriginPolicy().permits(origin, host) in (True, False)
