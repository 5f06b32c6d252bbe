"""
The rows of an outbox, and how a transaction writes them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec
from twisted.internet.defer import Deferred

from mqhooks.outbox.delivery import DeadLetter, Delivery

if TYPE_CHECKING:
    from mqhooks.outbox.queue import SqliteOutbox

BATCH = 512
"""How many deliveries one row has at most."""

MOST = 1 << 16
"""How many deliveries a row may have at most: so many have room in their places."""

WEBHOOKS = 1 << 22
"""Below this are the numbers of webhooks: so many have room in the rows' numbers."""

BATCH_BYTES = 1 << 20
"""How many bytes of bodies one row has at most, unless a single body is longer."""

ROW = "id, count, checksum, deliveries"
"""The columns of ``batch`` that are read."""

LONGEST_CLIENT = 1 << 16
"""How many characters of a client's name a dead letter without a body keeps; VerneMQ's have no more bytes."""

UNSTORABLE = (sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError, ValueError, TypeError)
"""What encoding or writing raises for the sake of what is written, whatever the state of the file."""

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(list[Delivery | None]).decode


class Batch:
    """
    A row, and what of it is settled.

    :param count: how many deliveries it holds.
    :param settled: a bit for each of them, as ``progress`` has them; ``None`` when it has none.
    :ivar size: bytes of the row.
    :ivar kept: how many deliveries the row holds.
    :ivar left: how many of them are not settled.
    :ivar marked: whether ``progress`` has an entry for it.
    :ivar accepted: when its oldest one was accepted, in milliseconds since 1970; ``None`` when none was read.
    """

    __slots__ = ("accepted", "id", "kept", "left", "marked", "settled", "size")

    def __init__(self, id_: int, count: int, size: int, settled: bytes | None = None) -> None:
        self.id = id_
        self.accepted: int | None = None
        self.size = size
        self.kept = count
        self.marked = settled is not None
        self.settled = bytearray(settled if settled is not None else (count + 7) // 8)
        self.left = count - sum(byte.bit_count() for byte in self.settled)

    @classmethod
    def stored(cls, id_: int, count: Any, size: Any, settled: Any) -> Batch:
        """
        Take a row's columns, and its progress, as they are in the file.

        :raises sqlite3.DatabaseError: when they cannot be what was written.
        """
        sound = type(count) is int and 0 < count <= MOST and type(size) is int
        if sound and settled is not None:
            sound = isinstance(settled, bytes) and len(settled) == (count + 7) // 8
            sound = sound and int.from_bytes(settled, "little") < 1 << count
        if not sound:
            raise sqlite3.DatabaseError(f"row {id_} of batch, or its progress, is not as it was written")
        return cls(id_, count, size, settled)

    def leave_out(self, index: int) -> None:
        """Settle a delivery that was never stored."""
        self.settled[index >> 3] |= 1 << (index & 7)
        self.left -= 1
        self.kept -= 1
        self.marked = True

    @property
    def spare(self) -> int:
        """About how many bytes of the row settled deliveries take."""
        return self.size * (self.kept - self.left) // self.kept

    def holds(self, index: int) -> bool:
        """Say whether a delivery is not settled."""
        return not self.settled[index >> 3] >> (index & 7) & 1


class Plan:
    """
    What one transaction writes for one outbox.

    :ivar rows: new ones: number, count, checksum, deliveries.
    :ivar batches: the new rows once more, for who reads them.
    :ivar accepting: wait for this transaction.
    :ivar finished: rows that are to go.
    :ivar progress: what is settled of other rows, by number.
    :ivar dead: new dead letters.
    :ivar resolved: numbers of dead letters that are to go.
    :ivar thinned: rows that are written anew: checksum, deliveries, number.
    :ivar dropped: numbers of rows that have to make room.
    :ivar forgotten: how many dead letters had to make room; known once it is written.
    :ivar counters: the row of ``webhook``: accepted, delivered, dead, dropped, bytes, the last number given.
    """

    def __init__(self, outbox: SqliteOutbox) -> None:
        self.outbox = outbox
        self.rows: list[tuple[int, int, int, bytes]] = []
        self.batches: list[tuple[Batch, Sequence[Delivery | None]]] = []
        self.accepting: list[Deferred[None]] = []
        self.finished: list[Batch] = []
        self.progress: list[tuple[int, bytes]] = []
        self.dead: list[DeadLetter] = []
        self.resolved: list[int] = []
        self.thinned: list[tuple[int, bytes, int]] = []
        self.dropped: list[int] = []
        self.forgotten = 0
        self.counters = (0, 0, 0, 0, 0, 0)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write it all, within a transaction."""
        if self.rows:
            connection.executemany("INSERT INTO batch VALUES (?, ?, ?, ?)", self.rows)
        for letter in self.dead:
            self._bury(connection, letter)
        if self.thinned:
            connection.executemany("UPDATE batch SET checksum = ?, deliveries = ? WHERE id = ?", self.thinned)
        if self.progress:
            connection.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?)", self.progress)
        gone = [batch.id for batch in self.finished] + self.dropped
        if _delete(connection, "DELETE FROM batch WHERE id BETWEEN ? AND ?", gone) != len(gone):
            # Else they would be counted as settled, and found and sent again when the file is repaired.
            raise sqlite3.DatabaseError("rows of batch cannot be found")
        marked = [batch.id for batch in self.finished if batch.marked]
        _delete(connection, "DELETE FROM progress WHERE batch BETWEEN ? AND ?", marked + self.dropped)
        if self.resolved:
            connection.executemany("DELETE FROM dead WHERE id = ?", [(number,) for number in self.resolved])
        if self.dead:
            self.forgotten = connection.execute(
                "DELETE FROM dead WHERE webhook = ?1 AND id <= "
                "(SELECT id FROM dead WHERE webhook = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                (self.outbox.name, self.outbox.dead_max),
            ).rowcount
        connection.execute(
            "UPDATE webhook SET accepted = ?, delivered = ?, dead = ?, dropped = ?, bytes = ?, last = ? WHERE id = ?",
            (*self.counters, self.outbox.key),
        )

    def _bury(self, connection: sqlite3.Connection, letter: DeadLetter) -> None:
        connection.execute(
            "INSERT INTO dead (webhook, url, reason, status, answer, died, delivery) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (letter.webhook, letter.url, letter.reason, letter.status, letter.answer, letter.died, encode(letter.delivery)),
        )

    def leave_out(self, connection: sqlite3.Connection) -> bool:
        """
        Find the deliveries that cannot be stored, writing each alone, and bury them without their bodies.

        :param connection: in a transaction that is rolled back afterwards.
        :returns: whether there were any.
        """
        found = False
        for at in reversed(range(len(self.rows))):
            batch, deliveries = self.batches[at]
            if self._problem(self._insert, connection, self.rows[at]) is None:
                continue
            kept: list[Delivery | None] = list(deliveries)
            for index, delivery in enumerate(deliveries):
                data = encode([delivery])
                problem = self._problem(self._insert, connection, (batch.id, 1, crc32(data), data))
                if problem is not None and delivery is not None:
                    kept[index] = None
                    batch.leave_out(index)
                    self.outbox.refuse(self, delivery, problem)
            found = found or kept != deliveries
            if batch.left:
                data = encode(kept)
                self.rows[at] = (batch.id, len(kept), crc32(data), data)
                self.batches[at] = batch, kept
                self.progress.append((batch.id, bytes(batch.settled)))
            else:
                del self.rows[at], self.batches[at]
        for at, letter in enumerate(self.dead):
            problem = self._problem(self._bury, connection, letter)
            if problem is not None:
                found = True
                self.dead[at] = without_body(letter, f"{letter.reason}; it cannot be stored: {problem}")
        return found

    def _insert(self, connection: sqlite3.Connection, row: tuple[int, int, int, bytes]) -> None:
        connection.execute("INSERT INTO batch VALUES (?, ?, ?, ?)", row)

    def _problem(
        self, write: Callable[[sqlite3.Connection, Any], None], connection: sqlite3.Connection, what: object
    ) -> Exception | None:
        connection.execute("SAVEPOINT alone")
        try:
            write(connection, what)
        except UNSTORABLE as error:
            return error
        finally:
            connection.execute("ROLLBACK TO alone")
        return None


def without_body(letter: DeadLetter, reason: str) -> DeadLetter:
    """
    Make a dead letter that can be stored, whatever is in it.

    :param reason: why it is stored without the body; the delivery's id, client and size are added.
    """
    delivery = letter.delivery
    id_, client, url = (_text(value) for value in (delivery.id, delivery.client, letter.url))
    reason = f"{_text(reason)} (stored without its body: id {id_}, client {client[:256]!r}, {len(delivery.body)} bytes)"
    bare = Delivery(
        id_, client[:LONGEST_CLIENT], _number(delivery.timestamp), b"", _number(delivery.accepted), delivery.attempts
    )
    return DeadLetter(0, letter.webhook, bare, url, reason, letter.status, bytes(letter.answer[:1024]), letter.died)


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()


def _number(value: int) -> int:
    return value if 0 <= value < 1 << 63 else 0


def _delete(connection: sqlite3.Connection, statement: str, numbers: list[int]) -> int:
    """
    Delete by ranges: that is a third of the cost of doing it one by one.

    :returns: how many were there.
    """
    found = 0
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        found += connection.execute(statement, (members[0], members[-1])).rowcount
    return found


def chunks(deliveries: Sequence[Delivery], size: int) -> Iterable[Sequence[Delivery]]:
    """Cut what is written together into rows; ``size`` is how many bytes the bodies have."""
    if size <= BATCH_BYTES:
        for start in range(0, len(deliveries), BATCH):
            yield deliveries[start : start + BATCH]
        return
    start = size = 0
    for index, delivery in enumerate(deliveries):
        if index > start and (index - start == BATCH or size + len(delivery.body) > BATCH_BYTES):
            yield deliveries[start:index]
            start, size = index, 0
        size += len(delivery.body)
    if start < len(deliveries):
        yield deliveries[start:]
