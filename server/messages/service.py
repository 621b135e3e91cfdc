"""What the doors (WebSocket, HTTP, jobs) ask of messages: ask, look, cancel, list; and the messages that run here."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import msgpack
import structlog

from protocol.errors import ATTEMPT_REASONS, ProtocolError
from protocol.frames import DEFAULT_ROUTE, END_STATES, Send
from server.access.identity import Principal
from server.messages import request as asked
from server.messages.branch import count_tokens, room_of
from server.messages.claim import Claim, Made, fields_of
from server.messages.finalize import gather
from server.messages.hub import NOTE_CANCEL
from server.messages.keeper import Keeper
from server.messages.life import Displaced
from server.messages.means import Means
from server.messages.origin import Origin, tags_of, traceparent_of
from server.messages.prompted import Prompted
from server.messages.reader import Reader
from server.messages.scripts import CANCEL, CLAIM
from server.messages.state import State
from server.messages.structured import check_format
from server.messages.tally import settlement
from server.prompts import request as prompted
from server.prompts.service import Prompts
from server.quotas.base import Payer
from server.routing.attempts import Reason, Shown
from server.store.keys import MessageKeys, active_set, control_channel, message_tag, user_tag
from server.store.link import StoreError, StoreUnavailable
from server.store.store import IMPATIENT, forget
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("messages")

ADMITTING_POLL_SECONDS: Final = 0.05
ADMITTING_SECONDS: Final = 8.0
"""How long an attached sender waits for another node's admission."""
ACTIVE_TOLD: Final = 256
"""Most running messages that `welcome` tells of."""
CANCEL_POLL_SECONDS: Final = 1.0
"""How often an owner looks for a stop that was asked for elsewhere while its message writes nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """A message as it stands."""

    id: str
    tag: str
    keys: MessageKeys
    state: str
    head: int
    replay: bool
    conversation: str | None = None
    generation: str = ""
    """Of its claim; empty where nobody asks for it."""

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.state in END_STATES


@dataclass(frozen=True, slots=True)
class Wish:
    """What one `ask` is about."""

    who: Principal
    send: Send
    origin: Origin
    request: asked.Request | ProtocolError
    """What is stored if it is new; or why there can be nothing new."""
    tag: str
    keys: MessageKeys
    made: Made

    @property
    def user(self) -> str:
        """Tag of the user."""
        return user_tag(self.who.tenant, self.who.kind, self.who.user)

    @property
    def route(self) -> str:
        """The route that answers: the one asked for, or the one that the prompt would have."""
        if isinstance(self.request, ProtocolError):
            return self.send.model
        route: str = self.request.get("model", DEFAULT_ROUTE)
        return route


class Messages:
    """Every message that this process runs, and the way to all others."""

    def __init__(
        self,
        means: Means,
        reader: Reader,
        keeper: Keeper,
        node: str,
        chance: random.Random,
        prompts: Prompts,
    ) -> None:
        self.means = means
        self.prompts = prompts
        self._prompted = Prompted(means.store, self.prompts)
        self.reader = reader
        self.keeper = keeper
        self.node = node
        self.draining = False
        self._chance = chance
        self._owner = TaskOwner("messages")
        means.hub.on_note = self._note

    def start(self) -> None:
        """Begin to look for stops asked for elsewhere."""
        self._owner.start(self._poll_cancels(), "cancels")

    # --- ask ---------------------------------------------------------------------------------------------------------

    async def ask(self, who: Principal, send: Send, origin: Origin, of_route: bool = True) -> Found:
        """Create the message, or attach to it (G1). Returns when it is admitted.

        `origin` is where it comes from; its tags are those of `send.metadata`. They are kept with the claim: a repeat
        through another door changes nothing. `of_route`: whether it gets the prompt of its route. Raises
        `ProtocolError`: `invalid_frame` (metadata, prompt), `model_not_found`, `prompt_not_found`,
        `idempotency_mismatch`, `store_unavailable`, `draining`, or why its admission was refused.
        """
        check_format(send.response_format)
        told = traceparent_of(send.metadata) or origin.traceparent
        origin = replace(origin, tags=tags_of(send.metadata), tier=who.tier, traceparent=told)
        tag = message_tag(who.tenant, who.kind, who.user, send.id)
        keys = MessageKeys.of(tag)
        try:
            made = Made(self.node, asked.fingerprint(send), time.time(), self.keeper.times.claim_seconds)
            wish = Wish(who, send, origin, await self._prompted.request(who, send, of_route), tag, keys, made)
            self._check_route(wish.route)
            if send.conversation is not None:
                await self.means.conversations.check(who, send, self._room(wish))
            found = await self._ask(wish)
            if not found.replay and not isinstance(wish.request, ProtocolError):
                await self._prompted.keep(who, wish.request)
            return found
        except (StoreError, TimeoutError) as error:
            log.info("claim_failed", id=send.id, error=str(error))
            raise unavailable() from None

    def _check_route(self, name: str) -> None:
        if name not in self.means.routes:
            raise ProtocolError(
                "model_not_found", f"there is no model {name!r}", details={"models": sorted(self.means.routes)}
            )

    def _room(self, wish: Wish) -> int:
        """How many tokens of input the largest target of the route takes beside the prompt."""
        targets = (self.means.targets[name] for name in self.means.routes[wish.route].targets)
        request: asked.Request = {} if isinstance(wish.request, ProtocolError) else wish.request
        room = max(room_of(target.context_tokens, request.get("max_output_tokens")) for target in targets)
        return max(0, room - sum(map(count_tokens, chain(*prompted.around(request)))))

    async def _ask(self, wish: Wish) -> Found:
        send, tag, keys = wish.send, wish.tag, wish.keys
        loop = asyncio.get_running_loop()
        give_up = loop.time() + ADMITTING_SECONDS
        running = self.keeper.running.get(tag)
        while True:
            if running is not None:
                try:
                    await asyncio.shield(running.life.admitted)
                except Displaced:
                    running = None
            generation = self._chance.randbytes(8).hex().encode()
            with self.keeper.claiming(tag):
                reply = await self._claim_or_undo(wish, generation)
                if reply[0] == b"none":
                    assert isinstance(wish.request, ProtocolError)
                    raise wish.request
                if reply[0] == b"mismatch":
                    raise ProtocolError("idempotency_mismatch", f"{send.id} was used before, for a different request")
                if reply[0] != b"have" and self.keeper.left:
                    raise leaving()  # it is on this node's list: a survivor adopts it
                if reply[0] != b"have":
                    claim = await self._whole(_claimed(wish, generation, reply))
                    running = self.keeper.begin(claim)
            if reply[0] != b"have":
                assert running is not None
                try:
                    await asyncio.shield(running.life.admitted)
                except Displaced:
                    continue
                state, made = "queued" if running.life.state is State.QUEUED else "streaming", claim.generation.decode()
                return Found(send.id, tag, keys, state, running.answer.outbox.head, False, send.conversation, made)
            state, owner = reply[1].decode(), reply[4].decode()
            if owner == self.node and state not in END_STATES and not self.keeper.has(tag):
                await self.keeper.adopt(tag, self.node)  # a claim of ours that happened after it was given up
                running = self.keeper.running.get(tag)
                continue
            if state != "admitting":
                return Found(send.id, tag, keys, state, int(reply[2]), True, send.conversation, reply[3].decode())
            if loop.time() > give_up:
                raise unavailable()
            await asyncio.sleep(ADMITTING_POLL_SECONDS)
            running = self.keeper.running.get(tag)

    async def _claim_or_undo(self, wish: Wish, generation: bytes) -> list[Any]:
        try:
            return await self._claim(wish, generation)
        except StoreUnavailable:
            raise  # nothing was sent
        except (StoreError, TimeoutError):
            self._owner.start(self._undo(wish.keys, generation), "undo claim")
            raise

    async def _whole(self, claim: Claim) -> Claim:
        """A reopened claim with the text that the failure left: it stands until the new attempt shows something.

        Raises `StoreError` or `TimeoutError`; then the claim is found again as one of ours that nobody runs.
        """
        if not claim.head:
            return claim
        with self.keeper.holding(claim.tag):
            record = await self.reader.record(claim.keys)
            base = record.base if record is not None else 0
            standing = await gather(self.reader, claim.keys, base)
            return replace(claim, standing_text=b"".join(standing.text), base=base)

    async def _undo(self, keys: MessageKeys, generation: bytes) -> None:
        """The claim was given up but may still happen: take it back when Redis answers again."""
        keeper = self.keeper
        await keeper.stubbornly(lambda: keeper.release(keys, generation, b"", unavailable()))

    async def _claim(self, wish: Wish, generation: bytes) -> list[Any]:
        store, send, tag, keys, user = self.means.store, wish.send, wish.tag, wish.keys, wish.user
        attaches_only = self.draining
        if not attaches_only:
            await asyncio.gather(self.keeper.open.add(tag), self._hint(tag, user, send.id))
            attaches_only = self.draining  # it may have begun meanwhile, and a node that leaves makes nothing new
        fields = [] if attaches_only else _record_of(wish, generation)
        args = wish.made.args(fields, generation, None if attaches_only else send.retry_of, self.keeper.jump())
        reply: list[Any] = await store.run(CLAIM, [keys.record, keys.journal, keys.standing], args)
        if attaches_only:
            if reply[0] == b"none":
                raise leaving()
        elif reply[0] not in (b"new", b"reopened"):
            self._forget_hints(tag, user, send.id, reply)
        return reply

    async def _hint(self, tag: str, user: str, message_id: str) -> None:
        """Put a message on its user's list. If that primary is silent, later: no other message waits for it."""
        index, store = active_set(user), self.means.store
        try:
            await store.call(index, "SADD", index, message_id)
        except (StoreError, TimeoutError):
            if store.link(index) is store.link(MessageKeys.of(tag).record):
                raise
            self._owner.start(self._hint_later(tag, index, message_id), "hint")

    async def _hint_later(self, tag: str, index: bytes, message_id: str) -> None:
        async def hint() -> None:
            if self.keeper.has(tag):
                await self.means.store.call(index, "SADD", index, message_id, seconds=5.0)

        await self.keeper.stubbornly(hint)

    def _forget_hints(self, tag: str, user: str, message_id: str, reply: Sequence[Any]) -> None:
        """The claim was somebody else's: our hint goes; the user's stays as long as the message runs."""
        ours = reply[0] == b"have" and reply[4] == self.node.encode()  # then `reconcile` sees to it
        if ours or self.keeper.has(tag):
            return
        self._owner.start(self._remove_hints(tag, user, message_id, reply[0] == b"mismatch"), "hints")

    async def _remove_hints(self, tag: str, user: str, message_id: str, running: bool) -> None:
        store = self.means.store
        try:
            await self.keeper.open.remove(tag, 5.0)
            record = await self.reader.record(MessageKeys.of(tag))
            if record is None:
                await store.call(active_set(user), "SREM", active_set(user), message_id, seconds=5.0)
            elif record.ended:
                await self.keeper.kept(user, message_id)
        except (StoreError, TimeoutError):
            log.info("hints_left", tag=tag)

    # --- look, cancel ------------------------------------------------------------------------------------------------

    async def find(self, who: Principal, message_id: str) -> Found:
        """The message as it stands. Raises `ProtocolError`: `message_unknown`, `store_unavailable`."""
        tag = message_tag(who.tenant, who.kind, who.user, message_id)
        keys = MessageKeys.of(tag)
        try:
            record = await self.reader.record(keys, seconds=IMPATIENT)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        if record is None:
            raise unknown(message_id)
        return Found(message_id, tag, keys, record.state, record.head, True, record.conversation, record.generation)

    async def input_of(self, who: Principal, message_id: str) -> Any:
        """What was given with a message; None if it is not there. Raises `StoreError` or `TimeoutError`."""
        record = MessageKeys.of(message_tag(who.tenant, who.kind, who.user, message_id)).record
        packed = await self.means.store.call(record, "HGET", record, "req")
        return None if packed is None else asked.unpack(packed).get("input")

    async def cancel(self, who: Principal, message_id: str) -> Found:
        """Ask for a stop; the receipt comes through the journal. Raises like `find`."""
        tag = message_tag(who.tenant, who.kind, who.user, message_id)
        keys = MessageKeys.of(tag)
        try:
            reply = await self.means.store.run(CANCEL, [keys.record, keys.channel], [NOTE_CANCEL])
        except (StoreError, TimeoutError):
            raise unavailable() from None
        if not reply:
            raise unknown(message_id)
        running, owner = self.keeper.running.get(tag), reply[2].decode()
        if running is not None:
            running.cancel()
        elif reply[0].decode() not in END_STATES:
            self._tell_owner(owner, tag)
        return Found(message_id, tag, keys, reply[0].decode(), int(reply[1]), True)

    def _tell_owner(self, owner: str, tag: str) -> None:
        """A hint at once; the owner finds the request in the record in any case."""
        channel = control_channel(owner)
        try:
            self.means.store.link(channel).call("SPUBLISH", channel, tag).add_done_callback(forget)
        except StoreError:
            log.info("owner_not_told", owner=owner)

    async def active(self, who: Principal) -> list[Found]:
        """The user's running messages, so that a new device finds them. Takes dead entries off the list."""
        user = user_tag(who.tenant, who.kind, who.user)
        index, store = active_set(user), self.means.store
        try:
            ids: list[bytes] = (await store.call(index, "SMEMBERS", index))[:ACTIVE_TOLD]
            found = await asyncio.gather(*(self._find_quietly(who, i.decode()) for i in ids))
            ended = [i for i, message in zip(ids, found, strict=True) if message is not None and message.ended]
            if ended:
                await self.keeper.kept(user, *(i.decode() for i in ended))
        except (StoreError, TimeoutError, ProtocolError):
            return []
        return [message for message in found if message is not None and not message.ended]

    async def _find_quietly(self, who: Principal, message_id: str) -> Found | None:
        try:
            return await self.find(who, message_id)
        except ProtocolError as error:
            if error.code != "message_unknown":
                raise
            return None

    def _note(self, tag: str, note: bytes) -> None:
        running = self.keeper.running.get(tag)
        if running is not None and note[:1] == NOTE_CANCEL:
            running.cancel()

    async def _poll_cancels(self) -> None:
        """A stop asked for on another node reaches the owner by its next append; or, if it writes nothing, here."""
        while True:
            await asyncio.sleep(CANCEL_POLL_SECONDS)
            for running in list(self.keeper.running.values()):
                if running.life.promised and not running.life.stop_requested:
                    try:
                        record = running.claim.keys.record
                        if await self.means.store.call(record, "HEXISTS", record, "cancel", seconds=1.0):
                            running.cancel()
                    except (StoreError, TimeoutError):
                        break

    async def close(self) -> None:
        """Stop looking. What runs is the keeper's."""
        await self._owner.close()


def _record_of(wish: Wish, generation: bytes) -> list[Any]:
    """Field, value, … of a new record; none where there can be no new one."""
    if isinstance(wish.request, ProtocolError):
        return []
    who = (wish.who.tenant, wish.who.kind, wish.who.user)
    return fields_of(wish.send.id, who, wish.request, generation, wish.made.created, wish.origin)


def _claimed(wish: Wish, generation: bytes, reply: Sequence[Any]) -> Claim:
    """The claim that the script's reply grants. A reopened message asks what it asked the first time."""
    reopened = reply[0] == b"reopened"
    request = asked.unpack(reply[7]) if reopened else wish.request
    assert not isinstance(request, ProtocolError)  # the script creates nothing of it
    who = wish.who
    head = int(reply[2]) if reopened else 0
    records = tuple(msgpack.unpackb(reply[6])) if reopened and reply[6] else ()
    made = [int(reply[3]) if reopened else 0, *(record["attempt"] for record in records)]
    claim = Claim(
        id=wish.send.id,
        tag=wish.tag,
        keys=wish.keys,
        fence=reply[1],
        generation=reply[4] if reopened else generation,
        run=int(reply[5]) if reopened else 1,
        request=request,
        user_tag=wish.user,
        payer=payer_of(who, request.get("model", DEFAULT_ROUTE)),
        head=head,
        first=int(reply[9]) + 1 if reopened else 1,
        attempts=max(made),  # Redis may have lost the number of an attempt whose record came later
        records=records,
        reason=Reason("retried", ATTEMPT_REASONS["retried"]) if reopened else None,
        user=(who.tenant, who.kind, who.user),
        origin=Origin.unpack(reply[8] or None) if reopened else wish.origin,
        shown=Shown(anything=head > 1, structured=reopened),  # a reopened failure starts over, never continues
        made=None if reopened else wish.made,
    )
    return replace(claim, earlier=settlement(records, claim.run - 1, claim.account)) if reopened else claim


def payer_of(who: Principal, route: str = "") -> Payer:
    """Whose limits count."""
    return Payer(who.tenant, user_tag(who.tenant, who.kind, who.user), who.tier, route)


def unavailable() -> ProtocolError:
    """Redis does not answer; nothing was started."""
    return ProtocolError("store_unavailable", "the store does not answer; nothing was started", retry_after_ms=1000)


def leaving() -> ProtocolError:
    """This node makes nothing new."""
    return ProtocolError("draining", "this node is shutting down; reconnect and ask again")


def unknown(message_id: str) -> ProtocolError:
    """No such message of this user: the same words whether it is another's, expired, or never was."""
    return ProtocolError("message_unknown", f"there is no message {message_id!r}")
