"""A pseudonym is the same for the same user, and nothing for who lacks the key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.access.pseudonyms import Pseudonyms
from server.upstreams.base import Call, TargetSpec
from server.upstreams.identity import identity_fields
from server.upstreams.litellm_worker import arguments

WHO = st.tuples(st.text(max_size=8), st.sampled_from(["key", "sub"]), st.text(max_size=8))


@given(WHO, WHO)
def test_one_user_one_name(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    names = Pseudonyms(b"k" * 32)
    assert (names.of(*one) == names.of(*other)) == (one == other)
    assert names.of(*one) != Pseudonyms(b"l" * 32).of(*one)


def test_parts_do_not_run_into_each_other() -> None:
    names = Pseudonyms(b"k")
    assert names.of("ab", "sub", "c") != names.of("a", "bsub", "c")


def test_fields_by_provider() -> None:
    assert identity_fields("openai", "https://api.openai.com/v1") == ("safety_identifier",)
    assert identity_fields("openai", "https://mine.openai.azure.com/openai") == ("user",)
    assert identity_fields("openai", "http://127.0.0.1:8000/v1") == ("user", "metadata")
    assert identity_fields("openai", "https://api.openai.com.evil.example/v1") == ("user", "metadata")
    assert identity_fields("litellm", None) == ("user", "metadata")
    assert identity_fields("embedded", None) == ()


def test_litellm_gets_user_metadata_and_tags() -> None:
    settings = {"model": "anthropic/x", "first_token_seconds": 1.0, "idle_seconds": 1.0, "connect_seconds": 1.0}
    request = {"messages": [], "options": {}, "user": "abc", "tags": {"feature": "chat", "team": "7"}}
    found = arguments(settings, request)
    assert found["user"] == "abc"
    assert found["metadata"] == {"feature": "chat", "team": "7", "tags": ["feature:chat", "team:7"]}
    assert "metadata" not in arguments(settings, {**request, "tags": {}})
    assert TargetSpec("t", "litellm", "m").identity == ("user", "metadata")
    assert Call([]).tags == {}
