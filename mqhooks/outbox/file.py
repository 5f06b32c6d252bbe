"""
The outbox's file: SQL, and nothing but SQL.

- It knows webhooks by their keys and rows by their numbers, but not what is due, or why.
- One transaction at a time is written, in any thread. A second connection moves the log and, with ``sync = full``, reads.
- SQLite's errors are translated into ours: unavailable for now, no room, damaged, or unstorable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import OutboxDamaged, OutboxError, OutboxNoRoom, OutboxUnavailable, Unstorable
from mqhooks.outbox import schema
from mqhooks.outbox.stored import UNENCODABLE, VERSION, checksum, encode, encode_letter, without_body

KEY_BITS = 40
"""A row's id is its webhook's key, then these bits: its number. Keys have 16 bits, so ids stay within SQLite's 63."""

WEBHOOKS = 1 << 16
"""Webhooks' keys are lower than this."""

PAGE = 4096
"""Bytes in one of SQLite's pages, by default."""

LONGEST_ROW = 1_000_000_000
"""Longest row, in bytes: SQLite's own limit."""

ROW = "id, version, count, checksum, deliveries"
LETTER = "webhook, version, checksum, url, reason, status, answer, died, damage, delivery"

_UNSTORABLE = (*UNENCODABLE, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class StoredRow(NamedTuple):
    """
    A row of deliveries as read from the file, unverified.

    :param id: covered by its checksum, like the deliveries.
    :param settled: its bits; ``None`` when it has none or they are damaged.
    """

    id: int
    number: int
    version: object
    counted: object
    checksum: object
    deliveries: object
    settled: bytes | None


class Kept(NamedTuple):
    """
    A webhook's counters and rows in the file.

    :param key: its key.
    :param accepted: number of deliveries accepted since the file was made; likewise ``delivered``, ``dead`` (and not
        replayed) and ``dropped``.
    :param size: the bytes of its rows.
    :param assigned: the last number given to a row.
    :param first: one less than the number of its oldest row.
    :param last: the number of its newest row.
    :param letters: the number of its dead letters.
    """

    key: int
    accepted: int
    delivered: int
    dead: int
    dropped: int
    size: int
    assigned: int
    first: int
    last: int
    letters: int


@dataclass(slots=True)
class NewRow:
    """
    A row to write.

    :ivar deliveries: ``None`` in the place of one that proved unstorable.
    :ivar settled: a bit for each of those; ``None`` when there are none.
    """

    number: int
    deliveries: list[Delivery | None]
    data: bytes
    settled: bytes | None = None


@dataclass(slots=True)
class Changes:
    """
    The changes that one transaction makes for one webhook.

    :ivar rows: new ones.
    :ivar finished: numbers of rows to delete.
    :ivar marked: those of ``finished`` that have bits.
    :ivar progress: the bits of other rows, by number.
    :ivar thinned: rows to rewrite, by number.
    :ivar letters: new dead letters.
    :ivar letters_max: the number of dead letters to keep.
    :ivar resolved: numbers of dead letters to delete.
    :ivar counters: accepted, delivered, dead, dropped, size, assigned: as in :class:`Kept`.
    :ivar forgotten: number of dead letters discarded to make room; known once the transaction is written.
    """

    key: int
    webhook: str
    rows: list[NewRow] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    marked: list[int] = field(default_factory=list)
    progress: list[tuple[int, bytes]] = field(default_factory=list)
    thinned: list[tuple[int, bytes]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    letters_max: int = 0
    resolved: list[int] = field(default_factory=list)
    counters: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
    forgotten: int = 0

    @property
    def pages(self) -> int:
        """Approximate number of pages that it changes in the file."""
        return 4 + sum([len(row.data) for row in self.rows]) // PAGE


class OutboxFile:
    """
    An open file that :func:`~mqhooks.outbox.schema.prepare` has checked.

    :param full: whether each commit waits for the disk. Then :meth:`write` should run in a thread.
    :param longest: the longest row, in bytes.
    :raises mqhooks.errors.OutboxError: when it cannot be opened.
    """

    def __init__(self, path: str, *, full: bool = False, longest: int = LONGEST_ROW) -> None:
        self.path = path
        self._data_version = -1
        with self._ours():
            self._writer = schema.connect(path, full=full)
            try:
                self._second = schema.connect(path)
            except BaseException:
                self._writer.close()
                raise
            self.reader = self._second if full else self._writer
            self._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)

    def close(self) -> None:
        """Close the file."""
        for connection in (self._second, self._writer):
            connection.close()

    @contextmanager
    def _ours(self) -> Iterator[None]:
        try:
            yield
        except _UNSTORABLE as error:
            raise Unstorable(str(error)) from None
        except sqlite3.DatabaseError as error:
            raise _translated(error) from None

    # Reading.

    def webhooks(self) -> list[str]:
        """
        List the webhooks that have, or once had, something in the file.

        :raises mqhooks.errors.OutboxDamaged: when a name is not text.
        """
        with self._ours():
            rows = self.reader.execute("SELECT CAST(name AS BLOB) FROM webhook ORDER BY id").fetchall()
        try:
            return [bytes.decode(row[0]) for row in rows]
        except (TypeError, UnicodeDecodeError):
            raise OutboxDamaged("a name in table webhook is not text") from None

    def load(self, webhook: str, *, alone: bool = False) -> Kept:
        """
        Get a webhook's counters and rows; add the webhook if it is new.

        :param alone: whether no thread can be in the middle of a transaction.
        :raises mqhooks.errors.OutboxError: when the file has no place for another webhook, or cannot be written.
        """
        with self._ours():
            if alone:
                return self._load(self._writer, webhook)
            connection = schema.connect(self.path)
            try:
                connection.execute("PRAGMA busy_timeout = 1000")
                return self._load(connection, webhook)
            finally:
                connection.close()

    def _load(self, connection: sqlite3.Connection, webhook: str) -> Kept:
        question = "SELECT id, accepted, delivered, dead, dropped, bytes, last FROM webhook WHERE name = ?"
        row = connection.execute(question, (webhook,)).fetchone()
        if row is None:
            if connection.execute("SELECT max(id) FROM webhook").fetchone()[0] == WEBHOOKS - 1:
                raise OutboxError(f"{self.path}: cannot add webhook {webhook}: one file holds at most {WEBHOOKS - 1}")
            connection.execute("INSERT INTO webhook (name) VALUES (?)", (webhook,))
            row = connection.execute(question, (webhook,)).fetchone()
        if row is None or not all(type(value) is int and 0 <= value < 1 << 62 for value in row) or row[0] >= WEBHOOKS:
            raise OutboxDamaged(f"the row of {webhook} in table webhook is not as it was written")
        key, accepted, delivered, dead, dropped, size, assigned = row
        base = key << KEY_BITS
        ends = base + 1, base + (1 << KEY_BITS) - 1
        first = connection.execute("SELECT min(id) FROM batch WHERE id BETWEEN ? AND ?", ends).fetchone()[0] or base + 1
        last = connection.execute("SELECT max(id) FROM batch WHERE id BETWEEN ? AND ?", ends).fetchone()[0] or base
        letters = connection.execute("SELECT count(*) FROM dead WHERE webhook = ?", (webhook,)).fetchone()[0]
        first, last = first - 1 - base, last - base
        return Kept(key, accepted, delivered, dead, dropped, size, max(last, assigned), first, last, letters)

    def rows(self, key: int, after: int, upto: int) -> Generator[StoredRow]:
        """
        Iterate over rows of a webhook.

        :param after: only rows with higher numbers than this.
        :param upto: only rows with this number at most.
        :raises mqhooks.errors.OutboxDamaged: when they are out of order.
        """
        base = key << KEY_BITS
        with self._ours():
            question = (
                f"SELECT {ROW}, (SELECT settled FROM progress WHERE batch = batch.id), "
                "(SELECT checksum FROM progress WHERE batch = batch.id) "
                "FROM batch WHERE id > ? AND id <= ? ORDER BY id"
            ).replace("batch = batch.id", "progress.batch = batch.id")
            rows = self.reader.execute(question, (base + after, base + upto))
            try:
                for id_, version, count, check, deliveries, settled, settled_check in rows:
                    number = id_ - base
                    if not after < number <= upto:
                        raise OutboxDamaged("the rows of table batch are out of order")
                    after = number
                    sound = isinstance(settled, bytes) and checksum(id_, VERSION, settled) == settled_check
                    yield StoredRow(id_, number, version, count, check, deliveries, settled if sound else None)
            finally:
                rows.close()

    def sizes(self, key: int, after: int, upto: int) -> Generator[tuple[int, int, int, bytes | None]]:
        """
        Iterate over the same rows as :meth:`rows`, without their content.

        :returns: for each row its number, its number of deliveries, its size in bytes, and its bits.
        :raises mqhooks.errors.OutboxDamaged: when a value cannot be what was written.
        """
        base = key << KEY_BITS
        with self._ours():
            question = (
                "SELECT id, count, length(deliveries), (SELECT settled FROM progress WHERE progress.batch = batch.id) "
                "FROM batch WHERE id > ? AND id <= ? ORDER BY id"
            )
            rows = self.reader.execute(question, (base + after, base + upto))
            try:
                for id_, count, size, settled in rows:
                    if not (type(count) is int and 0 < count < 1 << 16 and type(size) is int):
                        raise OutboxDamaged(f"row {id_} of table batch is not as it was written")
                    sound = isinstance(settled, bytes) and len(settled) == (count + 7) // 8
                    yield id_ - base, count, size, settled if sound else None
            finally:
                rows.close()

    def last_letter(self) -> int:
        """Get the highest number of a dead letter; 0 when there are none."""
        with self._ours():
            return int(self.reader.execute("SELECT coalesce(max(id), 0) FROM dead").fetchone()[0])

    def has_letter(self, number: int) -> bool:
        """Return whether there is a dead letter with this number."""
        with self._ours():
            return bool(self.reader.execute("SELECT count(*) FROM dead WHERE id = ?", (number,)).fetchone()[0])

    def changed(self) -> bool:
        """Return whether another connection may have written since the last call."""
        with self._ours():
            version = self.reader.execute("PRAGMA data_version").fetchone()[0]
        changed, self._data_version = version != self._data_version or self.reader is not self._writer, version
        return changed

    def requests(self, after: int, limit: int) -> list[tuple[int, Any, Any]]:
        """Get the requests of other processes: numbers, actions, dead letters."""
        with self._ours():
            question = "SELECT id, action, dead FROM request WHERE id > ? ORDER BY id LIMIT ?"
            return self.reader.execute(question, (after, limit)).fetchall()

    def inbox(self, after: int) -> tuple[int, Any, Any, Any, Any, Any] | None:
        """Get the next row of the inbox: number, webhook, version, whether it is a letter, checksum, content."""
        with self._ours():
            question = "SELECT id, webhook, version, letter, checksum, content FROM inbox WHERE id > ? ORDER BY id LIMIT 1"
            row: tuple[int, Any, Any, Any, Any, Any] | None = self.reader.execute(question, (after,)).fetchone()
            return row

    def untaken(self) -> int:
        """Count the requests of other processes, and the inbox's rows."""
        with self._ours():
            question = "SELECT (SELECT count(*) FROM request) + (SELECT count(*) FROM inbox)"
            return int(self.reader.execute(question).fetchone()[0])

    def free(self) -> int:
        """Return the number of free bytes inside the file."""
        with self._ours():
            pages, size = (self.reader.execute(f"PRAGMA {what}").fetchone()[0] for what in ("freelist_count", "page_size"))
        return int(pages * size)

    # Transactions.

    def write(self, changes: Sequence[Changes], requests: Sequence[int] = (), inbox: Sequence[int] = ()) -> None:
        """
        Write everything in one transaction.

        :param requests: numbers of requests that are done.
        :param inbox: numbers of the inbox's rows that were taken over.
        """
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            for each in changes:
                _write(connection, each)
            if requests:
                connection.executemany("DELETE FROM request WHERE id = ?", [(number,) for number in requests])
            if inbox:
                connection.executemany("DELETE FROM inbox WHERE id = ?", [(number,) for number in inbox])
            connection.execute("COMMIT")
        except BaseException:
            with self._ours():
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def leave_out(self, changes: Changes) -> list[tuple[Delivery, str]]:
        """
        Find unstorable deliveries, by writing each alone and rolling back, and take them out.

        :returns: the deliveries that were taken out of their rows, and why. An unstorable dead letter is replaced by one
            without its body.
        """
        connection, found = self._writer, []
        with self._ours():
            connection.execute("BEGIN IMMEDIATE")
            try:
                for row in list(changes.rows):
                    if _fault(connection, _write_row, changes.key, row) is None:
                        continue
                    for index, delivery in enumerate(row.deliveries):
                        alone = NewRow(row.number, [delivery], encode([delivery]))
                        fault = _fault(connection, _write_row, changes.key, alone)
                        if fault is not None and delivery is not None:
                            row.deliveries[index] = None
                            found.append((delivery, fault))
                    row.data = encode(row.deliveries)
                    bits = sum(1 << index for index, delivery in enumerate(row.deliveries) if delivery is None)
                    row.settled = bits.to_bytes((len(row.deliveries) + 7) // 8, "little") if bits else None
                for index, letter in enumerate(changes.letters):
                    fault = _fault(connection, _write_letter, changes.webhook, letter)
                    if fault is not None:
                        changes.letters[index] = without_body(letter, f"{letter.reason}; it cannot be stored: {fault}")
            finally:
                connection.execute("ROLLBACK")
        return found

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file: it may have free pages when the disk has no room for the log to grow."""
        with suppress(sqlite3.DatabaseError):
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def keep_log(self, pages: int) -> None:
        """Leave the write-ahead log to :meth:`move_log` until it has this many pages; by default a commit moves it at 1,000."""
        with self._ours():
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {pages}")

    def move_log(self) -> int:
        """
        Move the write-ahead log into the file, and wait for the disk. This may run in a thread while others read and write.

        :returns: the log's length in pages at the beginning; unless it has grown, the next transaction starts it over.
        """
        with suppress(sqlite3.DatabaseError):
            _, pages, _ = self._second.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            return max(int(pages), 0)
        return 0

    def shrink_log(self) -> None:
        """Move the write-ahead log into the file, and truncate it; no transaction may be open."""
        with suppress(sqlite3.DatabaseError):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _translated(error: sqlite3.DatabaseError) -> OutboxError:
    if not schema.passing(error):
        return OutboxDamaged(str(error))
    code = getattr(error, "sqlite_errorcode", None) or 0
    return OutboxNoRoom(str(error)) if code & 0xFF in _NO_ROOM else OutboxUnavailable(str(error))


def _write(connection: sqlite3.Connection, changes: Changes) -> None:
    key, base = changes.key, changes.key << KEY_BITS
    for row in changes.rows:
        _write_row(connection, key, row)
    for letter in changes.letters:
        _write_letter(connection, changes.webhook, letter)
    if changes.thinned:
        thinned = [(checksum(base + number, VERSION, data), data, base + number) for number, data in changes.thinned]
        connection.executemany("UPDATE batch SET checksum = ?, deliveries = ? WHERE id = ?", thinned)
    if changes.progress:
        progress = [(base + number, checksum(base + number, VERSION, bits), bits) for number, bits in changes.progress]
        connection.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", progress)
    if _delete(connection, "DELETE FROM batch WHERE id BETWEEN ? AND ?", base, changes.finished) != len(changes.finished):
        # Otherwise they would count as settled, and be found and sent again when the file is salvaged.
        raise sqlite3.DatabaseError("rows of table batch are missing")
    _delete(connection, "DELETE FROM progress WHERE batch BETWEEN ? AND ?", base, changes.marked)
    if changes.resolved:
        connection.executemany("DELETE FROM dead WHERE id = ?", [(number,) for number in changes.resolved])
    # An earlier try may have been rolled back.
    changes.forgotten = 0
    if changes.letters:
        changes.forgotten = connection.execute(
            "DELETE FROM dead WHERE webhook = ?1 AND id <= "
            "(SELECT id FROM dead WHERE webhook = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (changes.webhook, changes.letters_max),
        ).rowcount
    connection.execute(
        "UPDATE webhook SET accepted = ?, delivered = ?, dead = ?, dropped = ?, bytes = ?, last = ? WHERE id = ?",
        (*changes.counters, key),
    )


def _write_row(connection: sqlite3.Connection, key: int, row: NewRow) -> None:
    id_ = (key << KEY_BITS) + row.number
    values = (id_, VERSION, len(row.deliveries), checksum(id_, VERSION, row.data), row.data)
    connection.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", values)
    if row.settled is not None:
        connection.execute("INSERT INTO progress VALUES (?, ?, ?)", (id_, checksum(id_, VERSION, row.settled), row.settled))


def _write_letter(connection: sqlite3.Connection, webhook: str, letter: DeadLetter) -> None:
    data = encode_letter(letter)
    what = (webhook, VERSION, checksum(0, VERSION, webhook, data))
    how = (letter.url, letter.reason, letter.status, letter.answer, letter.died, letter.damage)
    connection.execute(f"INSERT INTO dead ({LETTER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*what, *how, data))


def _fault(connection: sqlite3.Connection, write: Callable[..., None], *what: object) -> str | None:
    """Try to write something alone; return why it is unstorable, or ``None``."""
    connection.execute("SAVEPOINT alone")
    try:
        write(connection, *what)
    except _UNSTORABLE as error:
        return str(error)
    finally:
        connection.execute("ROLLBACK TO alone")
    return None


def _delete(connection: sqlite3.Connection, statement: str, base: int, numbers: list[int]) -> int:
    """
    Delete rows in ranges, which costs a third of deleting them one by one.

    :returns: the number of rows deleted.
    """
    found = 0
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        found += connection.execute(statement, (base + members[0], base + members[-1])).rowcount
    return found
