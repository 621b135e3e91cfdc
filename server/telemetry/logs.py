"""Logs: structured events with ids; lines for people on a terminal, JSON elsewhere. Never message text or secrets."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO, cast

import orjson
import structlog
from structlog.typing import Processor

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FORMATS: Final = ("console", "json")


def configure(environ: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Set up logging for this process. Output goes to `stream`, by default standard error.

    `TIDEWIRE_LOG_LEVEL`: debug, info (default), warning or error. `TIDEWIRE_LOG_FORMAT`: console or json; by default
    console on a terminal. Libraries that use `logging` come out in the same form. Raises `ValueError` for other
    values.
    """
    stream = stream or cast(TextIO, _StandardError())
    level = _choice(environ, "TIDEWIRE_LOG_LEVEL", "info", tuple(LEVELS))
    form = _choice(environ, "TIDEWIRE_LOG_FORMAT", "console" if stream.isatty() else "json", FORMATS)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if form == "json":
        shared.append(_tracebacks)
    renderer = _as_json if form == "json" else _console(stream)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *names: _NamedLogger(stream, *names),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries tell of every connection at `info`: a line each is too much, and none of them has our ids.
    theirs = logging.INFO if level == "debug" else max(LEVELS[level], logging.WARNING)
    logging.basicConfig(handlers=[handler], level=theirs, force=True)


def _choice(environ: Mapping[str, str], name: str, default: str, known: tuple[str, ...]) -> str:
    value = environ.get(name, "").lower() or default
    if value not in known:
        raise ValueError(f"{name} should be one of {', '.join(known)}")
    return value


class _StandardError(io.TextIOBase):
    """The standard error of the moment: whoever replaces it later gets the lines."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class _NamedLogger(structlog.WriteLogger):
    """Writes lines, and knows the name that `get_logger("store")` gave."""

    def __init__(self, stream: TextIO, name: str = "tidewire") -> None:
        super().__init__(stream)
        self.name = name


# Both kinds of traceback leave the variables' values out: they are message text and secrets.
_tracebacks: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def _console(stream: TextIO) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _as_json(_logger: Any, _method: str, event: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
