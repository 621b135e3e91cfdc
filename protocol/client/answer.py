"""One message as a caller awaits it: its pieces as they come, its acceptance, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

from protocol.client.failures import ClientClosed, TidewireError, failure_of
from protocol.client.message import ClientMessage, MessageState


class Follower(Protocol):
    """What a message needs of its client."""

    failure: TidewireError | None
    """Why nothing more will come."""

    def cancel(self, message_id: str) -> None:
        """Stop generating."""

    def retry(self, message_id: str) -> bool:
        """Ask again; False if that can't help."""

    def detach(self, message_id: str) -> None:
        """Stop following."""

    def forget(self, message_id: str) -> None:
        """Drop an ended or detached message from memory."""


class Piece(NamedTuple):
    """What came since the piece before: everything that arrived while the reader was busy, in one."""

    text: str
    reasoning: str
    replaces: bool
    """Forget what was shown: an attempt started over or a snapshot came, and this is all that stands."""


class Message:
    """One message of a `Client`: iterate it for what comes, or await `done()` for the whole."""

    def __init__(self, client: Follower, view: ClientMessage) -> None:
        self._client = client
        self.view = view
        """Text, reasoning, tool calls, state, usage … as they stand now."""
        self._changed: asyncio.Event | None = None

    @property
    def id(self) -> str:
        """The message's id, which is also its idempotency key and resume handle."""
        return self.view.id

    @property
    def text(self) -> str:
        """The visible text that stands."""
        return self.view.text

    async def accepted(self) -> ClientMessage:
        """Wait until the server has admitted the message. Raises `MessageRefused`, `ConnectionFailed`."""
        await self._until(lambda: self.view.state is not MessageState.SENDING)
        return self._checked()

    async def done(self) -> ClientMessage:
        """Wait for the end: done, or cancelled. Raises a `MessageError` if it ended otherwise."""
        await self._until(lambda: self.view.ended)
        return self._checked()

    async def cancel(self) -> ClientMessage:
        """Stop generating and wait for the receipt. If the end won the race, that is the receipt."""
        self._client.cancel(self.id)
        await self._until(lambda: self.view.ended)
        return self.view

    async def retry(self) -> bool:
        """Ask again for a refused message or one that failed for now; False if that can't help.

        Waits for the acceptance and raises like `Client.send`.
        """
        if not self._client.retry(self.id):
            return False
        await self.accepted()
        return True

    def detach(self) -> None:
        """Stop following; the message goes on. Whoever iterates or waits is told so by `ClientClosed`."""
        self._client.detach(self.id)

    def forget(self) -> None:
        """Drop an ended or detached message from the client's memory."""
        self._client.forget(self.id)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces of output as they come; every iteration starts from the beginning of what stands.

        Raises a `MessageError` at the end if the message did not end well, so that nobody takes a part for the whole.
        """
        view = self.view
        generation, shown, thought, replaces = view.generation, 0, 0, False
        while True:
            if view.generation != generation:
                replaces = replaces or shown > 0 or thought > 0
                generation, shown, thought = view.generation, 0, 0
            text, reasoning = view.text[shown:], view.reasoning[thought:]
            if text or reasoning or replaces:
                yield Piece(text, reasoning, replaces)
                shown, thought, replaces = shown + len(text), thought + len(reasoning), False
            elif view.ended:
                self._checked()
                return
            else:
                await self._change()

    def _checked(self) -> ClientMessage:
        failure = failure_of(self.view)
        if failure:
            raise failure
        return self.view

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            await self._change()

    async def _change(self) -> None:
        if self._client.failure is not None:
            raise self._client.failure
        if self.view.state is MessageState.DETACHED:
            raise ClientClosed
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    def notify(self) -> None:
        """Something happened to the message, or to its client: wake who waits."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None
