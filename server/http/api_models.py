"""Every request and response of the HTTP surface, typed; the OpenAPI document is generated from these.

Requests are strict: unknown fields and wrong types are errors. Responses may grow fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.frames import (
    DEFAULT_ROUTE,
    ID_PATTERN,
    MAX_SAFE_INTEGER,
    ChatMessage,
    MessageId,
    Name,
    PromptRef,
    PromptUsed,
)
from server.messages.origin import MAX_TAGS, TAG_CHARACTERS, TAG_NAME_CHARACTERS

Positive = Annotated[int, Field(ge=1, le=10_000_000)]
Zero = Annotated[float, Field(ge=0, le=0)]
Tag = Annotated[str, Field(max_length=TAG_CHARACTERS)]
Title = Annotated[str, Field(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=TAG_NAME_CHARACTERS)], Tag | int | float | bool | None],
    Field(max_length=MAX_TAGS),
]


class Body(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class Answer(BaseModel):
    """What the server says."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


# --- chat completions -----------------------------------------------------------------------------------------------


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool = False
    """Whether a last chunk without choices brings the `usage`."""
    include_obfuscation: bool | None = None
    """Accepted; chunks are never padded."""


class ChatCompletionRequest(Body):
    """OpenAI's request. `model` is a route. What this server can't honour is an error, never silently dropped;
    fields that only steer the provider's own books (`user`, `store`, …) are accepted and have no effect."""

    model: Name = DEFAULT_ROUTE
    messages: list[ChatMessage] | None = None
    """Needed unless there is a `prompt`, or the `parent` is to be answered again."""
    prompt: PromptRef | None = None
    """Tidewire's own: a versioned prompt, in which the messages are put."""
    conversation: MessageId | None = None
    """A conversation kept by the server: then `messages` are only what is new in it."""
    parent: MessageId | None = None
    """With `conversation`: the entry to go on from. Without `messages`, it is answered again."""
    on_busy: Literal["queue", "reject", "interrupt", "rollback"] | None = None
    """With `conversation`: what happens if it is answering."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    metadata: Metadata | None = None
    # Only as they are by default:
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    # Without effect here:
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _caps_agree(self) -> Self:
        names = ("max_output_tokens", "max_completion_tokens", "max_tokens")
        given = [name for name in names if getattr(self, name) is not None]
        if len({getattr(self, name) for name in given}) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other; give one")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream: true`")
        if self.conversation is None and (self.parent is not None or self.on_busy is not None):
            raise ValueError("`parent` and `on_busy` need `conversation`")
        if self.messages is None and self.prompt is None and self.parent is None:
            raise ValueError("`messages` is missing (or `prompt`)")
        if self.messages == [] and self.parent is None:
            raise ValueError("`messages` must not be empty")
        return self

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.messages is None and self.prompt is None:
            raise ValueError("`messages` is missing (or `prompt`)")
        return self


class PromptTokensDetails(Answer):
    """Of the input tokens."""

    cached_tokens: int


class CompletionTokensDetails(Answer):
    """Of the output tokens."""

    reasoning_tokens: int


class CompletionUsage(Answer):
    """Tokens as OpenAI names them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnswerMessage(Answer):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(Answer):
    """The one choice."""

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: str
    """As the provider says it, or `cancelled`."""


class Served(Answer):
    """Who served it, beside OpenAI's format."""

    target: str
    model: str
    attempts: int
    cost_usd: float | None = None
    prompt: PromptUsed | None = None


class ChatCompletion(Answer):
    """A whole answer. `id` is the message id; `created` the time it was first asked for: both stay on a repeat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    tidewire: Served | None = None


class ChunkChoice(Answer):
    """The one choice."""

    index: int
    delta: dict[str, Any]
    logprobs: None = None
    finish_reason: str | None


class ChatCompletionChunk(Answer):
    """One event of a streamed answer. The last one with a choice has the `finish_reason`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    tidewire: Served | None = None


# --- messages -------------------------------------------------------------------------------------------------------


class MessageUsage(Answer):
    """Tokens of a message: what its user pays."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int


class MessageAttempt(Answer):
    """One try at one target."""

    attempt: int
    target: str
    model: str
    outcome: str
    """`running`, `done`, `cancelled`, or the code of its failure."""
    payer: Literal["user", "operator"] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    started_at: float
    """Unix seconds."""
    ended_at: float | None = None
    first_token_ms: int | None = None


class ErrorDetail(Answer):
    """A failure: what, whether for ever, whether and when to try again."""

    code: str
    error_class: Literal["temporary", "permanent"] = Field(alias="class")
    status: int
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    details: dict[str, Any] | None = None
    type: str | None = None
    param: str | None = None


class ErrorAnswer(Answer):
    """What every response with a status of 400 and more holds."""

    error: ErrorDetail


class Message(Answer):
    """A message as it stands."""

    id: str
    object: Literal["message"]
    state: Literal["admitting", "queued", "streaming", "done", "failed", "cancelled"]
    seq: int
    """Number of its newest event: where a follower would be up to date."""
    created: int
    """Unix seconds."""
    model: str
    """The route it was asked of."""
    conversation: str | None = None
    text: str
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    usage: MessageUsage | None = None
    cost_usd: float | None = None
    prompt: PromptUsed | None = None
    attempts: list[MessageAttempt]
    error: ErrorDetail | None = None


# --- conversations ----------------------------------------------------------------------------------------------------


class ConversationRequest(Body):
    """A conversation to be made."""

    id: MessageId | None = None
    """Your choice; without one, the `Idempotency-Key`, or a new one."""
    title: Title | None = None


class ConversationChange(Body):
    """What is to be different."""

    title: Title | None = None
    tip: MessageId | None = None
    """An entry: the branch through it, to its newest end, becomes the chosen one."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.title is None and self.tip is None:
            raise ValueError("give `title` or `tip`")
        return self


class TitleRequest(Body):
    """How a title is to be made."""

    model: Name = DEFAULT_ROUTE
    """The route that makes it."""


class Conversation(Answer):
    """A conversation, without its entries."""

    id: str
    object: Literal["conversation"]
    title: str | None
    created: float
    """Unix seconds."""
    updated: float
    """Unix seconds of the last change."""
    entries: int
    bytes: int
    seq: int
    """Where its log stands: the `after` of a `subscribe` that goes on from here."""
    tip: str | None
    """The end of the chosen branch."""
    current: str | None
    """The message that is being answered."""
    queue: list[str]
    """Messages that wait, in order."""


class ConversationList(Answer):
    """A page of conversations, the one that changed last first."""

    object: Literal["list"]
    data: list[Conversation]
    has_more: bool
    next: str | None = None
    """The `before` of the next page."""


class ConversationDeleted(Answer):
    """It is gone."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class ConversationEntry(Answer):
    """A question, an answer, a tool's result or an instruction, in the chat-completions format and with its place."""

    object: Literal["conversation.entry"]
    id: str
    parent: str | None
    role: str
    state: Literal["running", "done", "failed", "cancelled", "interrupted"]
    content: str | list[dict[str, Any]] | None = None
    message: str | None = None
    """The message that it came with, if it is not the answer."""
    siblings: list[str] | None = None
    """What hangs below the same parent, oldest first, if there is more than this."""


class ConversationPage(Answer):
    """Entries of a branch, oldest first."""

    object: Literal["list"]
    data: list[ConversationEntry]
    has_more: bool
    """Whether the branch goes on beyond the page, in the direction of reading."""
    next: str | None = None
    """The `before` of the older page."""
    newer: str | None = None
    """The `after` of the later page."""
    seq: int
    tip: str | None
    title: str | None
    current: str | None
    queue: list[str]


# --- the data of a user -----------------------------------------------------------------------------------------------


class ExportLine(Answer):
    """A line of an export. `user` is the first; `end`, with the counts, the last: without it something is missing."""

    object: Literal["user", "conversation", "entry", "part", "message", "job", "job_item", "job_result", "end"]


class UserDeleted(Answer):
    """What became of a user's data."""

    object: Literal["user.deleted"]
    user: str
    deleted: bool
    """Whether all of it is gone."""
    conversations: int
    messages: int
    left: int
    """Messages that had not ended in time: ask again."""


# --- models, tokens ---------------------------------------------------------------------------------------------------


class Model(Answer):
    """A route."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """Every route."""

    object: Literal["list"]
    data: list[Model]


class TargetLight(Answer):
    """How one target stands."""

    name: str
    model: str
    state: Literal["closed", "open", "half_open", "throttled", "ramping"]
    """`closed`: in use. `open`, `throttled`: left alone until `retry_after_ms`. `half_open`: on trial. `ramping`:
    coming back."""
    why: str
    """What it was left alone for; empty while it is in use."""
    retry_after_ms: int
    share: float
    """Share of the calls that it gets: 1 closed, 0 open."""
    probes: int
    """Trial calls under way."""


class Sample(Answer):
    """What one node did in one step, and how it stands."""

    id: str
    node: str
    sessions: int
    running: int
    """Messages that this node runs now."""
    chunks: int
    """Pieces of output; about a token each."""
    refused: int
    ended: dict[str, int]
    outcomes: dict[str, dict[str, int]]
    """Target → attempts, by how they ended."""
    spent: dict[str, list[int]]
    """Tenant → messages settled, tokens, nano-dollars."""
    targets: list[dict[str, Any]]
    """How the targets stand, with this node's own figures."""


class SampleList(Answer):
    """The samples of all nodes."""

    object: Literal["list"]
    data: list[Sample]
    sample_seconds: float
    window_seconds: float
    kept_seconds: int
    server_time: float


class RouteOrder(Answer):
    """A route and its targets, in order of preference."""

    id: str
    targets: list[str]


class TargetList(Answer):
    """Every target and every route."""

    object: Literal["list"]
    data: list[TargetLight]
    routes: list[RouteOrder]
    demo: dict[str, Any] | None = None
    """In a `tidewire demo`: which target its button breaks, whether it is, whether others may come in."""


# --- prompts ----------------------------------------------------------------------------------------------------------


class PromptVariable(Answer):
    """A variable that a prompt is filled in with. Unknown and wrong ones are errors."""

    type: Literal["string", "integer", "number", "boolean", "array"]
    description: str = ""
    required: bool
    default: Any = None
    enum: list[Any] | None = None
    items: Literal["string", "integer", "number", "boolean"] | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None


class PromptVersion(Answer):
    """One version as its users see it; the text stays on the server."""

    version: str
    description: str
    variables: dict[str, PromptVariable]
    tools: list[str]
    """Names of the functions that the model may call, and the client runs."""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the answer, if it is not free text."""


class PromptSummary(Answer):
    """A prompt and its versions on offer, oldest first."""

    id: str
    """Its name."""
    object: Literal["prompt"]
    description: str
    """Of the newest version."""
    versions: list[str]


class Prompt(Answer):
    """A prompt with all of its versions on offer, oldest first."""

    id: str
    object: Literal["prompt"]
    versions: list[PromptVersion]


class PromptList(Answer):
    """Every prompt on offer."""

    object: Literal["list"]
    data: list[PromptSummary]


MAX_TOKEN_SECONDS: Final = 86_400
"""Longest life of a token made over HTTP."""


class TokenRequest(Body):
    """A token for one of the tenant's users."""

    user: Annotated[str, Field(min_length=1, max_length=256)]
    """The user's id, as your system knows it."""
    tier: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A name under `[tiers]`; without one, the key's."""
    expires_in: Annotated[int, Field(ge=1, le=MAX_TOKEN_SECONDS)] = 3_600
    """Seconds."""


class Token(Answer):
    """The token, for `hello`, `auth` or `Authorization: Bearer`."""

    token: str
    token_type: Literal["Bearer"]
    expires_in: int
    user: str
    tenant: str
    tier: str


class Health(Answer):
    """Whether the process serves, or is ready for new work."""

    status: str
    reason: str | None = None


MESSAGE_ID: Final = {"type": "string", "pattern": ID_PATTERN}


# --- usage ------------------------------------------------------------------------------------------------------------


class UsageGroup(Answer):
    """What was charged to one group; beside these, one field for each dimension asked for (null: it has none)."""

    messages: int
    input_tokens: int
    """Cached ones included."""
    cached_tokens: int
    output_tokens: int
    """Reasoning included."""
    reasoning_tokens: int
    cost_usd: float | None
    """Null: no price is known."""


class UsageReport(Answer):
    """Usage of a time, the dearest group first."""

    from_: str = Field(alias="from")
    """RFC 3339; included."""
    to: str
    """Not included."""
    groups: list[UsageGroup]
