"""A WebSocket client (RFC 6455) that does only what a load generator needs, at a few microseconds per message.

No extensions and no redirects; the masking key is zero, which is legal on the wire and saves the work: what leaves here
is no secret and crosses no proxy.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
MAX_HANDSHAKE_BYTES = 16_384


class HandshakeRefused(ConnectionError):
    """The server answered the upgrade with something else; `status` is the HTTP status."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class LeanSocket(asyncio.Protocol):
    """One connection. `on_message` gets each whole message; `closed` resolves to the close code (1006: none came)."""

    def __init__(self, host: str, path: str, subprotocol: str, on_message: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[int] = loop.create_future()
        self._on_message = on_message
        self._opcode = TEXT if subprotocol.endswith(".json") else BINARY
        self._key = base64.b64encode(os.urandom(16))
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {self._key.decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        ).encode()
        self._buffer = b""
        self._fragments: list[bytes] = []
        self._code = 1006
        self.transport: asyncio.Transport

    @classmethod
    async def open(cls, url: str, subprotocol: str, on_message: Callable[[bytes], None]) -> LeanSocket:
        """Connect and shake hands. Raises `OSError`, `HandshakeRefused` among them."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        _, socket = await asyncio.get_running_loop().create_connection(
            lambda: cls(parts.netloc, path, subprotocol, on_message),
            host,
            port,
            ssl=True if parts.scheme == "wss" else None,
        )
        await socket.opened
        return socket

    def send(self, payload: bytes) -> None:
        """Send one message."""
        self._send(self._opcode, payload)

    def close(self, code: int = 1000) -> None:
        """Say goodbye and close."""
        if not self.transport.is_closing():
            self._send(CLOSE, struct.pack("!H", code))
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection without a word."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("closed during the handshake"))
        if not self.closed.done():
            self.closed.set_result(self._code)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        buffer = self._buffer + data if self._buffer else data
        position = 0
        if not self.opened.done():
            position = self._shake(buffer)
            if position == 0:
                self._buffer = buffer
                return
        self._buffer = buffer[self._parse(buffer, position) :]

    def _shake(self, buffer: bytes) -> int:
        """Where the frames begin; 0 if the response is not whole, or refuses."""
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > MAX_HANDSHAKE_BYTES:
                self.transport.abort()
            return 0
        first, *lines = buffer[:end].split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        accept = base64.b64encode(hashlib.sha1(self._key + GUID).digest())
        status = int(first.split()[1])
        if status != 101 or headers.get(b"sec-websocket-accept") != accept:
            self.opened.set_exception(HandshakeRefused(status, first.decode("latin-1")))
            self.transport.abort()
            return 0
        self.opened.set_result(None)
        return end + 4

    def _parse(self, buffer: bytes, position: int) -> int:
        """Handle every whole frame from `position`; returns where the first part of one begins."""
        size = len(buffer)
        while size - position >= 2:
            first, length = buffer[position], buffer[position + 1]
            start = position + 2
            if length == 126:
                if size < start + 2:
                    break
                length, start = int.from_bytes(buffer[start : start + 2]), start + 2
            elif length == 127:
                if size < start + 8:
                    break
                length, start = int.from_bytes(buffer[start : start + 8]), start + 8
            end = start + length
            if size < end:
                break
            self._frame(first, buffer[start:end])
            position = end
        return position

    def _frame(self, first: int, payload: bytes) -> None:
        opcode = first & 0x0F
        if opcode <= BINARY:
            if first & 0x80 and not self._fragments:
                self._on_message(payload)
                return
            self._fragments.append(payload)
            if first & 0x80:
                whole = b"".join(self._fragments)
                self._fragments.clear()
                self._on_message(whole)
        elif opcode == PING:
            self._send(PONG, payload)
        elif opcode == CLOSE:
            self._code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
            self.close(1000)

    def _send(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            header = struct.pack("!BB4x", 0x80 | opcode, 0x80 | length)
        elif length < 65_536:
            header = struct.pack("!BBH4x", 0x80 | opcode, 0x80 | 126, length)
        else:
            header = struct.pack("!BBQ4x", 0x80 | opcode, 0x80 | 127, length)
        self.transport.write(header + payload)
