"""Whether Redis may throw keys away when its memory is full: an evicted key is a lost message or quota."""

from __future__ import annotations

from typing import Final

import structlog

from server.store.link import Link, StoreError, StoreReply
from server.store.store import Store, within

log = structlog.get_logger("store")

SAFE_POLICY: Final = "noeviction"
UNKNOWN: Final = "unknown"
REMEDY: Final = "set maxmemory-policy noeviction: as it is, messages and quotas are lost when memory is full"
ASK_SECONDS: Final = 5.0


async def evicting(store: Store) -> bool:
    """Whether any primary has another `maxmemory-policy` than `noeviction`; each that has is told in the log."""
    found = False
    for link in store.links():
        try:
            policy = await policy_of(link)
        except (StoreError, TimeoutError) as error:
            log.warning("eviction_policy_not_told", address=str(link.address), error=str(error))
            continue
        if policy == UNKNOWN:
            log.warning("eviction_policy_not_told", address=str(link.address))
        elif policy != SAFE_POLICY:
            found = True
            log.error("redis_evicts", address=str(link.address), policy=policy, remedy=REMEDY)
    return found


async def policy_of(link: Link) -> str:
    """The policy of one primary, or `unknown`. Raises `StoreError` or `TimeoutError`.

    `INFO` tells it also where `CONFIG` is forbidden, as it is in managed services; of the two one may be enough.
    """
    try:
        info: bytes = await within(link.call("INFO", "memory"), ASK_SECONDS)
        for line in info.decode().splitlines():
            name, _, value = line.partition(":")
            if name == "maxmemory_policy":
                return value
    except StoreReply:
        log.debug("info_forbidden", address=str(link.address))
    try:
        pair: list[bytes] = await within(link.call("CONFIG", "GET", "maxmemory-policy"), ASK_SECONDS)
    except StoreReply:
        return UNKNOWN
    return pair[1].decode() if len(pair) > 1 else UNKNOWN
