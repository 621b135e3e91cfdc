"""The task that drives one owned message: attempts over its route, their output into the journal, the end.

It outlives the session that asked for it. It may be told to stop (`cancel`), and it stops by itself when the journal
says that another node owns the message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgpack
import structlog

from protocol.errors import ErrorClass, ProtocolError
from server.ledger.cost import Price, as_usd
from server.messages import request as asked
from server.messages.conversation import TooLong, count_tokens, room_of, trim
from server.messages.conversations import Conversations, Ended, Place, too_long
from server.messages.finalize import gather
from server.messages.flight import Flight, race
from server.messages.hub import Hub
from server.messages.journal import End, Journal, JournalLost, Outbox, Verdict
from server.messages.reader import Reader
from server.messages.scripts import QUEUE, START_ATTEMPT
from server.messages.state import Happening, State, after
from server.messages.tally import AttemptTally, user_usage, withdrawn
from server.quotas.base import Hold, NoQuota, Order, Payer, Quota
from server.routing.attempts import HEDGED, GiveUp, Plan, Reason, Route, Shown, Try
from server.routing.gate import OPEN_GATE, Gate, Held
from server.store.keys import MessageKeys, hold_id
from server.store.link import StoreError
from server.store.store import IMPATIENT, Store
from server.upstreams.base import Batch, Call, Driver, Fault, UpstreamFailure
from server.upstreams.faults import CONSEQUENCES

log = structlog.get_logger("message")

TURN_POLL_SECONDS = 1.0
"""How often a waiting message looks whether its turn has come, in case a notification was lost."""
RESERVE_AGAIN_SECONDS = 0.2
STORE_SECONDS = 5.0
"""How long a step without a waiting client gives Redis before it is tried again."""


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream endpoint + model + credential, ready to be called."""

    name: str
    model: str
    driver: Driver
    price: Price | None = None
    prefill: bool = False
    context_tokens: int | None = None
    """Size of the model's context, if it is known."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An owned message: its identity, its fence, and what earlier owners left."""

    id: str
    tag: str
    keys: MessageKeys
    fence: bytes
    generation: bytes
    run: int
    request: asked.Request
    user_tag: str
    payer: Payer
    user_hash: str = ""
    head: int = 0
    first: int = 1
    """Seq of the first event this owner writes."""
    attempts: int = 0
    records: tuple[Mapping[str, Any], ...] = ()
    reason: Reason | None = None
    """Why it runs again: a reopened failure or a takeover."""
    shown: Shown = field(default_factory=Shown)
    standing_text: bytes = b""
    """Visible text that stands at `head`, from earlier owners."""
    cancelled: bool = False
    """A stop was asked for before this owner came."""
    base: int = 0
    """Seq of the attempt since which the text stands."""
    user: tuple[str, str, str] = ("", "", "")
    """(tenant, kind, user): whose it is."""

    @property
    def place(self) -> Place | None:
        """The conversation it belongs to."""
        name = self.request.get("conversation")
        return None if name is None else Place.of(self.user_tag, name)

    @property
    def token(self) -> bytes:
        """What its conversation knows this run by."""
        return b"%s:%d" % (self.generation, self.run)

    @property
    def hold(self) -> str:
        """Under which its tokens are reserved."""
        return hold_id(self.tag, self.generation, self.run)


class Watch(Protocol):
    """What is told of a message's life, for metrics."""

    def attempt_started(self, target: str) -> None: ...  # noqa: D102
    def first_content(self, target: str, seconds: float) -> None: ...  # noqa: D102
    def attempt_ended(self, target: str, outcome: str, seconds: float) -> None: ...  # noqa: D102
    def message_ended(self, state: str) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Means:
    """What a message works with; one for the whole process."""

    store: Store
    journal: Journal
    hub: Hub
    targets: Mapping[str, Target]
    routes: Mapping[str, Route]
    watch: Watch
    event_bytes: int
    conversations: Conversations
    max_bytes: int
    """Most bytes of visible text of one message; then it ends with `finish_reason: length`."""
    gate: Gate = OPEN_GATE
    """Which targets may be called now."""
    quotas: Quota = field(default_factory=NoQuota)
    """A node always gives the real ones (`server.node`)."""


@dataclass(frozen=True, slots=True)
class Landed:
    """An attempt that was answered to the end."""

    finish_reason: str
    flight: Flight


class Running:
    """One message that this process generates."""

    def __init__(self, claim: Claim, means: Means, reader: Reader) -> None:
        self.claim = claim
        self.means = means
        self.reader = reader
        self.state = State.ADMITTING
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when the first attempt is allocated; fails with the `ProtocolError` of a refusal, or `Displaced`."""
        self.admitted.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.refusal: ProtocolError | None = None
        """Why it was not admitted."""
        self.may_hold = False
        """Whether something may be reserved for it."""
        self.released = False
        """Whether its claim was taken back."""
        self.records: list[dict[str, Any]] = []
        """What was used, once it has ended: one record an attempt."""
        self._hold: Hold | None = None
        self.lost_writes = False
        """Redis lost acknowledged entries of this message: it must be taken over anew."""
        self.cancel_requested = claim.cancelled
        self.tallies: list[AttemptTally] = []
        self.shown = claim.shown
        self.shown.structured = self.shown.structured or asked.wants_structure(claim.request)
        self._starts_over = False
        """Whether an attempt of this run has replaced the text of earlier ones."""
        self._stop: asyncio.Timeout | None = None
        self.channel = means.hub.own(claim.tag, claim.keys, claim.head)
        self.outbox = Outbox(
            means.journal.lane(claim.keys.record),
            self.channel,
            claim.keys,
            claim.fence,
            claim.head,
            claim.first,
            self._signalled,
            means.event_bytes,
        )
        self.outbox.waiting.standing(claim.standing_text)
        self.claim = replace(claim, standing_text=b"")  # it is counted; a large text must not stay in memory
        self._abandoned = False
        self._history: list[dict[str, Any]] | None = None
        """The branch that this answers, if it is part of a conversation."""
        self._sent: list[dict[str, Any]] = []
        """What the target of the attempt is sent: the request's messages, or what fits of the history."""

    def cancel(self) -> None:
        """Stop generating; what stands is kept. Idempotent."""
        self.cancel_requested = True
        self._interrupt()

    def _signalled(self, lost: bool) -> None:
        """The journal saw a request to cancel, or that this node may not write any more."""
        if not lost:
            self.cancel_requested = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._stop is not None and not self._stop.expired():
            self._stop.reschedule(asyncio.get_running_loop().time())

    def abandon(self) -> None:
        """Write nothing more: the message is left to a survivor."""
        self._abandoned = True
        self.outbox.abandon()

    async def run(self) -> bool:
        """Drive the message to its end; False if another node took it, or it could not be admitted."""
        try:
            await self._attempts()
            await self.outbox.flushed()
        except JournalLost as lost:
            log.warning("message_lost", id=self.claim.id, tag=self.claim.tag, verdict=lost.verdict.name)
            self.outbox.abandon()
            self.lost_writes = lost.verdict is Verdict.GAP
            return False
        except _NotAdmitted:
            return False
        finally:
            if not self.admitted.done():
                self.admitted.set_exception(Displaced())
        self.means.watch.message_ended(self.state)
        return True

    # --- attempts ---------------------------------------------------------------------------------------------------

    async def _attempts(self) -> None:
        if self.cancel_requested and self.claim.attempts:
            self.state = State.STREAMING
            return self._cancelled()
        name = self.claim.request.get("model", "default")
        route = self.means.routes.get(name)
        if route is None:  # adopted from a node with another configuration
            return self._failed(GiveUp("model_not_found", f"there is no model {name!r} here", "permanent"))
        if self.claim.place is not None and (ending := await self._take_turn(self.claim.place)) is not None:
            return ending()
        plan = Plan(route, self.claim.attempts, asked.least_input(self.claim.request.get("messages", [])))
        outcome: Landed | GiveUp | None = plan.opening(self.shown, self.claim.reason)
        if outcome is None:
            outcome = await self._reserve(route)
        try:
            while outcome is None:
                flight = await self._launch(plan)
                outcome = await self._fly(plan, flight) if flight else plan.exhausted(self.means.gate.wait_seconds)
        except _Stopped:
            return self._cancelled()
        except (JournalLost, _NotAdmitted):
            raise
        except Exception as defect:  # noqa: BLE001 - the one boundary where a defect becomes an end
            return self._broken(defect)
        if isinstance(outcome, Landed):
            return self._done(outcome)
        return self._refuse(outcome) if self._may_refuse else self._failed(outcome)

    async def _reserve(self, route: Route) -> GiveUp | None:
        """Reserve before anything is spent. A refused claim is taken back; a reopened message fails again."""
        claim = self.claim
        messages = self._likely_sent(route)
        order = Order(
            claim.hold,
            claim.payer,
            route.name,
            asked.most_input({**claim.request, "messages": messages}),
            asked.count_input(messages),
            claim.request.get("max_output_tokens"),
            lambda tokens_in, tokens_out: self._dearest(route, tokens_in, tokens_out),
            forced=claim.reason is not None and claim.reason.code == "owner_lost",
        )
        self.may_hold = True
        try:
            while True:
                try:
                    self._hold = await self.means.quotas.reserve(order)
                    break
                except ProtocolError as refusal:
                    if refusal.code != "store_unavailable" or not self._in:
                        raise
                    await asyncio.sleep(RESERVE_AGAIN_SECONDS)  # it was accepted when it began to wait for its turn
        except ProtocolError as refusal:
            self.may_hold = refusal.code == "store_unavailable"  # then it may have happened
            if (claim.attempts or self._in) and not self.may_hold:  # more than a claim stands under its id
                self._admitted()
                return GiveUp(
                    refusal.code, refusal.message, refusal.error_class, refusal.retry_after_ms, refusal.details
                )
            self._refused(refusal)
            raise _NotAdmitted from None
        return None

    def _likely_sent(self, route: Route) -> list[dict[str, Any]]:
        """What is likely to be sent: the request's messages, or what fits of the history into the largest context."""
        if self._history is None:
            messages: list[dict[str, Any]] = self.claim.request.get("messages", [])
            return messages
        asked_for = self.claim.request.get("max_output_tokens")
        room = max(room_of(self.means.targets[name].context_tokens, asked_for) for name in route.targets)
        try:
            return trim(self._history, room).messages
        except TooLong:
            return []  # refused before anything is sent

    def _dearest(self, route: Route, tokens_in: int, tokens_out: int) -> int | None:
        prices = [self.means.targets[name].price for name in route.targets]
        return max((p.nano_dollars(tokens_in, tokens_out) for p in prices if p is not None), default=None)

    def _admitted(self) -> None:
        if not self.admitted.done():
            self.admitted.set_result(None)

    def _refused(self, error: ProtocolError) -> None:
        self.refusal = error
        if not self.admitted.done():
            self.admitted.set_exception(error)

    async def _launch(self, plan: Plan, reason: Reason | None = None) -> Flight | None:
        """Start an attempt at the next target that may be called; None: there is none. Raises `_Stopped`."""
        gate = self.means.gate
        while (name := plan.candidate()) is not None:
            try:
                sent = await self._choose(self.means.targets[name])
            except TooLong as long:
                error = too_long(long.needed, long.room)
                plan.too_long(name, Reason(error.code, error.message, "permanent"), error.details)
                continue
            ticket = await gate.enter(name)
            if isinstance(ticket, Held):
                plan.hold(name, ticket.wait_seconds, ticket.state)
                continue
            target = self.means.targets[name]
            try:
                step = plan.start(name, self.shown, reason)
                await self._start(step, target, sent)
                return Flight(step, self.tallies[-1], ticket, target.driver.stream(await self._call(step)))
            except BaseException:
                ticket.void()
                raise
        return None

    # --- in a conversation --------------------------------------------------------------------------------------------

    async def _take_turn(self, place: Place) -> Callable[[], None] | None:
        """Wait for the turn and read what is to be answered. How it ends instead: stopped, or refused after all."""
        claim, conversations = self.claim, self.means.conversations
        changed = asyncio.Event()
        changed.set()
        first = not claim.attempts and claim.run == 1
        with conversations.watching(place.keys, changed.set):
            while True:
                changed.clear()
                try:
                    turn = await conversations.enter(
                        place,
                        claim.id,
                        claim.token,
                        claim.request,
                        not first,
                        claim.user,
                        STORE_SECONDS if self._in else IMPATIENT,
                    )
                    if turn.position == 0:
                        await self._read_history(place)
                        return None
                    if not await self._wait_queued():
                        return self._cancelled
                except ProtocolError as error:
                    return self._turned_away(error)
                except Ended:
                    return lambda: self._failed(GiveUp("internal", "its turn is over", "permanent"))
                except (StoreError, TimeoutError):
                    self._give_up_admission()
                    await asyncio.sleep(0.1)
                    continue
                try:
                    async with asyncio.timeout(TURN_POLL_SECONDS) as self._stop:
                        await changed.wait()
                except TimeoutError:
                    pass
                finally:
                    self._stop = None
                if self.cancel_requested:
                    return self._cancelled

    @property
    def _in(self) -> bool:
        """Whether somebody has been promised this message, so that it goes on whatever Redis does."""
        return self.admitted.done()

    async def _wait_queued(self) -> bool:
        """Say in the record that it waits; False if a stop was asked for."""
        answer = int(
            await self.means.store.run(QUEUE, [self.claim.keys.record], [self.claim.fence], seconds=STORE_SECONDS)
        )
        if answer < 0 and (answer == -1 or not self.claim.attempts):
            raise JournalLost(_verdict(answer))
        if self.state is State.ADMITTING:
            self.state = after(self.state, Happening.WAIT)
        self._admitted()
        if answer == 2:
            self.cancel_requested = True
        return not self.cancel_requested

    async def _read_history(self, place: Place) -> None:
        tokens = max(
            room_of(self.means.targets[name].context_tokens, self.claim.request.get("max_output_tokens"))
            for name in self.means.routes[self.claim.request.get("model", "default")].targets
        )
        self._history = await self.means.conversations.history(
            place, self.claim.id, self.claim.fence, self.claim.keys, max(1, tokens)
        )
        if self._history is None:
            raise JournalLost(Verdict.FENCED)

    def _turned_away(self, error: ProtocolError) -> Callable[[], None]:
        """The conversation does not take it: an error to who asked, or, once it was accepted, a failure."""
        if not self.admitted.done() and self.claim.run == 1:
            self._refused(error)
            raise _NotAdmitted
        return lambda: self._failed(GiveUp(error.code, error.message, error.error_class))

    def _give_up_admission(self) -> None:
        if not self.admitted.done():
            self._refused(ProtocolError("store_unavailable", "the store does not answer", retry_after_ms=1000))
            raise _NotAdmitted

    async def _choose(self, target: Target) -> dict[str, Any]:
        """What this target is sent; a description of it for the record. Raises `TooLong`."""
        request = self.claim.request
        if self._history is None or self.claim.place is None:
            self._sent = request.get("messages", [])
            return {}
        context = trim(self._history, room_of(target.context_tokens, request.get("max_output_tokens")))
        while True:
            try:
                self._sent = await self.means.conversations.whole(self.claim.place.keys, context.messages)
                break
            except ProtocolError:  # the conversation was deleted meanwhile: the stop is on its way
                self._sent, self.cancel_requested = context.messages, True
                break
            except (StoreError, TimeoutError):
                await asyncio.sleep(0.1)
        first = next((entry for entry in context.entries if entry), "")
        return {"first": first, "entries": len(context.entries), "dropped": context.dropped, "tokens": context.tokens}

    async def _start(self, step: Try, target: Target, sent: dict[str, Any]) -> None:
        """Allocate the attempt in the record before anything is spent. Raises `_Stopped`."""
        now = time.time()
        described = {"target": target.name, "model": target.model, "started_at": now}
        description = msgpack.packb(described | ({"sent": sent} if sent else {}))
        args = [self.claim.fence, step.number, description]
        answer = await self._start_script(args)
        if answer < 0:
            raise JournalLost(_verdict(answer))
        self.state = after(self.state, Happening.DISPATCH)
        self._admitted()
        if answer == 2 or self.cancel_requested:
            self.cancel_requested = True
            raise _Stopped
        estimate = sum(map(count_tokens, self._sent)) if sent else asked.count_input(self._sent)
        self.tallies.append(AttemptTally(step.number, target.name, target.model, now, estimate))
        self.means.watch.attempt_started(target.name)

    async def _start_script(self, args: list[Any]) -> int:
        keys, store = [self.claim.keys.record], self.means.store
        if not self.admitted.done():
            try:
                return int(await store.run(START_ATTEMPT, keys, args))
            except (StoreError, TimeoutError):
                self._refused(ProtocolError("store_unavailable", "the store does not answer", retry_after_ms=1000))
                raise _NotAdmitted from None
        while True:  # a running message goes on as soon as Redis does; the script may be repeated
            try:
                return int(await store.run(START_ATTEMPT, keys, args, seconds=STORE_SECONDS))
            except (StoreError, TimeoutError):
                await asyncio.sleep(0.1)

    async def _fly(self, plan: Plan, flight: Flight) -> Landed | GiveUp | None:
        """Journal what the target brings: how it landed, or why to give up; None: go on. Raises `_Stopped`."""
        flights = [flight]
        try:
            async with asyncio.timeout(None) as self._stop:
                if self.cancel_requested:
                    raise _Stopped
                winner = await self._winner(plan, flights)
                if isinstance(winner, GiveUp):
                    return winner
                flight = winner
                finish = await self._pump(flight)
            flight.ticket.well(flight.tally.longest_gap)
            self._ended(flight, "done")
            return Landed(finish, flight)
        except UpstreamFailure as failure:
            return self._fell(plan, flight, failure)
        except TimeoutError:
            if self._stop is None or not self._stop.expired():
                raise
            await self.outbox.room()  # raises if the reason was that this node lost the message
            raise _Stopped from None
        finally:
            self._stop = None
            for one in flights:
                await self._close(one, "cancelled" if one is flight else "hedged")

    async def _winner(self, plan: Plan, flights: list[Flight]) -> Flight | GiveUp:
        """The attempt whose content is shown: with hedging, the one that is faster, or the last one that fell."""
        first, gate, route = flights[0], self.means.gate, plan.route
        wait = gate.hedge_after(route, first.step.target) if first.step.mode == "fresh" else None
        if wait is None:
            return first

        async def second() -> Flight | None:
            return await self._launch(plan, HEDGED) if plan.candidate() and gate.may_hedge(route) else None

        winner = await race(flights, wait, second, lambda one, failure: self._fell(plan, one, failure))
        if len(flights) > 1:
            gate.hedged(route, winner is not first)
        return winner

    def _fell(self, plan: Plan, flight: Flight, failure: UpstreamFailure) -> GiveUp | None:
        """An attempt failed; None: go on with the next target."""
        row = CONSEQUENCES[failure.fault]
        name = flight.step.target
        log.info("attempt_failed", id=self.claim.id, target=name, fault=failure.fault, why=str(failure))
        flight.ticket.failed(failure.fault, failure.retry_after_seconds)
        self._ended(flight, row.code)
        reason = Reason(row.code, _public(failure), row.error_class, _milliseconds(failure))
        return plan.failed(flight.step, row, reason, self.shown)

    async def _close(self, flight: Flight, outcome: str) -> None:
        """Let go of the upstream; one that has not ended ends as `outcome`."""
        if not flight.ended:
            silent = outcome == "hedged" and flight.tally.first_content_at is None
            flight.ticket.void(flight.seconds if silent else 0.0)
            self._ended(flight, outcome)
        await flight.stream.aclose()

    async def _pump(self, flight: Flight) -> str:
        """The finish reason, once all before it is in the journal's hands. Raises `UpstreamFailure`."""
        if flight.failure is not None:
            raise flight.failure
        if flight.first is not None and (finish := self._add(flight, flight.first)) is not None:
            return finish
        async for batch in flight.stream:
            flight.take(batch)
            if (finish := self._add(flight, batch)) is not None:
                return finish
            if self.outbox.full:
                await self.outbox.room()
                flight.tally.asked_at = time.time()  # while we pause the model is not slow
        raise UpstreamFailure(Fault.BROKEN_STREAM, "the stream ended without a finish reason")

    def _add(self, flight: Flight, batch: Batch) -> str | None:
        """Put a batch into the journal; the finish reason, if it was the last."""
        shown = flight.tally.stands
        if not shown and (batch.pieces or batch.finish_reason is not None):
            self._show(flight.step, flight.tally)
        if batch.pieces:
            for kind, _ in batch.pieces:
                if kind != "text":
                    self.shown.structured = True
            self.outbox.add(batch.pieces)
            if self.outbox.waiting.text_bytes > self.means.max_bytes:
                return "length"
        return batch.finish_reason

    async def _call(self, step: Try) -> Call:
        request = self.claim.request
        messages = self._sent
        cap = self._hold.max_output_tokens if self._hold is not None else request.get("max_output_tokens")
        if step.mode == "continue":
            if cap is not None:  # what stands was paid for out of the same hold
                cap = max(1, cap - sum(tally.usage.output for tally in self.tallies if tally.stands))
            await self.outbox.flushed()
            messages = [*messages, {"role": "assistant", "content": await self._standing_text()}]
        return Call(
            messages=messages,
            options=asked.options(request),
            max_output_tokens=cap,
            user=self.claim.user_hash,
            message_id=self.claim.id,
        )

    async def _standing_text(self) -> str:
        while True:
            try:
                standing = await gather(self.reader, self.claim.keys, self.outbox.base or self.claim.base)
                return b"".join(standing.text).decode()
            except (StoreError, TimeoutError):
                await asyncio.sleep(0.1)

    def _show(self, step: Try, tally: AttemptTally) -> None:
        """The attempt's first content: from here on followers know of it."""
        if step.mode != "continue":
            for earlier in self.tallies:
                earlier.stands = False
            self.shown.structured = asked.wants_structure(self.claim.request)
            self._starts_over = True
        tally.stands = True
        tally.continues = step.mode == "continue"
        self.shown.anything = True
        event: dict[str, Any] = {
            "attempt": step.number,
            "target": tally.target,
            "model": tally.model,
            "mode": step.mode,
        }
        if step.reason is not None:
            event["reason"] = step.reason.as_dict()
        self.outbox.attempt(event, step.mode != "continue")
        if tally.first_content_at is not None:
            self.means.watch.first_content(tally.target, tally.first_content_at - tally.started_at)

    def _ended(self, flight: Flight, outcome: str) -> None:
        if flight.end(outcome):
            flight.tally.ended_at = time.time()
            self.means.watch.attempt_ended(flight.step.target, outcome, flight.seconds)

    @property
    def _may_refuse(self) -> bool:
        """Whether nothing has been spent or journaled: then the claim is taken back, and its id is free again."""
        return not self.admitted.done() and self.claim.run == 1 and not self.claim.attempts

    def _refuse(self, verdict: GiveUp) -> None:
        """No target may be called: say so, and when to come back, in place of an admission."""
        self._refused(_error(verdict))
        raise _NotAdmitted

    # --- the end ------------------------------------------------------------------------------------------------------

    def _done(self, landed: Landed) -> None:
        self.state = after(self.state, Happening.FINISH)
        tally = landed.flight.tally
        event = {
            **self._text(),
            "finish_reason": landed.finish_reason,
            "usage": user_usage(self.tallies),
            "cost_usd": as_usd(self._user_cost()),
            "model": tally.model,
            "target": tally.target,
            "attempts": self.tallies[-1].number,
        }
        if event["cost_usd"] is None:
            del event["cost_usd"]
        self._end(event)

    def _cancelled(self) -> None:
        self.state = after(self.state, Happening.CANCEL)
        self._admitted()
        self._end({**self._text(), "usage": user_usage(self.tallies)})

    def _broken(self, defect: Exception) -> None:
        """A defect of ours: were it to kill the task, a survivor would run into it again, and pay for it."""
        log.error("attempt_broken", id=self.claim.id, exc_info=defect)
        if self.tallies:
            self.tallies[-1].outcome = "internal"
            self.tallies[-1].ended_at = time.time()
        self._failed(GiveUp("internal", "the server failed; its log says why", "temporary"))

    def _failed(self, verdict: GiveUp) -> None:
        self.state = after(self.state, Happening.FAIL)
        self._admitted()
        error = _error(verdict)
        partial = self.shown.anything and (self._text()["text_bytes"] > 0 or self.shown.structured)
        event = {"error": error.as_dict(), "usage": user_usage(self.tallies), "partial": partial}
        self._end(event, error.error_class)

    def _text(self) -> dict[str, Any]:
        waiting = self.outbox.waiting
        sha = waiting.text_sha256()
        return {"text_bytes": waiting.text_bytes, "text_sha256": sha}

    def _end(self, event: dict[str, Any], error_class: ErrorClass = "permanent") -> None:
        run = self.claim.run
        records = [{**tally.record(self._cost(tally)), "run": run} for tally in self.tallies]
        earlier = [dict(record) for record in self.claim.records]
        if self._starts_over:  # what earlier runs brought does not stand any more
            earlier = [withdrawn(record, run) for record in earlier]
        self.records = [*earlier, *records]
        self.outbox.end(
            event,
            End(
                self.state,
                msgpack.packb(event),
                msgpack.packb(self.records),
                may_reopen=self.state is State.FAILED and error_class == "temporary",
            ),
        )

    def _cost(self, tally: AttemptTally) -> int | None:
        price = self.means.targets[tally.target].price
        usage = tally.usage
        return None if price is None else price.nano_dollars(usage.input, usage.output)

    def _user_cost(self) -> int | None:
        costs = [self._cost(tally) for tally in self.tallies if tally.stands]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known else None


class Displaced(Exception):
    """Another node took the message before it was admitted here: whoever waits attaches there."""


class _NotAdmitted(Exception):
    """Redis did not allocate the first attempt, or no target may be called; nothing was spent."""


class _Stopped(Exception):
    """A stop was asked for."""


def _error(verdict: GiveUp) -> ProtocolError:
    return ProtocolError(
        verdict.code,
        verdict.message,
        retry_after_ms=verdict.retry_after_ms,
        details=dict(verdict.details) if verdict.details else None,
        error_class=verdict.error_class,
    )


def _verdict(answer: int) -> Verdict:
    return Verdict.FENCED if answer == -1 else Verdict.ENDED


def _public(failure: UpstreamFailure) -> str:
    """What a client may read of a failure: never the provider's own words, which may quote keys or prompts."""
    return CONSEQUENCES[failure.fault].meaning


def _milliseconds(failure: UpstreamFailure) -> int | None:
    seconds = failure.retry_after_seconds
    return None if seconds is None else round(seconds * 1000)
