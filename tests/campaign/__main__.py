"""
Run the long form: ``python -m tests.campaign [--seed SEED] [--table FILE] [NAME …]``.

The table goes to the standard output, and to the file as reStructuredText. The exit status is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react

from tests.campaign import scenarios
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


def table(rows: list[Row]) -> str:
    """Make a list-table of rows."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 40 9 9 9 7 8 8 9 7 9", ""]
    for cells in [list(COLUMNS), *([get(row) for get in COLUMNS.values()] for row in rows)]:
        lines += [f"   {'  ' if index else '* '}- {cell}" for index, cell in enumerate(cells)]
    return "\n".join([*lines, ""])


async def main(reactor, names, seed, path):
    """Play, show, write."""
    rows = []
    for name in names:
        print(f"{name} --seed {seed}", end=" ", flush=True)  # noqa: T201
        row = await LONG[name](reactor, f"{seed}-{name}")
        if row is None:
            print("left out: no file system may be mounted here")  # noqa: T201
            continue
        rows.append(row)
        print("; ".join(f"{key.lower()}: {get(row)}" for key, get in COLUMNS.items()))  # noqa: T201
        for promise in row.broken[:10]:
            print(f"    {promise}")  # noqa: T201
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(table(rows))
    if any(row.broken for row in rows):
        raise SystemExit(1)


def run() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--seed", default=f"{random.SystemRandom().getrandbits(32):08x}")
    parser.add_argument("--table")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(LONG))
    options = parser.parse_args(sys.argv[1:])
    for name in options.names:
        if name not in LONG:
            parser.error(f"there is no {name}")
    react(lambda reactor: ensureDeferred(main(reactor, options.names or list(LONG), options.seed, options.table)))


if __name__ == "__main__":
    run()
