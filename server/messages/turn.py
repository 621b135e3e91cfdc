"""Waiting for the turn of a message in its conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from protocol.errors import ProtocolError
from server.messages.answer import Answer
from server.messages.journal import JournalLost, Verdict
from server.messages.life import AGAIN_SECONDS, STORE_SECONDS, Life
from server.messages.means import Means
from server.messages.place import Ended, Place
from server.messages.question import Question
from server.messages.scripts import QUEUE
from server.messages.state import Happening, State
from server.routing.attempts import GiveUp
from server.store.link import StoreError
from server.store.store import IMPATIENT

TURN_POLL_SECONDS: Final = 1.0
"""How often a waiting message looks whether its turn has come, in case a notification was lost."""


class Turn:
    """See the module."""

    def __init__(self, life: Life, means: Means, question: Question, answer: Answer) -> None:
        self.life = life
        self.means = means
        self.question = question
        self.answer = answer

    async def take(self, place: Place) -> Callable[[], None] | None:
        """Wait for the turn and read what is to be answered. How it ends instead: stopped, or refused after all."""
        changed = asyncio.Event()
        changed.set()
        with self.means.conversations.watching(place.keys, changed.set):
            while True:
                changed.clear()
                try:
                    if await self._enter(place) == 0:
                        await self.question.read_history()
                        return None
                    if not await self._queued():
                        return self.answer.cancelled
                except ProtocolError as error:
                    return self._turned_away(error)
                except Ended:
                    return lambda: self.answer.failed(GiveUp("internal", "its turn is over", "permanent"))
                except (StoreError, TimeoutError):
                    if not self.life.promised:
                        self.life.refuse_for_the_store()
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
                try:
                    async with self.life.interruptible(TURN_POLL_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    pass
                if self.life.stop_requested:
                    return self.answer.cancelled

    async def _enter(self, place: Place) -> int:
        """The position in the queue; 0: it is this message's turn."""
        claim = self.life.claim
        again = bool(claim.attempts) or claim.run > 1
        seconds = STORE_SECONDS if self.life.promised else IMPATIENT
        turn = await self.means.conversations.enter(
            place, claim.id, claim.token, claim.request, again, claim.user, seconds, claim.payer.tier
        )
        return turn.position

    async def _queued(self) -> bool:
        """Say in the record that it waits; False if a stop was asked for."""
        claim, life = self.life.claim, self.life
        script = self.means.store.run(QUEUE, [claim.keys.record], [claim.fence], seconds=STORE_SECONDS)
        answer = int(await script)
        if answer < 0 and (answer == -1 or not claim.attempts):
            raise JournalLost(Verdict(answer))
        if life.state is State.ADMITTING:
            life.happens(Happening.WAIT)
        life.promise()
        life.stop_requested = life.stop_requested or answer == 2
        return not life.stop_requested

    def _turned_away(self, error: ProtocolError) -> Callable[[], None]:
        """The conversation does not take it: an error to who asked, or, once it was accepted, a failure."""
        if not self.life.promised and self.life.claim.run == 1:
            self.life.refuse(error)
        return lambda: self.answer.failed(GiveUp(error.code, error.message, error.error_class))
