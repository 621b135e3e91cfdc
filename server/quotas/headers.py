"""The same figures as HTTP headers. Pure.

`RateLimit` and `RateLimit-Policy` as in draft-ietf-httpapi-ratelimit-headers-10 (structured fields, RFC 9651);
`x-ratelimit-*` with the names and the notation of durations that OpenAI uses, which clients of its API read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final

from server.quotas.limits import for_route

WINDOWS: Final = {"tokens_per_minute": 60, "requests_per_minute": 60}
_OPENAI: Final = {"tokens_per_minute": "tokens", "requests_per_minute": "requests"}
_TENANT: Final = "tenant_"
HEADERS: Final = {
    "RateLimit-Policy": 'The limits that are rates: `"NAME";q=QUOTA;w=SECONDS`, comma-separated.',
    "RateLimit": 'What is left of each: `"NAME";r=REMAINING;t=SECONDS` until it is full again.',
    **{
        f"x-ratelimit-{what}-{word}": f"{meaning} the tightest limit of {word} a minute."
        for word in _OPENAI.values()
        for what, meaning in (
            ("limit", "The size of"),
            ("remaining", "What is left of"),
            ("reset", "After how long (`6m0s`) there is again the whole of"),
        )
    },
}
"""Every header that `rate_limit_headers` may make, and what it means."""


def rate_limit_headers(limits: Sequence[Mapping[str, Any]], route: str = "") -> dict[str, str]:
    """Headers for those `limits` of a `quota` frame that a message of `route` is counted in.

    What is not a rate (holds, money) has no window and is left out. So is the route: the response is about no other.
    """
    counted = [{**limit, "name": limit["name"].removesuffix(f":{route}")} for limit in for_route(limits, route)]
    rates = [limit for limit in counted if limit["name"].removeprefix(_TENANT) in WINDOWS]
    if not rates:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(f'"{rate["name"]}";q={rate["limit"]};w={_window(rate)}' for rate in rates),
        "RateLimit": ", ".join(
            f'"{rate["name"]}";r={rate["remaining"]};t={ceil(rate["reset_seconds"])}' for rate in rates
        ),
    }
    for name, word in _OPENAI.items():
        of_both = [rate for rate in rates if rate["name"].removeprefix(_TENANT) == name]
        if of_both:  # these know one number: the one that is used up first
            tightest = min(of_both, key=lambda rate: rate["remaining"])
            headers[f"x-ratelimit-limit-{word}"] = str(tightest["limit"])
            headers[f"x-ratelimit-remaining-{word}"] = str(tightest["remaining"])
            headers[f"x-ratelimit-reset-{word}"] = duration(tightest["reset_seconds"])
    return headers


def _window(rate: Mapping[str, Any]) -> int:
    return WINDOWS[rate["name"].removeprefix(_TENANT)]


def duration(seconds: float) -> str:
    """Seconds as Go prints them: `0s`, `250ms`, `1.5s`, `6m0s`."""
    milliseconds = ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 1000:g}s"
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}" if minutes else tail
