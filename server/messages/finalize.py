"""After the end: keep what stands beside the journal, start both clocks, take the message off the lists.

Every step may be repeated, and may be done by another node than the one that wrote the end.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import msgpack

from server.messages.events import CALLS, REASONING, TEXT, Event, merge_calls
from server.messages.reader import Reader, Standing
from server.messages.scripts import FINALIZE, GATHER
from server.store.keys import MessageKeys
from server.store.store import Store

SMALL_BYTES: Final = 65_536
"""How much is gathered in memory before it is appended to Redis."""
LEFT_BEHIND_MS: Final = 3_600_000
"""How long the gathered bytes of a node that died over them are kept."""
GATHERED: Final = b"gather:"
"""With the end of its key, the field of a record that tells where its text is gathered."""


class _Done(Exception):
    """What is gathered is not wanted any more."""


async def finalize(
    store: Store,
    reader: Reader,
    keys: MessageKeys,
    generation: bytes,
    run: int,
    retention_seconds: float,
    claim_seconds: float,
) -> bool:
    """Finish an ended message; False if it was done meanwhile, erased, or is another generation by now.

    Raises `StoreError` or `TimeoutError`.
    """
    record = await reader.record(keys)
    if record is None or not record.ended:
        return False
    if record.standing is not None:
        return True  # it was done before, and the journal it was gathered from may have gone since
    suffix = secrets.token_hex(8).encode()
    token, gathered, field = b"%s:%d" % (generation, run), keys.gathered(suffix), GATHERED + suffix

    async def append(data: bytes) -> int:
        if data and not await store.run(GATHER, [keys.record, gathered], [token, field, data, LEFT_BEHIND_MS], 5.0):
            raise _Done
        return len(data)

    try:
        lengths = await _keep(reader, keys, record.base, append)
    except _Done:
        return False
    answer = await store.run(
        FINALIZE,
        [keys.record, keys.journal, keys.standing, gathered],
        [
            token,
            msgpack.packb(lengths),
            round(retention_seconds * 1000),
            round(claim_seconds * 1000),
            field,
        ],
        seconds=5.0,
    )
    return bool(answer)


async def _keep(
    reader: Reader, keys: MessageKeys, base: int, append: Callable[[bytes], Awaitable[int]]
) -> tuple[int, int, int]:
    """Append text, then reasoning, then tool calls; their lengths in bytes.

    What is in memory at any time is a page of the journal, not the message: it may have 64 MB, and many end at once.
    """
    calls: list[dict[str, Any]] = []
    lengths = {TEXT: 0, REASONING: 0}
    for kind in (TEXT, REASONING):
        held, size, other = [], 0, False
        async for _, (found, body) in _events(reader, keys, base):
            if found == kind:
                data = body.encode()
                held.append(data)
                size += len(data)
            elif found == REASONING:
                other = True
            elif found == CALLS and kind == TEXT:
                merge_calls(calls, body)
            if size >= SMALL_BYTES:
                lengths[kind] += await append(b"".join(held))
                held, size = [], 0
        lengths[kind] += await append(b"".join(held))
        if kind == TEXT and not other:
            break
    packed = msgpack.packb(calls) if calls else b""
    return lengths[TEXT], lengths[REASONING], await append(packed)


async def _events(reader: Reader, keys: MessageKeys, base: int) -> AsyncGenerator[tuple[int, Event], None]:
    """What stands since the last restart at `base`, each with its seq, read by the page."""
    cursor, inclusive = base, True
    while entries := await reader.page(keys, cursor, inclusive):
        for entry in entries:
            for seq, event in enumerate(entry.events, entry.first):
                if seq >= base:
                    yield seq, (event[0], event[1])
        cursor, inclusive = entries[-1].last, False


async def gather(reader: Reader, keys: MessageKeys, base: int) -> Standing:
    """What stands of a message since its last restart at `base`, all of it in memory."""
    standing = Standing()
    async for seq, event in _events(reader, keys, base):
        standing.add(event)
        standing.seq = seq
    return standing
