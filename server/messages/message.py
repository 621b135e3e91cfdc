"""The task that drives one owned message: its turn, its reservation, its attempts, its end.

It outlives the session that asked for it. It may be told to stop (`cancel`), and it stops by itself when the journal
says that another node owns the message. The parts: `life` (what they share), `turn`, `question`, `reservation`,
`pursuit` (the attempts), `answer` (what they brought).
"""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from protocol.frames import DEFAULT_ROUTE
from server.messages import request as asked
from server.messages.answer import Answer, error_of
from server.messages.claim import Claim
from server.messages.journal import JournalLost, Verdict
from server.messages.life import Life, NotAdmitted, Stopped
from server.messages.means import Means, Tracer
from server.messages.pursuit import Landed, Pursuit
from server.messages.question import Question
from server.messages.reader import Reader
from server.messages.reservation import Reservation
from server.messages.spans import attempt_spans, run_span
from server.messages.state import State
from server.messages.turn import Turn
from server.routing.attempts import GiveUp, Plan

log = structlog.get_logger("message")


class Running:
    """One message that this process generates."""

    def __init__(self, claim: Claim, means: Means, reader: Reader) -> None:
        self.means = means
        self.life = Life(claim)
        channel = means.hub.own(claim.tag, claim.keys, claim.head, claim.generation)
        self.answer = Answer(self.life, means, reader, channel, self._signalled)
        self.life.claim = replace(claim, standing_text=b"")  # it is counted; a large text must not stay in memory
        self.question = Question(self.life, means)
        self.reservation = Reservation(self.life, means.quotas)
        self._began = time.time()
        self.released = False
        """Whether its claim was taken back."""
        self.lost_writes = False
        """Redis lost acknowledged entries of this message: it must be taken over anew."""

    @property
    def claim(self) -> Claim:
        """As this node came to own it."""
        return self.life.claim

    def cancel(self) -> None:
        """Stop generating; what stands is kept. Idempotent."""
        self.life.stop()

    def abandon(self) -> None:
        """Write nothing more: the message is left to a survivor."""
        self.answer.outbox.abandon()

    def _signalled(self, lost: bool) -> None:
        """The journal saw a request to cancel, or that this node may not write any more."""
        if lost:
            self.life.interrupt()
        else:
            self.life.stop()

    async def run(self) -> bool:
        """Drive the message to its end; False if another node took it, or it could not be admitted."""
        outbox = self.answer.outbox
        try:
            await self._to_the_end()
            await outbox.flushed()
        except JournalLost as lost:
            log.warning("message_lost", id=self.claim.id, tag=self.claim.tag, verdict=lost.verdict.name)
            outbox.abandon()
            self.lost_writes = lost.verdict is Verdict.GAP
            return False
        except NotAdmitted:
            return False
        finally:
            self.life.left()
        self.means.watch.message_ended(self.life.state)
        if self.means.tracer is not None:
            self._trace(self.means.tracer)
        return True

    def _trace(self, tracer: Tracer) -> None:
        """Tell the run as spans."""
        trace, records, now = self.claim.trace, self.answer.records, time.time()
        root = run_span(trace, self.claim.account, self.life.state, records, self._began, now)
        tracer.tell(root, lambda: attempt_spans(trace, records, now))

    async def _to_the_end(self) -> None:
        claim, answer = self.claim, self.answer
        if claim.earlier is not None:
            await self.reservation.settle_earlier(claim.earlier)
        if self.life.stop_requested and claim.attempts:
            self.life.state = State.STREAMING
            return answer.cancelled()
        name = claim.request.get("model", DEFAULT_ROUTE)
        route = self.means.routes.get(name)
        if route is None:  # adopted from a node with another configuration
            return answer.failed(GiveUp("model_not_found", f"there is no model {name!r} here", "permanent"))
        if claim.place is not None:
            turn = Turn(self.life, self.means, self.question, answer)
            if (ending := await turn.take(claim.place)) is not None:
                return ending()
        plan = Plan(route, claim.attempts, asked.least_input(claim.request.get("messages", [])))
        replicated = self.means.replicas.confirmed(claim.keys.record)
        verdict = plan.opening(answer.shown, claim.reason) or await self.reservation.make(self.question.order(route))
        await replicated  # before anything is spent: a claim that a failover forgot would be generated again
        return self._conclude(verdict or await self._attempts(plan))

    async def _attempts(self, plan: Plan) -> Landed | GiveUp | None:
        """How the attempts ended; None: by a stop."""
        try:
            return await Pursuit(self.life, self.means, self.question, self.reservation, self.answer, plan).run()
        except Stopped:
            return None
        except (JournalLost, NotAdmitted):
            raise
        except Exception as defect:  # noqa: BLE001 - the one boundary where a defect becomes an end
            return self._broken(defect)

    def _conclude(self, outcome: Landed | GiveUp | None) -> None:
        if outcome is None:
            self.answer.cancelled()
        elif isinstance(outcome, Landed):
            self.answer.done(outcome.finish_reason, outcome.flight)
        elif self.life.untouched:  # no target may be called: say so, and when to come back, in place of an admission
            self.life.refuse(error_of(outcome))
        else:
            self.answer.failed(outcome)

    def _broken(self, defect: Exception) -> GiveUp:
        """A defect of ours: were it to kill the task, a survivor would run into it again, and pay for it."""
        log.error("attempt_broken", id=self.claim.id, exc_info=defect)
        tallies = self.answer.tallies
        if tallies:
            tallies[-1].outcome = "internal"
            tallies[-1].ended_at = time.time()
        return GiveUp.for_now("internal", "the server failed; its log says why")
