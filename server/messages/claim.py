"""A message that this node owns, as it was when it came to own it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from protocol.frames import DEFAULT_ROUTE
from server.ledger.record import Account
from server.messages import request as asked
from server.messages.origin import Origin
from server.messages.place import Place
from server.messages.scripts import MAX_RUNS
from server.messages.spans import RunTrace
from server.prompts import request as prompted
from server.quotas.base import Payer, Used
from server.routing.attempts import Reason, Shown
from server.store.keys import MessageKeys, hold_id
from server.telemetry.spans import TraceContext


@dataclass(frozen=True, slots=True)
class Made:
    """What the claim script is given beside what the claim tells."""

    node: str
    fingerprint: bytes
    created: float
    """Unix time."""
    keep_seconds: float

    def args(self, fields: list[Any], generation: bytes, retry_of: int | None = None, jump: int = 0) -> list[Any]:
        """The arguments of `claim_v1.lua`; without `fields` it creates nothing."""
        keep_ms, after = round(self.keep_seconds * 1000), "" if retry_of is None else retry_of
        return [self.fingerprint, keep_ms, after, MAX_RUNS, self.node, generation, jump, *fields]


@dataclass(frozen=True, slots=True)
class Claim:
    """An owned message: its identity, its fence, and what earlier owners left."""

    id: str
    tag: str
    keys: MessageKeys
    fence: bytes
    generation: bytes
    run: int
    request: asked.Request
    user_tag: str
    payer: Payer
    head: int = 0
    first: int = 1
    """Seq of the first event this owner writes."""
    attempts: int = 0
    records: tuple[Mapping[str, Any], ...] = ()
    reason: Reason | None = None
    """Why it runs again: a reopened failure or a takeover."""
    shown: Shown = field(default_factory=Shown)
    standing_text: bytes = b""
    """Visible text that stands at `head`, from earlier owners."""
    cancelled: bool = False
    """A stop was asked for before this owner came."""
    base: int = 0
    """Seq of the attempt since which the text stands."""
    user: tuple[str, str, str] = ("", "", "")
    """(tenant, kind, user): whose it is."""
    origin: Origin = field(default_factory=lambda: Origin("ws"))
    """Where it came from."""
    earlier: Used | None = None
    """What the run before this one used, if there was one: the node that ended it may not have settled it."""
    made: Made | None = None
    """How this node made it; None if it was adopted or reopened."""

    @property
    def place(self) -> Place | None:
        """The conversation it belongs to."""
        name = self.request.get("conversation")
        return None if name is None else Place.of(self.user_tag, name)

    def again(self) -> list[Any] | None:
        """The script's arguments that make this very claim once more, should Redis lose it.

        None if it was not made here, or stands in a conversation, which may have lost its place in it.
        """
        if self.made is None or self.place is not None:
            return None
        created, origin = self.made.created, self.origin
        fields = fields_of(self.id, self.user, self.request, self.generation, created, origin)
        return self.made.args(fields, self.generation)

    @property
    def prompt(self) -> Mapping[str, str] | None:
        """{name, version} of the prompt that the request was resolved to; in the record it is `prompt`, as JSON."""
        return prompted.used(self.request)

    @property
    def account(self) -> Account:
        """To whom its usage is booked."""
        return account_of(self.tag, self.generation, self.id, self.user, self.origin, self.request)

    @property
    def trace(self) -> RunTrace:
        """Where this run stands in its trace."""
        return RunTrace(self.tag, self.generation, self.run, TraceContext.of(self.origin.traceparent))

    @property
    def token(self) -> bytes:
        """What its conversation knows this run by."""
        return b"%s:%d" % (self.generation, self.run)

    @property
    def hold(self) -> str:
        """Under which its tokens are reserved."""
        return hold_id(self.tag, self.generation, self.run)

    @property
    def earlier_hold(self) -> str:
        """That of the run before this one."""
        return hold_id(self.tag, self.generation, self.run - 1)


def fields_of(
    message_id: str,
    user: tuple[str, str, str],
    request: asked.Request,
    generation: bytes,
    created: float,
    origin: Origin,
) -> list[Any]:
    """Field, value, … of a new record."""
    tenant, kind, name = user
    fields: list[Any] = [
        "req", asked.pack(request),
        "id", message_id, "tenant", tenant, "kind", kind, "user", name, "tier", origin.tier,
        "model", request.get("model", DEFAULT_ROUTE), "gen", generation,
        "created", repr(created), "origin", origin.pack(),
    ]  # fmt: skip
    if (conversation := request.get("conversation")) is not None:
        fields += ["conversation", conversation]
    if (used := prompted.used(request)) is not None:
        fields += ["prompt", orjson.dumps(used)]
    return fields


def account_of(
    tag: str,
    generation: bytes,
    message_id: str,
    user: tuple[str, str, str],
    origin: Origin,
    request: asked.Request,
) -> Account:
    """To whom the usage of a message is booked; the same on every node, from its record alone."""
    prompt = prompted.used(request)
    return Account(
        tag,
        generation.decode("latin-1"),
        message_id,
        *user,
        origin.tier,
        origin.door,
        origin.id,
        request.get("model", DEFAULT_ROUTE),
        request.get("conversation"),
        None if prompt is None else f"{prompt['name']}@{prompt['version']}",
        origin.tags,
    )
