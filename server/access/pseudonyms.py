"""What providers are told of a user: a keyed hash, never the id. The same user is the same text at every provider."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

from server.config import LedgerSettings, read_secret
from server.store.keys import USER_HASH_KEY
from server.store.store import Store

KEY_BYTES: Final = 32
"""Of a key that is made here."""
CHARACTERS: Final = 32
"""Hexadecimal digits of a pseudonym: 128 bits."""


class Pseudonyms:
    """One key, one pseudonym for each user. Who does not have the key can neither make nor check one."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, tenant: str, kind: str, user: str) -> str:
        """The pseudonym of a user: 32 hexadecimal digits."""
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (tenant, kind, user):
            data = part.encode()
            mac.update(len(data).to_bytes(4, "big") + data)
        return mac.hexdigest()[:CHARACTERS]


async def shared_pseudonyms(settings: LedgerSettings, environ: Mapping[str, str], store: Store) -> Pseudonyms:
    """With the configured key; else with a random one that all nodes share and that lives as long as the Redis data.

    Raises `StoreError` or `TimeoutError`.
    """
    configured = read_secret(settings.user_hash_key_env, settings.user_hash_key_file, environ)
    if configured is not None:
        return Pseudonyms(configured.encode())
    made = secrets.token_hex(KEY_BYTES)
    await store.call(USER_HASH_KEY, "SET", USER_HASH_KEY, made, "NX")
    return Pseudonyms(await store.call(USER_HASH_KEY, "GET", USER_HASH_KEY))
