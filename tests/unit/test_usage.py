"""`tidewire usage`: its forms, and that a client's tags steer neither a terminal nor a spreadsheet nor a plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from server.cli import run
from server.ledger.book import Book
from server.ledger.report import Query
from server.usage import as_text
from server.usage_plot import CannotPlot, draw, label, stacked
from tests.usage_records import attempt, rows

EVIL = '=cmd|"/c calc"!A1\x1b[2J[red]$x^$'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose ledger has four attempts of two tenants."""
    book = Book.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    operator = {"payer": "operator", "pays_input": False, "charged_nano_usd": 0}
    book.insert(
        [
            *rows(attempt(1, **operator), attempt(2), tags={"feature": "search"}),
            *rows(message_id="m2", tenant="other", tags={"feature": EVIL}),
            *rows(attempt(cost_nano_usd=None, charged_nano_usd=None), message_id="m3", tenant="other"),
        ]
    )
    book.close()
    path = tmp_path / "tidewire.toml"
    path.write_text('[ledger]\nurl = "sqlite:///ledger.db"\n')
    return path


def usage(config: Path, *words: str) -> int:
    return run(["usage", "--config", str(config), "--from", "2026-01-01", "--to", "2027-01-01", *words])


def test_json_has_the_sums(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage(config, "--group-by", "tenant", "--format", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["from"], report["to"]) == ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")
    sums = {group["tenant"]: group for group in report["groups"]}
    assert {name: sums["acme"][name] for name in ("messages", "attempts", "input_tokens", "output_tokens")} == {
        "messages": 1, "attempts": 2, "input_tokens": 20, "output_tokens": 40,
    }  # fmt: skip
    assert (sums["acme"]["cost_usd"], sums["acme"]["charged_usd"], sums["acme"]["operator_usd"]) == (1e-7, 5e-8, 5e-8)
    assert (sums["other"]["messages"], sums["other"]["unpriced_attempts"]) == (2, 1)


def test_csv_is_no_program(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage(config, "--group-by", "feature", "--format", "csv") == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["feature"] for row in found} == {"search", "'" + EVIL, ""}
    assert {row["cost_usd"] for row in found} == {"0.000000100", "0.000000050", ""}


def test_the_table_is_plain_text(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage(config, "--group-by", "tenant,feature") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]" in out.replace("\n", "")
    assert "total" in out
    assert usage(config, "--tenant", "nobody") == 0
    assert "nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--group-by", "featuer"], "did you mean 'feature'?"),
        (["--format", "xml"], "xml"),
        (["--plot", "x.txt"], "should end with .png"),
    ],
)
def test_what_is_wrong_is_said(config: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage(config, *words) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_time_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "--config", str(config), "--from", "today"]) == 2
    assert "from: should be a date" in capsys.readouterr().err


def test_without_a_ledger_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tidewire.toml"
    path.write_text('[ledger]\nurl = "sqlite:///none.db"\n')
    assert usage(path) == 2
    assert "there is no ledger at" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
    path.write_text('[ledger]\nurl = "sqlite:///:memory:"\n')
    assert usage(path) == 2
    assert "GET /v1/usage" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["feature", "day,feature", "day"])
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_plots_are_drawn(config: Path, tmp_path: Path, by: str, ending: str) -> None:
    path = tmp_path / f"plot.{ending}"
    assert usage(config, "--group-by", by, "--plot", str(path)) == 0
    head = path.read_bytes()[:200]
    assert b"PNG" in head if ending == "png" else b"<?xml" in head


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CannotPlot, match="cannot be written"):
        draw(tmp_path / "none" / "plot.svg", Query((), 0, 1), [])


def test_small_names_are_put_together_over_time() -> None:
    query = Query(("day", "model"), 0, 1)
    found = [{"day": f"2026-01-0{d}", "model": f"m{n}", "cost_usd": n + 1.0} for d in (1, 2) for n in range(12)]
    times, series = stacked(query, found, "cost_usd", "day")
    assert times == ["2026-01-01", "2026-01-02"]
    assert len(series) == 10
    assert series["others"] == [1.0 + 2.0 + 3.0] * 2
    assert sum(map(sum, series.values())) == sum(row["cost_usd"] for row in found)
    assert label({"a": "x$\x1b", "b": None}, ["a", "b"]) == "x\\$\ufffd · –"


def test_every_form_of_nothing() -> None:
    query: Any = Query(("feature",), 0, 86_400_000)
    assert "nothing" in as_text("table", query, [])
    assert as_text("csv", query, []).startswith("feature,messages,")
    assert json.loads(as_text("json", query, []))["groups"] == []
