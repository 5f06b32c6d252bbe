"""
Taking over what can be read of a damaged outbox.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from glob import escape, glob
from time import strftime
from typing import Any
from zlib import crc32

import msgspec

from mqhooks.outbox import schema
from mqhooks.outbox.rows import WEBHOOKS, Batch

PROBES = 10_000
"""How many reads may fail, in each table, before what stands between them is given up."""

UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading may raise: an error's text may quote what is damaged."""

_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def salvage(path: str) -> tuple[str, str]:
    """
    Put a new file in the place of a damaged one, which is set aside as it is.

    The new one is whole before anything is renamed: whenever this is interrupted, :func:`finish` or another call ends it.

    :returns: where the damaged file is now, and what was found, for the log.
    """
    copy, part = f"{path}.salvage", f"{path}.part"
    _remove(copy)
    _remove(part)
    for suffix in ("", "-wal"):
        if os.path.exists(path + suffix):
            shutil.copyfile(path + suffix, copy + suffix)
            os.chmod(copy + suffix, 0o640)
    schema.prepare(part)
    target = schema.connect(part, full=True)
    try:
        found = _copy(_readable(copy, part), target)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        target.close()
    _remove(copy)
    os.rename(part, f"{path}.new")
    aside = f"{path}.damaged-{strftime('%Y%m%dT%H%M%S')}"
    while os.path.exists(aside):
        aside += "+"
    # The file goes first: without it, what is beside it is known to be left over.
    _set_aside(path, aside)
    finish(path)
    return aside, found


def finish(path: str) -> None:
    """
    Put a salvaged file in its place, if there is one and the place is free.
    """
    if os.path.exists(f"{path}.new") and not os.path.exists(path):
        asides = [name for name in glob(f"{escape(path)}.damaged-*") if not name.endswith(("-wal", "-shm"))]
        _set_aside(path, max(asides, default=f"{path}.damaged"))
        os.rename(f"{path}.new", path)
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _set_aside(path: str, aside: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, aside + suffix)


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)


def _readable(copy: str, path: str) -> sqlite3.Connection:
    """Open the copy; if its first page is lost, with that of a new file, whose tables stand in the same places."""
    try:
        source = sqlite3.connect(copy)
        source.execute("SELECT count(*) FROM webhook").fetchone()
        source.execute("SELECT id FROM batch LIMIT 1").fetchone()
    except UNREADABLE:
        source.close()
        _replace_first_page(copy, path)
        source = sqlite3.connect(copy)
    return source


def _replace_first_page(copy: str, path: str) -> None:
    fresh = sqlite3.connect(path)
    try:
        fresh.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = fresh.execute("PRAGMA page_size").fetchone()[0]
    finally:
        fresh.close()
    with open(path, "rb") as good, open(copy, "r+b") as bad:
        page = bytearray(good.read(size))
        pages = os.fstat(bad.fileno()).st_size // size
        # Offsets 28, 32 and 36 of the header: pages in the file, the first free one, how many are free.
        page[28:40] = pages.to_bytes(4, "big") + bytes(8)
        bad.write(page)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> str:
    source.text_factory = lambda data: data.decode(errors="replace")
    target.execute("BEGIN")
    sizes: dict[int, int] = defaultdict(int)
    pending: dict[int, int] = defaultdict(int)
    last: dict[int, int] = defaultdict(int)
    for batch, settled in _copy_batches(source, target):
        webhook = batch.id >> 40
        last[webhook] = max(last[webhook], batch.id)
        pending[webhook] += batch.left
        sizes[webhook] += batch.size
        if settled is not None:
            target.execute("INSERT INTO progress VALUES (?, ?)", (batch.id, settled))
    letters = Counter(_copy_letters(source, target))
    found = _rows(source, "webhook", "id, CAST(name AS BLOB), accepted, delivered, dead")
    webhooks = {row[0]: row[1:] for row in found if 0 < row[0] < WEBHOOKS}
    names = _names(source)
    for number, (raw, *_) in webhooks.items():
        name = _text(raw)
        if name:
            names[number] = name
    known = {name: number for number, name in names.items()}
    taken = {*known, *letters}
    for number in webhooks.keys() | pending.keys():
        _, *counters = webhooks.get(number, (None, 0, 0, 0))
        name = names.get(number)
        if name is None or known[name] != number:
            name = f"webhook-{number}"
            while name in taken:
                name += "-lost"
            taken.add(name)
            known[name] = number
        accepted, delivered, dead = (value if type(value) is int and 0 < value < 1 << 60 else 0 for value in counters)
        dead = max(dead, letters[name])
        left = pending[number]
        # What is neither delivered nor dead nor here is lost.
        dropped = max(accepted - delivered - dead - left, 0)
        target.execute(
            "INSERT INTO webhook VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, name, delivered + dead + dropped + left, delivered, dead, dropped, sizes[number], last[number]),
        )
    for name, dead in letters.items():
        if name not in known:
            target.execute("INSERT INTO webhook (name, accepted, dead) VALUES (?, ?, ?)", (name, dead, dead))
    target.execute("COMMIT")
    source.close()
    return f"{sum(pending.values())} deliveries and {letters.total()} dead letters"


def _copy_batches(source: sqlite3.Connection, target: sqlite3.Connection) -> Iterator[tuple[Batch, bytes | None]]:
    progress = dict(_rows(source, "progress", "batch, settled"))
    for number, checksum, deliveries in _rows(source, "batch", "id, checksum, deliveries"):
        if not isinstance(deliveries, bytes) or crc32(deliveries) != checksum:
            continue
        # The checksum speaks for these, and nothing for the count that stands beside them.
        try:
            count, size = len(_items(deliveries)), len(deliveries)
        except msgspec.DecodeError:
            continue
        settled = progress.get(number)
        try:
            batch = Batch.stored(number, count, size, settled)
        except sqlite3.DatabaseError:
            # To have some of it delivered once more is better than to lose it.
            settled = None
            batch = Batch(number, count, size)
        target.execute("INSERT INTO batch VALUES (?, ?, ?, ?)", (number, count, checksum, deliveries))
        yield batch, settled


def _copy_letters(source: sqlite3.Connection, target: sqlite3.Connection) -> Iterator[str]:
    """
    Copy dead letters.

    :returns: the webhook of each.
    """
    columns = {"webhook": "", "url": "", "reason": "", "status": 0, "answer": b"", "died": 0, "delivery": b""}
    statement = f"INSERT INTO dead (id, {', '.join(columns)}) VALUES (?{', ?' * len(columns)})"
    for number, *values in _rows(source, "dead", f"id, {', '.join(columns)}"):
        sound = [value if type(value) is type(other) else other for value, other in zip(values, columns.values(), strict=True)]
        webhook, delivery = sound[0], sound[-1]
        if webhook and delivery:
            target.execute(statement, (number, *sound))
            yield str(webhook)


def _text(data: object) -> str | None:
    try:
        return data.decode() if isinstance(data, bytes) else None
    except UnicodeDecodeError:
        return None


def _names(source: sqlite3.Connection) -> dict[int, str]:
    """Read the webhooks' names from their index, which may have outlived their table."""
    question = "SELECT id, CAST(name AS BLOB) FROM webhook INDEXED BY sqlite_autoindex_webhook_1 ORDER BY name"
    try:
        found = source.execute(question).fetchall()
    except UNREADABLE:
        return {}
    return {number: name for number, raw in found if (name := _text(raw))}


def _rows(source: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """
    Read what can be read of a table, in any order.

    What lies before the first place that cannot be read and behind the last one comes first; what lies between them is looked
    for by halves.

    :param columns: its key is the first of them.
    """
    key = columns.partition(",")[0]
    question = f"SELECT {columns} FROM {table} WHERE {key} > ? AND {key} < ? ORDER BY {key} {{}} LIMIT 1"
    ranges = deque([(-1, 1 << 62)])
    failed = 0
    while ranges and failed < PROBES:
        low, high = ranges.popleft()
        for order in ("ASC", "DESC"):
            while True:
                try:
                    row = source.execute(question.format(order), (low, high)).fetchone()
                except UNREADABLE:
                    failed += 1
                    break
                if row is None:
                    high = low
                    break
                # The keys of a damaged page may stand in any order.
                if type(row[0]) is not int or not low < row[0] < high:
                    failed += 1
                    break
                low, high = (row[0], high) if order == "ASC" else (low, row[0])
                yield row
        if high - low > 2:
            middle = (low + high) // 2
            ranges += [(low, middle + 1), (middle, high)]
