"""What must hold (G1 to G5; G6: `books`), judged from outside: what Redis ran, the upstream logged, and clients saw.

The `Truth` of a message is kept by watching the modelled Redis run the append script; nothing the nodes say about
themselves is believed. Where Redis loses writes the truth forks: what was seen before may have come from the fork that
was lost, but never from a mixture of the two.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack

from protocol.client.message import MessageState
from server.messages import scripts
from server.messages.endings import KEPT_SECONDS
from server.upstreams.base import Fault
from tests.simulation.books import NAMES, Books
from tests.simulation.loop import Host
from tests.simulation.redis import ReplyError, Stream
from tests.simulation.rotation import NAMES as BREAKERS
from tests.simulation.rotation import Rotation
from tests.simulation.upstream import Called

if TYPE_CHECKING:
    from tests.simulation.clients import SimClient
    from tests.simulation.network import SimSocket
    from tests.simulation.world import SimNode, World

LEAST_JUMP: Final = 2**20
TOLD_ARGS: Final = {"start_attempt": 2, "gather": 1, "finalize": 4}
"""How many arguments of a script the trace shows, where one more holds the real time or comes from the real chance."""
TAKEOVER_SLACK_SECONDS: Final = 2.0
"""How much longer than `takeover_seconds` a takeover may take (G4: 5 s with the default of 3)."""
WHOLE_TAIL_BYTES: Final = 10_000
"""Where the hub keeps so much, its tails hold these small texts whole."""
SESSION_BYTES: Final = 400_000
FRAME_BYTES: Final = 8_192
"""More than any frame of these small texts may have."""
BOGUS: Final = "something lost"
"""The text of a device whose cursor lies beyond the head."""
FENCED: Final = -1
GAP: Final = -3
MISSING: Final = -4
ENDS: Final = (b"done", b"failed", b"cancelled")


class Violation(AssertionError):
    """Something that must hold does not."""


class Timeline:
    """One history of a journal: what stood after each event."""

    def __init__(self) -> None:
        self.seqs: list[int] = [0]
        self.texts: list[str] = [""]
        self.kinds: list[str] = [""]
        self.entries: dict[int, bytes] = {}
        """Last seq of an entry → its bytes."""
        self.fences: dict[int, bytes] = {}
        self.ended = False

    def copy(self) -> Timeline:
        """Another timeline with the same past."""
        twin = Timeline()
        twin.seqs, twin.texts, twin.kinds = self.seqs.copy(), self.texts.copy(), self.kinds.copy()
        twin.entries, twin.fences, twin.ended = self.entries.copy(), self.fences.copy(), self.ended
        return twin

    @property
    def head(self) -> int:
        """Seq of the last event."""
        return self.seqs[-1]

    def at(self, seq: int) -> int:
        """Index of the event at `seq`, or of the last one before it; -1 if `seq` is beyond the head."""
        return bisect_right(self.seqs, seq) - 1 if seq <= self.head else -1

    def append(self, last: int, data: bytes, fence: bytes) -> None:
        """Take an entry that Redis wrote."""
        _, first, events = msgpack.unpackb(data)
        for seq, event in enumerate(events, first):
            kind, text = event[0], self.texts[-1]
            if kind == "t":
                text += event[1]
            elif kind == "a" and event[1]["mode"] != "continue":
                text = ""
            self.seqs.append(seq)
            self.texts.append(text)
            self.kinds.append(event[1] if kind == "e" else kind)
            # an end that is reopened does not stay one
        self.ended = bool(events) and events[-1][0] == "e"
        self.entries[last] = data
        self.fences[last] = fence

    def cut(self, head: int) -> None:
        """Forget what came after `head`."""
        keep = bisect_right(self.seqs, head)
        del self.seqs[keep:], self.texts[keep:], self.kinds[keep:]
        for last in [last for last in self.entries if last > head]:
            del self.entries[last], self.fences[last]
        self.ended = self.kinds[-1] in ("done", "failed", "cancelled")


@dataclass(slots=True)
class Truth:
    """One message as Redis knows and knew it."""

    id: str
    record: bytes
    now: Timeline = field(default_factory=Timeline)
    before: list[Timeline] = field(default_factory=list)
    """Histories that Redis lost."""
    claims: int = 0
    forgiven: int = 0
    """Claims that were released, or that Redis lost."""
    claims_lost: int = 0
    """Claims that Redis lost whole."""
    reopened: int = 0
    takeovers: int = 0
    starts: set[tuple[bytes, bytes, bytes, int]] = field(default_factory=set)
    """(generation, fence, attempt, losses of Redis before) allocated."""
    owner: str = ""
    """Node whose claim or takeover was the last."""
    stopped: bool = False
    """Whether a stop was asked for before the last takeover."""
    jumped: bytes = b""
    """Fence of the last takeover that has not written yet."""
    ended_by: Host | None = None
    """Who wrote the last end."""
    ended_at: float = 0.0
    """When."""
    torn: Timeline | None = None
    """What had ended, whose end Redis lost, and whose writer must write it again."""

    def timelines(self) -> list[Timeline]:
        """The present history and the lost ones."""
        return [self.now, *self.before] if self.before else [self.now]


class Check:
    """Watches one world. Raises `Violation` where it sees one, or keeps it in `found` for the world to raise."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.truths: dict[bytes, Truth] = {}
        self.by_id: dict[str, Truth] = {}
        self.found: list[str] = []
        self.beats: dict[str, float] = {}
        self.gaps: dict[str, float] = {}
        """When a heart began to beat again that had stood still for long enough to be taken for dead."""
        self.losses = 0
        self.orphans: list[tuple[Truth, float, str]] = []
        """(message, when its owner died, that owner)."""
        self.rescued: dict[tuple[str, str], float] = {}
        limits = world.schedule.limits
        self.books = None if limits is None else Books(self, limits.lease_seconds, limits.outage == "local")
        breakers = world.schedule.breakers
        self.rotation = None if breakers is None else Rotation(self, breakers)
        self._parts: dict[tuple[int, str], list[str]] = {}
        self._names = {script.sha: script.name.partition("_v")[0] for script in scripts.ALL} | NAMES | BREAKERS
        self._watches = {
            "claim": self._claimed,
            "append": self._appended,
            "start_attempt": self._started,
            "release": self._released,
            "takeover": self._taken,
        }

    def fail(self, rule: str, text: str) -> None:
        """A rule is broken."""
        self.found.append(f"{rule}: {text}")
        self.world.note("check", "VIOLATION", rule, text)

    # --- what Redis runs ---

    def ran(self, host: Host, command: tuple[Any, ...], reply: Any) -> None:
        """Redis has run a command."""
        name = command[0]
        if name == "INCR":
            now = self.world.loop.now
            if now - self.beats.get(host.name, now) >= self.world.schedule.takeover_seconds - 0.35:
                self.gaps[host.name] = now
            self.beats[host.name] = now
            return
        if name != "EVALSHA":
            return
        script = self._names.get(command[1], "")
        watch = self._watches.get(script)
        if isinstance(reply, ReplyError):
            self.fail("defect", f"{script} fails in Redis: {reply}")
            return
        if self.world.tracing:
            shown = reply[:4] if isinstance(reply, list) else reply
            args = command[3 + command[2] :][: TOLD_ARGS.get(script, 6)]
            self.world.note(host.name, "redis", script, _short(args), "->", _short([shown]))
        if watch is not None:
            keys = command[3 : 3 + command[2]]
            watch(host, keys, command[3 + command[2] :], reply)
        elif self.rotation is not None and command[1] in BREAKERS:
            self.rotation.ran(script, reply)
        elif self.books is not None and command[1] in NAMES:
            self.books.ran(host, script, command[3 : 3 + command[2]], command[3 + command[2] :], reply)

    def _record(self, key: bytes) -> dict[bytes, bytes]:
        found = self.world.server.space.data.get(key)
        return found if isinstance(found, dict) else {}

    def _claimed(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        truth = self.truths.get(keys[0])
        if reply[0] == b"new":
            record = self._record(keys[0])
            if truth is None:
                message_id = record[b"id"].decode()
                truth = self.truths[keys[0]] = self.by_id[message_id] = Truth(message_id, keys[0])
            truth.claims += 1
            truth.jumped = b""
            if truth.torn is not None and truth.torn.fences.get(truth.torn.head) != reply[1]:
                truth.torn = None  # it was asked for anew before its writer had made it once more
            truth.owner, truth.stopped = host.name, False
            if truth.claims > 1 + truth.forgiven:
                self.fail("G1", f"{truth.id} was claimed anew while its claim stood")
            if truth.now.head:
                truth.before.append(truth.now)
                truth.now = Timeline()
        elif reply[0] == b"reopened" and truth is not None:
            truth.reopened += 1
            truth.jumped, truth.torn = reply[1], None
            truth.owner, truth.stopped = host.name, False

    def _released(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        if reply == 1 and (truth := self.truths.get(keys[0])) is not None:
            truth.forgiven += 1
            self.orphans = [orphan for orphan in self.orphans if orphan[0] is not truth]  # its owner's last words
            if self._owes(truth, host):
                self.fail("G3", f"{truth.id} was released although it had ended here")
            if truth.now.head:
                self.fail("G1", f"{truth.id} was released although it had written")

    def _started(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        truth = self.truths.get(keys[0])
        if reply < 0 or truth is None:
            return
        record = self._record(keys[0])
        if record.get(b"fence") != _bytes(args[0]):
            self.fail("G4", f"{truth.id}: an attempt was started past the fence")
        truth.starts.add((record.get(b"gen", b""), _bytes(args[0]), _bytes(args[1]), self.losses))

    def _taken(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        truth = self.truths.get(keys[0])
        if not reply or truth is None or reply[0] not in (b"taken", b"ended"):
            return
        dead = _bytes(args[0]).decode()
        self.rescued.setdefault((truth.id, dead), self.world.loop.now)
        if reply[0] != b"taken":
            return
        truth.takeovers += 1
        if self._owes(truth, host):
            self.fail("G3", f"{host.name} goes on with {truth.id}, which it had ended")
        truth.torn = None
        if truth.owner and truth.owner != dead:
            self.fail("G4", f"{truth.id} was taken from {dead}, but {truth.owner} had it")
        truth.owner = host.name
        truth.stopped = b"cancel" in self._record(keys[0])
        truth.jumped = self._record(keys[0])[b"fence"]
        node = self.world.by_id.get(dead)
        if dead == host.name or node is None or node.left:
            return
        silent_since = self.beats.get(dead, 0.0)
        if not node.host.dead:
            silent_since = max(silent_since, self.world.server.calm_since)
        silent = self.world.loop.now - silent_since
        if self.world.loop.now - self.gaps.get(dead, -9.0) < 1.0:
            return  # it woke when the others had found their verdict already
        if silent < self.world.schedule.takeover_seconds - 0.35:
            self.fail("G4", f"{truth.id} was taken from {dead}, whose heart beat {silent:.3f} s ago")

    def _appended(self, host: Host, keys: Any, args: Any, reply: Any) -> None:
        if isinstance(reply, list):
            reply = reply[0]
        fence, last, data = _bytes(args[0]), int(args[2]), _bytes(args[3])
        owner = self._record(keys[0]).get(b"fence")
        if owner != fence and reply != FENCED and (owner is not None or reply != MISSING):
            what = "appended" if reply > 0 else "was let up to the tip when appending"
            self.fail("G4", f"{host.name} {what} {last} of {_short(keys[:1])} with fence {fence!r}, past {owner!r}")
        if reply in (GAP, MISSING) and not self.losses:
            self.fail("G3", f"{host.name} meets a gap at {args[1]}, though Redis lost nothing")
        if reply < 0:
            return
        truth = self.truths.get(keys[0])
        if truth is None:
            self.fail("G1", "an entry was written for a message that nobody claimed")
            return
        now = truth.now
        if last in now.entries:
            if now.entries[last] != data or now.fences[last] != fence:
                self.fail("G3", f"{truth.id}: entry {last} was taken for another one")
            return
        if now.ended and not truth.reopened:
            self.fail("G3", f"{truth.id}: an entry after the end")
        prev, first, events = msgpack.unpackb(data)
        if prev != now.head or first <= prev or last != first + len(events) - 1:
            self.fail("G3", f"{truth.id}: entry {prev}|{first}..{last} does not continue {now.head}")
        if any(event[0] == "e" for event in events[:-1]):
            self.fail("G3", f"{truth.id}: an event after the end in {last}")
        if truth.jumped == fence:
            truth.jumped = b""
            if first - prev < LEAST_JUMP:
                self.fail("G4", f"{truth.id}: no jump after a takeover or a reopening ({prev} -> {first})")
        now.append(last, data, fence)
        if now.ended:
            truth.ended_by, truth.ended_at = host, self.world.loop.now
        self._is_upstreams(truth, now.texts[-1])

    def _is_upstreams(self, truth: Truth, text: str) -> None:
        """What stands is what one call said, as far as it has said it."""
        calls = self.world.upstream.by_message.get(truth.id, [])
        if text and not any((c.prefilled + "".join(c.said)).startswith(text) for c in calls):
            self.fail("G3", f"{truth.id}: no call said {text!r}")

    def lost(self) -> None:
        """Redis lost writes: the histories fork."""
        self.losses += 1
        if self.books is not None:
            self.books.lost()
        if self.rotation is not None:
            self.rotation.look()
        space = self.world.server.space
        for truth in self.truths.values():
            journal = space.data.get(truth.record[:-1] + b"j")
            head = journal.last[0] if isinstance(journal, Stream) else 0
            record = self._record(truth.record)
            if not record:
                truth.forgiven = truth.claims
                truth.claims_lost += 1
            truth.torn = self._torn(truth, record)
            if head != truth.now.head and not (record.get(b"state") in ENDS and not journal):
                truth.before.append(truth.now.copy())
                truth.now.cut(head)
            truth.now.ended = record.get(b"state") in ENDS
            truth.jumped, truth.stopped = b"", False
            truth.owner = record.get(b"owner", b"").decode()

    def _torn(self, truth: Truth, record: dict[bytes, bytes]) -> Timeline | None:
        """What the writer of an end that was just lost has to write again; None: nothing, or it can't be asked to."""
        line = truth.now
        if self.world.schedule.tail_bytes < WHOLE_TAIL_BYTES:
            return None  # what lay before the end may be gone, too
        if record.get(b"state") in ENDS:
            return None  # nothing of it is lost, or its whole reopening
        if not line.ended:
            return truth.torn  # not written again yet
        fence = line.fences.get(line.head, b"")
        stands = record.get(b"fence") == fence if record else fence.startswith(b"1:")  # an adopted one can't be made
        return line.copy() if stands else None

    def _owes(self, truth: Truth, host: Host) -> bool:
        """Whether this node has to write the end again; not where it has slept for as long as it keeps ends."""
        kept = self.world.loop.now - truth.ended_at < KEPT_SECONDS
        return truth.torn is not None and host is truth.ended_by and kept

    def owed(self, truth: Truth) -> bool:
        """Whether a living node has to write the end again."""
        writer = truth.ended_by
        return writer is not None and not writer.dead and self._owes(truth, writer)

    # --- what the upstream sees ---

    def called(self, called: Called) -> None:
        """The upstream is called."""
        truth = self.by_id.get(called.message_id)
        allocated = len(truth.starts) if truth is not None else 0
        if truth is not None and truth.stopped:
            self.fail("G4", f"{truth.id} goes on after a takeover, though a stop was asked for before")
        if called.number > allocated:
            self.fail("G1", f"call {called.number} for {called.message_id}, but {allocated} attempts were allocated")
        if self.rotation is not None:
            self.rotation.called(called)

    def call_ended(self, called: Called, fault: Fault | None) -> None:
        """A call came to its end, well or not."""
        if self.rotation is not None:
            self.rotation.ended(called, fault)

    # --- what clients see ---

    def sent(
        self, node: SimNode, socket: SimSocket, client: SimClient, frames: list[dict[str, Any]], size: int
    ) -> None:
        """A node sends frames: each must be in the journal by now (G2)."""
        for frame in frames:
            kind = frame["type"]
            if kind == "delta":
                self._delta(frame)
            elif kind == "snapshot":
                self._snapshot(socket, frame)
            elif kind in ("attempt", "done", "failed", "cancelled"):
                self._event(frame, kind)
        session = node.sessions.get(socket)
        if session is not None:
            out = session.out
            held = sum(map(len, out._control)) + sum(f.page is not None for f in out.follows.values()) * 140_000
            if held > SESSION_BYTES or size > FRAME_BYTES * 16:
                self.fail("G5", f"a session holds {held} bytes, and sends {size} at once")

    def _known(self, frame: dict[str, Any]) -> Truth | None:
        truth = self.by_id.get(frame["id"])
        if truth is None:
            self.fail("G2", f"a {frame['type']} of {frame['id']}, which nobody claimed")
        return truth

    def _delta(self, frame: dict[str, Any]) -> None:
        truth = self._known(frame)
        if truth is None:
            return
        after, seq, text = frame["after"], frame["seq"], frame.get("text", "")
        for line in truth.timelines():
            end = line.at(seq)
            if end < 0 or line.seqs[end] != seq:
                continue
            start = line.at(after)
            if after < seq and line.texts[end] == line.texts[start] + text:
                return
        self.fail(
            "G2", f"{truth.id}: a delta {after}..{seq} {text!r} that the journal does not hold (head {truth.now.head})"
        )

    def _event(self, frame: dict[str, Any], kind: str) -> None:
        truth = self._known(frame)
        if truth is None:
            return
        seq, told = frame["seq"], "a" if kind == "attempt" else kind
        for line in truth.timelines():
            index = line.at(seq)
            if index >= 0 and line.seqs[index] == seq and line.kinds[index] == told:
                return
        self.fail("G2", f"{truth.id}: {kind} {seq} is not in the journal (head {truth.now.head})")

    def _snapshot(self, socket: SimSocket, frame: dict[str, Any]) -> None:
        truth = self._known(frame)
        if truth is None:
            return
        key = (id(socket), truth.id)
        parts = [] if frame["part"] == 1 else self._parts.get(key, [])
        parts.append(frame["text"])
        self._parts[key] = parts
        if not frame["last"]:
            return
        text = "".join(parts)
        for line in truth.timelines():
            index = line.at(frame["seq"])
            if index >= 0 and line.texts[index] == text:
                return
        self.fail("G2", f"{truth.id}: snapshot at {frame['seq']} says {text!r} (head {truth.now.head})")

    def client_has(self, client: SimClient, frame: dict[str, Any]) -> None:
        """A client has applied a frame: what it shows must have stood at its cursor in one history (G3)."""
        message = client.session.messages.get(frame["id"])
        truth = self.by_id.get(frame["id"])
        if message is None or truth is None or message.cursor == 0:
            return
        text = message.text
        if text == BOGUS:
            return  # it came with a cursor beyond the head, and has not been told better yet
        for line in truth.timelines():
            index = line.at(message.cursor)
            if index >= 0 and line.texts[index] == text:
                return
        if truth.claims_lost and self.world.schedule.lost_frames:
            return  # it may have missed that the claim is another one; the hash will tell
        self.fail("G3", f"{client.name} shows {text!r} of {truth.id} at {message.cursor} (head {truth.now.head})")

    def probed(self, client: SimClient, frame: dict[str, Any]) -> None:
        """Another request under a used id was answered."""
        client.probes.discard(frame["id"])

    def broken_promise(self, client: SimClient, frame: dict[str, Any]) -> None:
        """An error about a message that was accepted: it may be told later, but it is not gone."""
        if frame["error"]["code"] == "message_unknown" and not self.losses:
            self.fail("G1", f"{client.name} was told that {frame['id']} is accepted, and then that there is none")

    # --- deaths ---

    def died(self, node: SimNode) -> None:
        """A node was killed: what it owned must be taken over in time, if there is a survivor."""
        if not any(other.ready and not other.host.dead for other in self.world.nodes if other is not node):
            return
        for truth in self.truths.values():
            record = self._record(truth.record)
            if record.get(b"owner") == node.id.encode() and record.get(b"state") not in ENDS:
                self.orphans.append((truth, self.world.loop.now, node.id))

    def _late_takeovers(self) -> None:
        bound = self.world.schedule.takeover_seconds + TAKEOVER_SLACK_SECONDS
        for truth, died, owner in self.orphans:
            if not self.world.calm(died - 1.5, died + bound, owner):
                continue
            rescued = self.rescued.get((truth.id, owner))
            if rescued is None or rescued - died > bound:
                when = "never" if rescued is None else f"{rescued - died:.3f} s later"
                self.fail("G4", f"{truth.id} of {owner}, dead at {died:.3f}, was taken over {when}")

    # --- the end ---

    def finally_(self) -> None:
        """Everything is quiet: compare what is left."""
        self._late_takeovers()
        for truth in self.truths.values():
            self._ended_well(truth)
        for client in self.world.clients:
            self._client_ended_well(client)
        if self.books is not None:
            self.books.finally_()

    def _ended_well(self, truth: Truth) -> None:
        record = self._record(truth.record)
        if not record:
            if not self.losses and truth.claims > truth.forgiven:
                self.fail("G1", f"{truth.id} is gone")
            return
        torn = truth.torn
        if torn is not None and self.owed(truth) and truth.now.seqs != torn.seqs:
            self.fail("G3", f"{truth.id} had ended at {torn.head}, and stands at {truth.now.head} after a loss")
        calls = self.world.upstream.by_message.get(truth.id, [])
        state, text = record[b"state"].decode(), truth.now.texts[-1]
        if state == "done" and not any(c.ended == "done" and c.prefilled + c.text == text for c in calls):
            self.fail("G3", f"{truth.id} is done with {text!r}, which is no call's whole text")
        self._made_once(truth, calls)
        self._billed_once(truth, record, state, calls)
        self._kept(truth, record, text)

    def _made_once(self, truth: Truth, calls: list[Called]) -> None:
        broken = sum(c.ended == "broken" for c in calls)
        allowed = 1 + broken + truth.takeovers + truth.reopened + truth.forgiven
        if len(calls) > allowed:
            self.fail("G1", f"{truth.id}: {len(calls)} calls, {allowed} explained")

    def _billed_once(self, truth: Truth, record: dict[bytes, bytes], state: str, calls: list[Called]) -> None:
        records = msgpack.unpackb(record[b"records"])
        numbers = [entry["attempt"] for entry in records]
        if len(set(numbers)) != len(numbers):
            self.fail("G1", f"{truth.id}: attempts billed twice: {numbers}")
        payers = [entry for entry in records if entry["payer"] == "user"]
        if self.world.schedule.on_midstream != "continue" and len(payers) > 1:
            self.fail("G1", f"{truth.id}: the user pays {len(payers)} attempts: {payers}")
        if state == "done" and not self.world.continues(truth.id):
            words = len(self.world.upstream.text(truth.id, 1, self.world.upstream.speeches[truth.id].pieces))
            if not payers or payers[-1]["outcome"] != "done" or payers[-1]["output_tokens"] != words:
                self.fail("G1", f"{truth.id}: done, and billed {payers}")
        if not self.losses and set(numbers) != set(range(1, int(record[b"attempts"]) + 1)) and state != "cancelled":
            self.fail("G1", f"{truth.id}: attempts {int(record[b'attempts'])}, usage records of {numbers}")

    def _kept(self, truth: Truth, record: dict[bytes, bytes], text: str) -> None:
        if b"standing" not in record:
            self.fail("G3", f"{truth.id} was never finalized")
            return
        size = msgpack.unpackb(record[b"standing"])[0]
        kept = self.world.server.space.data.get(truth.record[:-1] + b"s", b"")
        if not isinstance(kept, bytes) or kept[:size].decode() != text:
            self.fail("G3", f"{truth.id}: kept {kept!r}, where {text!r} stands")

    def _client_ended_well(self, client: SimClient) -> None:
        for message in client.session.messages.values():
            truth = self.by_id.get(message.id)
            if message.state is MessageState.BROKEN:
                self.fail("G3", f"{client.name}: {message.id} is broken: {message.error}")
            if message.state is MessageState.REFUSED and self.world.never_refused(message):
                self.fail("G1", f"{client.name}: {message.id} was refused: {message.error}")
            if truth is None or message.state not in (MessageState.DONE, MessageState.CANCELLED) or message.end is None:
                continue
            lines = truth.timelines() if self.losses else [truth.now]
            if not any(line.ended and line.head == message.cursor and line.texts[-1] == message.text for line in lines):
                self.fail("G3", f"{client.name} ends {message.id} at {message.cursor} with {message.text!r}")
        if client.probes and not self.world.faulty:
            self.fail("G1", f"{client.name}: another request under {client.probes} was not refused")


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _short(values: Any) -> str:
    shown = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
    return " ".join(repr(v[:60]) if len(v) > 60 or not v.isprintable() or not v else v for v in shown)
