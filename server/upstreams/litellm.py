"""Targets served through litellm, which lives in worker processes: the pool that owns them, the driver that asks them.

litellm takes seconds and much memory to import and half a millisecond of CPU per chunk, so no serving process imports
it. A `LitellmPool` (in the supervisor, or in a server that runs alone) keeps the workers alive; each listens on a Unix
socket of its own. Server processes need the socket paths only: a `LitellmClient` holds one connection per worker, over
which all calls of the process go side by side, and each call goes to the worker with the fewest.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from server.telemetry.tasks import TaskOwner
from server.upstreams import litellm_wire as wire
from server.upstreams.base import Batch, Call, Capabilities, Fault, TargetSpec, TokenUsage, UpstreamFailure
from server.upstreams.chat import extend
from server.upstreams.child import ChildProcess
from server.upstreams.litellm_wire import Kind
from server.upstreams.watchdog import Watchdog

READY_SECONDS: Final = 60.0
"""Importing litellm takes 3 to 5 s; a busy machine longer."""
RETRY_SECONDS: Final = 0.05
"""Between two tries to reach a worker that is starting."""


class LitellmPool:
    """The worker processes, and the folder of their sockets. It is for the process that supervises."""

    def __init__(self, targets: Sequence[TargetSpec], processes: int = 1) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tidewire-litellm-"))
        self._targets = {spec.name: asdict(spec) for spec in targets}
        self.paths = [self._folder / f"{number}.sock" for number in range(processes)]
        """What a `LitellmClient` needs."""
        self._children = [
            ChildProcess(f"litellm {number}", "server.upstreams.litellm_worker", self._settings(path))
            for number, path in enumerate(self.paths)
        ]

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that live."""
        return [child.pid for child in self._children if child.pid is not None]

    def start(self) -> None:
        """Start the workers in the background. Idempotent."""
        for child in self._children:
            child.start()

    async def ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until every worker serves. Raises `ChildError`."""
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(child.ready(seconds))

    async def stop(self) -> None:
        """End the workers and remove their sockets. Idempotent."""
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(child.stop())
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settings(self, path: Path) -> Any:
        def settings() -> dict[str, Any]:
            path.unlink(missing_ok=True)
            return {"socket": str(path), "targets": self._targets}

        return settings


class LitellmClient:
    """A process's connections to the workers, made on first use. All litellm drivers share one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._connections = [_Connection(path) for path in paths]

    def pick(self) -> _Connection:
        """The connection with the fewest calls."""
        return min(self._connections, key=lambda connection: connection.load)

    async def close(self) -> None:
        """Close every connection; the workers then end the calls. Idempotent."""
        for connection in self._connections:
            await connection.close()


class LitellmDriver:
    """One target behind litellm; `model` is litellm's name for it, such as `anthropic/claude-sonnet-4-5`."""

    def __init__(self, spec: TargetSpec, client: LitellmClient) -> None:
        self.spec = spec
        self.capabilities = Capabilities(
            tools=True, reasoning=True, usage_in_stream=True, prefill=spec.prefill, images=True
        )
        self._client = client

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """Start the attempt and yield what it brings; see `Driver.stream`."""
        answer = await self._client.pick().call(self.spec, call)
        try:
            while (batch := await answer.next()) is not None:
                yield batch
        finally:
            answer.close()

    async def check(self) -> str | None:
        """Whether the worker can be reached; nothing is asked of the provider."""
        try:
            await self._client.pick().connect(self.spec.connect_seconds)
        except UpstreamFailure as error:
            return f"target {self.spec.name}: {error.message}; see the log for why the litellm worker does not start"
        return None

    async def close(self) -> None:
        """Nothing of its own is open; the client belongs to all drivers."""


class _Connection:
    """The way to one worker: its calls by number, and the task that reads for all of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._calls: dict[int, _Answer] = {}
        self._numbers = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._lock = asyncio.Lock()
        self._owner = TaskOwner(f"litellm {path.name}")

    @property
    def load(self) -> int:
        """How many calls are running."""
        return len(self._calls)

    async def connect(self, seconds: float) -> None:
        """Connect, if it is not; a worker that is starting is waited for. Raises `UpstreamFailure`."""
        async with self._lock:
            if self._writer is not None:
                return
            try:
                async with asyncio.timeout(seconds):
                    reader, self._writer = await self._reach()
            except TimeoutError:
                raise UpstreamFailure(Fault.WORKER_LOST, "the litellm worker does not answer") from None
            self._owner.start(self._read(reader, self._writer), "reader")

    async def call(self, spec: TargetSpec, call: Call) -> _Answer:
        """Start a call. Raises `UpstreamFailure`."""
        await self.connect(spec.connect_seconds)
        answer = _Answer(self, next(self._numbers), spec)
        self._calls[answer.number] = answer
        request = {
            "messages": list(call.messages),
            "options": dict(call.options),
            "max_output_tokens": call.max_output_tokens,
            "user": call.user if "user" in spec.identity else None,
            "safety_identifier": call.user if "safety_identifier" in spec.identity else None,
            "tags": dict(call.tags) if "metadata" in spec.identity else {},
        }
        self.send(Kind.CALL, answer.number, spec.name, request)
        return answer

    def send(self, *frame: Any) -> None:
        """Write a frame; calls and credits are small, so the buffer is not waited for."""
        if self._writer is not None:
            self._writer.write(wire.pack(*frame))

    def forget(self, number: int, *, cancel: bool) -> None:
        """A call is over for us; `cancel` tells the worker."""
        if self._calls.pop(number, None) is not None and cancel:
            self.send(Kind.CANCEL, number)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._owner.close()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_unix_connection(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (frame := await wire.read(reader)) is not None:
                if (answer := self._calls.get(frame[1])) is not None:
                    answer.receive(frame)
        finally:
            self._writer = None
            writer.close()
            calls, self._calls = self._calls, {}
            for answer in calls.values():
                answer.fail(UpstreamFailure(Fault.WORKER_LOST, "the litellm worker died"))


class _Answer:
    """One call's answer, as its frames arrive. At most `WINDOW` batches wait here."""

    def __init__(self, connection: _Connection, number: int, spec: TargetSpec) -> None:
        self.number = number
        self._connection = connection
        self._frames: deque[list[Any]] = deque()
        self._failure: UpstreamFailure | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self._started = False
        self._model_told = False
        self._loop = asyncio.get_running_loop()
        self._dog = Watchdog(
            self._loop, first_token=spec.first_token_seconds, idle=spec.idle_seconds, total=spec.total_seconds
        )
        self._dog.watch(self.fail)

    def receive(self, frame: list[Any]) -> None:
        """A frame of the worker."""
        self._frames.append(frame)
        self._wake()

    def fail(self, failure: UpstreamFailure) -> None:
        """The worker is gone, or a time limit is passed. What had arrived is still given out."""
        self._failure = failure
        self._wake()

    async def next(self) -> Batch | None:
        """All that has arrived as one batch; None after the end. Raises `UpstreamFailure`."""
        if self._over:
            return None
        if not self._frames:
            await self._wait()
        batch = Batch()
        taken = 0
        while self._frames:
            if self._frames[0][0] == Kind.FAULT and taken:
                break
            frame = self._frames.popleft()
            if frame[0] != Kind.BATCH:
                self._end(frame, batch)
                break
            extend(batch.pieces, frame[2])
            batch.chunks += frame[3]
            if not self._model_told:
                batch.model, self._model_told = frame[4], True
            taken += 1
        self._started = self._started or bool(taken)
        if not self._over:
            self._connection.send(Kind.CREDIT, self.number, taken)
        return batch

    def close(self) -> None:
        """Tell the worker to stop, unless it is over."""
        self._dog.stop()
        self._connection.forget(self.number, cancel=not self._over)

    async def _wait(self) -> None:
        self._dog.ask()
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._waiter = self._loop.create_future()
            await self._waiter
        self._dog.answered(content=True)

    def _end(self, frame: list[Any], batch: Batch) -> None:
        self._over = True
        if frame[0] == Kind.FAULT:
            raise UpstreamFailure(Fault(frame[2]), frame[3], status=frame[4], retry_after_seconds=frame[5])
        finish = frame[2] or "stop"
        if not self._started and not batch.pieces and finish != "length":
            fault = Fault.CONTENT_FILTER if finish == "content_filter" else Fault.EMPTY
            raise UpstreamFailure(fault, "the answer has no content")
        batch.finish_reason = finish
        batch.usage = TokenUsage(*frame[3]) if frame[3] else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
