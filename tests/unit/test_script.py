"""The scripted upstream's text: pure, exact in size, continued after a prefill."""

from __future__ import annotations

import pytest

from tests.upstreams.script import ScriptError, expected_text, parse, reply_to


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_text_depends_on_messages_and_model_unless_seeded() -> None:
    assert expected_text(user("hello"), "a") == expected_text(user("hello"), "a")
    assert expected_text(user("hello"), "a") != expected_text(user("hello"), "b")
    assert expected_text(user("hello"), "a") != expected_text(user("hello!"), "a")
    assert expected_text(user("script seed=1"), "a") == expected_text([*user("before"), *user("script seed=1")], "b")


@pytest.mark.parametrize("form", ["", " unicode", " escape unicode"])
@pytest.mark.parametrize("size", [1, 8, 9, 3000, 100_001])
def test_a_text_of_given_size(size: int, form: str) -> None:
    assert len(expected_text(user(f"script bytes={size}{form}"), "m").encode()) == size


@pytest.mark.parametrize("tokens", [0, 1, 2, 300, 20_000])
def test_a_text_of_given_tokens(tokens: int) -> None:
    reply = reply_to(user(f"script tokens={tokens}"), "m")
    assert len(reply.tokens) == len(reply.encoded) == reply.output_tokens == tokens


@pytest.mark.parametrize("length", [1, 9, 30])
def test_a_prefill_is_continued(length: int) -> None:
    whole = expected_text(user("script unicode seed=3"), "m")
    prefill = [*user("script unicode seed=3"), {"role": "assistant", "content": whole[:length]}]
    assert whole[:length] + expected_text(prefill, "other") == whole


def test_the_limit_of_tokens() -> None:
    reply = reply_to(user("script tokens=9"), "m", max_tokens=4)
    assert (len(reply.tokens), reply.finish_reason) == (4, "length")


def test_directives_stand_in_the_model_too() -> None:
    assert reply_to(user("hello"), "m?tokens=3&status=500").script.status == 500


def test_plain_questions_are_no_scripts() -> None:
    assert parse("write a script for me") is None
    assert parse("script a play") is None


@pytest.mark.parametrize("text", ["script tokens=5 tokn=3", "script tokens=many"])
def test_typing_mistakes_are_refused(text: str) -> None:
    with pytest.raises(ScriptError):
        expected_text(user(text), "m")
