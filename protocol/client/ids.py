"""Message ids: UUID version 7 (RFC 9562 section 5.7), so that ids sort by the time they were made."""

from __future__ import annotations

import os
import time


def uuid7(unix_ms: int, randomness: bytes) -> str:
    """A UUIDv7 in its usual 36 characters, of a time in Unix milliseconds and 10 random bytes."""
    if len(randomness) != 10:
        raise ValueError("a UUIDv7 takes 10 random bytes")
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(randomness)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_id() -> str:
    """A fresh message id (UUIDv7)."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
