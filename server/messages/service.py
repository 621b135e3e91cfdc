"""What the doors (WebSocket, HTTP, jobs) ask of messages: ask, look, cancel, list; and the messages that run here."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import structlog

from protocol.errors import ProtocolError
from protocol.frames import Send
from server.access.identity import Principal
from server.messages import request as asked
from server.messages.finalize import finalize
from server.messages.hub import NOTE_CANCEL, NOTE_REFUSED
from server.messages.message import Claim, Means, Running
from server.messages.reader import Reader, Record
from server.messages.scripts import CANCEL, CLAIM, MAX_RUNS, RELEASE
from server.routing.attempts import Reason, Shown
from server.store.keys import MessageKeys, active_set, message_tag, open_set, user_tag
from server.store.link import StoreError
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("messages")

ADMITTING_POLL_SECONDS: Final = 0.05
ADMITTING_SECONDS: Final = 5.0
"""How long an attached sender waits for another node's admission."""
RETRY_SECONDS: Final = 0.25
STOP_SECONDS: Final = 5.0
CANCEL_POLL_SECONDS: Final = 1.0
"""How often an owner looks for a stop that was asked for elsewhere while its message writes nothing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How long things are kept, in seconds."""

    retention_seconds: float
    claim_seconds: float


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

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.state in ("done", "failed", "cancelled")


class Messages:
    """Every message that this process runs, and the way to all others."""

    def __init__(self, means: Means, reader: Reader, node: str, settings: Settings) -> None:
        self.means = means
        self.reader = reader
        self.node = node
        self.settings = settings
        self.running: dict[str, Running] = {}
        self.draining = False
        self._owner = TaskOwner("messages")
        self._open = open_set(node)
        self._idle = asyncio.Event()
        self._idle.set()
        means.hub.on_note = self._note

    def start(self) -> None:
        """Begin to look for stops asked for elsewhere."""
        self._owner.start(self._poll_cancels(), "cancels")

    # --- ask ---------------------------------------------------------------------------------------------------------

    async def ask(self, who: Principal, send: Send) -> Found:
        """Create the message, or attach to it (G1). Returns when it is admitted.

        Raises `ProtocolError`: `model_not_found`, `idempotency_mismatch`, `store_unavailable`, `draining`, or why
        its admission was refused.
        """
        self._check_route(send.model)
        tag = message_tag(who.tenant, who.kind, who.user, send.id)
        keys = MessageKeys.of(tag)
        try:
            return await self._ask(who, send, tag, keys)
        except (StoreError, TimeoutError) as error:
            log.info("claim_failed", id=send.id, error=str(error))
            raise unavailable() from None

    def _check_route(self, name: str) -> None:
        if name not in self.means.routes:
            raise ProtocolError(
                "model_not_found", f"there is no model {name!r}", details={"models": sorted(self.means.routes)}
            )

    async def _ask(self, who: Principal, send: Send, tag: str, keys: MessageKeys) -> Found:
        deadline = time.monotonic() + ADMITTING_SECONDS
        while True:
            running = self.running.get(tag)
            if running is not None:
                await asyncio.shield(running.admitted)
            generation = secrets.token_hex(8).encode()
            reply = await self._claim(who, send, tag, keys, generation)
            if reply[0] in (b"new", b"reopened"):
                return await self._begin(_claimed(who, send, tag, keys, generation, reply), send.conversation)
            if reply[0] == b"mismatch":
                raise ProtocolError("idempotency_mismatch", f"{send.id} was used before, for a different request")
            state = reply[1].decode()
            if state != "admitting":
                return Found(send.id, tag, keys, state, int(reply[2]), True, send.conversation)
            if time.monotonic() > deadline:
                raise unavailable()
            await asyncio.sleep(ADMITTING_POLL_SECONDS)

    async def _claim(self, who: Principal, send: Send, tag: str, keys: MessageKeys, generation: bytes) -> list[Any]:
        store = self.means.store
        user = user_tag(who.tenant, who.kind, who.user)
        if self.draining:
            if not await store.call(keys.record, "EXISTS", keys.record):
                raise ProtocolError("draining", "this node is shutting down; reconnect and ask again")
        else:
            await asyncio.gather(
                store.call(self._open, "SADD", self._open, tag),
                store.call(active_set(user), "SADD", active_set(user), send.id),
            )
        fields: list[Any] = [
            "req", asked.pack(asked.stored(send)),
            "id", send.id, "tenant", who.tenant, "kind", who.kind, "user", who.user, "tier", who.tier,
            "gen", generation,
            "created", repr(time.time()),
        ]  # fmt: skip
        if send.conversation is not None:
            fields += ["conversation", send.conversation]
        args = [
            asked.fingerprint(send),
            round(self.settings.claim_seconds * 1000),
            "" if send.retry_of is None else send.retry_of,
            MAX_RUNS,
            self.node,
            *fields,
        ]
        reply: list[Any] = await store.run(CLAIM, [keys.record, keys.journal, keys.standing], args)
        if reply[0] not in (b"new", b"reopened"):
            self._forget_hints(tag, user, send.id, reply)
        return reply

    def _forget_hints(self, tag: str, user: str, message_id: str, reply: Sequence[Any]) -> None:
        """The claim was somebody else's: our hint goes; the user's stays as long as the message runs."""
        if tag in self.running:
            return
        self._owner.start(self._remove_hints(tag, user, message_id, reply[0] == b"mismatch"), "hints")

    async def _remove_hints(self, tag: str, user: str, message_id: str, running: bool) -> None:
        store = self.means.store
        try:
            await store.call(self._open, "SREM", self._open, tag, seconds=5.0)
            record = await self.reader.record(MessageKeys.of(tag))
            if record is None or record.ended:
                await store.call(active_set(user), "SREM", active_set(user), message_id, seconds=5.0)
        except (StoreError, TimeoutError):
            log.info("hints_left", tag=tag)

    async def _begin(self, claim: Claim, conversation: str | None) -> Found:
        running = self.running[claim.tag] = Running(claim, self.means)
        self._idle.clear()
        self._owner.start(self._drive(running), claim.id)
        await asyncio.shield(running.admitted)
        return Found(claim.id, claim.tag, claim.keys, "streaming", running.outbox.head, False, conversation)

    # --- run ---------------------------------------------------------------------------------------------------------

    async def _drive(self, running: Running) -> None:
        claim = running.claim
        try:
            ended = await running.run()
            if not ended:
                await self._give_back(running)
        finally:
            del self.running[claim.tag]
            if not self.running:
                self._idle.set()
            self.means.hub.disown(claim.tag)
        if ended:
            await self._finish(claim)

    async def _give_back(self, running: Running) -> None:
        """The message could not be admitted, or belongs to another node: free the id, forget it here."""
        claim = running.claim
        error = running.admitted.exception() if running.admitted.done() else None
        if isinstance(error, ProtocolError):
            await self._stubbornly(lambda: self._release(claim, error))
        await self._stubbornly(lambda: self._unlist(claim, active=error is not None))

    async def _release(self, claim: Claim, error: ProtocolError) -> None:
        note = NOTE_REFUSED + msgpack.packb(error.as_dict())
        await self.means.store.run(RELEASE, [claim.keys.record, claim.keys.channel], [claim.generation, note], 5.0)

    async def _finish(self, claim: Claim) -> None:
        settings = self.settings

        async def keep() -> None:
            await finalize(
                self.means.store,
                self.reader,
                claim.keys,
                claim.generation,
                claim.run,
                settings.retention_seconds,
                settings.claim_seconds,
            )

        await self._stubbornly(keep)
        await self._stubbornly(lambda: self._unlist(claim, active=True))

    async def _unlist(self, claim: Claim, active: bool) -> None:
        store = self.means.store
        if active:
            index = active_set(claim.user_tag)
            await store.call(index, "SREM", index, claim.id, seconds=5.0)
        await store.call(self._open, "SREM", self._open, claim.tag, seconds=5.0)

    async def _stubbornly(self, step: Any) -> None:
        """Repeat an idempotent step until Redis has done it."""
        while True:
            try:
                await step()
                return
            except (StoreError, TimeoutError) as error:
                log.info("step_repeated", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    # --- look, cancel ------------------------------------------------------------------------------------------------

    async def find(self, who: Principal, message_id: str) -> Found:
        """The message as it stands. Raises `ProtocolError`: `message_unknown`, `store_unavailable`."""
        tag = message_tag(who.tenant, who.kind, who.user, message_id)
        keys = MessageKeys.of(tag)
        try:
            record = await self._settled_record(keys)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        if record is None:
            raise unknown(message_id)
        return Found(message_id, tag, keys, record.state, record.head, True, record.conversation)

    async def _settled_record(self, keys: MessageKeys) -> Record | None:
        return await self.reader.record(keys, seconds=0.12)

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
        running = self.running.get(tag)
        if running is not None:
            running.cancel()
        return Found(message_id, tag, keys, reply[0].decode(), int(reply[1]), True)

    async def active(self, who: Principal) -> list[Found]:
        """The user's running messages, so that a new device finds them."""
        index = active_set(user_tag(who.tenant, who.kind, who.user))
        try:
            ids: list[bytes] = await self.means.store.call(index, "SMEMBERS", index)
            found = await asyncio.gather(*(self._find_quietly(who, i.decode()) for i in ids[:256]))
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
        running = self.running.get(tag)
        if running is not None and note[:1] == NOTE_CANCEL:
            running.cancel()

    async def _poll_cancels(self) -> None:
        """A stop asked for on another node reaches the owner by its next append; or, if it writes nothing, here."""
        while True:
            await asyncio.sleep(CANCEL_POLL_SECONDS)
            for running in list(self.running.values()):
                if not running.cancel_requested and running.admitted.done():
                    try:
                        record = running.claim.keys.record
                        if await self.means.store.call(record, "HEXISTS", record, "cancel", seconds=1.0):
                            running.cancel()
                    except (StoreError, TimeoutError):
                        break

    async def idle(self) -> None:
        """Wait until nothing runs here."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop: give what runs a moment to be journaled, then let go."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            log.warning("messages_left", count=len(self.running))
        await self._owner.close()


def _claimed(who: Principal, send: Send, tag: str, keys: MessageKeys, generation: bytes, reply: Sequence[Any]) -> Claim:
    """The claim that the script's reply grants."""
    reopened = reply[0] == b"reopened"
    head = int(reply[2]) if reopened else 0
    return Claim(
        id=send.id,
        tag=tag,
        keys=keys,
        fence=reply[1],
        generation=reply[4] if reopened else generation,
        run=int(reply[5]) if reopened else 1,
        request=asked.stored(send),
        user_tag=user_tag(who.tenant, who.kind, who.user),
        head=head,
        first=head + 1,
        attempts=int(reply[3]) if reopened else 0,
        records=tuple(msgpack.unpackb(reply[6])) if reopened and reply[6] else (),
        reason=Reason("retried", "the failed message was asked for again") if reopened else None,
        shown=Shown(anything=head > 1),
    )


def unavailable() -> ProtocolError:
    """Redis does not answer; nothing was started."""
    return ProtocolError("store_unavailable", "the store does not answer; nothing was started", retry_after_ms=1000)


def unknown(message_id: str) -> ProtocolError:
    """No such message of this user: the same words whether it is another's, expired, or never was."""
    return ProtocolError("message_unknown", f"there is no message {message_id!r}")
