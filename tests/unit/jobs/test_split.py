"""Cutting an upload into items, however it is cut into pieces on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.jobs.split import Elements, Lines, Malformed, Splitter

MOST = 10_000
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=6)


def cut(splitter: Splitter, data: bytes, sizes: list[int]) -> list[tuple[int, bytes]]:
    """Feed in pieces of these sizes, over and over."""
    found, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return found + list(splitter.finish())


@given(objects, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([None, 2]), st.booleans())
def test_elements_are_those_of_the_array(items: list[Any], sizes: list[int], indent: int | None, plain: bool) -> None:
    data = json.dumps(items, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    found = cut(Elements(MOST), data, sizes)
    assert [number for number, _ in found] == list(range(len(items)))
    assert [json.loads(element.decode("utf-8", "surrogatepass")) for _, element in found] == items


@given(objects, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_lines_are_numbered_with_the_blank_ones(items: list[Any], sizes: list[int], end: bytes) -> None:
    data = b"".join(json.dumps(item).encode() + end for item in items)
    found = cut(Lines(MOST), data, sizes)
    assert [json.loads(line) for _, line in found] == items
    step = end.count(b"\n")
    assert [number for number, _ in found] == [1 + step * index for index in range(len(items))]


def test_the_last_line_needs_no_end_and_the_first_may_have_a_mark() -> None:
    assert cut(Lines(MOST), b'\xef\xbb\xbf{"a":1}\n\n{"b":2}', [3]) == [(1, b'{"a":1}'), (3, b'{"b":2}')]


@pytest.mark.parametrize("data", [b"[", b'[{"a":1}', b'["]', b'[1, "\\"]', b"", b"[]]", b"[] 1", b'[{"a":[}]'])
def test_an_array_without_its_end_or_with_more_behind_it_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        cut(Elements(MOST), data, [1])


@pytest.mark.parametrize(("make", "data"), [(Lines, b'{"a":"%s"}\n'), (Elements, b'[{"a":"%s"}]')])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_item_that_is_too_large_is_not_held(make: Callable[[int], Splitter], data: bytes, size: int) -> None:
    with pytest.raises(Malformed, match="more than 50 bytes"):
        cut(make(50), data % (b"x" * 200), [size])
