"""
Taking over what can be read of a damaged outbox.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from time import strftime
from typing import Any
from zlib import crc32

from mqhooks.outbox import schema


def salvage(path: str) -> tuple[str, str]:
    """
    Put a new file in the place of a damaged one, which is set aside as it is.

    The new one is whole before anything is renamed: whenever this is interrupted, :func:`finish` or another call ends it.

    :returns: where the damaged file is now, and what was found, for the log.
    """
    copy, new = f"{path}.salvage", f"{path}.new"
    _remove(copy)
    _remove(new)
    for suffix in ("", "-wal"):
        if os.path.exists(path + suffix):
            shutil.copyfile(path + suffix, copy + suffix)
            os.chmod(copy + suffix, 0o640)
    schema.prepare(new)
    target = schema.connect(new, full=True)
    try:
        found = _copy(_readable(copy, new), target)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        target.close()
    _remove(copy)
    aside = f"{path}.damaged-{strftime('%Y%m%dT%H%M%S')}"
    for suffix in ("-wal", "-shm", ""):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, aside + suffix)
    finish(path)
    return aside, found


def finish(path: str) -> None:
    """
    Put a salvaged file in its place, if there is one and the place is free.
    """
    if os.path.exists(f"{path}.new") and not os.path.exists(path):
        os.rename(f"{path}.new", path)


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
    except sqlite3.DatabaseError:
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
    webhooks = {row[0]: row for row in _rows(source, "webhook", "id, name, accepted, delivered, dead, dropped")}
    names = _names(source)
    progress = dict(_rows(source, "progress", "batch, settled", key="batch"))
    pending: dict[int, int] = {}
    sizes: dict[int, int] = {}
    last: dict[int, int] = defaultdict(int)
    dead = 0
    target.execute("BEGIN")
    for number, count, checksum, deliveries in _rows(source, "batch", "id, count, checksum, deliveries"):
        if crc32(deliveries) != checksum:
            continue
        if not target.execute(
            "INSERT OR IGNORE INTO batch VALUES (?, ?, ?, ?)", (number, count, checksum, deliveries)
        ).rowcount:
            continue
        settled = progress.get(number)
        if settled is not None:
            target.execute("INSERT OR IGNORE INTO progress VALUES (?, ?)", (number, settled))
        webhook = number >> 40
        last[webhook] = max(last[webhook], number)
        left = count - sum(byte.bit_count() for byte in settled or b"")
        pending[webhook] = pending.get(webhook, 0) + left
        sizes[webhook] = sizes.get(webhook, 0) + len(deliveries)
    columns = "id, webhook, delivery, url, reason, status, answer, died"
    for row in _rows(source, "dead", columns):
        target.execute(f"INSERT OR IGNORE INTO dead ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        dead += 1
    for number in webhooks.keys() | pending.keys():
        left = pending.get(number, 0)
        unknown = (number, names.get(number, f"webhook-{number}"), left, 0, 0, 0)
        _, name, accepted, delivered, buried, dropped = webhooks.get(number, unknown)
        # What is neither delivered nor dead nor here is lost.
        dropped = max(accepted - delivered - buried - left, 0)
        target.execute(
            "INSERT OR IGNORE INTO webhook VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, name, delivered + buried + dropped + left, delivered, buried, dropped, sizes.get(number, 0), last[number]),
        )
    target.execute("COMMIT")
    source.close()
    return f"{sum(pending.values())} deliveries and {dead} dead letters"


def _names(source: sqlite3.Connection) -> dict[int, str]:
    """Read the webhooks' names from their index, which may have outlived their table."""
    try:
        return dict(
            source.execute("SELECT id, name FROM webhook INDEXED BY sqlite_autoindex_webhook_1 ORDER BY name").fetchall()
        )
    except sqlite3.DatabaseError:
        return {}


def _rows(source: sqlite3.Connection, table: str, columns: str, key: str = "id") -> Iterator[tuple[Any, ...]]:
    """
    Read a table from its beginning to what cannot be read, and then from its end back to it.
    """
    low, high = -1, 1 << 62
    for comparison, order in ((">", "ASC"), ("<", "DESC")):
        while True:
            bound = low if order == "ASC" else high
            limits = (bound, high if order == "ASC" else low)
            question = f"SELECT {columns} FROM {table} WHERE {key} {comparison} ? AND {key} {'<' if order == 'ASC' else '>'} ? "
            try:
                row = source.execute(f"{question} ORDER BY {key} {order} LIMIT 1", limits).fetchone()
            except sqlite3.DatabaseError:
                break
            if row is None:
                return
            if order == "ASC":
                low = row[0]
            else:
                high = row[0]
            yield row
