"""One bucket: so many tokens, refilled continuously. Pure; integers only, time is handed in.

A bucket holds one minute's worth and gains `limit` tokens a minute, every microsecond its part: `limit` sixty-
millionths of a token. What is not yet a whole token is kept in `part`, so no fraction is ever lost or gained by asking
often. It may be below zero: what was used beyond a reservation is debt. `server/quotas/lua/common_v1.lua` is the same
rule where all nodes share it; this one serves an outage of Redis, and the tests that compare both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MINUTE_US: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """`tokens` and `part`/60,000,000 of a token at `at` (microseconds), of at most `limit`."""

    limit: int
    tokens: int
    part: int
    at: int

    @classmethod
    def full(cls, limit: int, now: int) -> Bucket:
        """A bucket nobody has used."""
        return cls(limit, limit, 0, now)

    def refilled(self, now: int) -> Bucket:
        """The bucket at `now`; a clock that runs backward stands still."""
        now = max(now, self.at)
        gained, part = divmod((now - self.at) * self.limit + self.part, MINUTE_US)
        if self.tokens + gained >= self.limit:
            return Bucket(self.limit, self.limit, 0, now)
        return Bucket(self.limit, self.tokens + gained, part, now)

    def take(self, tokens: int, now: int) -> Bucket | None:
        """The bucket with `tokens` (> 0) less; None if they are not there."""
        bucket = self.refilled(now)
        return None if bucket.tokens < tokens else replace(bucket, tokens=bucket.tokens - tokens)

    def give(self, tokens: int, now: int) -> Bucket:
        """The bucket with `tokens` more, at most full; below 0: less, whether they are there or not (debt)."""
        bucket = self.refilled(now)
        if bucket.tokens + tokens >= self.limit:
            return Bucket(self.limit, self.limit, 0, bucket.at)
        return replace(bucket, tokens=bucket.tokens + tokens)

    def wait(self, tokens: int, now: int) -> int:
        """The least microseconds after which `tokens` are there."""
        bucket = self.refilled(now)
        lack = (tokens - bucket.tokens) * MINUTE_US - bucket.part
        return max(0, -(-lack // self.limit))
