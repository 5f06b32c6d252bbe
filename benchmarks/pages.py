"""
Writing the documentation's tables and plots, and a line about the machine.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.plot import chart
from benchmarks.profiling import FUNCTIONS, PARTS, Profile
from benchmarks.report import COLUMNS, TIMES, Row, list_table
from benchmarks.scenarios import SCENARIOS


def machine() -> str:
    """Describe the machine and the software in a line."""
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    packages = []
    for name in ("Twisted", "treq", "aiohttp"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    kernel = platform.release().partition("-")[0]
    return (
        f"{model}, {os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}, {', '.join(packages)}, "
        f"SQLite {sqlite3.sqlite_version}"
    )


def _runs(table: Sequence[Row]) -> str:
    most = max((row.runs for row in table), default=0)
    fewer = {f"{row.title}: {row.runs}" for row in table if row.runs < most}
    return f"Runs: {most}" + (f"; {'; '.join(sorted(fewer))}." if fewer else ".")


def write(directory: Path, table: Sequence[Row], profile: Profile | None) -> None:
    """
    Write ``benchmarks.inc`` and the plots.

    :param profile: ``None`` if it could not be taken.
    """
    sections = {
        "machine": f"{machine()}. {_runs(table)}\n",
        "costs": list_table(
            [*COLUMNS], [[get(row) for get in COLUMNS.values()] for row in table], (24, 13, 9, 7, 7, 9, 8, 7, 8, 7)
        ),
    }
    timed = {"scenario": COLUMNS["scenario"], "sidecar": COLUMNS["sidecar"], **TIMES}
    sections["times"] = list_table(
        [*timed], [[get(row) for get in timed.values()] for row in table if row.took], (36, 16, 12, 12, 12, 12)
    )
    if profile is not None:
        sections["parts"] = list_table(
            [*PARTS], [[get(each) for get in PARTS.values()] for each in profile.parts.items() if each[1] >= 0.005], (70, 30)
        )
        sections["functions"] = list_table(
            [*FUNCTIONS], [[get(each) for get in FUNCTIONS.values()] for each in profile.functions], (70, 15, 15)
        )
    text = "\n".join(f".. begin-{name}\n\n{section}\n.. end-{name}\n" for name, section in sections.items())
    (directory / "benchmarks.inc").write_text(text, encoding="utf-8")
    backlog = {"mqhooks": [(row.events, row.cost) for row in table if row.key.startswith("backlog-")]}
    sizes: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        if row.key == "relay" or row.key.startswith("size-"):
            sizes.setdefault(row.sidecar, []).append((SCENARIOS[row.key].size, row.cost))
    rates: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        if row.key == "unmerged" or row.key.startswith("rate-"):
            rates.setdefault(row.sidecar, []).append((row.rate, row.cost))
    rates = {name: sorted(points) for name, points in rates.items()}
    for name, title, across, lines in (
        ("rate", "The cost of a delivery, by how many there are", "deliveries a second", rates),
        ("backlog", "The cost of a delivery, by how many wait", "deliveries that wait in the outbox", backlog),
        ("size", "The cost of a delivery, by the size of a payload", "bytes of a payload", sizes),
    ):
        if any(lines.values()):
            drawn = chart(title, across, "µs of CPU", lines, log=name != "backlog")
            (directory / f"benchmarks-{name}.svg").write_text(drawn, encoding="utf-8")
