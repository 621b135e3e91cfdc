"""Drawing a usage report with matplotlib: bars over time if it has days or hours, else the dearest groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from server.ledger.report import TIMES, Query, shown_time

SUFFIXES: Final = (".png", ".svg", ".pdf")
MOST_BARS: Final = 20
MOST_SERIES: Final = 9
OTHERS: Final = "others"


class CannotPlot(Exception):
    """No plot can be made; the text says what to do."""


def draw(path: Path, query: Query, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the report into `path`; its ending says how. Raises `CannotPlot`."""
    if path.suffix.lower() not in SUFFIXES:
        raise CannotPlot(f"{path}: the file's name should end with {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        raise CannotPlot("plots need matplotlib: pip install 'tidewire[plot]'") from None
    measure = "cost_usd" if any(row["cost_usd"] for row in rows) else "output_tokens"
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    time = next((name for name in query.group_by if name in TIMES), None)
    if time is None:
        _groups(axes, query, rows, measure)
    else:
        _over_time(axes, query, rows, measure, time)
    axes.set_title(f"Usage from {shown_time(query.from_ms)} to {shown_time(query.to_ms)}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise CannotPlot(f"{path}: cannot be written: {error.strerror}") from None


def _groups(axes: Any, query: Query, rows: Sequence[Mapping[str, Any]], measure: str) -> None:
    largest = sorted(rows, key=lambda row: -(row[measure] or 0))[:MOST_BARS]
    labels = [label(row, query.group_by) for row in largest]
    axes.barh(range(len(largest)), [row[measure] or 0 for row in largest])
    axes.set_yticks(range(len(largest)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(_unit(measure))


def _over_time(axes: Any, query: Query, rows: Sequence[Mapping[str, Any]], measure: str, time: str) -> None:
    times, series = stacked(query, rows, measure, time)
    bottom = [0.0] * len(times)
    for name, values in series.items():
        axes.bar(times, values, bottom=bottom, label=name)
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    axes.set_ylabel(_unit(measure))
    axes.tick_params(axis="x", rotation=45)
    if len(series) > 1:
        axes.legend(frameon=False)


def stacked(
    query: Query, rows: Sequence[Mapping[str, Any]], measure: str, time: str
) -> tuple[list[str], dict[str, list[float]]]:
    """The times there are, and for each name a value at each; the small names are put together."""
    others = [name for name in query.group_by if name != time]
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        one = sums.setdefault(label(row, others), {})
        one[row[time]] = one.get(row[time], 0) + (row[measure] or 0)
    times = sorted({row[time] for row in rows})
    names = sorted(sums, key=lambda name: -sum(sums[name].values()))
    series = {name: [sums[name].get(at, 0) for at in times] for name in names[:MOST_SERIES]}
    if len(names) > MOST_SERIES:
        series[OTHERS] = [sum(sums[name].get(at, 0) for name in names[MOST_SERIES:]) for at in times]
    return times, series


def label(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """A group's name in a plot; `$` would begin a formula there."""
    text = " · ".join("–" if row[name] is None else str(row[name])[:40] for name in names) or "all"
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text).replace("$", r"\$")


def _unit(measure: str) -> str:
    return "US dollars" if measure == "cost_usd" else "output tokens"
