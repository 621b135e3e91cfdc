"""The public keys of an identity provider (RFC 7517): fetched, kept, renewed; never waited for twice.

Known keys answer at once, also while a renewal runs or fails: an outage of the provider must not lock everybody out.
An unknown key id causes a fetch, but no more than one per `COOLDOWN_SECONDS`: made-up key ids are cheap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("jwks")

RENEW_SECONDS: Final = 300.0
"""Age at which known keys are fetched anew, in the background; also how long a withdrawn key may still work."""
COOLDOWN_SECONDS: Final = 10.0
"""Least time between two fetches, whatever the reason."""
FETCH_SECONDS: Final = 5.0
"""Time-out for one fetch."""
MAX_BYTES: Final = 256 * 1024
"""Largest key set that is read."""


class KeysUnavailable(Exception):
    """The provider's keys were never fetched and cannot be now."""


def usable_keys(document: Any) -> list[dict[str, Any]]:
    """The public signing keys of a key set. Symmetric ones are dropped: they would be published secrets."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("the answer is no key set")
    return [
        key
        for key in keys
        if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"
    ]


def select(keys: list[dict[str, Any]], kid: str | None, algorithm: str) -> PyJWK | None:
    """The key with this id that can verify `algorithm`; without an id, the only one that can."""
    fitting = []
    for key in keys:
        if (kid is None or key.get("kid") == kid) and key.get("alg", algorithm) == algorithm:
            try:
                fitting.append(PyJWK(key, algorithm))
            except PyJWTError:
                continue  # another kind of key: an RSA key cannot verify ES256
    return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None


class KeySet:
    """The keys at one URL."""

    def __init__(self, url: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._monotonic = monotonic
        self._keys: list[dict[str, Any]] | None = None
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._tasks = TaskOwner("jwks")

    async def key(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key for a token's header; None if the provider has none. Raises `KeysUnavailable`."""
        if self._keys is not None:
            if self._monotonic() - self._fetched_at > RENEW_SECONDS:
                self._start_fetch()
            if (found := select(self._keys, kid, algorithm)) is not None:
                return found
        await self._fetch_once()
        if self._keys is None:
            raise KeysUnavailable
        return select(self._keys, kid, algorithm)

    async def close(self) -> None:
        """End a fetch that still runs."""
        await self._tasks.close()

    def _start_fetch(self) -> None:
        """Fetch in the background, unless one runs or ran just now."""
        cooling = self._tried_at is not None and self._monotonic() - self._tried_at < COOLDOWN_SECONDS
        if not len(self._tasks) and not cooling:
            self._tried_at = self._monotonic()
            self._tasks.start(self._fetch(), "fetch")

    async def _fetch_once(self) -> None:
        """Wait for a fetch: the running one, or a new one if it is time."""
        self._start_fetch()
        await self._tasks.wait()

    async def _fetch(self) -> None:
        try:
            keys = usable_keys(await self._download())
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            log.warning("jwks_fetch_failed", url=self.url, error=str(error) or type(error).__name__)
            return
        self._keys = keys
        self._fetched_at = self._monotonic()
        log.info("jwks_fetched", url=self.url, keys=len(keys))

    async def _download(self) -> Any:
        """The document. No redirects: the configured address is the one that is trusted."""
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self.url, allow_redirects=False, headers={"Accept": "application/json"}) as response,
        ):
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = b""
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > MAX_BYTES:
                    raise ValueError("the answer is too large")
        return json.loads(body)
