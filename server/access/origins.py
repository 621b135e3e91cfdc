"""Which web pages may connect (RFC 6454). Browsers do not keep pages from opening sockets elsewhere: we must. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

from server.config import Settings, is_loopback

_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class OriginPolicy:
    """The rule of one server.

    `loopback_only`: a page's own origin has to be this machine. A server that lets anybody in needs that: a foreign
    page could otherwise point its own domain's name at 127.0.0.1 (DNS rebinding) and pass for the same origin.
    """

    def __init__(self, allowed: Iterable[str] = (), *, loopback_only: bool = False) -> None:
        self._any = False
        self._allowed = set()
        self._loopback_only = loopback_only
        for origin in allowed:
            if origin == "*":
                self._any = True
            else:
                self._allowed.add(_normal(origin))

    @classmethod
    def from_settings(cls, settings: Settings) -> OriginPolicy:
        """The rule that the settings ask for."""
        return cls(settings.server.allowed_origins, loopback_only=settings.auth.anonymous)

    def permits(self, origin: str | None, host: str | None) -> bool:
        """Whether a request with these `Origin` and `Host` headers may go on. No `Origin`: not a browser's page."""
        if origin is None or self._any:
            return True
        normal = _normal(origin)
        if normal is None:
            return False
        return normal in self._allowed or self._is_own(normal, host)

    def _is_own(self, origin: tuple[str, str, int | None], host: str | None) -> bool:
        """Whether the page came from where it connects to. The scheme may differ: TLS can end at a proxy."""
        scheme, name, port = origin
        own = _split(f"{scheme}://{host}") if host else None
        if own is None or own.hostname is None:
            return False
        same = (own.hostname.lower(), own.port or _DEFAULT_PORTS.get(scheme)) == (name, port)
        return same and (not self._loopback_only or is_loopback(name))


def _normal(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port, comparable; None for `null` and nonsense."""
    parts = _split(origin)
    if parts is None or not parts.scheme or not parts.hostname or parts.path not in ("", "/") or parts.query:
        return None
    return parts.scheme.lower(), parts.hostname.lower(), parts.port or _DEFAULT_PORTS.get(parts.scheme.lower())


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    return parts
