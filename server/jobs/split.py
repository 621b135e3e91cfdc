"""Uploads come in pieces: cut them into lines (JSONL) or into the elements of a JSON array, as they come. Pure.

No more than one item is held, and no item longer than it may be. Whether an item is JSON is for its reader to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Protocol

_OUTSIDE: Final = re.compile(rb'[\[\]{}",]')
_INSIDE: Final = re.compile(rb'["\\]')
_BOM: Final = b"\xef\xbb\xbf"


class Malformed(ValueError):
    """The upload as a whole can't be cut; the text says where."""


class Splitter(Protocol):
    """Cuts what it is fed."""

    word: str
    """What a number counts, for errors: `line` or `index`."""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of every item that is complete now. Raises `Malformed`."""
        ...

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """The last item, if the end completes one. Raises `Malformed` if it is missing."""
        ...


class Lines:
    """JSONL (https://jsonlines.org): an item a line, numbered from 1; blank lines are passed over but counted."""

    word = "line"

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = bytearray()
        self._number = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """See `Splitter`."""
        self._held += data
        *lines, rest = bytes(self._held).split(b"\n")
        self._held = bytearray(rest)
        for line in lines:
            yield from self._line(line)
        if len(rest) > self._most:
            self._refuse()

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """See `Splitter`."""
        yield from self._line(bytes(self._held))

    def _line(self, line: bytes) -> Iterator[tuple[int, bytes]]:
        self._number += 1
        if len(line) > self._most:
            self._number -= 1
            self._refuse()
        if self._number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield self._number, line

    def _refuse(self) -> None:
        raise Malformed(f"line {self._number + 1} has more than {self._most} bytes")


class Elements:
    """A JSON array: an item an element, numbered from 0."""

    word = "index"

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = bytearray()
        self._at = 0
        """How much of what is held was looked at."""
        self._depth = 0
        self._string = False
        self._number = 0
        self._over = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """See `Splitter`."""
        self._held += data
        while not self._over:
            pattern = _INSIDE if self._string else _OUTSIDE
            match = pattern.search(self._held, self._at)
            if match is None:
                self._at = len(self._held)
                break
            sign = match.group()
            if sign == b"\\":
                if match.end() == len(self._held):
                    self._at = match.start()  # what it escapes comes with the next piece
                    break
                self._at = match.end() + 1
                continue
            self._at = match.end()
            yield from self._take(sign)
        if self._over and self._held.strip():
            raise Malformed("something follows the end of the array")
        if len(self._held) > self._most:
            self._refuse()

    def _refuse(self) -> None:
        raise Malformed(f"index {self._number} has more than {self._most} bytes")

    def _take(self, sign: bytes) -> Iterator[tuple[int, bytes]]:
        if sign == b'"':
            self._string = not self._string
        elif sign in b"[{":
            self._depth += 1
            if self._depth == 1:
                del self._held[: self._at]
                self._at = 0
        elif sign in b"]}":
            self._depth -= 1
            if self._depth == 0:
                self._over = True
                if self._number or self._held[: self._at - 1].strip():
                    yield self._element()
                else:
                    del self._held[: self._at]
        elif self._depth == 1:
            yield self._element()

    def _element(self) -> tuple[int, bytes]:
        if self._at > self._most:
            self._refuse()
        found = self._number, bytes(self._held[: self._at - 1])
        del self._held[: self._at]
        self._at = 0
        self._number += 1
        return found

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """See `Splitter`."""
        if not self._over:
            raise Malformed("the array has no end")
        yield from ()
