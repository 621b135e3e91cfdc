"""Every operation of the HTTP API, in one table: what serves it, and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from protocol import frames
from protocol.frames import MAX_SAFE_INTEGER
from server.http import api_models as models
from server.http import (
    completions,
    conversations,
    events,
    job_models,
    jobs,
    messages,
    operator,
    prompts,
    targets,
    tokens,
    usage,
    users,
)
from server.http import models as routes
from server.http.host import Api
from server.jobs.job import ID_PATTERN
from server.ledger.report import TENANT_DIMENSIONS

Handler = Callable[[Api, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Reply:
    """One kind of successful response."""

    meaning: str
    model: type[BaseModel] | None = None
    events: tuple[type[BaseModel], ...] = ()
    """What the `data` of each event of a stream may be."""
    last_event: str | None = None
    """The text that the last event has instead."""
    lines: type[BaseModel] | None = None
    """What each line of a JSONL stream is."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Header → its meaning."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    serve: Handler
    name: str
    replies: Mapping[int, Reply]
    errors: tuple[int, ...] = ()
    """Statuses of its failures beside 401, 403, 500 and 503, which all have."""
    body: type[BaseModel] | None = None
    parameters: tuple[Mapping[str, Any], ...] = field(default=())
    tells_limits: bool = False
    """Whether its responses tell what is left of the asker's limits (`server.http.rates`)."""
    bodies: tuple[type[BaseModel], ...] = ()
    """Other forms of the body."""
    lines: tuple[type[BaseModel], ...] = ()
    """The body may also be an array of these, or JSONL with one a line."""

    @property
    def summary(self) -> str:
        """The first paragraph of the handler's docstring."""
        return " ".join((self.serve.__doc__ or "").split())


def _parameter(name: str, where: str, meaning: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "description": meaning, "schema": schema}


_ID: Final = _parameter("id", "path", "The message's id.", models.MESSAGE_ID)
_SEQ: Final = {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER}
_KEY: Final = _parameter(
    "Idempotency-Key",
    "header",
    "The message's id; made and returned as `Tidewire-Message-Id` if absent. It may be quoted; one outside the "
    "alphabet of ids stands for its SHA-256.",
    {"type": "string", "minLength": 1, "maxLength": 1024},
)

_TIME: Final = {"type": "string", "examples": ["2026-11-01", "2026-11-01T12:00:00Z"]}
_JOB: Final = _parameter("id", "path", "The job's id.", {"type": "string", "pattern": ID_PATTERN})
_LIMIT: Final = _parameter(
    "limit", "query", "Most rows of a page.", {"type": "integer", "minimum": 1, "maximum": jobs.MAX_PAGE}
)

_CONVERSATION: Final = _parameter("id", "path", "The conversation's id.", models.MESSAGE_ID)
_MOST: Final = _parameter(
    "limit", "query", "Most items on the page.", {"type": "integer", "minimum": 1, "maximum": conversations.MOST}
)
_USER: Final = _parameter(
    "user", "path", "The user's id, as their tokens name them.", {"type": "string", "minLength": 1, "maxLength": 256}
)

_USER_DELETED: Final = {
    200: Reply("All of it is gone.", models.UserDeleted),
    202: Reply("Some messages had not ended: ask again.", models.UserDeleted),
}

DONE: Final = "[DONE]"
FOLLOWED: Final = (
    frames.Attempt,
    frames.Delta,
    frames.Snapshot,
    frames.Done,
    frames.Failed,
    frames.Cancelled,
    frames.ErrorFrame,
    frames.Goaway,
)
"""What a follower is told."""

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/chat/completions",
        completions.create,
        "createChatCompletion",
        {200: Reply("The answer.", models.ChatCompletion, (models.ChatCompletionChunk, models.ErrorAnswer), DONE)},
        (400, 404, 409, 413, 415, 422, 429, 502, 504),
        models.ChatCompletionRequest,
        parameters=(_KEY,),
        tells_limits=True,
    ),
    Operation(
        "GET",
        "/v1/messages/{id}",
        messages.get,
        "getMessage",
        {200: Reply("The message.", models.Message)},
        (400, 404),
        parameters=(_ID,),
        tells_limits=True,
    ),
    Operation(
        "GET",
        "/v1/messages/{id}/events",
        events.follow,
        "followMessage",
        {
            200: Reply("Events until the end.", events=FOLLOWED),
            204: Reply("The message has ended and nothing follows."),
        },
        (400, 404, 429),
        parameters=(
            _ID,
            _parameter("Last-Event-ID", "header", "The last event the reader has.", _SEQ),
            _parameter("after", "query", "The same, where a header can't be sent.", _SEQ),
        ),
        tells_limits=True,
    ),
    Operation(
        "POST",
        "/v1/messages/{id}/cancel",
        messages.cancel,
        "cancelMessage",
        {200: Reply("It has ended.", models.Message), 202: Reply("It will stop.", models.Message)},
        (400, 404),
        parameters=(_ID,),
        tells_limits=True,
    ),
    Operation(
        "POST",
        "/v1/jobs",
        jobs.create,
        "createJob",
        {202: Reply("The job.", job_models.JobAnswer, headers={"Location": "Where the job is."})},
        (400, 404, 413, 415, 422, 429),
        job_models.SingleJob,
        (
            _parameter(
                "Idempotency-Key",
                "header",
                "The same upload under the same key is the same job.",
                {"type": "string", "minLength": 1, "maxLength": 1024},
            ),
            _parameter(
                "webhook_url", "query", "Where to tell of the end, signed.", {"type": "string", "maxLength": 2048}
            ),
        ),
        bodies=(job_models.BatchJob,),
        lines=(job_models.JobItem, job_models.BatchLine),
    ),
    Operation(
        "GET",
        "/v1/jobs",
        jobs.list_all,
        "listJobs",
        {200: Reply("The jobs.", job_models.JobList)},
        (400,),
        parameters=(
            _LIMIT,
            _parameter("after", "query", "The last job of the page before.", {"type": "string", "pattern": ID_PATTERN}),
        ),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}",
        jobs.get,
        "getJob",
        {200: Reply("The job.", job_models.JobAnswer)},
        (400, 404),
        parameters=(_JOB,),
    ),
    Operation(
        "DELETE",
        "/v1/jobs/{id}",
        jobs.delete,
        "deleteJob",
        {204: Reply("It is gone.")},
        (400, 404),
        parameters=(_JOB,),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/items",
        jobs.items,
        "listJobItems",
        {200: Reply("The items.", job_models.JobItemList)},
        (400, 404),
        parameters=(
            _JOB,
            _LIMIT,
            _parameter(
                "after",
                "query",
                "The last index of the page before.",
                {"type": "integer", "minimum": 0, "maximum": jobs.MAX_INDEX},
            ),
        ),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/results",
        jobs.results,
        "getJobResults",
        {200: Reply("The results.", lines=job_models.JobResult)},
        (400, 404),
        parameters=(_JOB,),
    ),
    Operation(
        "POST",
        "/v1/jobs/{id}/cancel",
        jobs.cancel,
        "cancelJob",
        {200: Reply("It has ended.", job_models.JobAnswer), 202: Reply("It will.", job_models.JobAnswer)},
        (400, 404),
        parameters=(_JOB,),
    ),
    Operation(
        "GET",
        "/v1/conversations",
        conversations.list_all,
        "listConversations",
        {200: Reply("A page of them.", models.ConversationList)},
        (400,),
        parameters=(
            _MOST,
            _parameter(
                "before",
                "query",
                "The `next` of the page before.",
                {"type": "string", "pattern": f"^{conversations.TIME_PATTERN}$"},
            ),
        ),
    ),
    Operation(
        "POST",
        "/v1/conversations",
        conversations.create,
        "createConversation",
        {201: Reply("It was made.", models.Conversation), 200: Reply("It was there.", models.Conversation)},
        (400, 404, 413, 415),
        models.ConversationRequest,
        (_KEY,),
    ),
    Operation(
        "GET",
        "/v1/conversations/{id}",
        conversations.get,
        "getConversation",
        {200: Reply("The conversation.", models.Conversation)},
        (400, 404),
        parameters=(_CONVERSATION,),
    ),
    Operation(
        "PATCH",
        "/v1/conversations/{id}",
        conversations.change,
        "changeConversation",
        {200: Reply("The conversation as it is now.", models.Conversation)},
        (400, 404, 413, 415),
        models.ConversationChange,
        (_CONVERSATION,),
    ),
    Operation(
        "DELETE",
        "/v1/conversations/{id}",
        conversations.delete,
        "deleteConversation",
        {200: Reply("It is gone.", models.ConversationDeleted)},
        (400, 404),
        parameters=(_CONVERSATION,),
    ),
    Operation(
        "POST",
        "/v1/conversations/{id}/title",
        conversations.title,
        "titleConversation",
        {200: Reply("It has a title.", models.Conversation)},
        (400, 404, 409, 413, 415, 422, 429, 504),
        models.TitleRequest,
        (_CONVERSATION,),
    ),
    Operation(
        "GET",
        "/v1/conversations/{id}/messages",
        conversations.entries,
        "listConversationMessages",
        {200: Reply("A page of a branch.", models.ConversationPage)},
        (400, 404),
        parameters=(
            _CONVERSATION,
            _MOST,
            _parameter("before", "query", "An entry: what lies before it.", models.MESSAGE_ID),
            _parameter("after", "query", "An entry: what follows it.", models.MESSAGE_ID),
            _parameter("branch", "query", "An entry: the branch through it, to its newest end.", models.MESSAGE_ID),
        ),
    ),
    Operation(
        "GET",
        "/v1/me/data",
        users.export_own,
        "exportOwnData",
        {200: Reply("Everything.", lines=models.ExportLine)},
        (429,),
    ),
    Operation("DELETE", "/v1/me/data", users.delete_own, "deleteOwnData", _USER_DELETED),
    Operation(
        "GET",
        "/v1/users/{user}/data",
        users.export,
        "exportUserData",
        {200: Reply("Everything.", lines=models.ExportLine)},
        (400, 429),
        parameters=(_USER,),
    ),
    Operation("DELETE", "/v1/users/{user}/data", users.delete, "deleteUserData", _USER_DELETED, (400,), None, (_USER,)),
    Operation("GET", "/v1/models", routes.list_all, "listModels", {200: Reply("The routes.", models.ModelList)}),
    Operation(
        "GET",
        "/v1/models/{model}",
        routes.get,
        "getModel",
        {200: Reply("The route.", models.Model)},
        (404,),
        parameters=(_parameter("model", "path", "The route's name.", {"type": "string", "minLength": 1}),),
    ),
    Operation("GET", "/v1/prompts", prompts.list_all, "listPrompts", {200: Reply("The prompts.", models.PromptList)}),
    Operation(
        "GET",
        "/v1/prompts/{name}",
        prompts.get,
        "getPrompt",
        {200: Reply("The prompt.", models.Prompt)},
        (404,),
        parameters=(_parameter("name", "path", "The prompt's name.", {"type": "string", "minLength": 1}),),
    ),
    Operation(
        "GET",
        "/v1/operator",
        operator.samples,
        "listSamples",
        {200: Reply("Samples, oldest first.", models.SampleList)},
        (400,),
        parameters=(_parameter("after", "query", "Only later samples than the one with this id.", {"type": "string"}),),
    ),
    Operation(
        "GET",
        "/v1/targets",
        targets.list_all,
        "listTargets",
        {200: Reply("The targets and routes.", models.TargetList)},
    ),
    Operation(
        "GET",
        "/v1/usage",
        usage.get,
        "getUsage",
        {200: Reply("The sums.", models.UsageReport)},
        (400,),
        parameters=(
            _parameter(
                "group_by",
                "query",
                f"Dimensions, joined by commas: {', '.join(TENANT_DIMENSIONS)}, and tags.NAME; none: one sum.",
                {"type": "string", "examples": ["feature,model"]},
            ),
            _parameter("from", "query", "Since when: a date or time; this month by default.", _TIME),
            _parameter("to", "query", "Until when, itself not included; now by default.", _TIME),
            _parameter("user", "query", "Of one user; others than oneself need the scope `usage`.", {"type": "string"}),
        ),
    ),
    Operation(
        "POST",
        "/v1/tokens",
        tokens.create,
        "createToken",
        {201: Reply("The token.", models.Token)},
        (400, 413, 415, 501),
        models.TokenRequest,
    ),
)
