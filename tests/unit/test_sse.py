"""The event-stream parser: the examples of the standard, and any re-chunking gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.upstreams.sse import EventParser, EventTooLarge

LINES = st.sampled_from(
    [
        "data: {}",
        "data:x",
        "data",
        "data:",
        "data:  two",
        ": note",
        "event: e",
        "id: 7",
        "datax: y",
        "",
        "",
        "data: 文🌊",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=30).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)


def parse(stream: bytes, cuts: list[int]) -> list[bytes]:
    parser = EventParser()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [payload for begin, end in pairwise(edges) for payload in parser.feed(stream[begin:end])]


def feed(parser: EventParser, stream: bytes, step: int) -> None:
    for at in range(0, len(stream), step):
        parser.feed(stream[at : at + step])


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         [b"first event", b"second event", b" third event"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
        (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
        (b"\xef\xbb\xbfdata: a\r\n\r\n", [b"a"]),
        (b"data: a\r\rdata: b\r\n\r\n", [b"a", b"b"]),
        (b"event: x\n\ndata: never ended\n", []),
        (b"data: a\n\n\n\n\n", [b"a"]),
        (b"data: \xef\xbb\xbf\n\n", [b"\xef\xbb\xbf"]),
    ],
)  # fmt: skip
def test_examples(stream: bytes, payloads: list[bytes]) -> None:
    assert parse(stream, []) == payloads
    assert parse(stream, list(range(len(stream)))) == payloads


@given(STREAMS, st.booleans(), st.lists(st.integers(0, 300), max_size=40))
def test_any_rechunking_gives_the_same_events(stream: bytes, mark: bool, cuts: list[int]) -> None:
    stream = b"\xef\xbb\xbf" * mark + stream
    assert parse(stream, cuts) == parse(stream, [])


@given(STREAMS)
def test_line_ends_do_not_matter(stream: bytes) -> None:
    plain = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert parse(stream, []) == parse(plain, [])


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 200 + b"\n\n", b"data: xxxxxxxxxxxxxxxx\n" * 20, b": " + b"x" * 200]
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_beyond_the_limit_is_refused(stream: bytes, step: int) -> None:
    with pytest.raises(EventTooLarge, match="larger than 100 bytes"):
        feed(EventParser(max_event_bytes=100), stream, step)


def test_many_small_events_in_one_read_are_within_the_limit() -> None:
    assert len(EventParser(max_event_bytes=100).feed(b"data: x\n\n" * 1000)) == 1000
