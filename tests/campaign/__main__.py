"""
Run the long form: ``python -m tests.campaign [--seed SEED] [--table FILE] [--faults NUMBER] [--both] [NAME …]``.

The results go to standard output, and as tables in reStructuredText to the file. The exit status is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react

from tests.campaign import scenarios
from tests.campaign.cluster import ROLES, cluster
from tests.campaign.stage import Row

LONG = {
    "kills": partial(scenarios.kills, times=50),
    "full-kills": partial(scenarios.kills, times=25, sync="full"),
    "webhook-kills": partial(scenarios.kills, times=100, via="webhooks"),
    "terms": partial(scenarios.terms, times=10),
    "misbehaviour": partial(scenarios.misbehaviour, times=3),
    "broken-off": partial(scenarios.broken_off, length=2.0),
    "down": partial(scenarios.down, times=4),
    "one-of-two": partial(scenarios.one_of_two, length=3.0),
    "pause": partial(scenarios.overfull, on_full="pause", times=3),
    "drop": partial(scenarios.overfull, on_full="drop_oldest", times=3),
    "disk-full": partial(scenarios.disk_full, times=4),
    "unwritable": partial(scenarios.unwritable, times=3),
    "webhook-unwritable": partial(scenarios.unwritable, times=3, via="webhooks"),
    "unwritable-end": scenarios.unwritable_end,
    **{f"damage-{number}": partial(scenarios.damage, kind=kind) for number, kind in enumerate(scenarios.DAMAGES, 1)},
    "clock": partial(scenarios.clock, jumps=(3600.0, -3600.0, 0.0, 86400.0)),
    "clock-kills": partial(scenarios.clock, jumps=(-3600.0, 3600.0), restart=True),
    "cluster": cluster,
}

COLUMNS = {
    "What was done": lambda row: row.title,
    "Written": lambda row: row.sent,
    "Accepted": lambda row: row.accepted,
    "Delivered": lambda row: row.delivered,
    "Dead": lambda row: row.dead,
    "Dropped": lambda row: row.dropped,
    "Pending": lambda row: row.pending,
    "Requests": lambda row: row.requests,
    "Twice": lambda row: row.twice,
    "Promises broken": lambda row: len(row.broken) or "none",
}


SILENCES = ["What was done to a cluster", "Times", "Longest silence of a partition", "Asked"]


def table(heads, widths, lines) -> str:
    """Format a list-table."""
    text = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for cells in [heads, *lines]:
        text += [f"   {'  ' if index else '* '}- {cell}".rstrip() for index, cell in enumerate(cells)]
    return "\n".join([*text, ""])


def tables(rows: list[Row]) -> str:
    """Format the table of results, and if there are any, the one of partitions' silences."""
    text = table(list(COLUMNS), "40 9 9 9 7 8 8 9 7 9", [[get(row) for get in COLUMNS.values()] for row in rows])
    lines = [
        [kind, times, _seconds(longest), "" if most is None else f"at most {most:g} s"]
        for row in rows
        for kind, (times, longest, most) in row.silences.items()
    ]
    return "\n".join([text, table(SILENCES, "52 10 22 16", lines)]) if lines else text


def _seconds(number: float | None) -> str:
    return "the endpoint was not well" if number is None else f"{number:.1f} s"


async def main(reactor, names, seed, path, faults, *, both):
    """Run the scenarios, print the results, and write the tables."""
    rows = []
    for name in names:
        print(f"{name} --seed {seed}", end=" ", flush=True)  # noqa: T201
        roles = ("both", "both") if both else ROLES
        play = partial(cluster, times=faults, roles=roles, tell=_tell) if name == "cluster" else LONG[name]
        row = await play(reactor, f"{seed}-{name}")
        if row is None:
            print("left out: no file system may be mounted here")  # noqa: T201
            continue
        rows.append(row)
        print("; ".join(f"{key.lower()}: {get(row)}" for key, get in COLUMNS.items()))  # noqa: T201
        for promise in row.broken[:10]:
            print(f"    {promise}")  # noqa: T201
        for kind, (times, longest, most) in row.silences.items():
            asked = "" if most is None else f", at most {most:g} s asked"
            print(f"    {kind}, {times} times: {_seconds(longest)}{asked}")  # noqa: T201
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(tables(rows))
    if any(row.broken for row in rows):
        raise SystemExit(1)


def _tell(what: str) -> None:
    print(f"    {what}", flush=True)  # noqa: T201


def run() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--seed", default=f"{random.SystemRandom().getrandbits(32):08x}")
    parser.add_argument("--table")
    parser.add_argument("--faults", type=int, default=40, help="how many the cluster has to bear; 40")
    parser.add_argument("--both", action="store_true", help="the cluster has two bridges, which accept and deliver")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(LONG))
    options = parser.parse_args(sys.argv[1:])
    for name in options.names:
        if name not in LONG:
            parser.error(f"there is no {name}")
    play = partial(main, both=options.both)
    names = options.names or list(LONG)
    react(lambda reactor: ensureDeferred(play(reactor, names, options.seed, options.table, options.faults)))


if __name__ == "__main__":
    run()
