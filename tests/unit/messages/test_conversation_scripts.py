"""The scripts of a conversation, in the modelled Redis, against a plain model: any order of what nodes may do."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import ProtocolError
from server.messages.conversation import entry_id
from server.messages.conversations import Conversations
from server.messages.place import Ended, Place
from server.store.store import Script
from tests.simulation.redis import Keyspace

T = TypeVar("T")
URGENT = ("interrupt", "rollback")


class Space(Protocol):
    """A Redis: the modelled one, or a real one (`tests/integration/test_conversation_scripts.py`)."""

    def execute(self, *command: Any) -> Any:
        """The answer to a command."""


class InstantStore:
    """A store whose every answer is there at once: no event loop is needed."""

    def __init__(self, space: Space) -> None:
        self.space = space

    async def run(self, script: Script, keys: Any, args: Any, seconds: float | None = None) -> Any:
        return self.space.execute("EVAL", script.source, len(keys), *keys, *args)

    async def call(self, key: bytes, *command: Any, seconds: float | None = None) -> Any:
        return self.space.execute(*command)


def now(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


class Entering(Conversations):
    """Nobody here ends a message but the machine's own rules."""

    async def look_at_current(self, place: Place, user: tuple[str, str, str]) -> bool:
        return False


@dataclass
class Asked:
    """A message, as the model knows it."""

    name: str
    parent: str
    on_busy: str
    run: int = 1
    inputs: int = 1

    @property
    def token(self) -> bytes:
        return b"gen-%s:%d" % (self.name.encode(), self.run)

    @property
    def request(self) -> dict[str, Any]:
        given: dict[str, Any] = {"on_busy": self.on_busy}
        if self.parent:
            given["parent"] = self.parent
        if self.inputs:
            given["input"] = [{"role": "user", "content": f"{self.name}/{n}"} for n in range(self.inputs)]
        return given


@dataclass
class Model:
    """A conversation as one would write it down on paper."""

    parents: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    tip: str = ""
    current: str = ""
    queue: list[str] = field(default_factory=list)
    urgent: set[str] = field(default_factory=set)
    stop: str = ""
    undo: str = ""
    pins: set[str] = field(default_factory=set)
    calls: dict[str, bool] = field(default_factory=dict)
    """Tool calls at the end: whether each has its result."""
    asker: str = ""
    answered: str = ""
    """Below which the next result hangs."""

    def path(self, entry: str) -> list[str]:
        found: list[str] = []
        while entry:
            found.append(entry)
            entry = self.parents[entry]
        return found[::-1]

    def ancestors(self, entry: str) -> int:
        return len(self.path(entry))

    def children(self, entry: str) -> list[str]:
        return [name for name, above in self.parents.items() if above == entry]

    def hang(self, asked: Asked) -> None:
        above = self.tip if not asked.parent else "" if asked.parent == "c" else asked.parent
        for index in range(asked.inputs):
            name = entry_id(asked.name, index)
            self.parents[name], self.states[name] = above, "done"
            above = name
        self.parents[asked.name], self.states[asked.name] = above, "running"
        self.tip = asked.name
        self.calls = {}

    def call_tools(self, asker: str, calls: list[str]) -> None:
        self.calls, self.asker, self.answered = dict.fromkeys(calls, False), asker, asker

    def answer(self, call: str) -> None:
        if self.calls[call]:
            return
        name = entry_id(self.asker, call)
        self.parents[name], self.states[name] = self.answered, "done"
        if self.tip == self.answered:
            self.tip = name
        self.calls[call], self.answered = True, name

    def drop(self, entry: str) -> str:
        above = self.parents.pop(entry)
        del self.states[entry]
        self.pins.discard(entry)
        if self.tip == entry:
            self.tip = above
        return above

    def next(self) -> None:
        self.current = self.queue.pop(0) if self.queue else ""
        self.urgent.discard(self.current)
        self.stop = self.undo = ""


class Machine(RuleBasedStateMachine):
    """Every rule is what some node may do at any time; most may be repeated."""

    def __init__(self, space: Space | None = None) -> None:
        super().__init__()
        self.store = InstantStore(space or Keyspace(lambda: 1_000.0))
        self.conversations = Conversations(self.store, None, None, {}, 3600.0, 3600.0)  # type: ignore[arg-type]
        self.place = Place.of("user", "c")
        self.model = Model()
        self.asked: dict[str, Asked] = {}
        self.entered: set[str] = set()
        """Messages whose entries hang in the tree (or hung: rolled back)."""

    def enter(self, asked: Asked) -> Any:
        return now(
            Entering(self.store, None, None, {}, 3600.0, 3600.0).enter(  # type: ignore[arg-type]
                self.place, asked.name, asked.token, asked.request, asked.run > 1, ("t", "sub", "u"), 1.0
            )
        )

    def check_turn(self, asked: Asked, got: Any) -> None:
        model = self.model
        if model.current == asked.name:
            assert got.position == 0
        else:
            assert (got.position, got.current) == (model.queue.index(asked.name) + 1, model.current)

    # --- what nodes do ------------------------------------------------------------------------------------------------

    @rule(on_busy=st.sampled_from(["queue", "reject", *URGENT]), inputs=st.integers(0, 2), data=st.data())
    def ask(self, on_busy: str, inputs: int, data: st.DataObject) -> None:
        model = self.model
        entries = [e for e, s in model.states.items() if s != "running"]
        parent = data.draw(st.sampled_from(["", "", "c", *entries]), label="parent")
        asked = Asked(f"m{len(self.asked)}", parent, on_busy, inputs=inputs or int(not parent))
        self.asked[asked.name] = asked
        if model.current and on_busy == "reject":
            with pytest.raises(ProtocolError, match="is answering"):
                self.enter(asked)
            return
        if not model.current:
            model.current = asked.name
        else:
            place = len(model.queue)
            if on_busy in URGENT:
                place = sum(name in model.urgent for name in model.queue)
                model.urgent.add(asked.name)
                model.stop = model.current
                if on_busy == "rollback":
                    model.undo = model.current
            model.queue.insert(place, asked.name)
        self.take(asked)

    def take(self, asked: Asked) -> None:
        model = self.model
        gone = asked.parent not in ("", "c") and asked.parent not in model.parents
        if model.current == asked.name and asked.name not in model.parents and gone:
            with pytest.raises(ProtocolError, match="no entry"):
                self.enter(asked)
            self.end(asked, "failed")
            return
        if model.current == asked.name and asked.name not in model.parents:
            model.hang(asked)
            self.entered.add(asked.name)
        elif model.current == asked.name:
            model.states[asked.name] = "running"
        self.check_turn(asked, self.enter(asked))

    @precondition(lambda self: self.model.current or self.model.queue)
    @rule(data=st.data())
    def enter_again(self, data: st.DataObject) -> None:
        """The owner wakes, or a survivor takes the message over."""
        waiting = [name for name in (self.model.current, *self.model.queue) if name]
        self.take(self.asked[data.draw(st.sampled_from(waiting))])

    @precondition(lambda self: self.model.current in self.model.parents)
    @rule(state=st.sampled_from(["done", "done", "failed", "cancelled"]), calls=st.integers(0, 2))
    def end_current(self, state: str, calls: int) -> None:
        self.end(self.asked[self.model.current], state, [f"call-{n}" for n in range(calls)])

    @precondition(lambda self: self.model.current in self.model.parents)
    @rule()
    def end_with_a_call_that_nobody_answers(self) -> None:
        """Whoever reads next sees it marked as lost."""
        model, asked = self.model, self.asked[self.model.current]
        self.conversations.tool_seconds = -1.0
        self.end(asked, "done", ["lost"])
        self.conversations.tool_seconds = 600.0
        if model.tip == asked.name:
            model.answer("lost")

    @rule(call=st.sampled_from(["call-0", "call-1", "lost"]))
    def answer(self, call: str) -> None:
        """A device tells the result of a tool, for the first time or again."""
        model = self.model
        result = [{"role": "tool", "tool_call_id": call, "content": "sunny"}]
        if call not in model.calls:
            with pytest.raises(ProtocolError, match="no such tool calls"):
                now(self.conversations.tools.answer(self.place, result))
            return
        model.answer(call)
        left = now(self.conversations.tools.answer(self.place, result))
        assert sorted(left) == sorted(name for name, done in model.calls.items() if not done)

    @precondition(lambda self: self.model.queue)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        asked = self.asked[data.draw(st.sampled_from(self.model.queue))]
        self.model.queue.remove(asked.name)
        self.model.urgent.discard(asked.name)
        if asked.name in self.model.parents:  # it had failed in its first turn
            self.model.states[asked.name] = "cancelled"
        self.tell_end(asked, "cancelled")

    @rule(data=st.data(), state=st.sampled_from(["done", "failed", "cancelled", "withdrawn"]))
    def end_again(self, data: st.DataObject, state: str) -> None:
        """A survivor repeats what had been done: nothing changes."""
        busy = {self.model.current, *self.model.queue}
        ended = [asked for asked in self.asked.values() if asked.name not in busy]
        if ended:
            self.tell_end(data.draw(st.sampled_from(ended)), state)

    @precondition(lambda self: self.model.current)
    @rule()
    def withdraw(self) -> None:
        """The current message was not admitted after all."""
        model = self.model
        asked = self.asked[model.current]
        if any(above == asked.name for above in model.parents.values()) and asked.run == 1:
            return
        if asked.run > 1:
            model.states[asked.name] = "failed"
        elif asked.name in model.parents:
            mine = {asked.name, *(entry_id(asked.name, n) for n in range(asked.inputs))}
            above = asked.name
            while above in mine:
                if model.children(above):
                    break
                above = model.drop(above)
        now(self.conversations.withdraw(self.place, asked.name, asked.token))
        model.next()

    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        """`retry_of` of a temporary failure."""
        model = self.model
        busy = {model.current, *model.queue}
        failed = [n for n, s in model.states.items() if s == "failed" and n in self.asked and n not in busy]
        if not failed:
            return
        asked = self.asked[data.draw(st.sampled_from(failed))]
        asked.run += 1
        if model.current:  # `on_busy` of what was accepted before: it does not wait less, but is refused no more
            self.wait_again(asked)
        else:
            model.current = asked.name
        self.take(asked)

    def wait_again(self, asked: Asked) -> None:
        model = self.model
        place = len(model.queue)
        if asked.on_busy in URGENT:
            place = sum(name in model.urgent for name in model.queue)
            model.urgent.add(asked.name)
            model.stop = model.current
            if asked.on_busy == "rollback":
                model.undo = model.current
        model.queue.insert(place, asked.name)

    @precondition(lambda self: self.model.parents)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(sorted(self.model.parents)))
        op = data.draw(st.sampled_from(["pin", "unpin"]))
        now(self.conversations._change(self.place, op, entry))
        (self.model.pins.add if op == "pin" else self.model.pins.discard)(entry)

    @precondition(lambda self: self.model.parents)
    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        model = self.model
        entry = data.draw(st.sampled_from(sorted(model.parents)))
        now(self.conversations._change(self.place, "choose", entry))
        while below := self.below(entry):
            entry = below[-1]
        model.tip = entry

    def below(self, entry: str) -> list[str]:
        found = self.store.space.execute("HGET", self.place.keys.children, entry or ".")
        return found.decode().split(",") if found else []

    def end(self, asked: Asked, state: str, calls: list[str] | None = None) -> None:
        model = self.model
        if state == "done" and calls and model.tip == asked.name:
            model.call_tools(asked.name, calls)
        if asked.name in model.parents:
            if state == "cancelled" and model.undo == asked.name and not model.children(asked.name):
                model.drop(asked.name)
            else:
                interrupted = state == "cancelled" and model.stop == asked.name
                model.states[asked.name] = "interrupted" if interrupted else state
        self.tell_end(asked, state, calls)
        model.next()

    def tell_end(self, asked: Asked, state: str, calls: list[str] | None = None) -> None:
        message = {"role": "assistant", "content": f"answer {asked.name}"}
        body = {"message": {**message, "tool_calls": [{"id": call} for call in calls or ()]}}
        now(self.conversations.give_turn(self.place, asked.name, asked.token, state, body, {}))

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def the_same_branch_queue_and_turn(self) -> None:
        if not self.entered and not self.model.current:
            return
        model = self.model
        page = now(self.conversations.page(self.place, limit=10_000))
        assert [entry.id for entry in page.entries] == model.path(model.tip)
        assert [entry.parent or "" for entry in page.entries] == [model.parents[e] for e in model.path(model.tip)]
        assert [entry.state for entry in page.entries] == [model.states[e] for e in model.path(model.tip)]
        assert (page.current, list(page.queue), page.tip) == (model.current, model.queue, model.tip)

    @invariant()
    def a_model_is_sent_the_end_of_the_branch_and_what_is_pinned_above(self) -> None:
        path = self.model.path(self.model.tip)
        page = now(self.conversations.page(self.place, limit=2, budget=10_000, pins=True))
        assert page.pins - {""} == self.model.pins
        assert [entry.id for entry in page.entries] == path[-2:]
        assert [entry.id for entry in page.pinned] == [entry for entry in path[:-2] if entry in self.model.pins]

    @invariant()
    def every_page_is_a_piece_of_the_branch(self) -> None:
        path = self.model.path(self.model.tip)
        for anchor in {*path[::3], *path[-1:]}:
            at = path.index(anchor)
            before = now(self.conversations.page(self.place, anchor=anchor, limit=2))
            after = now(self.conversations.page(self.place, anchor=anchor, after=True, limit=2))
            assert [entry.id for entry in before.entries] == path[max(0, at - 2) : at]
            assert [entry.id for entry in after.entries] == path[at + 1 : at + 3]
            assert (before.more, after.more) == (at > 2, at + 3 < len(path))

    @invariant()
    def the_log_has_no_hole_and_tells_the_whole(self) -> None:
        rows = self.store.space.execute("XRANGE", self.place.keys.log, "-", "+")
        assert [row[0] for row in rows] == [b"%d-0" % n for n in range(1, len(rows) + 1)]
        states: dict[str, str] = {}
        queue: list[str] = []
        for row in rows:
            event = orjson.loads(row[1][1])
            if event["type"] == "message":
                states[event["id"]] = event["state"]
            elif event["op"] == "removed":
                del states[event["entry"]]
            elif event["op"] == "queue":
                queue = event["queue"]
        assert states == self.model.states
        assert queue == self.model.queue

    @invariant()
    def counts_are_right(self) -> None:
        entries, size = self.store.space.execute("HMGET", self.place.keys.meta, "entries", "bytes")
        headers = self.store.space.execute("HGETALL", self.place.keys.headers)
        assert int(entries or 0) == len(self.model.parents) == len(headers) // 2
        assert int(size or 0) == sum(int(header.split(b"|")[5]) for header in headers[1::2])


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestConversation = Machine.TestCase


def test_a_message_that_has_ended_gets_no_other_turn() -> None:
    machine = Machine()
    asked = Asked("m", "", "queue")
    machine.asked["m"] = asked
    assert machine.enter(asked).position == 0
    machine.tell_end(asked, "done")
    with pytest.raises(Ended):
        machine.enter(asked)
