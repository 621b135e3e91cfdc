"""One row an attempt, whatever comes doubled, late or in another order; on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.ledger.book import Book
from server.ledger.database import engine_of, migrate, reading, upgrade, version_of, writing
from server.ledger.errors import LedgerRefused, LedgerUnavailable
from server.ledger.migrations import HEAD
from server.ledger.record import Row, key_of
from server.ledger.report import Query, groups
from server.ledger.schema import metadata
from tests.postgres import PostgresServer
from tests.usage_records import START, attempt, rows

FOREVER = (0, 10**15)


def test_a_record_is_read_as_it_was_written(book: Book) -> None:
    (row,) = rows(attempt(), user="änn\0", tags={"feature": "search", "team": "x\u2028", 'q"uo': "'"}, prompt="p@1.2.3")
    assert book.insert([row]) == []
    assert book.rows() == [row]
    assert row["user_id"] == "änn\ufffd"
    assert (row["feature"], row["tags"]) == ("search", {"team": "x\u2028", 'q"uo': "'"})


def test_the_same_again_changes_nothing(book: Book) -> None:
    some = rows(attempt(1, payer="operator"), attempt(2))
    for again in (some, some, [*some, *some]):
        assert book.insert(again) == []
        assert book.rows() == sorted(some, key=lambda row: row["attempt"])
    assert book.insert([]) == []


def test_many_at_once(book: Book) -> None:
    some = [row for n in range(700) for row in rows(message_id=f"m{n}")]
    assert book.insert(some) == []
    assert book.insert(some[100:]) == []
    assert len(book.rows()) == 700


def versions() -> list[Row]:
    """One attempt as it was settled at first, and as a later run withdrew it."""
    first = attempt(1)
    later = {**first, "payer": "operator", "pays_input": False, "charged_nano_usd": 0, "withdrawn_in": 2}
    return [*rows(first), *rows(later)]


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 1, 0], 3)))
def test_a_withdrawal_stands_whichever_version_comes_first(book: Book, order: tuple[int, ...]) -> None:
    both = versions()
    for which in order:
        assert book.insert([both[which]]) == []
    (row,) = book.rows()
    assert row == both[max(order)]


def test_other_content_is_a_conflict_and_the_first_figures_stay(book: Book) -> None:
    (first,), (other,) = rows(attempt()), rows(attempt(output_tokens=21, charged_nano_usd=60, cost_nano_usd=60))
    book.insert([first])
    (conflict,) = book.insert([other])
    assert (conflict.key, conflict.message_id) == (key_of(first), "m1")
    assert set(conflict.columns) == {"output_tokens", "cost_nano_usd"}
    assert book.rows() == [first]


def test_in_doubt_the_user_does_not_pay(book: Book) -> None:
    """Redis lost the end of a message after its records were drained: its next owner knows of a lost attempt only."""
    (first,) = rows(attempt())
    lost = attempt(outcome="owner_lost", payer="operator", pays_input=False, source="estimated", charged_nano_usd=0)
    book.insert([first])
    assert book.insert(rows(lost, attempt(2))) != []
    one, two = sorted(book.rows(), key=lambda row: row["attempt"])
    assert (one["payer"], one["charged_nano_usd"], one["output_tokens"]) == ("operator", 0, 20)
    assert (two["payer"], two["charged_nano_usd"]) == ("user", 50)


def test_several_writers_at_once(ledger_url: str) -> None:
    """Two nodes may drain at the same time for a moment: the lease spares work, nothing depends on it."""
    some = [row for n in range(120) for row in rows(message_id=f"m{n}")]
    found: list[Any] = []

    def write(part: list[Row]) -> None:
        book = Book.open(ledger_url)
        try:
            for begin in range(0, len(part), 60):
                found.extend(book.insert(part[begin : begin + 60]))
        finally:
            book.close()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, (some, some[::-1], some[60:])))  # raises what any of them raised
    book = Book.open(ledger_url)
    assert found == []
    assert len(book.rows()) == 120
    book.close()


def test_what_a_database_cannot_hold_is_refused_whole(postgres: PostgresServer) -> None:
    book = Book.open(postgres.url)
    good, bad = rows(message_id="good"), rows(message_id="bad")
    bad[0]["run"] = 2**40
    with pytest.raises(LedgerRefused):
        book.insert([*good, *bad])
    assert book.rows() == []
    book.close()


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable) as failure:
        Book.open("postgresql://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(failure.value)
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerUnavailable):
        Book.open(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")
    (tmp_path / "none.db").write_text("this is no database, but a text")
    with pytest.raises(LedgerUnavailable):
        Book.open(f"sqlite:///{tmp_path / 'none.db'}")


# --- migrations ------------------------------------------------------------------------------------------------------


def test_from_nothing_the_schema_is_the_one_that_the_code_speaks(ledger_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = engine_of(ledger_url)
    migrate(engine)
    migrate(engine)
    with reading(engine) as connection:
        assert version_of(connection) == HEAD
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
    import server.ledger.migrations as migrations

    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_heads() == [HEAD]


def test_from_version_1_with_what_stands_in_it(ledger_url: str) -> None:
    engine = engine_of(ledger_url)
    with writing(engine) as connection:
        upgrade(connection, "0001")
        (row,) = rows()
        columns = [name for name in row if name != "withdrawn_in"]
        old = metadata.tables["attempts"].insert().values({name: row[name] for name in columns})
        connection.execute(old)
    engine.dispose()
    book = Book.open(ledger_url)
    assert book.rows() == [row]
    assert book.insert(rows()) == []
    assert book.insert([versions()[1]]) == []
    book.close()


def test_a_migration_that_is_cut_off_leaves_what_was_there(ledger_url: str) -> None:
    engine = engine_of(ledger_url)
    with contextlib.suppress(KeyboardInterrupt), writing(engine) as connection:
        upgrade(connection, "head")
        raise KeyboardInterrupt
    with reading(engine) as connection:
        assert version_of(connection) is None
    engine.dispose()
    book = Book.open(ledger_url)
    assert book.insert(rows()) == []
    book.close()


def test_a_database_of_a_newer_version_is_left_alone(ledger_url: str) -> None:
    Book.open(ledger_url).close()
    engine = engine_of(ledger_url)
    with writing(engine) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(LedgerUnavailable, match="newer version"):
        Book.open(ledger_url)


def test_two_nodes_that_start_at_once_migrate_once(ledger_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        books = list(threads.map(Book.open, [ledger_url] * 4))  # raises what any of them raised
    for one in books:
        one.close()


# --- sums ------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
TOKENS = st.integers(0, 10**7)


@st.composite
def ledgers(draw: st.DrawFn) -> list[Row]:
    found: list[Row] = []
    for number in range(draw(st.integers(0, 12))):
        made = []
        for attempt_number in range(1, draw(st.integers(1, 3)) + 1):
            pays, priced = draw(st.booleans()), draw(st.booleans())
            cost = draw(TOKENS) if priced else None
            at = START + draw(st.integers(0, 3)) * 86_400
            counts = {name: draw(TOKENS) for name in ("input_tokens", "output_tokens", "cached_tokens")}
            money = {"cost_nano_usd": cost, "charged_nano_usd": cost if pays else None if cost is None else 0}
            paid = {"payer": "user" if pays else "operator", "pays_input": pays and attempt_number == 1}
            times = {"started_at": at, "ended_at": at}
            made.append(attempt(attempt_number, model=draw(NAMES), **counts, **money, **paid, **times))
        tags = draw(st.dictionaries(st.sampled_from(["feature", "team"]), NAMES))
        found += rows(*made, message_id=f"m{number}", user=draw(NAMES), tenant=draw(NAMES), tags=tags)
    return found


def total(some: list[Row], query: Query) -> list[dict[str, Any]]:
    """The same sums in Python."""
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in some:
        wanted = query.from_ms <= row["ended_ms"] < query.to_ms and query.tenant in (None, row["tenant"])
        if not wanted or (query.user not in (None, row["user_id"])) or (query.charged_only and row["payer"] != "user"):
            continue
        columns = {"feature": row["feature"], "model": row["model"], "user": row["user_id"], "payer": row["payer"],
                   "tags.team": row["tags"].get("team"), "day": row["ended_ms"] // 86_400_000 * 86_400_000}  # fmt: skip
        key = tuple(columns[name] for name in query.group_by)
        one = sums.setdefault(key, {"seen": set(), "cost_nano_usd": [], "charged_nano_usd": [], "attempts": 0,
                                    "unpriced": 0, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0,
                                    "reasoning_tokens": 0})  # fmt: skip
        one["seen"].add(row["message_key"])
        one["attempts"] += 1
        one["unpriced"] += row["cost_nano_usd"] is None
        counts = not query.charged_only or row["pays_input"]
        one["input_tokens"] += row["input_tokens"] * counts
        one["cached_tokens"] += row["cached_tokens"] * counts
        for name in ("output_tokens", "reasoning_tokens"):
            one[name] += row[name]
        if row["cost_nano_usd"] is not None:
            one["cost_nano_usd"].append(row["cost_nano_usd"])
            if row["payer"] == "user":
                one["charged_nano_usd"].append(row["charged_nano_usd"])
    for one in sums.values():
        one["messages"] = len(one.pop("seen"))
        for name in ("cost_nano_usd", "charged_nano_usd"):
            one[name] = sum(one[name]) if one[name] else None
    return [{f"by_{n}": value for n, value in enumerate(key)} | one for key, one in sums.items()]


DIMENSIONS = st.lists(
    st.sampled_from(["feature", "model", "user", "payer", "tags.team", "day"]), unique=True, max_size=3
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(ledgers(), DIMENSIONS, st.none() | NAMES, st.none() | NAMES, st.booleans(), st.integers(0, 3))
def test_sums_are_those_of_the_rows(
    ledger_url: str, some: list[Row], by: list[str], tenant: str | None, user: str | None, charged: bool, days: int
) -> None:
    from_ms = round(START * 1000) + days * 86_400_000
    book = Book.open(ledger_url)
    with writing(book._engine) as connection:
        connection.exec_driver_sql("DELETE FROM attempts")
    book.insert(some)
    for start in (0, from_ms):
        query = Query(tuple(by), start, FOREVER[1], tenant, user, charged_only=charged)
        assert groups(query, book.report(query)) == groups(query, total(some, query))
    book.close()
