"""The messages that this process owns: begun, adopted from others, driven, finished, given back.

Everything here that touches Redis after a message has ended, or failed to begin, is idempotent and repeated until
Redis has done it: a step that was cut off is done again, here or by a survivor.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgpack
import structlog

from protocol.errors import ATTEMPT_REASONS, ProtocolError
from server.ledger.record import Account
from server.messages import request as asked
from server.messages.claim import Claim, account_of
from server.messages.endings import Endings
from server.messages.finalize import finalize, gather
from server.messages.hub import NOTE_OWNER, NOTE_REFUSED
from server.messages.life import until_redis_answers
from server.messages.means import Means
from server.messages.message import Running
from server.messages.openlist import OpenList
from server.messages.origin import Door, Origin
from server.messages.place import Place
from server.messages.reader import Reader
from server.messages.scripts import HAND_OVER, KEPT, RELEASE, TAKEOVER
from server.messages.state import State, has_ended
from server.messages.tally import lost_record, settlement, withdrawn
from server.quotas.base import Payer, Used
from server.routing.attempts import Reason, Shown
from server.store.keys import GONE, MessageKeys, active_set, hold_id, message_index, user_tag
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("messages")

T = TypeVar("T")

RETRY_SECONDS: Final = 0.25
JUMP: Final = 2**20
"""After a takeover or a reopening the seqs begin at least this much further on, and at most twice as far."""
STEP_SECONDS: Final = 5.0
LOOK_AT_ONCE: Final = 256
"""Messages looked at together after Redis was away."""
STOP_SECONDS: Final = 5.0
REPLICA_SECONDS: Final = 1.0
"""How long a replica has to take an end before the message is finalized all the same."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long things are kept, in seconds."""

    retention_seconds: float
    claim_seconds: float


class Keeper:
    """See the module."""

    def __init__(self, means: Means, reader: Reader, node: str, times: Times, chance: random.Random) -> None:
        self.means = means
        self.reader = reader
        self.node = node
        self.times = times
        self.running: dict[str, Running] = {}
        self.finishing: set[str] = set()
        self.adopting: set[str] = set()
        """Messages being taken over just now: a second takeover would displace the first, for ever."""
        self.owner = TaskOwner("messages")
        self.endings = Endings(means.journal, times.claim_seconds)
        self._claiming: Counter[str] = Counter()
        self._doors: Counter[Door] = Counter()
        """How many of the messages that run here came through each door."""
        self._chance = chance
        self.open = OpenList(means.store, node)
        self._idle = asyncio.Event()
        self._idle.set()
        self.left = False
        """It runs nothing any more: what is claimed in its name from now on is a survivor's."""

    def has(self, tag: str) -> bool:
        """Whether this process runs the message, is finishing it, or is about to run it."""
        return tag in self.running or tag in self.finishing or tag in self.adopting

    @property
    def people(self) -> int:
        """How many messages run here that somebody asked for directly: those that are no items of jobs."""
        return self._doors.total() - self._doors["job"]

    @contextmanager
    def holding(self, tag: str) -> Iterator[None]:
        """While a claim of this node is made ready, nobody takes it for one that nobody runs."""
        self.finishing.add(tag)
        try:
            yield
        finally:
            self.finishing.discard(tag)

    @contextmanager
    def claiming(self, tag: str) -> Iterator[None]:
        """While a claim is asked for, the end of an earlier run does not take the message off this node's list: were
        the node to die before the new run has begun, nobody would find it."""
        self._claiming[tag] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._claiming[tag] -= 1
            if not self._claiming[tag]:
                del self._claiming[tag]
            self._look_idle()

    def begin(self, claim: Claim) -> Running:
        """Drive a message that this node has just come to own."""
        self.endings.forget(claim.tag)
        running = self.running[claim.tag] = Running(claim, self.means, self.reader)
        running.answer.outbox.claim_again = running.claim.again
        self._idle.clear()
        self.owner.start(self._drive(running), claim.id)
        self.owner.start(self.stubbornly(lambda: self._list(claim.tag)), claim.id)
        return running

    async def _list(self, tag: str) -> None:
        """Put a message on this node's list once more, now that it runs.

        The one before the claim may have been undone: by the end of an earlier claim of the id, or by a failover.
        """
        if tag in self.running:
            await self.open.add(tag, seconds=STEP_SECONDS)

    async def _drive(self, running: Running) -> None:
        claim = running.claim
        self.finishing.add(claim.tag)
        self._doors[claim.origin.door] += 1
        try:
            try:
                ended = await running.run()
            finally:
                self._doors[claim.origin.door] -= 1
                if self.running.get(claim.tag) is running:
                    del self.running[claim.tag]
                    self.means.hub.disown(claim.tag)
            if ended:
                size, now = asked.text_bytes(claim.request.get("messages", [])), asyncio.get_running_loop().time()
                self.endings.keep(claim.tag, running.answer.outbox.ending(), size, now)
                used = settlement(running.answer.records, claim.run, claim.account)
                await self._settle(claim.payer, claim.hold, used)
                await self._wind_up(claim)
            else:
                self.means.quotas.let_go(claim.hold)
                await self._give_back(running)
        finally:
            self.finishing.discard(claim.tag)
            self._look_idle()

    def _look_idle(self) -> None:
        if not self.running and not self.finishing and not self._claiming:
            self._idle.set()

    async def _settle(self, payer: Payer, hold: str, used: Used) -> None:
        """Replace the hold by what was used: after the end is written, before the message is finalized."""
        await self.stubbornly(lambda: self.means.quotas.settle(payer, hold, used))

    async def finish(
        self, keys: MessageKeys, generation: bytes, run: int, message_id: str, place: Place | None
    ) -> bool:
        """Do what is left to do after the end: first in its conversation, then in its own record.

        False if the record does not tell of this end: Redis lost it, or the message runs again.
        """
        times, conversations = self.times, self.means.conversations
        if place is not None:
            token = b"%s:%d" % (generation, run)
            await self.stubbornly(lambda: conversations.advance(place, message_id, keys, token))

        await self.means.replicas.have(keys.record, REPLICA_SECONDS)  # the end, before its journal is let go

        return await self.stubbornly(
            lambda: finalize(
                self.means.store, self.reader, keys, generation, run, times.retention_seconds, times.claim_seconds
            )
        )

    async def _wind_up(self, claim: Claim) -> None:
        """What is left to do after the end; where Redis has lost some of it meanwhile, it goes on from there."""
        if not await self.finish(claim.keys, claim.generation, claim.run, claim.id, claim.place):
            await self.stubbornly(lambda: self._go_on_if_lost(claim))  # while it is listed, so that others find it, too
        await self.stubbornly(lambda: self.kept(claim.user_tag, claim.id))
        await self.stubbornly(lambda: self._close(claim))

    async def _close(self, claim: Claim) -> None:
        """Take the message off the list if it is finished. Both in one step, which is repeated whole if the connection
        breaks: Redis may still lose that it is finished, but then it has lost first that it was taken off."""
        if await self._go_on_if_lost(claim):
            await self._unlist(claim.tag)

    async def _go_on_if_lost(self, claim: Claim) -> bool:
        """Go on with what Redis has lost. True if there is nothing to do here: it is finished, or not this node's."""
        record = claim.keys.record
        owner, state, standing, run = await self.means.store.call(
            record, "HMGET", record, "owner", "state", "standing", "run", seconds=STEP_SECONDS
        )
        settled = has_ended(state) and standing is not None
        reopened = run is not None and int(run) > claim.run  # by a repeat, which is about to run it
        if owner in (self.node.encode(), None) and not settled and not reopened and claim.tag not in self.running:
            await self.adopt(claim.tag, self.node)
        return settled or owner != self.node.encode()

    async def _give_back(self, running: Running) -> None:
        """It could not be admitted, belongs to another node, or lost acknowledged writes."""
        claim = running.claim
        if running.lost_writes:
            await self.stubbornly(lambda: self.adopt(claim.tag, self.node))
            return
        error = running.life.refusal
        if error is not None:
            await self.stubbornly(lambda: self._release_or_go_on(running, error))
        else:
            await self.stubbornly(lambda: self._let_go(running))

    async def _let_go(self, running: Running) -> None:
        """Another claim has the message; if it is an earlier one of ours, to which Redis fell back, it goes on here.

        If Redis lost the claim altogether, nobody else knows of its hold.
        """
        claim = running.claim
        record = claim.keys.record
        owner, state, generation = await self.means.store.call(
            record, "HMGET", record, "owner", "state", "gen", seconds=STEP_SECONDS
        )
        if generation != claim.generation:
            spent = [withdrawn(ended, claim.run) for ended in running.answer.records]
            used = settlement(spent, claim.run, claim.account) if spent else Used(dispatched=False)
            await self.means.quotas.settle(claim.payer, claim.hold, used)
        if claim.place is not None:
            await self._leave_turn(claim, claim.place, generation == claim.generation)
        ours = owner == self.node.encode() and not has_ended(state)
        if ours and claim.tag not in self.running:
            await self.adopt(claim.tag, self.node)
        else:
            await self._unlist(claim.tag)

    async def _leave_turn(self, claim: Claim, place: Place, stands: bool) -> None:
        """A node that slept may have entered the queue once more with what had ended, or been released, meanwhile."""
        if stands:
            await self.means.conversations.advance(place, claim.id, claim.keys, claim.token)
        else:
            await self.means.conversations.withdraw(place, claim.id, claim.token)

    async def _release_or_go_on(self, running: Running, error: ProtocolError) -> None:
        """Free the id; what can't be freed, because more than a claim stands under it, is not left without an owner."""
        claim = running.claim
        if claim.place is not None:
            await self.means.conversations.withdraw(claim.place, claim.id, claim.token)
        running.released = await self.release(claim.keys, claim.generation, claim.fence, error) or running.released
        adopted = claim.fence != self._first_fence(claim.generation)  # then an earlier owner may have reserved
        if running.released and (adopted or running.reservation.may_hold):
            # in this order: another owner of the claim would use the hold
            await self.means.quotas.settle(claim.payer, claim.hold, Used(dispatched=False))
        if not running.released and claim.tag not in self.running:
            await self.adopt(claim.tag, self.node)
        await self._unlist(claim.tag, claim.id, claim.user_tag)

    async def release(self, keys: MessageKeys, generation: bytes, fence: bytes, error: ProtocolError) -> bool:
        """Free the id of a claim that came to nothing; those who attached hear why. False if it is not that claim.

        Without a `fence`, only the claim as this node first made it: once adopted it is another's to end.
        """
        note = NOTE_REFUSED + msgpack.packb(error.as_dict())
        args = [generation, note, fence or self._first_fence(generation)]
        return bool(await self.means.store.run(RELEASE, [keys.record, keys.channel], args, STEP_SECONDS))

    def _first_fence(self, generation: bytes) -> bytes:
        """The fence of a claim as this node first made it (`claim_v1.lua`)."""
        return b"1:%s:%s" % (self.node.encode(), generation)

    async def _unlist(
        self, tag: str, message_id: str | None = None, user: str | None = None, lanes: Iterable[str] = ()
    ) -> None:
        """Take a message off this node's list (also where it was found in `lanes`), and off its user's if given."""
        store = self.means.store
        if user is not None and message_id is not None:
            index = active_set(user)
            await store.call(index, "SREM", index, message_id, seconds=STEP_SECONDS)
        if tag not in self.running and tag not in self._claiming:
            await self.open.remove(tag, STEP_SECONDS, lanes)

    async def kept(self, user: str, *ids: str) -> None:
        """Move messages of a user that have ended to the list of those that are kept."""
        keys = [active_set(user), message_index(user)]
        await self.means.store.run(KEPT, keys, [self.times.claim_seconds, *ids], STEP_SECONDS)

    async def stubbornly(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent step until Redis has done it; its result."""
        return await until_redis_answers(step, RETRY_SECONDS)

    def jump(self) -> int:
        """How far the seqs jump where another owner, or another run, goes on with a message."""
        return JUMP + self._chance.randrange(JUMP)

    # --- adopting -------------------------------------------------------------------------------------------------

    async def adopt(self, tag: str, dead: str) -> bool:
        """Take over the message with this tag from `dead` (a node, or this one after it lost writes or a reply).

        True if nothing is left to do for `dead` with it. Raises `StoreError` or `TimeoutError`.
        """
        if tag in self.adopting:
            return False
        self.adopting.add(tag)
        try:
            return await self._adopt(tag, dead)
        finally:
            self.adopting.discard(tag)

    async def _adopt(self, tag: str, dead: str) -> bool:
        keys, store = MessageKeys.of(tag), self.means.store
        await self.open.add(tag, seconds=STEP_SECONDS)
        if dead == self.node:  # from the end that it wrote, if Redis has lost just that
            await self.endings.write_again(tag)
        reply: list[Any] = await store.run(
            TAKEOVER,
            [keys.record, keys.journal, keys.channel],
            [dead, self.node, self.jump(), NOTE_OWNER],
            STEP_SECONDS,
        )
        verdict = reply[0] if reply else b""
        if verdict == b"taken":
            fields = _fields(reply[1:])
            self._take_up(await self._adopted(tag, keys, fields), fields["state"] == b"queued")
        elif verdict == b"ended":
            fields = _fields(reply[1:])
            generation, run = fields["gen"], int(fields["run"])
            used = settlement(msgpack.unpackb(fields["records"]), run, _account_of(tag, fields))
            await self._settle(_payer_of(fields), hold_id(tag, generation, run), used)
            place = Place.of(_user_of(fields), fields["conversation"].decode()) if "conversation" in fields else None
            if not await self.finish(keys, generation, run, fields["id"].decode(), place):
                return await self._adopt(tag, dead)  # it has not ended any more
            await self.kept(_user_of(fields), fields["id"].decode())
            await self._unlist(tag)
        elif dead != self.node and tag not in self.running and tag not in self.finishing:
            owner = await store.call(keys.record, "HGET", keys.record, "owner", seconds=STEP_SECONDS)
            if owner == self.node.encode():  # taken by a call whose reply was lost
                return await self._adopt(tag, self.node)
            if owner and await store.call(GONE, "SISMEMBER", GONE, owner, seconds=STEP_SECONDS):
                # it was given away by `dead`, which did not live to list it under that name
                return await self._adopt(tag, owner.decode())
            await self._unlist(tag)
        return True

    def _take_up(self, claim: Claim, waits: bool) -> None:
        """Run what was adopted. `waits`: whether somebody was told that it waits for its turn."""
        old = self.running.get(claim.tag)
        running = self.begin(claim)
        if old is not None:  # it lost the message while this node slept, and has not noticed yet: its fence is old
            old.cancel()
        if waits or claim.attempts or claim.run > 1:
            running.life.promise()  # more than a claim stands under its id: it can't be refused any more, only go on

    async def _adopted(self, tag: str, keys: MessageKeys, fields: Mapping[str, bytes]) -> Claim:
        """What the dead owner left, as a claim."""
        head, made = int(fields["head"]), int(fields["attempts"])
        ended = list(msgpack.unpackb(fields["records"])) if fields.get("records") else []
        standing = await gather(self.reader, keys, int(fields.get("base", 0))) if head else None
        text = b"".join(standing.text) if standing else b""
        since, run = standing.attempt if standing else 0, int(fields["run"])
        records = [withdrawn(record, run) if record["attempt"] < since else record for record in ended]
        told = {record["attempt"] for record in records}
        for number in range(1, made + 1):
            description = fields.get(f"attempt:{number}")
            if number not in told and description is not None:
                records.append(self._lost_record(number, description, len(text) if number == made else 0, run))
        self.means.watch.message_adopted()
        log.warning("message_adopted", id=fields["id"].decode(), tag=tag, head=head, attempts=made)
        claim = Claim(
            id=fields["id"].decode(),
            tag=tag,
            keys=keys,
            fence=fields["fence"],
            generation=fields["gen"],
            run=run,
            request=asked.unpack(fields["req"]),
            user_tag=_user_of(fields),
            payer=_payer_of(fields),
            head=head,
            first=int(fields["tip"]) + 1,
            attempts=made,
            records=tuple(records),
            reason=Reason("owner_lost", ATTEMPT_REASONS["owner_lost"]) if made else None,
            shown=Shown(anything=head > 0, structured=bool(standing and (standing.calls or standing.reasoning))),
            standing_text=text,
            cancelled="cancel" in fields,
            base=int(fields.get("base", 0)),
            user=_names(fields),
            origin=Origin.unpack(fields.get("origin")),
        )
        return replace(claim, earlier=settlement(ended, run - 1, claim.account)) if run > 1 else claim

    def _lost_record(self, number: int, packed: bytes, text_bytes: int, run: int) -> dict[str, Any]:
        description = msgpack.unpackb(packed)
        target = self.means.targets.get(description["target"])  # none: another configuration
        return lost_record(number, description, text_bytes, run, None if target is None else target.price)

    async def reconcile(self, doubted: bool = False) -> None:
        """Look for messages that this node owns but does not run: claims that happened after they were given up.

        `doubted`: Redis may have lost what it had acknowledged; look for that, too.
        """
        if self.running:
            await self.open.add(*self.running, seconds=STEP_SECONDS)
        if doubted:
            await self._look_for_losses()
        before = self.running.keys() | self.finishing
        listed = await self.open.read(STEP_SECONDS)
        for tag, lanes in listed.lanes.items():
            if tag not in before and not self.has(tag):
                await self._settle_stray(tag, lanes)

    async def _look_for_losses(self) -> None:
        tags = [*self.running, *self.endings.tags(asyncio.get_running_loop().time())]
        for start in range(0, len(tags), LOOK_AT_ONCE):
            await asyncio.gather(*map(self._look_for_loss, tags[start : start + LOOK_AT_ONCE]))

    async def _look_for_loss(self, tag: str) -> None:
        """Write again what Redis has lost of a message, if nothing that is under way finds out."""
        record = MessageKeys.of(tag).record
        state = await self.means.store.call(record, "HGET", record, "state", seconds=STEP_SECONDS)
        running = self.running.get(tag)
        if running is not None and state is None and running.life.admitted_here:
            running.answer.outbox.remake()
            index = active_set(running.claim.user_tag)
            await self.means.store.call(index, "SADD", index, running.claim.id, seconds=STEP_SECONDS)
        elif running is None and not has_ended(state) and not self.has(tag):
            await self.adopt(tag, self.node)

    async def _settle_stray(self, tag: str, lanes: Iterable[str]) -> None:
        keys = MessageKeys.of(tag)
        await self.endings.write_again(tag)
        owner, fence, generation, head = await self.means.store.call(
            keys.record, "HMGET", keys.record, "owner", "fence", "gen", "head", seconds=STEP_SECONDS
        )
        if self.has(tag):
            return
        if owner is None or owner.decode() != self.node:
            await self._unlist(tag, lanes=lanes)
        elif head == b"0" and fence == self._first_fence(generation) and await self._released(keys, generation):
            log.info("stray_claim_released", tag=tag)
            await self._unlist(tag, lanes=lanes)
        else:
            await self.adopt(tag, self.node)

    async def _released(self, keys: MessageKeys, generation: bytes) -> bool:
        error = ProtocolError("store_unavailable", "the claim was given up", retry_after_ms=1000)
        return await self.release(keys, generation, b"", error)

    # --- the end of the node --------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Running]:
        """Messages that wait for their turn and have not begun upstream."""
        return [running for running in self.running.values() if running.life.state is State.QUEUED]

    async def hand_over_waiting(self, heir: str) -> int:
        """Give away the messages that wait; how many. Raises `StoreError` or `TimeoutError`, then it is to be repeated.

        They are listed under `heir`, an incarnation that nobody runs and that the others were told is gone.
        """
        listed, given = OpenList(self.means.store, heir), 0
        for running in self.waiting:
            tag, keys = running.claim.tag, running.claim.keys
            await listed.add(tag, seconds=STEP_SECONDS)
            args = [running.claim.fence, heir, NOTE_OWNER]
            if await self.means.store.run(HAND_OVER, [keys.record, keys.channel], args, STEP_SECONDS):
                given += 1
                # once more: whoever saw it on the list before it was given away has taken it off
                await listed.add(tag, seconds=STEP_SECONDS)
                running.life.interrupt()  # it sees at its next step that it is no longer its owner
        return given

    async def idle(self) -> None:
        """Wait until nothing runs here, nothing is being claimed, and everything that ended is finished."""
        await self._idle.wait()

    async def abandon(self) -> None:
        """Stop what runs without a word: it stays open, and a survivor adopts it."""
        self.left = True
        for running in list(self.running.values()):
            running.abandon()
        await self.owner.close()

    async def close(self) -> None:
        """Stop: give what runs a moment to be journaled, then let go."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.idle()
        except TimeoutError:
            log.warning("messages_left", count=len(self.running))
        await self.abandon()


def _fields(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def _names(fields: Mapping[str, bytes]) -> tuple[str, str, str]:
    return fields["tenant"].decode(), fields["kind"].decode(), fields["user"].decode()


def _account_of(tag: str, fields: Mapping[str, bytes]) -> Account:
    """To whom an ended message is booked; `req` is gone if its conversation was deleted."""
    if "req" in fields:
        request = asked.unpack(fields["req"])
    else:
        request = {name: fields[name].decode() for name in ("model", "conversation") if name in fields}
    origin = Origin.unpack(fields.get("origin"))
    return account_of(tag, fields["gen"], fields["id"].decode(), _names(fields), origin, request)


def _user_of(fields: Mapping[str, bytes]) -> str:
    return user_tag(*_names(fields))


def _payer_of(fields: Mapping[str, bytes]) -> Payer:
    return Payer(fields["tenant"].decode(), _user_of(fields), fields["tier"].decode(), fields["model"].decode())
