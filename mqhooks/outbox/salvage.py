"""
Recover the contents of a damaged outbox that was set aside.

- Whatever its checksums prove intact is handed over to the outbox that has taken its place (:mod:`mqhooks.outbox.handed`).
- The command may be interrupted at any time and run again. The damaged file is only read, and renamed at the end.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from itertools import count
from tempfile import TemporaryDirectory

from mqhooks.delivery import DeadLetter
from mqhooks.errors import OutboxError
from mqhooks.outbox import aside, schema
from mqhooks.outbox.file import KEY_BITS, WEBHOOKS
from mqhooks.outbox.handed import Handed, hand_over, progress
from mqhooks.outbox.pages import Cell, Pages, Value
from mqhooks.outbox.stored import VERSION, checksum, decode_delivery, decode_row, encode, encode_handed


def salvage(damaged: str, outbox: str) -> str:
    """
    Hand over whatever a damaged file's checksums prove intact, in order and with the same ids and webhooks.

    :param damaged: a file that was set aside at a start.
    :param outbox: the outbox that has taken its place; a process may be using it.
    :returns: a line that says how much was handed over.
    :raises mqhooks.errors.OutboxError: when a file cannot be read, or the outbox cannot be written; then call it again.
    """
    damaged, outbox = os.path.realpath(damaged), os.path.realpath(outbox)
    if damaged not in aside.damaged_files(outbox):
        raise OutboxError(f"{damaged}: is not a damaged file of {outbox}, or was salvaged already")
    if not os.path.exists(outbox):
        raise OutboxError(f"{outbox}: does not exist; start mqhooks once, so that there is an outbox to hand over to")
    schema.check(outbox)
    schema.check_regular(damaged, "name one that was set aside")
    try:
        source = _fingerprint(damaged)
        with closing(_DamagedFile(damaged)) as reader, closing(schema.connect(outbox)) as target:
            found = _hand_over(reader, target, source)
        salvaged = aside.note_salvaged(damaged)
    except OSError as error:
        raise OutboxError(f"{damaged}: cannot be read or renamed: {error.strerror}") from None
    except sqlite3.Error as error:
        raise OutboxError(f"{outbox}: cannot be written ({error}); try again") from None
    return f"{found}; the damaged file is now {salvaged}"


def _fingerprint(path: str) -> str:
    """Hash a file's content, to identify it under any name."""
    digest = blake2b(digest_size=16)
    for name in (path, f"{path}-wal"):
        if os.path.exists(name):
            with open(name, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()


def _hand_over(reader: _DamagedFile, target: sqlite3.Connection, source: str) -> str:
    batch, dead = progress(target, source)
    taken = {row[0] for row in target.execute("SELECT name FROM webhook")}
    deliveries = hand_over(target, source, "batch", reader.rows(batch, taken))
    letters = hand_over(target, source, "dead", reader.letters(dead))
    return f"{deliveries} deliveries and {letters} dead letters were handed over"


class _DamagedFile:
    """The readable rest of a damaged file."""

    def __init__(self, path: str) -> None:
        self._pages = Pages(path)
        roots = _roots() | self._own_roots()
        seen: set[int] = set()
        leaves = {name: list(self._pages.tree(root, seen)) for name, root in roots.items()}
        # From the table, or from its index, which may have outlived it.
        self._names = self._index_names(leaves["sqlite_autoindex_webhook_1"]) | self._table_names(leaves["webhook"])
        lost = any(0 in pages for pages in leaves.values())
        orphans = list(self._pages.orphans(seen)) if lost else []
        self._batches = self._cells(leaves["batch"], orphans)
        self._progress = self._cells(leaves["progress"], orphans)
        self._dead = self._cells(leaves["dead"], orphans)

    def close(self) -> None:
        """Close the file."""
        self._pages.close()

    def _own_roots(self) -> dict[str, int]:
        """Get the root pages of tables and indices that the file still names."""
        rows = [self._pages.row(cell) for page in self._pages.tree(1, set()) if page for cell in self._pages.cells(page)]
        found = {_text(row[1]): row[3] for row in rows if row is not None and len(row) == 5}
        return {name: root for name, root in found.items() if name is not None and isinstance(root, int)}

    def _cells(self, leaves: list[int], orphans: list[int]) -> dict[int, list[Cell]]:
        """Find rows by their numbers. Orphaned pages may belong to any table."""
        cells: dict[int, list[Cell]] = {}
        for page in (*leaves, *orphans):
            for cell in self._pages.cells(page) if page else ():
                cells.setdefault(cell.id, []).append(cell)
        return cells

    def _table_names(self, leaves: list[int]) -> dict[int, str]:
        rows = [(cell.id, self._pages.row(cell)) for page in leaves if page for cell in self._pages.cells(page)]
        return {id_: name for id_, row in rows if row and len(row) == 8 and (name := _text(row[1])) and 0 < id_ < WEBHOOKS}

    def _index_names(self, leaves: list[int]) -> dict[int, str]:
        names = {}
        for page in leaves:
            for entry in self._pages.entries(page) if page else ():
                if len(entry) == 2 and isinstance(entry[1], int) and 0 < entry[1] < WEBHOOKS and (name := _text(entry[0])):
                    names[entry[1]] = name
        return names

    def rows(self, after: int, taken: set[str]) -> Iterator[Handed]:
        """
        Iterate over pending deliveries, as rows.

        :param after: only rows with higher numbers.
        :param taken: names that must not be invented for a webhook whose own name is lost.
        """
        names = dict(self._names)
        for id_ in sorted(id_ for id_ in self._batches if id_ > after):
            deliveries = self._deliveries(id_)
            settled = self._settled(id_)
            pending = [one for index, one in enumerate(deliveries) if one is not None and not settled >> index & 1]
            if pending:
                key = id_ >> KEY_BITS
                if key not in names:
                    invented = (f"webhook-{key}{'-lost' * number}" for number in count())
                    names[key] = next(name for name in invented if name not in taken and name not in names.values())
                yield Handed(id_, names[key], 0, encode(pending), len(pending))

    def _deliveries(self, id_: int) -> list[object]:
        for cell in self._batches[id_]:
            row = self._pages.row(cell)
            if row is not None and len(row) == 5:
                deliveries = decode_row(id_, row[1], row[3], row[4])
                if deliveries is not None:
                    return list(deliveries)
        return []

    def _settled(self, id_: int) -> int:
        for cell in self._progress.get(id_, ()):
            row = self._pages.row(cell)
            if row is not None and len(row) == 3 and isinstance(row[2], bytes) and checksum(id_, VERSION, row[2]) == row[1]:
                return int.from_bytes(row[2], "little")
        return 0

    def letters(self, after: int) -> Iterator[Handed]:
        """Iterate over dead letters with higher numbers."""
        for id_ in sorted(id_ for id_ in self._dead if id_ > after):
            for cell in self._dead[id_]:
                letter = _letter(self._pages.row(cell))
                if letter is not None:
                    yield Handed(id_, letter.webhook, 1, encode_handed(letter), 1)
                    break


def _letter(row: list[Value] | None) -> DeadLetter | None:
    if row is None or len(row) != 11:
        return None
    webhook, url, reason, damage = (_text(row[index]) for index in (1, 4, 5, 9))
    status, died = (value if isinstance(value, int) else 0 for value in (row[6], row[8]))
    answer = row[7] if isinstance(row[7], bytes) else b""
    try:
        delivery = decode_delivery(webhook or "", row[2], row[3], row[10])
    except ValueError:
        return None
    return DeadLetter(0, webhook or "", delivery, url or "", reason or "", status, answer, died, damage or "")


def _text(value: Value) -> str | None:
    try:
        return value.decode() if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return None


def _roots() -> dict[str, int]:
    """Get the root pages of the tables and indices of a new file."""
    with TemporaryDirectory() as directory:
        path = os.path.join(directory, "new")
        schema.prepare(path)
        with closing(sqlite3.connect(path)) as connection:
            return dict(connection.execute("SELECT name, rootpage FROM sqlite_schema").fetchall())
