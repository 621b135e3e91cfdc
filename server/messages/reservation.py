"""Reserving the tokens of one run before anything is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from protocol.errors import ProtocolError
from server.messages.life import STORE_SECONDS, Life, until_redis_answers
from server.quotas.base import Hold, Order, Quota, Unsure, Used
from server.routing.attempts import GiveUp
from server.store.link import StoreError
from server.store.store import IMPATIENT

RESERVE_AGAIN_SECONDS: Final = 0.2
"""Until an accepted message asks again for a reservation that Redis did not answer."""


class Reservation:
    """See the module."""

    def __init__(self, life: Life, quotas: Quota) -> None:
        self.life = life
        self.quotas = quotas
        self.hold: Hold | None = None
        self.may_hold = False
        """Whether something may be reserved."""

    async def settle_earlier(self, used: Used) -> None:
        """Settle the run before this one, before anything else: its hold would take the room that this one needs.

        Whoever ended it has mostly done so; one that died over it is only made up for here, for the record does not
        tell any more that it ended. Raises `NotAdmitted`.
        """
        claim = self.life.claim

        def settle(seconds: float) -> Awaitable[None]:
            return self.quotas.settle(claim.payer, claim.earlier_hold, used, seconds)

        if self.life.promised:
            await until_redis_answers(lambda: settle(STORE_SECONDS))
            return
        try:
            await settle(IMPATIENT)
        except (StoreError, TimeoutError):
            self.life.refuse_for_the_store()

    async def make(self, order: Order) -> GiveUp | None:
        """Reserve. A refused claim is taken back (`NotAdmitted`); a reopened message fails again (`GiveUp`)."""
        self.may_hold = True
        try:
            self.hold = await self._reserve(order)
        except ProtocolError as refusal:
            self.may_hold = isinstance(refusal, Unsure)
            if refusal.code == "store_unavailable" or self.life.untouched:
                self.life.refuse(refusal)
            self.life.promise()  # more than a claim stands under its id
            return GiveUp(refusal.code, refusal.message, refusal.error_class, refusal.retry_after_ms, refusal.details)
        return None

    async def _reserve(self, order: Order) -> Hold:
        while True:
            try:
                return await self.quotas.reserve(order)
            except ProtocolError as refusal:
                if refusal.code != "store_unavailable" or not self.life.promised:
                    raise
                await asyncio.sleep(RESERVE_AGAIN_SECONDS)  # it was accepted when it began to wait for its turn
