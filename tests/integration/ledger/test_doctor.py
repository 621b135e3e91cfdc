"""What the doctor says of the ledger's database, on both kinds."""

from __future__ import annotations

from server.doctor import Finding, check_ledger
from server.ledger.book import Book
from server.ledger.database import engine_of, upgrade, writing
from server.ledger.migrations import HEAD
from tests.nodes import settings_for


async def found(url: str) -> Finding:
    (finding,) = await check_ledger(settings_for("embedded", "http://127.0.0.1:9", {"ledger": {"url": url}}))
    return finding


async def test_the_ledger_is_looked_at_and_left_as_it_is(ledger_url: str) -> None:
    for _ in range(2):
        new = await found(ledger_url)
        assert (new.status, "at the first start" in new.message) == ("ok", True), new
    engine = engine_of(ledger_url)
    try:
        with writing(engine) as connection:
            upgrade(connection, "0001")
        old = await found(ledger_url)
        assert (old.status, f"schema 0001; the next start brings it to {HEAD}" in old.message) == ("ok", True), old
        Book.open(ledger_url).close()
        assert (await found(ledger_url)).message.endswith(f"schema {HEAD}")
        with writing(engine) as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        newer = await found(ledger_url)
        assert (newer.status, "newer" in newer.message) == ("fail", True), newer
    finally:
        engine.dispose()
