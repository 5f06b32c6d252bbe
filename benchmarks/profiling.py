"""
Finding out where a delivery's time goes: mqhooks under cProfile, its functions grouped by room.

The profiler adds a constant cost to each call of a Python function, so short functions look longer than they are.
"""

from __future__ import annotations

import marshal
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scenarios import Run, Scenario

Function = tuple[str, int, str]
Stats = Mapping[Function, tuple[int, int, float, float, Mapping[Function, tuple[int, int, float, float]]]]

FOREIGN = {
    "system calls": re.compile(r"_socket|select\.epoll|posix\."),
    "SQLite": re.compile(r"sqlite3"),
    "protobuf": re.compile(r"_upb|protobuf|FromString"),
    "msgspec": re.compile(r"msgspec"),
    "httptools": re.compile(r"httptools"),
    "zlib": re.compile(r"zlib"),
    "OpenSSL": re.compile(r"OpenSSL|_ssl|_hashlib|hmac"),
}
"""Functions written in C that form their own parts. The time of others counts for their callers."""

WAITING = re.compile(r"'poll' of 'select\.epoll'")
"""Left out: the call mostly waits, and its own cost cannot be told from that."""


@dataclass(frozen=True, slots=True)
class Profile:
    """
    Shares of the time that the process was not waiting.

    :param parts: shares by room or library.
    :param functions: each function's name, calls for each event, and share; the most expensive first.
    """

    parts: Mapping[str, float]
    functions: list[tuple[str, float, float]]


def take(scenario: Scenario, events: int, directory: str, *, count: int = 15) -> Profile:
    """
    Run mqhooks under the profiler.

    :param directory: gets a temporary directory for the outbox.
    :param count: number of functions to list.
    :raises benchmarks.processes.BenchmarkError: when the run cannot be measured.
    """
    own = Path(tempfile.mkdtemp(prefix="mqhooks-bench-", dir=directory))
    try:
        Run(scenario, "mqhooks", own, events, profile=own / "profile").measure()
        stats: Stats = marshal.loads((own / "profile").read_bytes())
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return summarise(stats, events, count)


def summarise(stats: Stats, events: int, count: int) -> Profile:
    """
    Group the profiler's figures.

    :param stats: the figures as the profiler saves them.
    """
    parts: defaultdict[str, float] = defaultdict(float)
    times: dict[Function, float] = {}
    for function, (_, _, own, _, callers) in stats.items():
        if WAITING.search(function[2]):
            continue
        times[function] = own
        if (part := _part(function)) is not None:
            parts[part] += own
            continue
        for caller, (_, _, spent, _) in callers.items():
            parts[_part(caller) or "Python"] += spent
    total = sum(parts.values())
    dearest = sorted(times, key=lambda function: -times[function])[:count]
    return Profile(
        {part: spent / total for part, spent in sorted(parts.items(), key=lambda each: -each[1])},
        [(_name(function), stats[function][1] / events, times[function] / total) for function in dearest],
    )


def _part(function: Function) -> str | None:
    path, _, name = function
    if path == "~":
        return next((part for part, pattern in FOREIGN.items() if pattern.search(name)), None)
    if match := re.search(r"/mqhooks/(\w+)(/|\.py)", path):
        return f"mqhooks/{match[1]}" if match[2] == "/" else "mqhooks"
    if match := re.search(r"/(twisted|google|treq)/", path):
        return {"twisted": "Twisted", "google": "protobuf", "treq": "treq"}[match[1]]
    return "Python"


def _name(function: Function) -> str:
    path, _, name = function
    if path == "~":
        return name.strip("<>").replace("built-in method ", "").replace("'", "")
    match = re.search(r"/(mqhooks|twisted|google|treq)/.*$", path)
    return f"{match[0][1:] if match else Path(path).name}: {name}"


PARTS: dict[str, Callable[[tuple[str, float]], str]] = {
    "room or library": lambda each: each[0],
    "share": lambda each: f"{each[1]:.0%}",
}
FUNCTIONS: dict[str, Callable[[tuple[str, float, float]], str]] = {
    "function": lambda each: f"``{each[0]}``",
    "calls for each event": lambda each: f"{each[1]:.2f}",
    "share": lambda each: f"{each[2]:.1%}",
}
"""The columns of the tables."""
