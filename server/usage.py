"""`tidewire usage`: what was spent, by whom and for what, from the ledger's database: a table, CSV, JSON or a plot."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from server.config import load
from server.ledger.report import OPERATOR_DIMENSIONS, Query, dimensions, groups, period, shown_time
from server.ledger.shelf import MEMORY_URLS

Format = Literal["table", "csv", "json"]

PIPED_COLUMNS: Final = 160
MONEY: Final = ("cost_usd", "charged_usd", "operator_usd")
SUMMED: Final = (
    "messages", "attempts", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", *MONEY,
    "unpriced_attempts",
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is a formula to a spreadsheet; tags are what clients send."""


class NothingThere(Exception):
    """There is no ledger to read; the text says where it was looked for."""


def run(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    start: str | None,
    end: str | None,
    group_by: str,
    tenant: str | None,
    user: str | None,
    form: Format,
    plot: Path | None,
) -> None:
    """Print, and draw if asked. Raises `ConfigError`, `BadQuery`, `LedgerUnavailable`, `NothingThere`, `CannotPlot`."""
    from server.ledger.book import Book

    from_ms, to_ms = period(start, end, datetime.now(UTC))
    query = Query(dimensions(group_by, OPERATOR_DIMENSIONS), from_ms, to_ms, tenant, user)
    url = load(config, environ, sections=("ledger",)).ledger.url
    _check_there(url)
    book = Book.open(url)
    try:
        rows = groups(query, book.report(query))
    finally:
        book.close()
    if plot is not None:
        from server.usage_plot import draw

        draw(plot, query, rows)
    sys.stdout.write(as_text(form, query, rows))
    if plot is not None:
        print(f"drawn: {plot}", file=sys.stderr)


def _check_there(url: str) -> None:
    if url in MEMORY_URLS:
        raise NothingThere("ledger.url: a ledger in memory can be read by its server only (GET /v1/usage)")
    path = url.removeprefix("sqlite:///")
    if path != url and not Path(path).exists():
        raise NothingThere(f"there is no ledger at {path} yet; a server makes it with its first message")


def as_text(form: Format, query: Query, rows: Sequence[Mapping[str, Any]]) -> str:
    """The report in one of its forms, with a newline at the end."""
    if form == "json":
        report = {"from": shown_time(query.from_ms), "to": shown_time(query.to_ms), "groups": rows}
        return orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n"
    return _csv(query, rows) if form == "csv" else _table(query, rows)


def _csv(query: Query, rows: Sequence[Mapping[str, Any]]) -> str:
    names = [*query.group_by, *SUMMED]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in names])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9f}"
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _table(query: Query, rows: Sequence[Mapping[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"Usage from {shown_time(query.from_ms)} to {shown_time(query.to_ms)}"
    table = Table(title=title, title_justify="left", show_footer=len(rows) > 1)
    total = {name: _sum(rows, name) for name in SUMMED}
    for number, name in enumerate(query.group_by):
        table.add_column(name, footer="total" if number == 0 else "", overflow="fold")
    for name in SUMMED:
        table.add_column(name.replace("_", " "), justify="right", footer=_number(name, total[name]))
    for row in rows:
        names = [Text(printable(row[name])) for name in query.group_by]
        table.add_row(*names, *(_number(name, row[name]) for name in SUMMED))
    out = io.StringIO()
    console = Console(file=out, width=None if sys.stdout.isatty() else PIPED_COLUMNS, no_color=True)
    console.print(table if rows else f"{title}: nothing")
    return out.getvalue()


def printable(value: Any) -> str:
    """A name for the terminal: tags are what clients send, and may try to steer it."""
    if value is None:
        return "–"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))


def _sum(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) if known else None


def _number(name: str, value: Any) -> str:
    if value is None:
        return "?"
    return f"{value:,.6f}" if name in MONEY else f"{value:,}"
