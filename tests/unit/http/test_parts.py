"""The small pure parts of the HTTP surface: keys, errors, waits, limits, events, tokens in headers, the document."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from protocol.errors import ERRORS, ProtocolError
from protocol.frames import Send
from server.http.api_models import ChatCompletionRequest, ErrorAnswer
from server.http.auth import bearer
from server.http.completions import rest_of_wait_ms, to_send
from server.http.errors import BadRequest, error_response, stored_error
from server.http.events import FRAME_EVENTS
from server.http.idempotency import checked_id, message_id
from server.http.openapi import document, main
from server.http.operations import OPERATIONS
from server.messages import request as asked
from server.messages.reader import Details, Record

# --- keys -----------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=200).filter(lambda text: text.strip()))
def test_every_key_means_one_id(key: str) -> None:
    first = message_id(key)
    assert first == message_id(key) == checked_id(first)


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_ids_stand_for_themselves_quoted_or_not(key: str) -> None:
    assert message_id(key) == message_id(f'"{key}"') == message_id(f" {key} ") == key


def test_odd_keys() -> None:
    assert message_id('"a\\"b"') == message_id('a"b') != message_id("ab")
    assert message_id(None) != message_id(None)
    for bad in ("", " ", '""', "x" * 1025):
        with pytest.raises(BadRequest):
            message_id(bad)
    with pytest.raises(BadRequest):
        checked_id("no.id")


# --- requests -------------------------------------------------------------------------------------------------------


def body(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields})


def test_both_doors_make_the_same_fingerprint() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}]
    frame = {
        "type": "send",
        "id": "m1",
        "messages": [{"role": "user", "content": "hi"}],
        "max_output_tokens": 5,
        "temperature": 1,
        "tools": tools,
    }
    http = to_send(body(max_tokens=5, temperature=1.0, tools=tools, stream=True, user="u", n=1, seed=None), "m2")
    assert asked.fingerprint(http) == asked.fingerprint(Send.model_validate(frame))
    assert asked.stored(http)["tools"] == tools
    assert asked.options(asked.stored(http)).keys() == {"temperature", "tools"}
    assert asked.fingerprint(to_send(body(seed=1), "m")) != asked.fingerprint(to_send(body(seed=2), "m"))


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_what_changes_the_answer_is_sent_on(name: str) -> None:
    assert asked.options(asked.stored(to_send(body(**{name: 0.5}), "m"))) == {name: 0.5}


def details(**fields: Any) -> Details:
    end = {"error": {"retry_after_ms": 1000} if fields.pop("stated", True) else {}}
    record = Record("failed", 5, 1, end, None)
    return Details(record, 100.0, "default", True, 1, [{"attempt": 1, "ended_at": fields.pop("ended_at", 200.0)}])


def test_the_rest_of_a_wait() -> None:
    assert rest_of_wait_ms(details(), 200.0) == 1000
    assert rest_of_wait_ms(details(), 200.25) == 750
    assert rest_of_wait_ms(details(), 201.0) == 0
    assert rest_of_wait_ms(details(stated=False), 200.0) == 0
    assert rest_of_wait_ms(details(ended_at=None), 200.0) == 0


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_has_openai_s_shape_and_ours(code: str) -> None:
    response = error_response(ProtocolError(code, "why", retry_after_ms=1500))
    told = json.loads(bytes(response.body))
    ErrorAnswer.model_validate(told)
    assert response.status_code == told["error"]["status"] == ERRORS[code].status
    assert response.headers["retry-after"] == "2"
    assert response.headers["retry-after-ms"] == "1500"
    assert ("www-authenticate" in response.headers) == (response.status_code == 401)


def test_stored_errors_come_back_as_they_were() -> None:
    error = ProtocolError("all_targets_failed", "all", error_class="permanent", details={"attempts": []})
    again = stored_error(error.as_dict(), 7)
    assert again.as_dict() == {**error.as_dict(), "retry_after_ms": 7}
    assert stored_error({**error.as_dict(), "code": "of_a_later_version"}).code == "internal"


# --- headers --------------------------------------------------------------------------------------------------------


def request(**headers: str) -> Request:
    return Request({"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})


@pytest.mark.parametrize("anonymous", [True, False])
def test_bearer_tokens(anonymous: bool) -> None:
    assert bearer(request(), anonymous) is None
    assert bearer(request(authorization="bearer  tw_x "), anonymous) == "tw_x"
    assert bearer(request(authorization="Bearer a.b.c"), anonymous) == "a.b.c"
    assert bearer(request(authorization="Bearer placeholder"), anonymous) == (None if anonymous else "placeholder")
    for wrong in ("Basic x", "Bearer", "Bearer ", "tw_x"):
        with pytest.raises(ProtocolError):
            bearer(request(authorization=wrong), anonymous)


# --- events ---------------------------------------------------------------------------------------------------------


def test_events() -> None:
    assert FRAME_EVENTS.encode({"type": "delta", "seq": 3, "text": "a\nb"}) == (
        b'id: 3\nevent: delta\ndata: {"type":"delta","seq":3,"text":"a\\nb"}\n\n'
    )
    assert b"id:" not in FRAME_EVENTS.encode({"type": "snapshot", "seq": 3, "last": False})
    goaway = {"type": "notice", "frame": {"type": "goaway", "reconnect_after_ms": 70}}
    assert FRAME_EVENTS.encode(goaway).startswith(b"retry: 70\nevent: goaway\n")


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_document_is_current() -> None:
    assert main(["--check"]) == 0


def test_the_document_is_whole() -> None:
    made = document()
    text = json.dumps(made)
    for schema in made["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for name in made["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text, f"{name} is not used"
    for operation in OPERATIONS:
        described = made["paths"][operation.path][operation.method.lower()]
        assert {"401", "403", "500", "503"} <= described["responses"].keys()
        assert described["summary"]
    assert "\\u0000" not in text
