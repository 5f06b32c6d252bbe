"""
Turning the figures of several runs into rows, and rows into tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.scenarios import Sample

ENGINE = "NATS of {}"
"""Name of the row for the servers that keep an outbox: it has their CPU, and all else as in the row before."""

NOTHING = "-"
"""Placeholder for a missing value."""


@dataclass(frozen=True, slots=True)
class Row:
    """
    One sidecar's results in one scenario: medians of the runs, and sums of the failures.

    :param key: the scenario's key.
    :param title: the scenario's title.
    :param sidecar: the sidecar's name.
    :param runs: number of runs.
    :param events: events sent in each run.
    :param cost: microseconds of CPU for each delivered event.
    :param rate: deliveries a second.
    :param missing: events not delivered.
    :param twice: repeated deliveries.
    :param late: events that came after a later one of their client.
    :param peak: MB of memory.
    :param ratio: the cost as a multiple of mqhooks' cost; ``None`` when mqhooks has not been measured.
    :param took: milliseconds by percentile, or nothing.
    """

    key: str
    title: str
    sidecar: str
    runs: int
    events: int
    cost: float
    rate: float
    missing: int
    twice: int
    late: int
    peak: float
    ratio: float | None
    took: Mapping[str, float]


def rows(key: str, title: str, samples: Mapping[str, Sequence[Sample]]) -> list[Row]:
    """
    Sum up the runs.

    :param samples: the runs by sidecar; a sidecar without any has no row.
    """
    costs = {name: median(sample.cpu * 1e6 / max(sample.done, 1) for sample in runs) for name, runs in samples.items() if runs}
    names = list(costs)
    for name, runs in samples.items():
        if runs and runs[0].engine:
            costs[ENGINE.format(name)] = median(sample.engine * 1e6 / max(sample.done, 1) for sample in runs)
            names.insert(names.index(name) + 1, ENGINE.format(name))
            samples = {**samples, ENGINE.format(name): runs}
    return [
        Row(
            key=key,
            title=title,
            sidecar=name,
            runs=len(runs),
            events=runs[0].events,
            cost=costs[name],
            rate=median(sample.done / sample.seconds for sample in runs),
            missing=sum(sample.events - sample.done for sample in runs),
            twice=sum(sample.twice for sample in runs),
            late=sum(sample.late for sample in runs),
            peak=median(sample.peak for sample in runs),
            ratio=costs[name] / costs["mqhooks"] if "mqhooks" in costs else None,
            took={each: median(sample.took[each] for sample in runs) for each in runs[0].took},
        )
        for name, runs in ((name, samples[name]) for name in names)
    ]


def _milliseconds(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row.took[name]:.1f}" if name in row.took else NOTHING


COLUMNS: dict[str, Callable[[Row], str]] = {
    "scenario": lambda row: row.title,
    "sidecar": lambda row: row.sidecar,
    "events": lambda row: f"{row.events:,}",
    "CPU µs": lambda row: f"{row.cost:.1f}",
    "ratio": lambda row: NOTHING if row.ratio is None else f"{row.ratio:.2f}",
    "per second": lambda row: f"{row.rate:,.0f}",
    "missing": lambda row: f"{row.missing:,}",
    "twice": lambda row: f"{row.twice:,}",
    "out of order": lambda row: f"{row.late:,}",
    "peak MB": lambda row: f"{row.peak:.0f}",
}
"""The table's columns."""

TIMES = {f"{name} ms": _milliseconds(name) for name in ("p50", "p99", "p99.9", "max")}
"""Further columns, filled for scenarios with a rate."""


def plain(table: Sequence[Row]) -> str:
    """Make the table for a terminal."""
    cells = [[*COLUMNS, *TIMES], *([get(row).replace("``", "") for get in (COLUMNS | TIMES).values()] for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def list_table(heads: Sequence[str], lines: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Make a table for the documentation."""
    text = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for cells in [heads, *lines]:
        text += [f"   {'  ' if index else '* '}- {cell}".rstrip() for index, cell in enumerate(cells)]
    return "\n".join([*text, ""])
