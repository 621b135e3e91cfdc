"""Every frame of protocol version 1, one typed model each, and one discriminated union per direction.

A frame is a map with a `type`. Unknown fields are ignored both ways; types are strict (no `"1"` for `1`).
Frames marked *journaled* carry `id` and `seq`, strictly rising per message (with jumps), and `after`, the `seq` of the
event before, by which a client tells a jump from a loss.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from protocol.errors import ProtocolError

VERSION: Final = 1
SUBPROTOCOL_JSON: Final = "tidewire.v1.json"
SUBPROTOCOL_MSGPACK: Final = "tidewire.v1.msgpack"
ID_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
HELLO_SECONDS: Final = 10
"""How long the server waits for `hello`, in seconds."""
HEARTBEAT_SECONDS: Final = 20
"""How often the server pings, in seconds; a peer that misses two is dropped."""
MAX_SAFE_INTEGER: Final = 2**53
MAX_RESUMES_PER_HELLO: Final = 256

MessageId = Annotated[str, Field(pattern=ID_PATTERN, description="Chosen by the client; UUIDv7 recommended.")]
Seq = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER, description="Number of a journal event; 0 = before the first.")]
Name = Annotated[str, Field(min_length=1, max_length=128)]
DEFAULT_ROUTE: Final = "default"
"""The route of a request that names none."""
State = Literal["admitting", "queued", "streaming", "done", "failed", "cancelled"]
EndState = Literal["done", "failed", "cancelled"]
END_STATES: Final = frozenset({"done", "failed", "cancelled"})


class Frame(BaseModel):
    """What every frame has in common: strict types, unknown fields ignored, immutable."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


# --- shared parts ---------------------------------------------------------------------------------------------------


class ChatMessage(Frame):
    """One entry of `messages`, in the chat-completions format. Provider-specific fields are passed on."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    """Text, or a list of parts (`text`, `image_url`, `file`, …). Parts are passed on, never fetched."""
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _parts_are_typed(cls, value: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]] | None:
        if isinstance(value, list):
            if not value:
                raise ValueError("a list of parts must not be empty")
            for part in value:
                if not isinstance(part.get("type"), str):
                    raise ValueError("every part needs a `type`")
        return value

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a message of role `tool` needs `tool_call_id`")
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("`content` is missing")
        return self


class ErrorBody(Frame):
    """A failure as it travels; `protocol.errors` has the table of codes."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, populate_by_name=True)

    code: str
    error_class: Literal["temporary", "permanent"] = Field(alias="class")
    status: int
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    details: dict[str, Any] | None = None


class Usage(Frame):
    """Tokens of a message. `input_tokens` includes the cached ones, `output_tokens` the reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Limit(Frame):
    """One quota bucket as a client sees it."""

    name: str
    limit: int | float
    remaining: int | float
    reset_seconds: int | float
    route: str | None = None
    """The one whose messages are counted in it; none: all that have no such limit of their own."""


class ResumePoint(Frame):
    """Where a client stands in a message: `after` = the last `seq` it applied, 0 = nothing."""

    id: MessageId
    after: Seq = 0


class MessageHead(Frame):
    """A message's state and journal head."""

    id: str
    state: str
    seq: int
    conversation: str | None = None
    generation: str | None = None
    """See `Accepted.generation`."""


class OpenHead(Frame):
    """The journal head of a message that a session follows."""

    id: str
    seq: int


class PromptRef(Frame):
    """A versioned prompt: by `name` and version range (`^2`, `2.3.x`, exact)."""

    name: Name
    version: str | None = None
    variables: dict[str, Any] | None = None


class PromptUsed(Frame):
    """The exact version of a prompt that a message used."""

    name: str
    version: str


class ClientInfo(Frame):
    """Which client library speaks."""

    name: Annotated[str, Field(max_length=128)] = ""
    version: Annotated[str, Field(max_length=64)] = ""


# --- client to server -----------------------------------------------------------------------------------------------


class Hello(Frame):
    """First frame, within 10 s: credentials and every resume in one round trip."""

    type: Literal["hello"]
    token: str | None = None
    client: ClientInfo | None = None
    resume: Annotated[list[ResumePoint], Field(max_length=MAX_RESUMES_PER_HELLO)] = []


class Send(Frame):
    """Ask for a message. Sent again with the same id it attaches and replays; nothing is generated twice."""

    type: Literal["send"]
    id: MessageId
    model: Name = DEFAULT_ROUTE
    messages: list[ChatMessage] | None = None
    conversation: MessageId | None = None
    input: str | list[dict[str, Any]] | ChatMessage | list[ChatMessage] | None = None
    prompt: PromptRef | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    response_format: dict[str, Any] | None = None
    parent: MessageId | None = None
    retry_of: Seq | None = None
    metadata: dict[str, Any] | None = None
    on_busy: Literal["queue", "reject", "interrupt", "rollback"] = "queue"
    after: Seq = 0

    @model_validator(mode="before")
    @classmethod
    def _output_cap_aliases(cls, value: Any) -> Any:
        """`max_completion_tokens` and `max_tokens` mean `max_output_tokens`; two different values are an error."""
        if not isinstance(value, dict):
            return value
        names = [n for n in ("max_output_tokens", "max_completion_tokens", "max_tokens") if value.get(n) is not None]
        if not names or names == ["max_output_tokens"]:
            return value
        if any(value[name] != value[names[0]] for name in names):
            raise ValueError(f"{' and '.join(names)} contradict each other; give one")
        value = {k: v for k, v in value.items() if k not in ("max_completion_tokens", "max_tokens")} | {
            "max_output_tokens": value[names[0]]
        }
        return value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.messages is not None and (self.conversation is not None or self.input is not None):
            raise ValueError("give either `messages` or `conversation` with `input`, not both")
        if self.input is not None and self.conversation is None:
            raise ValueError("`input` needs `conversation`")
        if self.messages is not None and not self.messages:
            raise ValueError("`messages` must not be empty")
        if self.messages is None and self.conversation is None and self.prompt is None:
            raise ValueError("`messages` is missing (or `conversation` with `input`)")
        return self


class Resume(Frame):
    """Follow a message from a point. Never starts a generation."""

    type: Literal["resume"]
    id: MessageId
    after: Seq = 0


class Detach(Frame):
    """Stop following; the message goes on."""

    type: Literal["detach"]
    id: MessageId


class Cancel(Frame):
    """Stop generating; what stands is kept and billed."""

    type: Literal["cancel"]
    id: MessageId


class Auth(Frame):
    """Renew credentials on the open socket; tenant and user must stay the same."""

    type: Literal["auth"]
    token: str


class Subscribe(Frame):
    """Follow every message of a conversation, from any device; `after` = the `seq` of its log that was seen last."""

    type: Literal["subscribe"]
    conversation: MessageId
    after: Seq = 0


class Unsubscribe(Frame):
    """Stop following a conversation."""

    type: Literal["unsubscribe"]
    conversation: MessageId


class History(Frame):
    """Ask for a page of a conversation: its end, what lies `before` an entry, or what follows `after` one."""

    type: Literal["history"]
    conversation: MessageId
    before: MessageId | None = None
    after: MessageId | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    branch: MessageId | None = None
    """An entry: page through the branch that goes through it to its newest end, instead of the chosen one."""


class ConversationRequest(Frame):
    """Make, list, look at, name, change or delete conversations; see docs/conversations.md for each `op`."""

    type: Literal["conversation"]
    op: Literal[
        "create", "list", "get", "rename", "title", "delete", "choose", "pin", "unpin", "waiting", "answer", "part"
    ]
    conversation: MessageId | None = None
    title: Annotated[str, Field(max_length=512)] | None = None
    entry: MessageId | None = None
    """`choose`, `pin`, `unpin`, `part`: the entry it is about."""
    input: dict[str, Any] | list[dict[str, Any]] | None = None
    """`answer`: messages of role `tool`."""
    model: Name | None = None
    """`title`: the route that makes one."""
    ref: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """`part`: the large part that is wanted."""
    offset: Seq = 0
    """`part`: characters to skip."""
    before: float | None = None
    """`list`: `next` of the page before."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.op != "list" and self.conversation is None:
            raise ValueError("`conversation` is missing")
        if self.op in ("choose", "pin", "unpin") and self.entry is None:
            raise ValueError("`entry` is missing")
        if self.op == "rename" and self.title is None:
            raise ValueError("`title` is missing")
        if self.op == "answer" and not self.input:
            raise ValueError("`input` is missing")
        if self.op == "part" and (self.ref is None) == (self.entry is None):
            raise ValueError("give either `ref` or `entry`")
        return self


class Ping(Frame):
    """Application heartbeat (browsers cannot send WebSocket pings)."""

    type: Literal["ping"]
    nonce: str | int | None = None


ClientFrame = Annotated[
    Hello | Send | Resume | Detach | Cancel | Auth | Subscribe | Unsubscribe | History | ConversationRequest | Ping,
    Field(discriminator="type"),
]
CLIENT_FRAMES: Final[dict[str, type[Frame]]] = {
    "hello": Hello,
    "send": Send,
    "resume": Resume,
    "detach": Detach,
    "cancel": Cancel,
    "auth": Auth,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "history": History,
    "conversation": ConversationRequest,
    "ping": Ping,
}


# --- server to client -----------------------------------------------------------------------------------------------


class Welcome(Frame):
    """The answer to `hello`."""

    type: Literal["welcome"]
    session: str
    user: str
    tier: str
    heartbeat_seconds: int
    max_frame_bytes: int
    resumed: list[MessageHead]
    active: list[MessageHead]
    server_time: float
    """Unix time of the server, in seconds: clients' clocks are wrong."""
    expires_in_seconds: int | None = None
    """Seconds until the token expires; absent if it does not."""
    limits: list[Limit] = []
    node: str | None = None
    """Which server process serves this session, for support; a fresh random name each time it starts."""


class Accepted(Frame):
    """A message was admitted, or existed already (`replay`); also the answer to `resume`."""

    type: Literal["accepted"]
    id: str
    replay: bool
    state: str
    seq: int
    queue_position: int | None = None
    generation: str | None = None
    """Another one than before: the server had lost the message, and it was asked for anew; nothing told until then
    stands, and its events are numbered from 1 again."""


class Attempt(Frame):
    """Journaled. One try at one target. `restart` drops all text so far; `continue` goes on with it."""

    type: Literal["attempt"]
    id: str
    seq: int
    after: int | None = None
    attempt: int
    target: str
    model: str
    mode: Literal["fresh", "restart", "continue"]
    reason: dict[str, Any] | None = None


class Delta(Frame):
    """Journaled. New output; may cover several seqs, the first of which follows `after`."""

    type: Literal["delta"]
    id: str
    after: int
    seq: int
    text: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Snapshot(Frame):
    """Everything that stands at `seq`, in `part`s from 1; replaces what the client has when `last` arrives."""

    type: Literal["snapshot"]
    id: str
    seq: int
    attempt: int
    part: int
    last: bool
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Done(Frame):
    """Journaled. The message is whole. `text_bytes` and `text_sha256` let a client check what it has."""

    type: Literal["done"]
    id: str
    seq: int
    after: int | None = None
    text_bytes: int
    text_sha256: str
    finish_reason: str
    usage: Usage
    cost_usd: float | None = None
    model: str
    target: str
    attempts: int
    prompt: PromptUsed | None = None


class Failed(Frame):
    """Journaled. The message ended without a whole answer; `partial` says whether text stands."""

    type: Literal["failed"]
    id: str
    seq: int
    after: int | None = None
    error: ErrorBody
    usage: Usage
    partial: bool


class Cancelled(Frame):
    """Journaled. The receipt of a stop; no later frame of this id reaches any device."""

    type: Literal["cancelled"]
    id: str
    seq: int
    after: int | None = None
    text_bytes: int
    text_sha256: str
    usage: Usage


class Quota(Frame):
    """What is left of the user's limits, after each admission and settlement of the user on any node."""

    type: Literal["quota"]
    limits: list[Limit]


class MessageNotice(Frame):
    """A subscribed conversation got an entry, or one has ended; `seq` counts the conversation's own events."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    type: Literal["message"]
    conversation: str
    id: str
    role: str
    seq: int = 0
    parent: str | None = None
    state: str | None = None
    """`running`, `done`, `failed`, `cancelled` or `interrupted`."""
    content: str | list[dict[str, Any]] | None = None
    """Absent where it streams to this session as the message of this id."""


class HistoryPage(Frame):
    """A page of a conversation; `next` asks for the one before it."""

    type: Literal["history"]
    conversation: str
    messages: list[dict[str, Any]]
    next: str | None = None
    newer: str | None = None
    """If there are later entries than these: `after` for the next page."""
    seq: int = 0
    """Where the conversation's log stood: `subscribe` after it misses nothing and tells nothing twice."""
    tip: str | None = None
    title: str | None = None
    current: str | None = None
    """The message that is being answered."""
    queue: list[str] = []


class ConversationFrame(Frame):
    """The answer to `conversation` or `subscribe`; or, with a `seq`, what happened to a subscribed conversation."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    type: Literal["conversation"]
    op: str
    conversation: str | None = None
    seq: int | None = None


class ErrorFrame(Frame):
    """A frame could not be served (`re` = its type), or message `id` can't be followed just now."""

    type: Literal["error"]
    re: str | None = None
    id: str | None = None
    conversation: str | None = None
    """The conversation that the frame was about."""
    error: ErrorBody


class Pong(Frame):
    """The answer to `ping`: the journal head of every message this session follows."""

    type: Literal["pong"]
    nonce: str | int | None = None
    open: list[OpenHead] = []


class Goaway(Frame):
    """The node drains: reconnect after the given (spread) delay; the socket closes within `drain_seconds`."""

    type: Literal["goaway"]
    reason: str
    reconnect_after_ms: int


ServerFrame = Annotated[
    Welcome
    | Accepted
    | Attempt
    | Delta
    | Snapshot
    | Done
    | Failed
    | Cancelled
    | Quota
    | MessageNotice
    | HistoryPage
    | ConversationFrame
    | ErrorFrame
    | Pong
    | Goaway,
    Field(discriminator="type"),
]
SERVER_FRAMES: Final[dict[str, type[Frame]]] = {
    "welcome": Welcome,
    "accepted": Accepted,
    "attempt": Attempt,
    "delta": Delta,
    "snapshot": Snapshot,
    "done": Done,
    "failed": Failed,
    "cancelled": Cancelled,
    "quota": Quota,
    "message": MessageNotice,
    "history": HistoryPage,
    "conversation": ConversationFrame,
    "error": ErrorFrame,
    "pong": Pong,
    "goaway": Goaway,
}
JOURNALED: Final = frozenset({"attempt", "delta", "done", "failed", "cancelled"})

client_frame: Final[TypeAdapter[ClientFrame]] = TypeAdapter(ClientFrame)
server_frame: Final[TypeAdapter[ServerFrame]] = TypeAdapter(ServerFrame)


def parse_client_frame(data: dict[str, Any]) -> Frame:
    """Validate one decoded map as a client frame.

    Raises `ProtocolError("invalid_frame")` whose message names the field at fault and what it should be.
    """
    kind = data.get("type")
    if not isinstance(kind, str):
        raise ProtocolError("invalid_frame", "a frame needs a `type` (a string)")
    model = CLIENT_FRAMES.get(kind)
    if model is None:
        known = ", ".join(CLIENT_FRAMES)
        raise ProtocolError("invalid_frame", f"unknown frame type {kind[:64]!r}; this server knows {known}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ProtocolError("invalid_frame", _explain(kind, error)) from None


def _explain(kind: str, error: ValidationError) -> str:
    """The first thing wrong, in words that name the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return f"{kind}: `{where}`: {what}" if where else f"{kind}: {what}"
