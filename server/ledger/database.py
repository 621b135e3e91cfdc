"""Connections to the ledger's database (SQLite or PostgreSQL), and its migrations. Synchronous: used from threads."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from server.ledger.errors import LedgerRefused, LedgerUnavailable
from server.ledger.migrations import HEAD

WAIT_SECONDS: Final = 5
"""For a connection, and for another writer of the SQLite file."""
STATEMENT_SECONDS: Final = 30
SQLITE: Final = "sqlite:///"
MEMORY: Final = ":memory:"
_MIGRATING: Final = 0x71DE_11D6
"""PostgreSQL's advisory lock while migrations run."""


def engine_of(url: str) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql://…`; it connects when it is used. Raises `LedgerUnavailable`."""
    if url.startswith(SQLITE):
        return _sqlite(url.removeprefix(SQLITE))
    options = f"-c statement_timeout={STATEMENT_SECONDS * 1000} -c timezone=UTC"
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=2,
        pool_pre_ping=True,
        connect_args={"connect_timeout": WAIT_SECONDS, "options": options},
    )


def _sqlite(path: str) -> Engine:
    in_memory = path in ("", MEMORY)
    if not in_memory:
        with _understood():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        URL.create("sqlite", database=MEMORY if in_memory else path),
        connect_args={"timeout": WAIT_SECONDS, "check_same_thread": False},
        **({"poolclass": StaticPool} if in_memory else {}),
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, and hold schema changes, too
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")  # what is committed is deleted from Redis: it has to be on disk

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log. The first of several that open a new file needs it alone for a moment, and
    SQLite does not wait with a lock it raises (https://sqlite.org/c3ref/busy_handler.html): so wait here."""
    patience = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
                raise
        time.sleep(0.01)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; committed at the end of the block. Raises `LedgerUnavailable`, `LedgerRefused`."""
    with _understood(), engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads. Raises `LedgerUnavailable`."""
    with _understood(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError) as error:
        raise LedgerRefused(" ".join(str(error.orig).split())) from error
    except DBAPIError as error:
        raise LedgerUnavailable(" ".join(str(error.orig).split())) from error
    except (SQLAlchemyError, OSError) as error:
        raise LedgerUnavailable(" ".join(str(error).split())) from error


def migrate(engine: Engine) -> None:
    """Bring the schema to `HEAD`, from nothing or from any earlier version. Raises `LedgerUnavailable`.

    One transaction, and one process at a time: a kill in the middle leaves the version that was there.
    """
    with reading(engine) as connection:
        if version_of(connection) == HEAD:
            return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
        found = version_of(connection)
        if found != HEAD:
            upgrade(connection)


def version_of(connection: Connection) -> str | None:
    """The schema's version; None in an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run Alembic up to `revision`, in the connection's transaction. Raises `LedgerUnavailable`."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        hint = "the database was written by a newer version of Tidewire"
        raise LedgerUnavailable(f"{hint}: {error}") from error
