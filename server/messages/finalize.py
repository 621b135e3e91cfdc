"""After the end: keep what stands beside the journal, start both clocks, take the message off the lists.

Every step may be repeated, and may be done by another node than the one that wrote the end.
"""

from __future__ import annotations

import msgpack

from server.messages.events import END
from server.messages.reader import Reader, Standing
from server.messages.scripts import FINALIZE
from server.store.keys import MessageKeys
from server.store.store import Store

SMALL_BYTES = 65_536
"""How much is gathered in memory before it is appended to Redis."""


async def finalize(
    store: Store,
    reader: Reader,
    keys: MessageKeys,
    generation: bytes,
    run: int,
    retention_seconds: float,
    claim_seconds: float,
) -> bool:
    """Finish an ended message; False if it is another generation by now. Raises `StoreError` or `TimeoutError`."""
    record = await reader.record(keys)
    if record is None or not record.ended:
        return False
    if record.standing is not None:
        return True  # it was done before, and the journal it was gathered from may have gone since
    standing = await gather(reader, keys, record.base)
    calls = msgpack.packb(standing.calls) if standing.calls else b""
    text, reasoning = b"".join(standing.text), b"".join(standing.reasoning)
    gathered = keys.standing + b":" + generation
    whole = text + reasoning + calls
    if whole:
        await store.call(keys.standing, "SET", gathered, whole, seconds=5.0)
    lengths = msgpack.packb((len(text), len(reasoning), len(calls)))
    answer = await store.run(
        FINALIZE,
        [keys.record, keys.journal, keys.standing, gathered],
        [generation + b":%d" % run, lengths, round(retention_seconds * 1000), round(claim_seconds * 1000)],
        seconds=5.0,
    )
    return bool(answer)


async def gather(reader: Reader, keys: MessageKeys, base: int) -> Standing:
    """What stands of a message since its last restart at `base`, read by the page."""
    standing, cursor, inclusive = Standing(), base, True
    while entries := await reader.page(keys, cursor, inclusive):
        for entry in entries:
            for seq, event in enumerate(entry.events, entry.first):
                if seq >= base and event[0] != END:
                    standing.add(event)
        cursor, inclusive = entries[-1].last, False
    return standing
