"""Deliberately broken variants of the shipped code: the simulation must catch each, or it proves nothing.

A mutant edits a script as it is loaded into the modelled Redis, or replaces a method while it is applied; the
repository is not touched. An edit whose text is no longer there is an error: the mutant must be brought up to date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final

from server.messages.claim import Claim
from server.messages.endings import Endings
from server.messages.events import Entry, pack
from server.messages.hub import Channel
from server.messages.journal import Outbox, _Flight
from server.messages.keeper import Keeper
from server.messages.ownership import Observer
from server.messages.service import Messages
from server.routing import breaker
from server.routing.breaker import Breaker, Condition
from server.routing.shared_breaker import SharedBreakers
from server.sessions.outbound import Follow, Outbound
from server.store.keys import MessageKeys, hold_id


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken variant."""

    name: str
    means: str
    """What is wrong with it."""
    edits: tuple[tuple[bytes, bytes, bytes], ...] = ()
    """(how the script's own description begins, text, its replacement)."""
    methods: tuple[tuple[type | ModuleType, str, Any], ...] = ()
    edited: set[bytes] = field(default_factory=set, compare=False)

    def edit_script(self, source: bytes) -> bytes:
        """The script as this variant has it."""
        for begins, old, new in self.edits:
            if begins in source:
                assert old in source, f"mutant {self.name}: the script has no {old!r} any more"
                source = source.replace(old, new)
        return source

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While this lasts, the variant is what runs."""
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in self.methods]
        try:
            for owner, name, method in self.methods:
                setattr(owner, name, method)
            yield
        finally:
            for owner, name, method in before:
                setattr(owner, name, method)


_APPEND: Final = b"-- Append one entry"
_CLAIM: Final = b"-- Create a message"
_TAKEOVER: Final = b"-- Become the owner"
_FINALIZE: Final = b"-- Keep what stands"
_START: Final = b"-- Allocate an attempt"
_QUOTAS: Final = b"-- What the quota scripts share"
_RESERVE: Final = b"-- Reserve in all of"
_SETTLE: Final = b"-- Replace a hold by"
_SWAP: Final = b"-- Replace the shared condition"
_take: Final = Outbox.take
_command: Final = Outbox.command
_claim: Final = Messages._claim
_adopted: Final = Keeper._adopted
_from_tail: Final = Outbound._from_tail


def _take_and_show(self: Outbox) -> Any:
    flight = _take(self)
    if flight is not None:
        self.channel.publish(flight.entry)
    return flight


def _command_anew(self: Outbox) -> Any:
    """At a retry the entry is made again, of what has come in meanwhile, too."""
    flight = self.flight
    assert flight is not None
    if isinstance(flight, _Flight) and id(flight) in _SENT and flight.end is None:
        events = [*flight.entry.events, *self.waiting.take(65_536)]
        data = pack(flight.entry.prev, flight.entry.first, events)
        flight.entry, flight.data = Entry(flight.entry.prev, flight.entry.first, events, len(data)), data
    _SENT[id(flight)] = flight
    if len(_SENT) > 64:
        del _SENT[next(iter(_SENT))]
    return _command(self)


_SENT: Final[dict[int, Any]] = {}


def _take_end_twice(self: Outbox) -> Any:
    flight = _take(self)
    if flight is not None and flight.end is not None:
        entry = flight.entry
        events = [*entry.events, entry.events[-1]]
        flight.data = pack(entry.prev, entry.first, events)
        flight.entry = Entry(entry.prev, entry.first, events, len(flight.data))
    return flight


def _after_one_too_few(self: Entry, cursor: int) -> Any:
    return self.events if cursor < self.first else self.events[cursor - self.first :]


def _holds_anything(self: Entry, cursor: int) -> bool:
    return True


def _publish_over_gaps(self: Channel, entry: Entry) -> bool:
    if entry.last > self.head and entry.prev != self.head:
        entry = Entry(self.head, entry.first, entry.events, entry.size)
    return _publish(self, entry)


_publish: Final = Channel.publish


async def _claim_in_two_steps(self: Messages, wish: Any, generation: bytes) -> Any:
    store, keys = self.means.store, wish.keys
    if not await store.call(keys.record, "EXISTS", keys.record):
        await store.call(keys.record, "DEL", keys.record, keys.journal)
    return await _claim(self, wish, generation)


def _everybody_is_dead(self: Observer, counters: Any, started: float, ended: float) -> set[str]:
    return set(counters)


def _impatient(self: Observer, takeover_seconds: float) -> None:
    _observer(self, 0.2)


_observer: Final = Observer.__init__
_read: Final = Observer.read


def _read_through_everything(self: Observer, counters: Any, started: float, ended: float) -> set[str]:
    self._read_at = None
    return _read(self, counters, ended, ended)


def _never_interrupted(self: Observer) -> None:
    pass


async def _adopted_in_spite_of_a_stop(self: Keeper, tag: str, keys: MessageKeys, fields: Any) -> Claim:
    return replace(await _adopted(self, tag, keys, fields), cancelled=False)


def _hold_of_the_owner(self: Claim) -> str:
    return hold_id(self.tag, self.generation + self.fence.rpartition(b":")[0], self.run)


_TAKE_A_REQUEST: Final = b"  for _, o in ipairs(owners) do if o.r and fresh then o.r = o.r - 1 save(o) end end\n"


def _silent_beyond_the_head(self: Outbound, follow: Follow) -> bytes | None:
    return None if follow.cursor > follow.channel.head else _from_tail(self, follow)


def _renumber_what_is_left(self: Outbox, tip: int, attempts: bytes, missing: bool) -> bool:
    flight = self.flight
    if missing or not isinstance(flight, _Flight):
        return False
    events = flight.entry.events
    data = pack(tip, tip + 1, events)
    self.flight = _Flight(Entry(tip, tip + 1, events, len(data)), data, flight.base, 0, flight.end)
    return True


def _never_again(self: Claim) -> None:
    return None


def _keep_nothing(self: Endings, tag: str, ending: Any, request_bytes: int, now: float) -> None:
    return None


def _probed_by_all(before: Condition, lease: Any, now: float, settings: Any) -> Condition | None:
    return _probed(before, lease, now, settings.model_copy(update={"probes": 1000}))


def _wait_for_no_probe(self: Condition, now: float, probes: int) -> float:
    return _wait(self, now, 1000)


_probed: Final = breaker._probed
_wait: Final = Condition.wait


def _never_trips(self: Breaker, now: float, *, failed: bool, slow: bool) -> bool:
    return False


def _deaf(self: SharedBreakers, data: bytes) -> None:
    pass


def _methods(*triples: tuple[type | ModuleType, str, Any]) -> tuple[tuple[type | ModuleType, str, Any], ...]:
    return triples


_FENCE: Final = b"if have[1] ~= ARGV[1] then\n  return -1\nend\n"
_KNOWN: Final = b"  if there and there[2][2] == ARGV[1] and there[2][4] == ARGV[4] then\n    return written\n  end\n"
_CAS: Final = b"if have[1] ~= ARGV[1] then\n  return {'other'}\nend\n"

MUTANTS: Final = (
    Mutant("no-fence", "the append script looks at no fence", ((_APPEND, _FENCE, b""),)),
    Mutant(
        "deliver-before-journal",
        "followers see an entry before Redis has it",
        (),
        _methods((Outbox, "take", _take_and_show)),
    ),
    Mutant(
        "merge-off-by-one",
        "a reader within an entry gets an event again",
        (),
        _methods((Entry, "after", _after_one_too_few)),
    ),
    Mutant("lease-ignored", "every other node is taken for dead", (), _methods((Observer, "read", _everybody_is_dead))),
    Mutant(
        "same-seq-after-takeover",
        "a takeover does not jump",
        ((_TAKEOVER, b"tonumber(have[4]) + tonumber(ARGV[3])", b"tonumber(have[4])"),),
    ),
    Mutant(
        "same-seq-after-reopening",
        "a reopened failure goes on with the next seq",
        ((_CLAIM, b"tonumber(have[3]) + tonumber(ARGV[7])", b"tonumber(have[3])"),),
    ),
    Mutant("one-missed-beat", "a heart that missed one beat is dead", (), _methods((Observer, "__init__", _impatient))),
    Mutant(
        "freeze-kills",
        "errors, slow reads and pauses do not begin the observation anew",
        (),
        _methods((Observer, "read", _read_through_everything), (Observer, "interrupted", _never_interrupted)),
    ),
    Mutant(
        "re-batched-retry",
        "a retry after a lost connection sends other bytes",
        (),
        _methods((Outbox, "command", _command_anew)),
    ),
    Mutant("retry-not-recognised", "a repeated append is a gap", ((_APPEND, _KNOWN, b""),)),
    Mutant(
        "claim-not-atomic", "the claim is looked up, then set", (), _methods((Messages, "_claim", _claim_in_two_steps))
    ),
    Mutant("takeover-not-compared", "a message is taken from whoever has it", ((_TAKEOVER, _CAS, b""),)),
    Mutant(
        "silent-beyond-head",
        "a cursor beyond the head is served with silence",
        (),
        _methods((Outbound, "_from_tail", _silent_beyond_the_head)),
    ),
    Mutant(
        "no-snapshot-for-holes",
        "entries that do not continue the cursor are served",
        (),
        _methods((Entry, "holds", _holds_anything)),
    ),
    Mutant(
        "stop-forgotten-at-takeover",
        "a takeover goes on with a message that was to be stopped",
        ((_START, b"if have[3] then\n  return 2\nend\n", b""), (_APPEND, b"have[4] and 2 or 1", b"1")),
        _methods((Keeper, "_adopted", _adopted_in_spite_of_a_stop)),
    ),
    Mutant("end-written-twice", "the last entry holds the end twice", (), _methods((Outbox, "take", _take_end_twice))),
    Mutant(
        "hub-skips-gaps",
        "a tail takes entries that do not continue it",
        (),
        _methods((Channel, "publish", _publish_over_gaps)),
    ),
    Mutant(
        "finalize-drops-text",
        "what stands at the end is not kept",
        ((_FINALIZE, b"redis.call('RENAME', KEYS[4], KEYS[3])", b"redis.call('DEL', KEYS[4])"),),
    ),
    Mutant(
        "loss-covered-up",
        "where Redis lost entries the newest one is put in their place",
        (),
        _methods((Outbox, "_mends", _renumber_what_is_left)),
    ),
    Mutant(
        "fence-not-unique",
        "a claim granted anew has the fence of the one that was lost, and is not made once more by who had it",
        ((_CLAIM, b"'1:' .. ARGV[5] .. ':' .. ARGV[6]", b"'1:' .. ARGV[5]"),),
        _methods((Claim, "again", _never_again)),
    ),
    Mutant(
        "refilled-twice",
        "a bucket forgets until when it was refilled",
        ((_QUOTAS, b"  o.at = now\n", b"  o.at = tonumber(have[5]) or now\n"),),
    ),
    Mutant(
        "settled-twice",
        "a settlement that is repeated is done again",
        ((_SETTLE, b"have[2] and 'again' or have[1]", b"have[1]"),),
    ),
    Mutant(
        "hold-of-each-owner",
        "who takes a message over reserves anew",
        (),
        _methods((Claim, "hold", property(_hold_of_the_owner))),
    ),
    Mutant(
        "refusal-takes",
        "a refusal costs a request",
        ((_RESERVE, b"  verdict = 'refused'\n", b"  verdict = 'refused'\n" + _TAKE_A_REQUEST),),
    ),
    Mutant(
        "slots-for-ever",
        "leases that are over are not swept",
        ((_QUOTAS, b"from, int(till))) do", b"from, '(0')) do"),),
    ),
    Mutant(
        "thaw-frees-slots",
        "time in which nobody could renew counts against the leases",
        ((_QUOTAS, b"elseif now - seen > lease / 2 then", b"elseif false then"),),
    ),
    Mutant(
        "clock-runs-back",
        "a bucket believes a clock that was set back, and refills twice",
        ((_QUOTAS, b"if now < seen then", b"if false then"),),
    ),
    Mutant(
        "one-slot-too-many",
        "the last slot is granted twice",
        ((_RESERVE, b"slots_taken(o) >= o.slots", b"slots_taken(o) > o.slots"),),
    ),
    Mutant(
        "bill-forgotten-at-reopening",
        "a reopened message forgets what its earlier runs were billed",
        ((_CLAIM, b"'HDEL', KEYS[1], 'end', ", b"'HDEL', KEYS[1], 'end', 'records', "),),
    ),
    Mutant(
        "ends-not-kept",
        "an end that Redis lost is generated anew, though its writer lives",
        (),
        _methods((Endings, "keep", _keep_nothing)),
    ),
    Mutant(
        "probes-without-limit",
        "whoever finds a pause over tries the target",
        (),
        _methods((breaker, "_probed", _probed_by_all), (Condition, "wait", _wait_for_no_probe)),
    ),
    Mutant(
        "condition-not-compared",
        "a breaker is moved on from what it was a moment ago",
        ((_SWAP, b"if version ~= ARGV[1] then", b"if false then"),),
    ),
    Mutant("never-trips", "no failure takes a target out of use", (), _methods((Breaker, "count", _never_trips))),
    Mutant(
        "others-not-told",
        "a node that takes a target out of use is not heard by the others",
        (),
        _methods((SharedBreakers, "_heard", _deaf)),
    ),
)
"""All of them."""
