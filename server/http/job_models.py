"""Jobs over HTTP, typed: what an item is, what is told of a job, a line of its results."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from protocol.frames import ChatMessage, MessageId
from server.http.api_models import Answer, Body, ChatCompletion, ChatCompletionRequest, ErrorDetail, MessageUsage

CustomId = Annotated[str, Field(min_length=1, max_length=256)]
WebhookUrl = Annotated[str, Field(min_length=1, max_length=2_048)]
JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]


class JobInput(ChatCompletionRequest):
    """What one message is asked: a chat-completions request, or, as over the socket, a conversation with its next
    input, or a prompt."""

    stream: Literal[False] | None = None
    conversation: MessageId | None = None
    input: str | list[dict[str, Any]] | ChatMessage | list[ChatMessage] | None = None
    parent: MessageId | None = None
    on_busy: Literal["queue", "reject", "interrupt", "rollback"] | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.messages is None and self.conversation is None and self.prompt is None:
            raise ValueError("`messages` is missing (or `conversation` with `input`, or `prompt`)")
        return self


class JobItem(JobInput):
    """An item of a batch."""

    custom_id: CustomId | None = None
    """Your name for it, told with its result; unique in the job."""


class BatchLine(Body):
    """An item in the form of OpenAI's batch files."""

    custom_id: CustomId | None = None
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = "/v1/chat/completions"
    body: JobInput


class SingleJob(JobItem):
    """A job of one item."""

    webhook_url: WebhookUrl | None = None
    """Where to tell of the end, signed."""


class BatchJob(Body):
    """A job of many items. As an array of them, or as JSONL, it may be much larger."""

    items: Annotated[list[JobItem | BatchLine], Field(min_length=1)]
    webhook_url: WebhookUrl | None = None
    """Where to tell of the end, signed."""


class JobItems(Answer):
    """How many items stand how. `done`, `failed` and `cancelled` have ended."""

    total: int
    done: int
    failed: int
    cancelled: int
    pending: int


class JobWebhook(Answer):
    """Who is told of the end."""

    url: str
    state: Literal["pending", "delivered", "given_up"]


class JobAnswer(Answer):
    """A job as it stands. Times are Unix seconds."""

    id: str
    object: Literal["job"]
    status: JobStatus
    """`failed`: every item failed, or the job's time was over; else `done`, though some items may have failed."""
    cancel_requested: bool | None = None
    """No new item is begun; some are still being stopped."""
    items: JobItems
    progress: float
    """Share of the items that have ended, 0 to 1."""
    usage: MessageUsage
    """So far, of the items that have ended."""
    cost_usd: float | None = None
    """The same; absent where no price is known."""
    created_at: int
    ended_at: int | None = None
    deadline_at: int
    """What was not begun by then fails."""
    expires_at: int | None = None
    """When the job and its results go."""
    webhook: JobWebhook | None = None


class JobList(Answer):
    """A page of jobs, the newest first. The next one: `after` = `last_id`."""

    object: Literal["list"]
    data: list[JobAnswer]
    has_more: bool
    last_id: str | None = None


class JobItemState(Answer):
    """An item as it stands."""

    index: int
    message_id: str
    """Its message: follow it by `resume` over the socket, or by `GET /v1/messages/{id}/events`."""
    custom_id: str | None = None
    status: Literal["queued", "running", "done", "failed", "cancelled"]


class JobItemList(Answer):
    """A page of items. The next one: `after` = the last `index`."""

    object: Literal["list"]
    data: list[JobItemState]
    has_more: bool


class JobResponse(Answer):
    """The answer to an item."""

    status_code: int
    request_id: str
    """The message's id."""
    body: ChatCompletion


class JobResult(Answer):
    """A line of the results, in the form of OpenAI's batch output."""

    id: str
    """The message's id."""
    index: int
    custom_id: str | None
    status: Literal["done", "failed", "cancelled"]
    response: JobResponse | None
    error: ErrorDetail | None
    partial_text: str | None = None
    """What stood when it failed."""
