"""JSON and msgpack behind one small interface.

`decode` is for what a stranger sent: it refuses NaN, infinities, bytes, extension types, non-string or doubled keys,
integers beyond ±2^53 and nesting beyond 32, and raises `DecodeError` with a reason. `decode_trusted` is for what our
own peer sent: as fast as the library allows. A WebSocket message carries one frame (a map) or several (an array).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgpack
import orjson

from protocol.frames import MAX_SAFE_INTEGER, SUBPROTOCOL_JSON, SUBPROTOCOL_MSGPACK

MAX_DEPTH: Final = 32
"""Deepest nesting of maps and arrays accepted from a peer."""

Map = dict[str, Any]


class DecodeError(ValueError):
    """What arrived is not a frame in this codec; the text says why."""


class Encoder(Protocol):
    """How frames for a client become bytes."""

    subprotocol: str
    """Its name; encoders of one name give the same bytes for the same frame."""

    def encode(self, frame: Map) -> bytes:
        """One frame as bytes."""
        ...

    def join(self, encoded: Sequence[bytes]) -> bytes:
        """Several encoded frames as one message of the transport, without encoding any of them again."""
        ...


class Codec(Encoder, Protocol):
    """How frames become bytes and bytes frames. Stateless, so one instance serves every connection."""

    binary: bool
    """Whether WebSocket messages are binary (else text)."""

    def decode(self, data: bytes | str) -> list[Map]:
        """The frames of one WebSocket message, checked. Raises `DecodeError`."""
        ...

    def decode_trusted(self, data: bytes | str) -> list[Map]:
        """The frames of one WebSocket message of a peer that is believed to be well-behaved."""
        ...


class JsonCodec:
    """RFC 8259, UTF-8, one WebSocket text message each."""

    subprotocol = SUBPROTOCOL_JSON
    binary = False

    def encode(self, frame: Map) -> bytes:
        """See `Codec.encode`. Raises `TypeError` on values JSON does not have."""
        return orjson.dumps(frame)

    def join(self, encoded: Sequence[bytes]) -> bytes:
        """See `Codec.join`."""
        return encoded[0] if len(encoded) == 1 else b"[" + b",".join(encoded) + b"]"

    def decode(self, data: bytes | str) -> list[Map]:
        """See `Codec.decode`."""
        try:
            # json.loads would guess UTF-16 and UTF-32 too; this protocol is UTF-8.
            text = data if isinstance(data, str) else data.decode()
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except DecodeError:
            raise
        except RecursionError:
            raise DecodeError(f"nested deeper than {MAX_DEPTH}") from None
        except ValueError as error:
            raise DecodeError(f"not JSON: {error}") from None
        return _frames(value)

    def decode_trusted(self, data: bytes | str) -> list[Map]:
        """See `Codec.decode_trusted`."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise DecodeError(f"not JSON: {error}") from None
        return value if isinstance(value, list) else [value]


class MsgpackCodec:
    """msgpack (spec version 5) maps with the same field names, one WebSocket binary message each."""

    subprotocol = SUBPROTOCOL_MSGPACK
    binary = True

    def __init__(self) -> None:
        self._packer = msgpack.Packer(autoreset=True)

    def encode(self, frame: Map) -> bytes:
        """See `Codec.encode`. Raises `TypeError` on values msgpack does not have."""
        encoded: bytes = self._packer.pack(frame)
        return encoded

    def join(self, encoded: Sequence[bytes]) -> bytes:
        """See `Codec.join`."""
        if len(encoded) == 1:
            return encoded[0]
        header: bytes = self._packer.pack_array_header(len(encoded))
        return header + b"".join(encoded)

    def decode(self, data: bytes | str) -> list[Map]:
        """See `Codec.decode`."""
        if isinstance(data, str):
            raise DecodeError("msgpack frames travel in binary WebSocket messages")
        try:
            value = msgpack.unpackb(
                data, raw=False, strict_map_key=True, object_pairs_hook=_unique, ext_hook=_no_extension
            )
        except DecodeError:
            raise
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
            raise DecodeError(f"not msgpack: {error or type(error).__name__}") from None
        return _frames(value)

    def decode_trusted(self, data: bytes | str) -> list[Map]:
        """See `Codec.decode_trusted`."""
        if isinstance(data, str):
            raise DecodeError("msgpack frames travel in binary WebSocket messages")
        try:
            value = msgpack.unpackb(data, raw=False)
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise DecodeError(f"not msgpack: {error or type(error).__name__}") from None
        return value if isinstance(value, list) else [value]


JSON: Final = JsonCodec()
MSGPACK: Final = MsgpackCodec()
CODECS: Final[dict[str, Codec]] = {JSON.subprotocol: JSON, MSGPACK.subprotocol: MSGPACK}
"""Every codec, by WebSocket subprotocol."""


def clean_text(text: str) -> str:
    """Text that UTF-8 can carry: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _unique(pairs: list[tuple[Any, Any]]) -> Map:
    found: Map = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise DecodeError("keys must be strings")
        if not key.isascii():
            key = clean_text(key)
        if key in found:
            raise DecodeError(f"doubled key {key[:64]!r}")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise DecodeError(f"{name} is not a number of this protocol")


def _no_extension(code: int, data: bytes) -> None:
    raise DecodeError(f"extension type {code} is not part of this protocol")


def _frames(value: Any) -> list[Map]:
    frames = value if isinstance(value, list) else [value]
    if not frames:
        raise DecodeError("an empty array carries no frame")
    for frame in frames:
        if not isinstance(frame, dict):
            raise DecodeError("a frame is a map")
    _check(frames)
    return frames


def _check(frames: list[Any]) -> None:
    """Refuse what the protocol has no place for, and make text safe for UTF-8, without recursing."""
    level = frames
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            pairs = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in list(pairs):
                kind = type(value)
                if kind is str:
                    if not value.isascii():
                        container[key] = clean_text(value)
                elif kind is int:
                    if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
                        raise DecodeError("integers beyond ±2^53 are not exact everywhere; send a string")
                elif kind is float:
                    if not math.isfinite(value):
                        raise DecodeError("NaN and infinities are not part of this protocol")
                elif kind is dict or kind is list:
                    below.append(value)
                elif value is not None and kind is not bool:
                    raise DecodeError(f"{kind.__name__} values are not part of this protocol")
        if not below:
            return
        level = below
    raise DecodeError(f"nested deeper than {MAX_DEPTH}")
