"""What the parts of one running message share: its claim, its state, whether it is promised, whether it must stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NoReturn, TypeVar

import structlog

from protocol.errors import ProtocolError
from server.messages.claim import Claim
from server.messages.state import Happening, State, after
from server.store.link import StoreError

log = structlog.get_logger("messages")

T = TypeVar("T")

STORE_SECONDS: Final = 5.0
"""How long a step without a waiting client gives Redis before it is tried again."""
AGAIN_SECONDS: Final = 0.1
"""Until such a step is tried again."""


class Displaced(Exception):
    """Another node took the message before it was admitted here: whoever waits attaches there."""


class NotAdmitted(Exception):
    """Redis did not allocate the first attempt, or no target may be called; nothing was spent."""


class Stopped(Exception):
    """A stop was asked for."""


class Life:
    """See the module."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.state = State.ADMITTING
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when the first attempt is allocated; fails with the `ProtocolError` of a refusal, or `Displaced`."""
        self.admitted.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.refusal: ProtocolError | None = None
        """Why it was not admitted."""
        self.stop_requested = claim.cancelled
        self._wait: asyncio.Timeout | None = None

    def happens(self, what: Happening) -> None:
        """Go on to the next state. Raises `IllegalTransition`."""
        self.state = after(self.state, what)

    # --- admission ---------------------------------------------------------------------------------------------------

    @property
    def promised(self) -> bool:
        """Whether somebody has been promised this message, so that it goes on whatever Redis does."""
        return self.admitted.done()

    @property
    def admitted_here(self) -> bool:
        """Whether it was admitted, and not refused or left to others."""
        return self.promised and self.admitted.exception() is None

    @property
    def untouched(self) -> bool:
        """Whether nothing has been spent or journaled: then the claim can be taken back, and its id is free again."""
        return not self.promised and self.claim.run == 1 and not self.claim.attempts

    def promise(self) -> None:
        """Who asked may be told that it is accepted."""
        if not self.admitted.done():
            self.admitted.set_result(None)

    def refuse(self, error: ProtocolError) -> NoReturn:
        """Who asked is told why not. Raises `NotAdmitted`."""
        self.refusal = error
        if not self.admitted.done():
            self.admitted.set_exception(error)
        raise NotAdmitted

    def refuse_for_the_store(self) -> NoReturn:
        """Redis does not answer, and nobody has been promised anything."""
        self.refuse(ProtocolError("store_unavailable", "the store does not answer", retry_after_ms=1000))

    def left(self) -> None:
        """Nobody drives it here any more: who still waits for its admission looks elsewhere."""
        if not self.admitted.done():
            self.admitted.set_exception(Displaced())

    # --- stopping ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop generating; what stands is kept. Idempotent."""
        self.stop_requested = True
        self.interrupt()

    def interrupt(self) -> None:
        """End the wait that is going on, if it can be."""
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def interruptible(self, seconds: float | None = None) -> AsyncIterator[asyncio.Timeout]:
        """A part that `interrupt` ends, or the time; both raise `TimeoutError` out of it (then `expired()`)."""
        try:
            async with asyncio.timeout(seconds) as self._wait:
                yield self._wait
        finally:
            self._wait = None


async def until_redis_answers(step: Callable[[], Awaitable[T]], again_seconds: float = AGAIN_SECONDS) -> T:
    """The result of a step that may be repeated, once Redis has answered it."""
    while True:
        try:
            return await step()
        except (StoreError, TimeoutError) as error:
            log.debug("step_repeated", error=str(error))
            await asyncio.sleep(again_seconds)
