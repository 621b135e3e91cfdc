"""Every key name, in one place.

Four kinds of hash tag, hence of cluster slot: **M** (a message), **Q** (quota), **C** (a conversation), **J** (a job).
All keys of one message share a tag, so one script may touch them all; nothing is atomic across tags.

M's tag is the hex SHA-256 over length-prefixed (tenant, kind, user, id): no separator or brace in a name can collide,
and a name a stranger guesses leads only into that stranger's own space.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

PREFIX = "tw:"


def message_tag(tenant: str, kind: str, user: str, message_id: str) -> str:
    """The tag of a message: 64 hex digits, a function of who asks and of the id they chose."""
    return _digest("m", tenant, kind, user, message_id)


def user_tag(tenant: str, kind: str, user: str) -> str:
    """The tag of what is kept per user."""
    return _digest("u", tenant, kind, user)


def conversation_tag(user: str, conversation: str) -> str:
    """The tag of a conversation; `user` is the user's tag, which holds tenant and kind, too."""
    return "c" + _digest("c", user, conversation)


def conversation_index(user: str) -> bytes:
    """Sorted set of a user's conversations by the time of their last change: a hint, checked against each."""
    return f"{PREFIX}{{{user}}}:conversations".encode()


def message_index(user: str) -> bytes:
    """Sorted set of the ids of a user's messages that have ended, by the time of that, as long as they are kept."""
    return f"{PREFIX}{{{user}}}:messages".encode()


def _digest(*parts: str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode()
        sha.update(len(data).to_bytes(4, "big"))
        sha.update(data)
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class MessageKeys:
    """The keys of one message, as bytes ready to be packed."""

    record: bytes
    """Hash: fingerprint, request, owner, fence, head, state, end; the claim."""
    journal: bytes
    """Stream of journal entries, id `<last seq>-0`."""
    standing: bytes
    """String: text, reasoning and tool calls that stand at the end, for snapshots once the journal has gone."""
    channel: bytes
    """Shard channel: journal entries and control notes as they happen."""

    @classmethod
    def of(cls, tag: str) -> MessageKeys:
        """The keys under `tag`."""
        base = f"{PREFIX}{{{tag}}}:"
        return cls(
            record=f"{base}m".encode(),
            journal=f"{base}j".encode(),
            standing=f"{base}s".encode(),
            channel=f"{base}ch".encode(),
        )

    def gathered(self, suffix: bytes) -> bytes:
        """String: what stands, while one node gathers it; the field `gather:<suffix>` of the record tells."""
        return self.standing + b":" + suffix


@dataclass(frozen=True, slots=True)
class ConversationKeys:
    """The keys of one conversation, as bytes ready to be packed."""

    meta: bytes
    """Hash: title, tip of the chosen branch, current message, queue, pins, head of the log, counts; or `deleted`."""
    headers: bytes
    """Hash: entry id → `parent|jump|depth|role|state|bytes|token|tokens|message`."""
    bodies: bytes
    """Hash: entry id → its content, JSON."""
    children: bytes
    """Hash: entry id (`.` for the root) → ids of what hangs below it, joined by commas."""
    log: bytes
    """Stream of the conversation's own events, id `<seq>-0`."""
    waiting: bytes
    """Hash: queued message → its token."""
    calls: bytes
    """Hash: open tool call → '' or the id of the entry that answers it."""
    parts: bytes
    """Hash: SHA-256 → a large part, JSON; stored once, referred to by entries."""
    channel: bytes
    """Shard channel: the head of the log, whenever it rises."""

    @classmethod
    def of(cls, tag: str) -> ConversationKeys:
        """The keys under `tag`."""
        names = ("m", "h", "e", "k", "l", "w", "x", "p", "ch")
        return cls(*(f"{PREFIX}{{{tag}}}:{name}".encode() for name in names))

    @property
    def stored(self) -> tuple[bytes, ...]:
        """Every key that may exist: all but the channel."""
        return (
            self.meta, self.headers, self.bodies, self.children, self.log, self.waiting, self.calls, self.parts,
        )  # fmt: skip


def open_set(node: str, primary: str) -> bytes:
    """Set of the tags of the messages that `node` has open on one primary: a hint, written first and removed last.

    `primary` is a tag that lies on the primary in question.
    """
    return f"{PREFIX}{{{primary}}}:open:{node}".encode()


def active_set(user: str) -> bytes:
    """Set of the ids of a user's running messages: a hint, checked against each record."""
    return f"{PREFIX}{{{user}}}:active".encode()


NODES = f"{PREFIX}{{nodes}}".encode()
"""Set of the incarnations that may be alive: a hint."""


GONE = f"{PREFIX}{{gone}}".encode()
"""Set of the incarnations that have let go of everything: the others need not wait for their death."""


def control_channel(node: str) -> bytes:
    """Shard channel on which `node` hears what concerns its messages (a stop asked for elsewhere)."""
    return f"{PREFIX}{{node:{node}}}:ctl".encode()


def heartbeat(node: str, primary: str) -> bytes:
    """Counter that `node` raises as long as it lives; `primary` is a tag that lies on the primary in question."""
    return f"{PREFIX}{{{primary}}}:hb:{node}".encode()


def waited(primary: str) -> bytes:
    """Counter written before each wait for a replica; `primary` is a tag that lies on the primary in question."""
    return f"{PREFIX}{{{primary}}}:waited".encode()


# --- Q: quotas -------------------------------------------------------------------------------------------------------

QUOTA_TAGS = 256


def quota_tag(tenant: str) -> str:
    """The tag under which everything that limits a tenant and its users lies: one of a known set of 256."""
    return f"q{int(_digest('q', tenant)[:8], 16) % QUOTA_TAGS}"


def quota_clock(tag: str) -> bytes:
    """Hash: the newest time seen under a quota tag, so that it never runs backward."""
    return f"{PREFIX}{{{tag}}}:clock".encode()


def quota_owner(tag: str, owner: str, route: str = "") -> tuple[bytes, bytes, bytes]:
    """Bucket, leases and held amounts of a user or a tenant; with `route`, those of its own limits for that route."""
    base, name = f"{PREFIX}{{{tag}}}:", f"{owner}@{route}" if route else owner
    return f"{base}b:{name}".encode(), f"{base}l:{name}".encode(), f"{base}a:{name}".encode()


def quota_channel(tag: str, user: str) -> bytes:
    """Shard channel on which the nodes with sessions of a user hear what is left of the user's limits."""
    return f"{PREFIX}{{{tag}}}:n:{user}".encode()


def quota_hold(tag: str, hold: str) -> bytes:
    """Hash: what is reserved for one run of one message, and how it was settled."""
    return f"{PREFIX}{{{tag}}}:h:{hold}".encode()


def usage_stream(tag: str) -> bytes:
    """Stream of usage records that wait to be written into the ledger's database; one for each quota tag."""
    return f"{PREFIX}{{{tag}}}:u".encode()


def tenant_tag(tenant: str) -> str:
    """The tag-like name of a tenant as a whole."""
    return _digest("t", tenant)


def hold_id(tag: str, generation: bytes, run: int) -> str:
    """The hold of one run of a message: whoever runs it, at whatever node, finds the same."""
    return _digest("h", tag, generation.decode("latin-1"), str(run))[:32]


# --- J: jobs ---------------------------------------------------------------------------------------------------------

OPEN_JOBS = f"{PREFIX}{{jobs}}:open".encode()
"""Sorted set: tag of a job that has something left to do → when to look at it next, Unix milliseconds. A hint, written
first and removed last; each entry is checked against the job's own record."""


def job_tag(user: str, job: str) -> str:
    """The tag of a job; `user` is the user's tag, which holds tenant and kind, too."""
    return "j" + _digest("j", user, job)


def job_index(user: str) -> bytes:
    """Sorted set of a user's jobs by the time they were made: a hint, checked against each."""
    return f"{PREFIX}{{{user}}}:jobs".encode()


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job, as bytes ready to be packed, in the order in which its scripts take them."""

    record: bytes
    """Hash: fingerprint, whose it is, status, counts, usage, times, webhook; see `server/jobs/lua/common_v1.lua`."""
    items: bytes
    """Hash: index → what is asked for, JSON; gone once the item has a result."""
    names: bytes
    """Hash: index → `custom_id`, where one was given."""
    results: bytes
    """Hash: index → the line of the results, JSON."""
    states: bytes
    """Hash: index → how it ended."""
    ready: bytes
    """Sorted set: item that was given back → from when on it may be taken again, Unix milliseconds."""
    taken: bytes
    """Sorted set: item that a worker has → end of its lease, Unix milliseconds."""

    @classmethod
    def of(cls, tag: str) -> JobKeys:
        """The keys under `tag`."""
        return cls(*(f"{PREFIX}{{{tag}}}:{name}".encode() for name in ("job", "i", "n", "r", "s", "b", "t")))

    @property
    def all(self) -> tuple[bytes, ...]:
        """Every key, in the order in which the scripts take them."""
        return self.record, self.items, self.names, self.results, self.states, self.ready, self.taken

    def upload(self, nonce: str) -> tuple[bytes, bytes]:
        """Where items and names of an upload wait until the job is made of them."""
        return self.items + b":" + nonce.encode(), self.names + b":" + nonce.encode()


# --- ledger ----------------------------------------------------------------------------------------------------------

LEDGER_LEASE = f"{PREFIX}{{ledger}}:lease".encode()
"""String: the node that drains the usage streams, with a time to live."""

USER_HASH_KEY = f"{PREFIX}{{ledger}}:userkey".encode()
"""String: the random key of the users' pseudonyms, where the configuration gives none."""


# --- breakers --------------------------------------------------------------------------------------------------------


def breaker(target: str) -> bytes:
    """Hash: version and condition of a target's breaker. All of them share a slot: they are read at one moment."""
    return f"{PREFIX}{{breakers}}:{target}".encode()


BREAKERS_CHANNEL = f"{PREFIX}{{breakers}}".encode()
"""Shard channel on which every node hears of new conditions."""


# --- prompts ---------------------------------------------------------------------------------------------------------

PROMPT_SHARES = f"{PREFIX}{{prompts}}:shares".encode()
"""Hash: `name@version` → per cent of users it is for."""
PROMPT_AUDIT = f"{PREFIX}{{prompts}}:audit".encode()
"""Stream: every change of a share: prompt, from, to, who, what, at."""
PROMPT_CHANNEL = f"{PREFIX}{{prompts}}:ch".encode()
"""Shard channel on which every node hears that a share was set."""


# --- the operator's page, and the demo's links -----------------------------------------------------------------------

SAMPLES = f"{PREFIX}{{samples}}".encode()
"""Stream: what each node did, in steps of some seconds; see `server.overview.samples`."""


def used_code(name: str) -> bytes:
    """Set as soon as a demo's link was used."""
    return f"{PREFIX}{{code:{name}}}:used".encode()
