"""The ledger itself: usage records in, sums out. Synchronous: used from threads (`server.ledger.drain`, reports)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    case,
    distinct,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from server.ledger.database import engine_of, migrate, reading, writing
from server.ledger.record import KEY, Key, Row, key_of, reconcile
from server.ledger.report import COLUMNS, DAY_MS, HOUR_MS, MAX_GROUPS, TAG_PREFIX, Query
from server.ledger.schema import attempts

KEYS_AT_ONCE: Final = 200
"""Rows looked up by one statement."""
_INSERT: Final[Mapping[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class Conflict:
    """A record that came again with other content."""

    key: Key
    message_id: str
    columns: tuple[str, ...]
    """In which it differs."""


class Book:
    """One database. `open`, then `insert` and `report` from any thread, `close`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert = _INSERT[engine.dialect.name](attempts).on_conflict_do_nothing(index_elements=KEY)

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect, and bring the schema up to date. Raises `LedgerUnavailable`."""
        engine = engine_of(url)
        try:
            migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    # --- records in --------------------------------------------------------------------------------------------------

    def insert(self, rows: Iterable[Row]) -> list[Conflict]:
        """Write records, each once, whoever else writes them and in whatever order versions of one come.

        All or none, committed on return. What came with other content is told. Raises `LedgerUnavailable`,
        `LedgerRefused`.
        """
        wanted, conflicts = _unite(rows)
        if not wanted:
            return conflicts
        with writing(self._engine) as connection:
            # in the order of their keys: two writers at once must not wait for each other
            connection.execute(self._insert, [wanted[key] for key in sorted(wanted)])
            stood = self._read(connection, list(wanted))
            for key, row in sorted(wanted.items()):
                conflicts += _settle(connection, key, stood[key], row)
        return conflicts

    def _read(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, Row]:
        found: dict[Key, Row] = {}
        for begin in range(0, len(keys), KEYS_AT_ONCE):
            some = or_(*(_is(key) for key in keys[begin : begin + KEYS_AT_ONCE]))
            for row in connection.execute(select(attempts).where(some)).mappings():
                found[Key(*(row[name] for name in KEY))] = dict(row)
        return found

    def rows(self) -> list[Row]:
        """Every record, oldest first; for tests and exports of small ledgers."""
        with reading(self._engine) as connection:
            order = select(attempts).order_by(attempts.c.ended_ms, *(attempts.c[name] for name in KEY))
            return [dict(row) for row in connection.execute(order).mappings()]

    # --- sums out ----------------------------------------------------------------------------------------------------

    def report(self, query: Query) -> list[dict[str, Any]]:
        """One dict a group: its dimensions, and the sums of `Query`. Raises `LedgerUnavailable`."""
        with reading(self._engine) as connection:
            found = connection.execute(_statement(query)).mappings()
            return [{name: _plain(value) for name, value in row.items()} for row in found]


def _unite(rows: Iterable[Row]) -> tuple[dict[Key, Row], list[Conflict]]:
    """One row a key: entries of a stream may repeat each other."""
    wanted: dict[Key, Row] = {}
    conflicts: list[Conflict] = []
    for row in rows:
        key = key_of(row)
        if key not in wanted:
            wanted[key] = row
            continue
        made = reconcile(wanted[key], row)
        wanted[key] = made.row
        if made.conflict:
            conflicts.append(Conflict(key, row["message_id"], made.conflict))
    return wanted, conflicts


def _settle(connection: Connection, key: Key, stood: Row, row: Row) -> list[Conflict]:
    """Bring what stands under a key in line with what has come."""
    made = reconcile(stood, row)
    changed = {name: value for name, value in made.row.items() if stood[name] != value}
    if changed:
        connection.execute(update(attempts).where(_is(key)).values(**changed))
    return [Conflict(key, row["message_id"], made.conflict)] if made.conflict else []


def _is(key: Key) -> ColumnElement[bool]:
    return and_(*(attempts.c[name] == value for name, value in zip(KEY, key, strict=True)))


def _plain(value: Any) -> Any:
    """Sums as integers: PostgreSQL makes them decimals."""
    return value if value is None or isinstance(value, str) else int(value)


def _statement(query: Query) -> Select[Any]:
    table = attempts.c
    names = [f"by_{number}" for number in range(len(query.group_by))]
    dimensions = [_dimension(given).label(name) for given, name in zip(query.group_by, names, strict=True)]
    user_pays = table.payer == "user"
    sums: dict[str, ColumnElement[Any]] = {
        "messages": func.count(distinct(table.message_key + ":" + table.generation)),
        "attempts": func.count(),
        "input_tokens": func.sum(table.input_tokens),
        "cached_tokens": func.sum(table.cached_tokens),
        "output_tokens": func.sum(table.output_tokens),
        "reasoning_tokens": func.sum(table.reasoning_tokens),
        "cost_nano_usd": func.sum(table.cost_nano_usd),
        "charged_nano_usd": func.sum(case((user_pays, table.charged_nano_usd))),
        "unpriced": func.sum(case((table.cost_nano_usd.is_(None), 1), else_=0)),
    }
    if query.charged_only:
        for name in ("input_tokens", "cached_tokens"):
            sums[name] = func.sum(case((table.pays_input, table[name]), else_=0))
    chosen = select(*dimensions, *(value.label(name) for name, value in sums.items()))
    chosen = chosen.where(table.ended_ms >= query.from_ms, table.ended_ms < query.to_ms)
    if query.charged_only:
        chosen = chosen.where(user_pays)
    if query.tenant is not None:
        chosen = chosen.where(table.tenant == query.tenant)
    if query.user is not None:
        chosen = chosen.where(table.user_id == query.user)
    if query.user_kind is not None:
        chosen = chosen.where(table.user_kind == query.user_kind)
    return chosen.group_by(*map(literal_column, names)).limit(MAX_GROUPS + 1)


def _dimension(name: str) -> ColumnElement[Any]:
    if name.startswith(TAG_PREFIX):
        tag: ColumnElement[Any] = attempts.c.tags[name.removeprefix(TAG_PREFIX)].as_string()
        return tag
    if name in ("day", "hour"):
        width = DAY_MS if name == "day" else HOUR_MS
        return attempts.c.ended_ms - attempts.c.ended_ms % width
    return attempts.c[COLUMNS[name]]
