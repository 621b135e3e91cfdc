"""Telling somebody else's server that a job has ended, signed (https://www.standardwebhooks.com, version 1).

The address comes from a client, so it is a stranger's wish that this server connect to something. Unless the
operator allows more: https only, no redirects, and no address that is not public, checked at the very lookup that the
connection uses, so that a name cannot change its meaning in between.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import random
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult

log = structlog.get_logger("webhooks")

URL_CHARS: Final = 2_048
DELIVER_SECONDS: Final = 15.0
"""How long a delivery may take; the specification recommends 15 to 30 s."""
GONE: Final = 410
"""The receiver wants nothing more."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Unwelcome(ValueError):
    """This address is not called; the text says why."""


class PrivateAddress(OSError):
    """The name leads to an address that is not public."""


def is_public(text: str) -> bool:
    """Whether an IP address belongs to the internet, also inside of the forms that wrap an IPv4 address."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address.teredo is not None:
            return False
        address = inner or address
    return address.is_global and not address.is_multicast and not address.is_reserved


def checked_url(url: str, allow_private: bool) -> str:
    """The address, if it may be called as far as its text tells. Raises `Unwelcome`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Unwelcome("this is no URL") from None
    if len(url) > URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise Unwelcome(f"a URL has at most {URL_CHARS} printable ASCII characters")
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise Unwelcome("the URL has to begin with https://")
    if not host or parts.username is not None or parts.password is not None:
        raise Unwelcome("the URL needs a host, and must not have a user or password")
    try:
        public = is_public(host)
    except ValueError:
        public = True  # a name: what it leads to is known when it is called
    if not public and not allow_private:
        raise Unwelcome("the URL must not lead to a private address")
    return url


def signature(secrets: Sequence[bytes], event: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header: HMAC-SHA256 over id, time and body, one for each secret that is valid."""
    signed = b"%s.%d.%s" % (event.encode(), timestamp, body)
    made = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in made)


class PublicResolver(AbstractResolver):
    """Looks names up as aiohttp does and refuses what is not public."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`. Raises `PrivateAddress`."""
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(each["host"]) for each in found):
            raise PrivateAddress("the name leads to a private address")
        return found

    async def close(self) -> None:
        """See `AbstractResolver`."""
        await self._inner.close()


class Webhooks:
    """Delivers; when to deliver again is the worker's to keep."""

    def __init__(
        self,
        secrets: Mapping[str | None, Sequence[bytes]],
        allow_private: bool,
        retry_seconds: Sequence[float],
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.allow_private = allow_private
        self._secrets = secrets
        self._retry_seconds = retry_seconds
        self._resolver = resolver
        self._client: aiohttp.ClientSession | None = None

    def signs_for(self, tenant: str) -> bool:
        """Whether there is a secret for this tenant."""
        return bool(self._secrets_for(tenant))

    def _secrets_for(self, tenant: str) -> Sequence[bytes]:
        return self._secrets.get(tenant) or self._secrets.get(None) or ()

    def again_after_ms(self, tries: int) -> int | None:
        """When to try again after so many deliveries that failed; None: never."""
        if tries > len(self._retry_seconds):
            return None
        return round(self._retry_seconds[tries - 1] * 1000 * random.uniform(0.9, 1.1))

    async def deliver(self, tenant: str, url: str, event: str, now: int, payload: Mapping[str, Any]) -> int | None:
        """Send once; the response's status, None if there was none. Never raises for what the receiver does."""
        body = orjson.dumps(payload)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Tidewire",
            "webhook-id": event,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._secrets_for(tenant), event, now, body),
        }
        try:
            checked_url(url, self.allow_private)
            client = self._session()
            async with client.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, Unwelcome) as error:
            log.info("webhook_failed", event_id=event, why=type(error).__name__)
            return None

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            resolver = self._resolver or aiohttp.DefaultResolver()
            connector = aiohttp.TCPConnector(
                resolver=resolver if self.allow_private else PublicResolver(resolver),
                use_dns_cache=False,
                force_close=True,
            )
            timeout = aiohttp.ClientTimeout(total=DELIVER_SECONDS)
            self._client = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._client

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()
