"""The RateLimit headers of a response: one function, called wherever a message is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from protocol.frames import Limit


def rate_limit_headers(limits: Iterable[Limit]) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10), and OpenAI's `x-ratelimit-*`.

    No limits, no headers.
    """
    limits = list(limits)
    if not limits:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(f'"{limit.name}";q={int(limit.limit)}' for limit in limits),
        "RateLimit": ", ".join(
            f'"{limit.name}";r={max(0, int(limit.remaining))};t={math.ceil(limit.reset_seconds)}' for limit in limits
        ),
    }
    for limit in limits:
        kind = limit.name.removesuffix("_per_minute")
        if kind in ("requests", "tokens"):
            headers[f"x-ratelimit-limit-{kind}"] = str(int(limit.limit))
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(limit.remaining)))
            headers[f"x-ratelimit-reset-{kind}"] = f"{limit.reset_seconds:.3f}s"
    return headers
