"""Worlds in which all messages of a user belong to one conversation: whose turn it is, in what order, what is left.

They are the worlds of `schedule`: nodes die, sleep and leave, links break, Redis freezes and loses writes. What holds
of messages (G1 to G5) is checked as ever; here it is checked that turns are never two at once, that no queue is left
standing, and that the conversation holds every answer once, as it ended, below what it answers.

    .venv/bin/python -m tests.simulation.conversation --seeds 1000
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from typing import Any, Final

from server.messages.conversation import Entry, entry_id, entry_of
from server.messages.place import Place
from server.store.keys import user_tag
from tests.simulation.check import Check, Truth
from tests.simulation.loop import Host
from tests.simulation.run import play, prepare
from tests.simulation.schedule import Schedule, Step, _speech, draw
from tests.simulation.world import World

NAME: Final = "c"
ON_BUSY: Final = ("queue", "queue", "queue", "interrupt", "rollback", "reject")


class TalkCheck(Check):
    """See the module."""

    world: TalkWorld

    def _meta(self, truth: Truth) -> dict[bytes, bytes]:
        return self._record(self.place(truth).keys.meta)

    def place(self, truth: Truth) -> Place:
        """The conversation of a message."""
        record = self._record(truth.record)
        return Place.of(user_tag("t", "sub", record[b"user"].decode()), NAME)

    def _started(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        super()._started(host, keys, args, reply)
        truth = self.truths.get(keys[0])
        if truth is None or reply < 0 or self.losses:
            return
        current = self._meta(truth).get(b"current", b"").decode()
        if current != truth.id:
            self.fail("turn", f"{truth.id} is answered, but it is the turn of {current or 'nobody'}")

    def _released(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        super()._released(host, keys, args, reply)
        truth = self.truths.get(keys[0])
        if reply == 1:  # by what its owner had sent before it died: nobody has to take it over
            self.orphans = [orphan for orphan in self.orphans if orphan[0] is not truth]

    def finally_(self) -> None:
        """See `Check`."""
        super().finally_()
        if self.losses:
            return  # what Redis forgot of a conversation is not told apart here from what never was
        places = {self.place(t).tag: self.place(t) for t in self.truths.values() if self._record(t.record)}
        for place in places.values():
            self._well(place)

    def _well(self, place: Place) -> None:
        meta = self._record(place.keys.meta)
        if meta.get(b"current") or meta.get(b"queue"):
            self.fail("queue", f"left standing: {meta.get(b'current')!r}, then {meta.get(b'queue')!r}")
        entries = self._entries(place)
        mine = [t for t in self.truths.values() if self._record(t.record) and self.place(t).tag == place.tag]
        answers = {name for name, entry in entries.items() if entry.role == "assistant"}
        for truth in mine:
            self._answer(truth, entries)
        strangers = answers - {truth.id for truth in mine}
        if strangers:
            self.fail("turn", f"entries of messages that never were: {strangers}")
        above = [entry.parent for entry in entries.values()]
        if len(set(above)) != len(above):
            self.fail("turn", "two entries hang below one, though nobody asked for a branch")

    def _answer(self, truth: Truth, entries: dict[str, Entry]) -> None:
        record = self._record(truth.record)
        state, entry = record[b"state"].decode(), entries.get(truth.id)
        question = entries.get(entry_id(truth.id, 0))
        if entry is None:
            if state == "done":
                self.fail("turn", f"{truth.id} is done, and its conversation does not know it")
            return
        if question is None or entry.parent != question.id:
            self.fail("turn", f"{truth.id} hangs below {entry.parent}, not below its question")
        shown = "cancelled" if entry.state == "interrupted" else entry.state
        text = truth.now.texts[-1]
        if shown != state or entry.message.get("content") != text:
            self.fail("turn", f"{truth.id} is {state} with {text!r}; its entry is {entry.state} with {entry.message}")

    def _entries(self, place: Place) -> dict[str, Entry]:
        headers, bodies = self._record(place.keys.headers), self._record(place.keys.bodies)
        return {name.decode(): entry_of(name.decode(), h.decode(), bodies[name], "") for name, h in headers.items()}


class TalkWorld(World):
    """See the module."""

    judge = TalkCheck

    def __init__(self, schedule: Schedule, *args: Any) -> None:
        super().__init__(schedule, *args)
        if schedule.limits is not None:  # with its history a message may take a whole minute's tokens, each of them
            self.quiet_seconds += 60.0 * len(schedule.speeches)

    def request(self, message_id: str, **more: Any) -> dict[str, Any]:
        """See `World.request`."""
        chance = random.Random(f"on_busy {self.schedule.seed} {message_id}")
        asked = {"model": "default", "conversation": NAME, "input": f"tell me about {message_id}"}
        return {**asked, "on_busy": chance.choice(ON_BUSY), **more}


def crowded(seed: int) -> Schedule:
    """The world of a seed with a few more messages, so that there is a queue."""
    plain = draw(seed)
    chance = random.Random(f"crowd {seed}")
    speeches, owners, steps = list(plain.speeches), list(plain.owners), list(plain.steps)
    for _ in range(chance.choice((1, 2, 4))):
        message, client = len(speeches), chance.randrange(plain.clients)
        speeches.append(_speech(chance))
        owners.append(plain.users[client])
        at = chance.uniform(0.05, 1.5)
        steps.append(Step(at, "ask", (client, message)))
        if chance.random() < 0.25:
            steps.append(Step(at + chance.choice((0.0, 0.05, 0.5, 1.0)), "cancel", (client, message)))
    steps.sort(key=lambda step: step.at)
    return replace(plain, speeches=tuple(speeches), owners=tuple(owners), steps=tuple(steps))


def main(words: list[str]) -> int:
    """Play seeds; print what fails; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--verbose", action="store_true")
    wanted = parser.parse_args(words)
    prepare()
    failed = 0
    for seed in range(wanted.first, wanted.first + wanted.seeds):
        outcome = play(crowded(seed), verbose=wanted.verbose, kind=TalkWorld)
        if wanted.verbose:
            print(*outcome.trace, sep="\n")
        if outcome.violation is not None:
            failed += 1
            print(f"seed {seed}: {outcome.violation}", flush=True)
    print(f"{wanted.seeds} seeds, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
