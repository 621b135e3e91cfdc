"""What was really asked and paid for: the upstream's own log against the attempt records in Redis.

The log is written by the upstream, in another process; the records by the nodes. What a client was told is compared
with the scripted text elsewhere. So no claim rests on two numbers from one source.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from redis.asyncio import Redis

from tests.upstreams.script import message_hash, reply_to

Map = dict[str, Any]
LOST = "owner_lost"
"""Outcome of an attempt whose node died."""


class Tokens(NamedTuple):
    """Tokens in and out."""

    input: int = 0
    output: int = 0

    @classmethod
    def of(cls, usages: Iterable[Mapping[str, int]]) -> Tokens:
        """The sum of usages as the upstream's log has them."""
        found = list(usages)
        return cls(sum(usage["input"] for usage in found), sum(usage["output"] for usage in found))

    def plus(self, other: Tokens) -> Tokens:
        """The sum."""
        return Tokens(self.input + other.input, self.output + other.output)


class UpstreamLog:
    """The append-only log of a scripted upstream, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._starts: dict[str, list[Map]] = defaultdict(list)
        self._ends: dict[str, Map] = {}

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                entry = json.loads(line)
                if entry["event"] == "start":
                    self._starts[entry["hash"]].append(entry)
                else:
                    self._ends[entry["request"]] = entry

    def calls(self, messages: Sequence[Mapping[str, Any]]) -> list[Map]:
        """Every call that was made for this request, oldest first."""
        self._read()
        return list(self._starts.get(message_hash(messages), ()))

    def end(self, call: Map) -> Map | None:
        """How a call ended, if it has."""
        self._read()
        return self._ends.get(call["request"])

    def count(self) -> int:
        """Calls in all."""
        self._read()
        return sum(map(len, self._starts.values()))

    def usage(self) -> Tokens:
        """The tokens of every usage that was told, to whatever call."""
        self._read()
        return Tokens.of(end["usage"] for end in self._ends.values() if end.get("usage"))


@dataclass(slots=True)
class Stored:
    """One message as Redis has it."""

    id: str
    state: str
    attempts: int
    records: list[Map] = field(default_factory=list)
    end: Map = field(default_factory=dict)
    owner: str = ""
    """The node that generates it, or did."""

    @property
    def payers(self) -> list[Map]:
        """The attempts that the user pays."""
        return [record for record in self.records if record["payer"] == "user"]


async def stored_messages(urls: Iterable[str]) -> dict[str, Stored]:
    """Every message on the given primaries, found by looking at every key: our own key names are not trusted."""
    found: dict[str, Stored] = {}
    for url in urls:
        client = Redis.from_url(url, socket_timeout=5.0)
        try:
            async for key in client.scan_iter(match="tw:{*}:m", count=1000):
                fields = await client.hmget(key, "id", "state", "attempts", "records", "end", "owner")  # type: ignore[misc]
                if fields[0] is not None:
                    message = _stored(fields)
                    assert message.id not in found, f"two records for {message.id}"
                    found[message.id] = message
        finally:
            await client.aclose()
    return found


def _stored(fields: Sequence[bytes | None]) -> Stored:
    message_id, state, attempts, records, end, owner = fields
    assert message_id is not None
    return Stored(
        message_id.decode(),
        (state or b"").decode(),
        int(attempts or 0),
        msgpack.unpackb(records) if records else [],
        msgpack.unpackb(end) if end else {},
        (owner or b"").decode(),
    )


@dataclass(slots=True)
class Verdict:
    """What is wrong with one message; empty lists mean nothing."""

    doubled: list[str] = field(default_factory=list)
    """Calls upstream that no record explains, or that nothing but a repeat can have caused."""
    double_billed: list[str] = field(default_factory=list)
    """More than one attempt that the user pays, or a sum that isn't that of the text that stands."""
    unpaid: list[str] = field(default_factory=list)
    """Text stands that nobody pays."""


def audit(
    messages: Sequence[Mapping[str, Any]],
    stored: Stored | None,
    log: UpstreamLog,
    model: str,
    forgotten: bool = False,
) -> Verdict:
    """Compare what was called for one message with what was recorded.

    `forgotten`: Redis lost the claim, with the records of what was called for it, and a client asked anew: calls
    without a record are then the price of that loss, which the caller counts. Paid is once all the same.
    """
    verdict = Verdict()
    calls = log.calls(messages)
    if stored is None:
        if calls:
            verdict.doubled.append(f"{len(calls)} calls for a message that Redis does not know")
        return verdict
    records, lost = stored.records, [r for r in stored.records if r["outcome"] == LOST]
    # a node may die, or a stop may come, between allocating an attempt and making its call: then nobody pays for it
    unmade = [r for r in records if r in lost or (r["payer"] == "operator" and not r["output_tokens"])]
    numbers = [record["attempt"] for record in records]
    if len(set(numbers)) != len(numbers):
        verdict.double_billed.append(f"{stored.id}: an attempt recorded twice: {numbers}")
    if len(calls) > len(records) and not forgotten:
        verdict.doubled.append(f"{stored.id}: {len(calls)} calls, {len(records)} records ({stored.state})")
    elif len(records) - len(calls) > len(unmade):
        verdict.doubled.append(f"{stored.id}: {len(records)} records, only {len(calls)} calls: {records}")
    if len(records) - len(lost) > 1:
        verdict.doubled.append(f"{stored.id}: {len(records)} attempts, but only {len(lost)} lost owners")
    _audit_bill(messages, stored, model, verdict)
    return verdict


def _audit_bill(messages: Sequence[Mapping[str, Any]], stored: Stored, model: str, verdict: Verdict) -> None:
    payers = stored.payers
    if len(payers) > 1:
        verdict.double_billed.append(f"{stored.id}: the user pays {len(payers)} attempts")
    if stored.state != "done":
        return
    if not payers:
        verdict.unpaid.append(f"{stored.id}: done, and nobody pays")
        return
    reply = reply_to(messages, model)
    paid = sum(record["output_tokens"] for record in payers)
    if paid != reply.output_tokens:
        verdict.double_billed.append(f"{stored.id}: {paid} tokens paid, the answer has {reply.output_tokens}")
    if stored.end.get("usage", {}).get("output_tokens") != paid:
        verdict.double_billed.append(f"{stored.id}: the end tells another usage than the records")


# --- the ledger -------------------------------------------------------------------------------------------------------

BOOKED = ("run", "target", "outcome", "payer", "source", "input_tokens", "output_tokens", "cost_nano_usd")
"""What a row of the ledger and the record in Redis must agree in."""


def rows_by_message(rows: Iterable[Map]) -> dict[str, list[Map]]:
    """The rows of a ledger by the id of their message."""
    found: dict[str, list[Map]] = defaultdict(list)
    for row in rows:
        found[row["message_id"]].append(row)
    return found


def unbooked(stored: Iterable[Stored], rows: Mapping[str, Sequence[Map]]) -> list[str]:
    """Attempts that ended and are not in the ledger (yet), by message and number."""
    booked = {(message_id, row["attempt"]) for message_id, some in rows.items() for row in some}
    return [
        f"{message.id}: attempt {record['attempt']} is not in the ledger"
        for message in stored
        for record in message.records
        if (message.id, record["attempt"]) not in booked
    ]


def audit_ledger(
    messages: Sequence[Mapping[str, Any]],
    stored: Stored | None,
    rows: Sequence[Map],
    log: UpstreamLog,
    model: str,
    forgotten: bool = False,
) -> list[str]:
    """Compare what the ledger says of one message with what the upstream did, and with the records in Redis.

    `forgotten`: see `audit`.
    """
    wrong: list[str] = []
    keys = [(row["generation"], row["attempt"]) for row in rows]
    if len(set(keys)) != len(keys):
        wrong.append(f"an attempt has two rows: {keys}")
    if stored is not None:
        records = {record["attempt"]: record for record in stored.records}
        for row in rows:
            record = records.get(row["attempt"])
            differ = None if record is None else [name for name in BOOKED if row[name] != record[name]]
            if differ or record is None:
                wrong.append(
                    f"{row['message_id']}: attempt {row['attempt']} is booked otherwise than recorded: {differ}"
                )
    return wrong + match_usage(messages, rows, log, forgotten).wrong + _audit_sums(messages, rows, log, model)


def _audit_sums(messages: Sequence[Mapping[str, Any]], rows: Sequence[Map], log: UpstreamLog, model: str) -> list[str]:
    """Where the upstream was cut off, no more than it wrote."""
    if not rows:
        return []
    wrong: list[str] = []
    whole = reply_to(messages, model).output_tokens
    ends = [log.end(call) or {} for call in log.calls(messages)]
    written = sum(max(end.get("chunks", 0), whole if end.get("whole") else 0) for end in ends)
    counted = sum(row["output_tokens"] for row in rows if row["source"] in ("provider", "counted"))
    if all(ends) and counted > written:
        wrong.append(f"{rows[0]['message_id']}: {counted} tokens booked, the upstream wrote {written}")
    longest = max((end.get("text_bytes", 0) for end in ends), default=0)
    wrong += [
        f"{row['message_id']}: {row['output_tokens']} tokens estimated of {longest} bytes"
        for row in rows
        if row["source"] == "estimated" and all(ends) and 4 * (row["output_tokens"] - 1) > longest
    ]
    return wrong


@dataclass(slots=True)
class Usage:
    """The usages that the upstream told for one message, beside the rows that are booked as told by it."""

    booked: Tokens = field(default_factory=Tokens)
    """Of the rows whose source is `provider`."""
    unheard: Tokens = field(default_factory=Tokens)
    """Told to an attempt that has no such row: its node died, or it was stopped, before the usage came through."""
    wrong: list[str] = field(default_factory=list)


def match_usage(
    messages: Sequence[Mapping[str, Any]], rows: Sequence[Map], log: UpstreamLog, forgotten: bool = False
) -> Usage:
    """Find the call of each row that is booked as told by the provider: the same tokens in and out, and no call twice.

    `forgotten`: see `audit`.
    """
    told = [Tokens.of([end["usage"]]) for call in log.calls(messages) if (end := log.end(call)) and end.get("usage")]
    left, found = list(told), Usage()
    for row in rows:
        name = f"{row['message_id']}: attempt {row['attempt']}"
        booked = Tokens(row["input_tokens"], row["output_tokens"])
        if row["source"] != "provider":
            if row["outcome"] == "done" and left:
                found.wrong.append(f"{name} is done and booked as {row['source']}, the upstream told {told}")
            continue
        found.booked = found.booked.plus(booked)
        if booked in left:
            left.remove(booked)
        else:
            found.wrong.append(f"{name} is booked with {booked}, the upstream told {told}")
    for usage in left:
        found.unheard = found.unheard.plus(usage)
    unsure = sum(row["source"] != "provider" for row in rows)
    if len(left) > unsure and not forgotten:
        found.wrong.append(f"{len(left)} usages that the upstream told are not booked, {unsure} rows can be theirs")
    return found


def audit_totals(found: Iterable[Usage], sums: Mapping[str, Tokens], log: UpstreamLog) -> list[str]:
    """Compare the ledger's own sums with all that the upstream ever told; `sums`: those of its report, by source."""
    booked = unheard = Tokens()
    for usage in found:
        booked, unheard = booked.plus(usage.booked), unheard.plus(usage.unheard)
    told, reported = log.usage(), sums.get("provider", Tokens())
    wrong = []
    if reported != booked:
        wrong.append(f"the ledger's report sums {reported} as told by the provider, its rows {booked}")
    if reported.plus(unheard) != told:
        wrong.append(f"{reported} reported and {unheard} not heard, the upstream told {told} in all")
    return wrong
