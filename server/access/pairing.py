"""Codes that bring a second device in: signed, short-lived, and good for one use. Pure.

A code is 24 bytes in base64url: when it ends (4), a random name (8), and a MAC over both (12), so that any node can
make one and any other check it. That it is used once is for whoever keeps the names of the used ones.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

NONCE_BYTES: Final = 8
CODE_SECONDS: Final = 600
"""How long a code is good for."""
_MAC_BYTES: Final = 12
_PURPOSE: Final = b"tidewire device code v1"
_CODE_CHARS: Final = 32


@dataclass(frozen=True, slots=True)
class Pairing:
    """Makes and checks the codes of one secret."""

    secret: bytes

    def code(self, now: float, nonce: bytes) -> str:
        """A new code; `nonce` is `NONCE_BYTES` random bytes."""
        body = (int(now) + CODE_SECONDS).to_bytes(4, "big") + nonce
        return base64.urlsafe_b64encode(body + self._mac(body)).decode()

    def name(self, code: str, now: float) -> str | None:
        """The random name of a code that is genuine and not over; None for any other text."""
        if len(code) != _CODE_CHARS:
            return None
        try:
            data = base64.b64decode(code, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)) or int.from_bytes(body[:4], "big") <= now:
            return None
        return body[4:].hex()

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self.secret, _PURPOSE + body, hashlib.sha256)[:_MAC_BYTES]
