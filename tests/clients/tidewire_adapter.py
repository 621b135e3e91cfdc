"""The Python client under `tidewire conformance --client "python tests/clients/tidewire_adapter.py"`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from protocol.client.aio import Client, ClientEvent
from protocol.client.events import ConversationChanged, ConversationMessage, HistoryReceived
from protocol.client.failures import TidewireError
from protocol.client.message import ClientMessage

Map = dict[str, Any]


class Adapter:
    """One client at a time, told what to do."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.group = group
        self.told: list[Map] = []
        self.named: set[str] = set()
        self.over = asyncio.Event()
        self.running: asyncio.Task[None] | None = None

    def on_event(self, event: ClientEvent) -> None:
        if isinstance(event, ConversationMessage | ConversationChanged | HistoryReceived):
            self.told.append(event.frame)

    def begin(self, url: str, subprotocol: str, vector: str, tokens: list[str] | None = None) -> None:
        """`tokens`, beyond what the vectors need: what a source of tokens gives, one after another."""
        left = iter(tokens or ())
        self.tokens = 0

        async def source() -> str:
            self.tokens += 1
            return next(left)

        self.told, self.named, self.over = [], set(), asyncio.Event()
        codec: Any = subprotocol.rpartition(".")[2]
        self.client = Client(
            url, token=source if tokens else None, codec=codec, on_event=self.on_event, connect_seconds=30.0, proxy=None
        )
        self.running = self.group.create_task(self.run())

    async def run(self) -> None:
        with contextlib.suppress(TidewireError):
            async with self.client:
                await self.over.wait()

    async def end(self) -> None:
        self.over.set()
        if self.running is not None and not self.running.done():
            if self.client.welcome is None:
                self.running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.running

    def report(self) -> Map:
        session = self.client.session
        return {
            "messages": {message_id: held(message) for message_id, message in session.messages.items()},
            "told": self.told,
            "conversations": {name: session.subscribed(name) for name in self.named},
            "connections": self.client.reconnects + (self.client.welcome is not None),
            "tokens": self.tokens,
        }

    def send(self, id: str, request: Map) -> None:  # noqa: A002
        self.client.ask(id=id, **request)

    def resume(self, id: str, after: int = 0, text: str = "") -> None:  # noqa: A002
        self.client.resume(id, after=after, text=text)

    def cancel(self, id: str) -> None:  # noqa: A002
        self.client.cancel(id)

    def detach(self, id: str) -> None:  # noqa: A002
        self.client.detach(id)

    def retry(self, id: str) -> None:  # noqa: A002
        self.client.retry(id)

    def forget(self, id: str) -> None:  # noqa: A002
        self.client.forget(id)

    def ping(self, nonce: Any = None) -> None:
        self.client.check()

    def subscribe(self, conversation: str, after: int = 0) -> None:
        self.named.add(conversation)
        self.client.subscribe(conversation, after=after)

    def unsubscribe(self, conversation: str) -> None:
        self.client.unsubscribe(conversation)

    def history(self, conversation: str, **page: Any) -> None:
        self.client.history(conversation, **page)

    def conversation(self, op: str, conversation: str | None = None, fields: Map | None = None) -> None:
        self.client.conversation(op, conversation, **(fields or {}))

    def again(self, conversation: str) -> None:
        """The client does it by itself when the time has come."""


def held(message: ClientMessage) -> Map:
    return {
        "state": message.state.value,
        "text": message.text,
        "reasoning": message.reasoning,
        "tool_calls": message.tool_calls,
        "seq": message.cursor,
        "attempt": message.attempt,
        "finish_reason": message.finish_reason,
        "partial": message.partial,
        "error_code": message.error and message.error["code"],
    }


async def main() -> None:
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        adapter = Adapter(group)
        async for line in reader:
            instruction = json.loads(line)
            action = instruction.pop("do")
            try:
                answer = getattr(adapter, action)(**instruction)
                if asyncio.iscoroutine(answer):
                    answer = await answer
            except (TidewireError, ValueError, KeyError, TypeError) as error:
                answer = {"error": repr(error)}
            print(json.dumps(answer or {}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
