"""A deterministic asyncio event loop with virtual time, shared by several simulated machines.

Nothing waits: when no callback is ready, the clock jumps to the next timer. Every callback belongs to a `Host` (by a
context variable that tasks inherit), and each host keeps asyncio's promise, first come, first served; between hosts
there is no such promise, so who runs next is drawn from the seed. A host can be paused (as by SIGSTOP: what becomes
ready waits, its timers fire late) and killed (what it had yet to do never happens).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final


class Host:
    """A simulated machine: whose callbacks run first come, first served, or not at all."""

    __slots__ = ("dead", "name", "paused", "queued", "ready", "stops_after")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[Handle] = deque()
        self.queued = False
        """Whether the loop has it among those that may run."""
        self.paused = False
        self.dead = False
        self.stops_after: int | None = None
        """A pause begins after so many more callbacks."""

    def __repr__(self) -> str:
        return f"Host({self.name})"


WORLD: Final = Host("world")
_HOST: Final[contextvars.ContextVar[Host]] = contextvars.ContextVar("host", default=WORLD)


class Handle:
    """A callback to be run; may be cancelled."""

    __slots__ = ("args", "callback", "context")

    def __init__(
        self, callback: Callable[..., Any] | None, args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.callback = callback
        """None: it was cancelled."""
        self.args = args
        self.context = context

    def cancel(self) -> None:
        """It will not run."""
        self.callback = None

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.callback is None


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task that hashes by its number, so that sets of tasks are walked in the same order in every run."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Stuck(AssertionError):
    """The loop ran too many callbacks for one seed: something spins."""


class SimLoop(asyncio.AbstractEventLoop):
    """See the module."""

    def __init__(self, seed: int, most_callbacks: int = 400_000) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.callbacks = 0
        self.most_callbacks = most_callbacks
        self.tasks: list[SimTask] = []
        self.errors: list[BaseException | str] = []
        """What callbacks raised; a defect."""
        self._runnable: list[Host] = []
        self._timers: list[tuple[float, int, Handle, Host]] = []
        self._counter = 0
        self._world = contextvars.Context()
        self._running = False

    # --- hosts ---

    def context_of(self, host: Host) -> contextvars.Context:
        """A context whose callbacks and tasks belong to `host`."""
        context = contextvars.Context()
        context.run(_HOST.set, host)
        return context

    def pause(self, host: Host, after: int = 0) -> None:
        """Stop a host, after so many more of its callbacks."""
        if after and host.ready:
            host.stops_after = after
        else:
            self._stop(host)

    def _stop(self, host: Host) -> None:
        host.paused, host.stops_after = True, None
        if host.queued:
            host.queued = False
            self._runnable.remove(host)

    def wake(self, host: Host) -> None:
        """Let a paused host go on; what was held back is run now."""
        host.paused, host.stops_after = False, None
        if host.ready and not host.dead:
            self._queue(host)

    def kill(self, host: Host) -> None:
        """End a host where it stands."""
        self._stop(host)
        host.dead = True
        host.ready.clear()

    def _queue(self, host: Host) -> None:
        if not host.queued:
            host.queued = True
            self._runnable.append(host)

    # --- what asyncio asks of a loop ---

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        """Run `callback` in this instant, after what is ready already."""
        if context is None:
            context = contextvars.copy_context()
            host = _HOST.get()
        else:
            host = context.get(_HOST, WORLD)  # type: ignore[assignment]
        handle = Handle(callback, args, context)
        if host.dead:
            return handle
        host.ready.append(handle)
        if not host.queued and not host.paused:
            host.queued = True
            self._runnable.append(host)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:  # type: ignore[override]
        """Run `callback` after `delay` virtual seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:  # type: ignore[override]
        """Run `callback` at a virtual time."""
        if context is None:
            context = contextvars.copy_context()
            host = _HOST.get()
        else:
            host = context.get(_HOST, WORLD)  # type: ignore[assignment]
        handle = Handle(callback, args, context)
        self._counter = number = self._counter + 1
        heapq.heappush(self._timers, (when, number, handle, host))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> SimTask:  # type: ignore[override]
        """A task of this loop; it belongs to the host that made it, or to that of `context`."""
        task = SimTask.__new__(SimTask)
        task.number = len(self.tasks) + 1
        task.__init__(coro, loop=self, name=name, context=context)  # type: ignore[misc]
        self.tasks.append(task)
        return task

    get_debug = staticmethod(bool)  # type: ignore[assignment]
    """Never: debugging here is done by the trace. (Every future asks, so it is no function of Python's.)"""

    def is_running(self) -> bool:
        """Whether callbacks are being run."""
        return self._running

    def is_closed(self) -> bool:
        """Never: a loop is dropped with its seed."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback or a forgotten future raised. Tasks dropped with their host are no news."""
        error = context.get("exception")
        if self._running and error is not None:
            self.errors.append(error)

    # --- running ---

    def run_until_complete(self, future: Any) -> Any:
        """Run until `future` is done. Raises `RuntimeError` if nothing is left that could complete it."""
        task = future if asyncio.isfuture(future) else self.create_task(future)
        self.run(lambda: task.done())
        if not task.done():
            raise RuntimeError("nothing is left to do, and the future is not done")
        return task.result()

    def run(self, until: Callable[[], bool], deadline: float = float("inf")) -> bool:
        """Run until `until()` holds (looked at before every jump of the clock) or `deadline`; whether it holds."""
        asyncio._set_running_loop(self)
        self._running = True
        try:
            return self._run(until, deadline)
        finally:
            self._running = False
            asyncio._set_running_loop(None)

    def _run(self, until: Callable[[], bool], deadline: float) -> bool:
        runnable, timers, rand = self._runnable, self._timers, self.random.random
        pop = heapq.heappop
        while True:
            while runnable:
                count = len(runnable)
                index = 0 if count == 1 else int(rand() * count)
                host = runnable[index]
                self._turn(host)
                if host.queued and not host.ready:
                    host.queued = False
                    runnable.remove(host)
            if until():
                return True
            while timers and timers[0][2].callback is None:
                pop(timers)
            if not timers or timers[0][0] > deadline:
                self.now = max(self.now, min(deadline, self.now if not timers else timers[0][0]))
                return until()
            self.now = now = max(self.now, timers[0][0])
            while timers and timers[0][0] <= now:
                _, _, handle, host = pop(timers)
                if handle.callback is None or host.dead:
                    continue
                host.ready.append(handle)
                if not host.queued and not host.paused:
                    host.queued = True
                    runnable.append(host)

    def _turn(self, host: Host) -> None:
        """One iteration of a host's own loop: what is ready now, not what that makes ready."""
        ready = host.ready
        count = len(ready)
        stops = host.stops_after is not None
        if stops:
            count = min(count, host.stops_after or 0)
        self.callbacks += count
        if self.callbacks > self.most_callbacks:
            raise Stuck(f"more than {self.most_callbacks} callbacks by {self.now:.3f} s")
        next_ready = ready.popleft
        while count and ready:  # nothing is ready once it was killed within its own turn
            count -= 1
            handle = next_ready()
            callback = handle.callback
            if callback is None:
                continue
            try:
                handle.context.run(callback, *handle.args)
            except Exception as error:  # noqa: BLE001 - kept, and raised by the world
                self.errors.append(error)
        if stops:
            self._stop(host)

    def defects(self, owners: tuple[str, ...]) -> list[BaseException]:
        """What killed tasks that were started by a `TaskOwner` of one of these names."""
        return [
            task.exception()
            for task in self.tasks
            if task.done() and not task.cancelled() and task.exception() and task.get_name().startswith(owners)
        ]  # type: ignore[misc]

    def drop(self) -> None:
        """End a finished simulation: unfinished coroutines are closed while no loop runs, so they reach nothing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # clean-up that would start tasks finds no loop
            for task in reversed(self.tasks):
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coroutine = task.get_coro()
                    with contextlib.suppress(BaseException):  # nobody is left to care
                        coroutine.close()  # type: ignore[union-attr]
        self.tasks.clear()
        self._timers.clear()
        self._runnable.clear()
