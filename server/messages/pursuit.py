"""The attempts of one running message over its route: started, raced, read, and what follows when one falls."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import msgpack
import structlog

from server.messages import request as asked
from server.messages import structured
from server.messages.answer import Answer
from server.messages.branch import TooLong
from server.messages.flight import Flight, race
from server.messages.journal import JournalLost, Verdict
from server.messages.life import STORE_SECONDS, Life, Stopped, until_redis_answers
from server.messages.means import Means, Target
from server.messages.place import too_long
from server.messages.question import Question
from server.messages.reservation import Reservation
from server.messages.scripts import START_ATTEMPT
from server.messages.state import Happening
from server.messages.tally import AttemptTally
from server.routing.attempts import HEDGED, GiveUp, Plan, Reason, Try
from server.routing.gate import Held, Ticket
from server.store.link import StoreError
from server.upstreams.base import Call, Fault, UpstreamFailure
from server.upstreams.faults import CONSEQUENCES

log = structlog.get_logger("message")


@dataclass(frozen=True, slots=True)
class Landed:
    """An attempt that was answered to the end."""

    finish_reason: str
    flight: Flight


class Pursuit:
    """See the module."""

    def __init__(
        self, life: Life, means: Means, question: Question, reservation: Reservation, answer: Answer, plan: Plan
    ) -> None:
        self.life = life
        self.means = means
        self.question = question
        self.reservation = reservation
        self.answer = answer
        self.plan = plan

    async def run(self) -> Landed | GiveUp:
        """Attempt after attempt, until one lands or none may follow. Raises `Stopped`, `NotAdmitted`, `JournalLost`."""
        while True:
            flight = await self._launch()
            outcome = await self._fly(flight) if flight else self.plan.exhausted(self.means.gate.wait_seconds)
            if outcome is not None:
                return outcome

    # --- starting one ------------------------------------------------------------------------------------------------

    async def _launch(self, reason: Reason | None = None) -> Flight | None:
        """Start an attempt at the next target that may be called; None: there is none."""
        plan, gate = self.plan, self.means.gate
        while (name := plan.candidate()) is not None:
            target = self.means.targets[name]
            try:
                sent = await self.question.choose(target)
            except TooLong as long:
                error = too_long(long.needed, long.room)
                counts = {"input_tokens": long.needed, "room_tokens": long.room}
                plan.too_long(name, Reason(error.code, error.message, "permanent"), counts)
                continue
            ticket = await gate.enter(name)
            if isinstance(ticket, Held):
                plan.hold(name, ticket.wait_seconds, ticket.state)
                continue
            try:
                step = plan.start(name, self.answer.shown, reason)
                tally = await self._start(step, target, sent)
                call = await self._call(step)
            except BaseException:
                ticket.void()
                raise
            admitted = await self._still_admitted(name, ticket)
            if isinstance(admitted, Held):
                tally.outcome, tally.ended_at = "held", time.time()
                self.means.watch.attempt_ended(name, "held", 0.0)
                plan.hold(name, admitted.wait_seconds, admitted.state)
                continue
            return Flight(step, tally, admitted, target.driver.stream(call))
        return None

    async def _still_admitted(self, name: str, ticket: Ticket) -> Ticket | Held:
        """The ticket, or another one where Redis took so long that its probe would outlive its lease."""
        admitted: Ticket | Held = ticket
        while not isinstance(admitted, Held) and admitted.late():
            admitted.void()
            admitted = await self.means.gate.enter(name)
        return admitted

    async def _start(self, step: Try, target: Target, sent: dict[str, Any]) -> AttemptTally:
        """Allocate the attempt in the record before anything is spent."""
        now = time.time()
        estimate = self.question.input_estimate
        described = {
            "target": target.name,
            "provider": target.provider,
            "model": target.model,
            "started_at": now,
            "input": estimate,
        }
        description = msgpack.packb(described | ({"sent": sent} if sent else {}))
        answer = await self._allocate([self.life.claim.fence, step.number, description])
        if answer < 0:
            raise JournalLost(Verdict(answer))
        self.answer.outbox.begins(step.number, description)
        self.life.happens(Happening.DISPATCH)
        self.life.promise()
        if answer == 2 or self.life.stop_requested:
            self.life.stop_requested = True
            raise Stopped
        tally = AttemptTally(
            step.number,
            target.name,
            target.model,
            now,
            estimate,
            provider_name=target.provider,
            price=target.price,
            chunk_size=target.chunk_size,
        )
        self.answer.tallies.append(tally)
        self.means.watch.attempt_started(target.name)
        return tally

    async def _allocate(self, args: list[Any]) -> int:
        keys, store = [self.life.claim.keys.record], self.means.store
        if not self.life.promised:
            try:
                return int(await store.run(START_ATTEMPT, keys, args))
            except (StoreError, TimeoutError):
                self.life.refuse_for_the_store()
        # a running message goes on as soon as Redis does; the script may be repeated
        return int(await until_redis_answers(lambda: store.run(START_ATTEMPT, keys, args, seconds=STORE_SECONDS)))

    async def _call(self, step: Try) -> Call:
        claim, hold = self.life.claim, self.reservation.hold
        messages = self.question.sent
        cap = hold.max_output_tokens if hold is not None else claim.request.get("max_output_tokens")
        if step.mode == "continue":
            if cap is not None:  # what stands was paid for out of the same hold
                cap = max(1, cap - self.answer.standing_output())
            messages = [*messages, {"role": "assistant", "content": await self.answer.standing_text()}]
        return Call(
            messages=messages,
            options=asked.options(claim.request),
            max_output_tokens=cap,
            user=self.means.pseudonym(*claim.user),
            tags=claim.origin.tags,
            message_id=claim.id,
            traceparent=None if self.means.tracer is None else claim.trace.attempt(step.number).header,
        )

    # --- under way ---------------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> Landed | GiveUp | None:
        """Journal what the target brings: how it landed, or why to give up; None: go on."""
        flights = [flight]
        try:
            async with self.life.interruptible() as wait:
                if self.life.stop_requested:
                    raise Stopped
                winner = await self._winner(flights)
                if isinstance(winner, GiveUp):
                    return winner
                flight = winner
                finish = await self._pump(flight)
                await self._check_format(finish)
            flight.ticket.well(flight.tally.longest_gap)
            self._ended(flight, "done")
            return Landed(finish, flight)
        except UpstreamFailure as failure:
            return self._fell(flight, failure)
        except TimeoutError:
            if not wait.expired():
                raise
            await self.answer.outbox.room()  # raises if the reason was that this node lost the message
            raise Stopped from None
        finally:
            for one in flights:
                await self._close(one, "cancelled" if one is flight else "hedged")

    async def _winner(self, flights: list[Flight]) -> Flight | GiveUp:
        """The attempt whose content is shown: with hedging, the one that is faster, or the last one that fell."""
        first, gate, plan = flights[0], self.means.gate, self.plan
        wait = gate.hedge_after(plan.route, first.step.target) if first.step.mode == "fresh" else None
        if wait is None:
            return first

        async def second() -> Flight | None:
            return await self._launch(HEDGED) if plan.candidate() and gate.may_hedge(plan.route) else None

        winner = await race(flights, wait, second, self._fell)
        if len(flights) > 1:
            gate.hedged(plan.route, winner is not first)
        return winner

    async def _pump(self, flight: Flight) -> str:
        """The finish reason, once all before it is in the journal's hands. Raises `UpstreamFailure`."""
        answer = self.answer
        if flight.failure is not None:
            raise flight.failure
        if flight.first is not None and (finish := answer.add(flight, flight.first)) is not None:
            return finish
        async for batch in flight.stream:
            flight.take(batch)
            self.means.watch.output(batch.chunks)
            if (finish := answer.add(flight, batch)) is not None:
                return finish
            if answer.outbox.full:
                await answer.outbox.room()
                flight.tally.asked_at = time.time()  # while we pause the model is not slow
        raise UpstreamFailure(Fault.BROKEN_STREAM, "the stream ended without a finish reason")

    async def _check_format(self, finish_reason: str) -> None:
        """Whether the answer fits what was asked for. Raises `UpstreamFailure`, `JournalLost`."""
        wanted = self.life.claim.request.get("response_format")
        if wanted is None or not structured.wants_check(wanted, finish_reason):
            return
        text = await self.answer.standing_text()
        try:
            await asyncio.to_thread(structured.check, wanted, text)
        except structured.Mismatch as mismatch:
            raise UpstreamFailure(Fault.OFF_FORMAT, str(mismatch), detail=str(mismatch)) from None

    def _fell(self, flight: Flight, failure: UpstreamFailure) -> GiveUp | None:
        """An attempt failed; None: go on with the next target."""
        row, name = CONSEQUENCES[failure.fault], flight.step.target
        log.info("attempt_failed", id=self.life.claim.id, target=name, fault=failure.fault, why=str(failure))
        flight.ticket.failed(failure.fault, failure.retry_after_seconds)
        self._ended(flight, row.code)
        # never the provider's own words, which may quote keys or prompts
        meaning = row.meaning if failure.detail is None else f"{row.meaning} Here: {failure.detail}."
        reason = Reason(row.code, meaning, row.error_class, _milliseconds(failure.retry_after_seconds))
        return self.plan.failed(flight.step, row, reason, self.answer.shown)

    async def _close(self, flight: Flight, outcome: str) -> None:
        """Let go of the upstream; one that has not ended ends as `outcome`."""
        if not flight.ended:
            silent = outcome == "hedged" and flight.tally.first_content_at is None
            flight.ticket.void(flight.seconds if silent else 0.0)
            self._ended(flight, outcome)
        await flight.stream.aclose()

    def _ended(self, flight: Flight, outcome: str) -> None:
        if flight.end(outcome):
            flight.tally.ended_at = time.time()
            self.means.watch.attempt_ended(flight.step.target, outcome, flight.seconds)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
