"""What `tidewire chat URL` runs: a terminal client, and the shortest example of `protocol.client.aio`.

At a terminal, a question may be asked while others are still being answered; every answer has a number and a colour,
and finished turns are remembered and sent along. With piped input every line is a question of its own, and the answers
come out whole, in the order of the questions, without any decoration; notices go to standard error.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TextIO

from rich.console import Console
from rich.text import Text

from protocol.client.aio import Client, ClientEvent, Disconnected, Message, connect
from protocol.client.events import AttemptStarted, Stalled, Welcomed
from protocol.client.failures import TidewireError
from protocol.client.message import MessageState
from protocol.client.timing import Backoff

COLOURS: Final = ("cyan", "green", "yellow", "magenta", "blue", "bright_red")
REMEMBERED_TURNS: Final = 20
READ_BYTES: Final = 65_536
PATIENCE_PIECES: Final = 200
"""An answer that has so many pieces waiting takes the floor in the middle of another's line."""
HELP: Final = "/cancel N stops answer N, /retry N asks again, /quit leaves (answers go on at the server)"
_UNPRINTABLE: Final = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Control characters: what a model says must not steer the terminal."""


async def chat(
    url: str,
    *,
    token: str | None = None,
    model: str = "default",
    codec: Literal["json", "msgpack"] = "json",
    stdin: TextIO | None = None,
    console: Console | None = None,
    notices: Console | None = None,
    backoff: Backoff | None = None,
) -> int:
    """Chat until `/quit` or the end of the input; returns the exit code.

    0: every question was answered (or cancelled); 1: one was not; 2: there is no connection. `url` may be the server's
    address alone: `ws://` and `/v1/ws` are added where missing. The streams are those of the process by default.
    """
    stdin = stdin or sys.stdin
    interactive = stdin.isatty()
    console = console or Console(highlight=False, soft_wrap=True)
    screen = Screen(console, notices or (console if interactive else Console(stderr=True)), numbered=interactive)
    talk = Talk(screen, model, remember=interactive)
    client = connect(full_url(url), token=token, codec=codec, on_event=talk.on_event, backoff=backoff)
    try:
        async with client:
            if interactive:
                screen.notice(f"connected to {url}; {HELP}")
            return await talk.run(client, lines(stdin))
    except TidewireError as failure:
        screen.notice(str(failure))
        return 2


def full_url(url: str) -> str:
    """The WebSocket endpoint of a server that is given by any of its addresses."""
    for plain, socket in (("http://", "ws://"), ("https://", "wss://")):
        if url.startswith(plain):
            url = socket + url.removeprefix(plain)
    if "://" not in url:
        url = f"ws://{url}"
    scheme, _, rest = url.partition("://")
    return url if "/" in rest.rstrip("/") else f"{scheme}://{rest.rstrip('/')}/v1/ws"


async def lines(stream: TextIO) -> AsyncIterator[str]:
    """Lines of a terminal, pipe or file, without their ends, as they come."""
    descriptor = stream.fileno()
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        # Not connect_read_pipe: that makes the terminal non-blocking, for writing too.
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # a file: always readable
        readable.set()
        watched = False
    else:
        watched = True
    try:
        rest = ""
        while True:
            await readable.wait()
            data = os.read(descriptor, READ_BYTES)
            if watched:
                readable.clear()
            *whole, rest = (rest + decoder.decode(data, final=not data)).split("\n")
            for line in whole:
                yield line
            if not data:
                break
        if rest:
            yield rest
    finally:
        if watched:
            loop.remove_reader(descriptor)


class Screen:
    """Shows several growing answers on one terminal.

    One answer has the floor and is shown as it grows. What others say meanwhile waits until the floor is free: at a
    line's end if answers are numbered, else at the answer's end.
    """

    def __init__(self, console: Console, notices: Console, *, numbered: bool) -> None:
        self._console = console
        self._notices = notices
        self._numbered = numbered
        self._waiting: dict[int, list[str]] = {}
        """By answer, in the order of the questions."""
        self._over: dict[int, str] = {}
        """Answers that ended, with a note how, and are not yet shown to their end."""
        self._floor: int | None = None
        self._speaker: int | None = None
        """Whose text stands at the end of the last line."""
        self._at_line_start = True

    def begin(self, number: int) -> None:
        """An answer is to come."""
        self._waiting[number] = []
        if self._floor is None:
            self._floor = number

    def piece(self, number: int, text: str) -> None:
        """An answer grows."""
        self._waiting[number].append(text.translate(_UNPRINTABLE))
        if self._may_take_floor(number):
            self._floor = number
        if self._floor == number:
            self._flush(number)
            if self._numbered and self._at_line_start:
                self._pass_floor()

    def _may_take_floor(self, number: int) -> bool:
        if not self._numbered:
            return False
        return self._floor is None or self._at_line_start or len(self._waiting[number]) > PATIENCE_PIECES

    def restart(self, number: int) -> None:
        """What was shown of an answer doesn't stand any more."""
        self._waiting[number].clear()
        if self._floor == number:
            self._end_line()
            self.notice(f"[{number}] starts over")

    def end(self, number: int, note: str = "") -> None:
        """An answer is over; `note` says how, if not well."""
        self._over[number] = note
        if self._numbered or self._floor == number:
            self._finish(number)

    def notice(self, text: str) -> None:
        """Something about the connection or an answer, on a line of its own."""
        if self._notices is self._console:
            self._end_line()
        self._notices.print(Text(text, style="dim"))

    def _finish(self, number: int) -> None:
        self._flush(number)
        self._end_line()
        note = self._over.pop(number)
        if note:
            self.notice(f"[{number}] {note}")
        del self._waiting[number]
        if self._floor in (number, None):
            self._floor = None
            self._pass_floor()

    def _pass_floor(self) -> None:
        """Let the next answer speak: one that has something to say, or in its turn."""
        for number, waiting in self._waiting.items():
            if number != self._floor and (waiting or not self._numbered):
                self._floor = number
                self._flush(number)
                if number in self._over:
                    self._finish(number)
                return

    def _flush(self, number: int) -> None:
        text = "".join(self._waiting[number])
        self._waiting[number].clear()
        if self._speaker != number:
            self._end_line()
        self._write(number, text)

    def _write(self, number: int, text: str) -> None:
        if not text:
            return
        self._speaker = number
        if self._numbered:
            self._write_numbered(number, text)
        else:
            self._console.file.write(text)
            self._console.file.flush()
        self._at_line_start = text.endswith("\n")

    def _write_numbered(self, number: int, text: str) -> None:
        mark = f"[{number}] "
        lead = mark if self._at_line_start else ""
        marked = lead + text[:-1].replace("\n", f"\n{mark}") + text[-1]
        style = COLOURS[(number - 1) % len(COLOURS)]
        self._console.print(Text(marked, style=style), end="", soft_wrap=True)

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._console.print()
            self._at_line_start = True


@dataclass(slots=True)
class Talk:
    """The questions of one run."""

    screen: Screen
    model: str
    remember: bool
    failed: bool = False
    _messages: dict[int, Message] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    _turns: list[dict[str, Any]] = field(default_factory=list)
    _count: int = 0
    _welcomed: bool = False

    async def run(self, client: Client, questions: AsyncIterator[str]) -> int:
        """Ask what comes, until `/quit`, or until the end of the input and of all answers."""
        async with asyncio.TaskGroup() as group:
            answers: set[asyncio.Task[None]] = set()
            async for line in questions:
                question = line.strip()
                if question == "/quit":
                    for answer in answers:
                        answer.cancel()
                    break
                if question.startswith("/"):
                    command = self._command(question)
                    answers |= {group.create_task(command)} if command else set()
                elif question:
                    answers |= {group.create_task(self._ask(client, question))}
                answers = {answer for answer in answers if not answer.done()}
        return int(self.failed)

    async def _ask(self, client: Client, question: str) -> None:
        self._count += 1
        number = self._count
        turn = {"role": "user", "content": question}
        try:
            message = client.ask(model=self.model, messages=[*self._turns[-2 * REMEMBERED_TURNS :], turn])
        except TidewireError as failure:  # the connection is gone for good
            self.failed = True
            self.screen.notice(str(failure))
            return
        self._messages[number] = message
        self._numbers[message.id] = number
        if await self._show(number, message) and self.remember:
            self._turns += [turn, {"role": "assistant", "content": message.text}]

    async def _show(self, number: int, message: Message) -> bool:
        """Show an answer to its end; whether it came to a good one."""
        self.screen.begin(number)
        note = ""
        try:
            async for piece in message:
                if piece.replaces:
                    self.screen.restart(number)
                self.screen.piece(number, piece.text)
            if message.view.state is MessageState.CANCELLED:
                note = "cancelled"
        except TidewireError as failure:
            self.failed = True
            note = f"{failure}{f' (/retry {number} asks again)' if failure.retryable else ''}"
        finally:
            self.screen.end(number, note)
        return not note and bool(message.text)

    def _command(self, line: str) -> Coroutine[Any, Any, None] | None:
        """What a line that begins with a slash asks for; None, and a hint, if it can't be done."""
        name, _, argument = line.partition(" ")
        number = int(argument) if argument.strip().isdecimal() else 0
        message = self._messages.get(number)
        if message is not None and name == "/cancel":
            return self._cancel(message)
        if message is not None and name == "/retry":
            return self._retry(number, message)
        self.screen.notice(HELP)
        return None

    async def _cancel(self, message: Message) -> None:
        try:
            await message.cancel()
        except TidewireError as failure:
            self.screen.notice(str(failure))

    async def _retry(self, number: int, message: Message) -> None:
        try:
            again = await message.retry()
        except TidewireError as failure:
            self.screen.notice(f"[{number}] {failure}")
            return
        if again:
            await self._show(number, message)
        else:
            self.screen.notice(f"[{number}] can't be asked again")

    def on_event(self, event: ClientEvent) -> None:
        """Say what happens to the connection, and which target answers instead of another."""
        match event:
            case Disconnected(reason, delay):
                self.screen.notice(f"disconnected: {reason}; again in {delay:.1f} s, answers go on meanwhile")
            case Welcomed():
                if self._welcomed:
                    self.screen.notice("connected again; answers are resumed where they were")
                self._welcomed = True
            case AttemptStarted(message, info) if info.reason:
                number = self._numbers.get(message.id, 0)
                self.screen.notice(f"[{number}] {info.reason.get('code')}: {info.target} goes on ({info.mode})")
            case Stalled(message, error, _):
                number = self._numbers.get(message.id, 0)
                self.screen.notice(f"[{number}] {error['code']}: {error['message']}; resumed as soon as possible")
