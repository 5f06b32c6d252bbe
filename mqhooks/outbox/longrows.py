"""
Rows with one long delivery, written and read piece by piece.

They have the same bytes as if they were written at once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import chain
from typing import Literal, Protocol
from zlib import crc32

import msgspec

from mqhooks.errors import OutboxError
from mqhooks.outbox.delivery import LONG_BODY, Delivery, pieces, whole

PIECE = 1 << 20
"""How many bytes are read at a time."""

Table = Literal["batch", "dead"]

_COLUMNS: dict[Table, str] = {"batch": "deliveries", "dead": "delivery"}
_LIST_OF_ONE, _FIELDS, _NO_BYTES, _BYTES = b"\x91", b"\x97", b"\xc4\x00", b"\xc6"
_SHORT_BYTES = (b"\xc4", b"\xc5")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Delivery).decode


class Source(Protocol):
    """
    Who has the file.

    :ivar reader: the connection to read with.
    """

    @property
    def reader(self) -> sqlite3.Connection:
        """Get the connection."""

    def lost(self, error: sqlite3.DatabaseError) -> None:
        """Take note that something could not be read. It may be called in any thread."""


class LongRow:
    """
    What of a row stands before and after its delivery's body.

    :param delivery: with a body of more than :data:`~mqhooks.outbox.delivery.LONG_BODY` bytes.
    :param table: where it goes: ``batch`` has lists of deliveries, ``dead`` single ones.
    :ivar size: how many bytes the row has.
    """

    def __init__(self, delivery: Delivery, table: Table) -> None:
        self.delivery = delivery
        fields = b"".join([_encode(value) for value in (delivery.id, delivery.client, delivery.timestamp)])
        start = (_LIST_OF_ONE if table == "batch" else b"") + _FIELDS
        self._table: Table = table
        self._head = b"%b%b%b%b" % (start, fields, _BYTES, len(delivery.body).to_bytes(4, "big"))
        self._tail = b"".join([_encode(value) for value in (delivery.accepted, delivery.attempts, delivery.place)])
        self.size = len(self._head) + len(delivery.body) + len(self._tail)

    def checksum(self, connection: sqlite3.Connection) -> int:
        """Work out what the row's checksum will be; a body that is in the file is read with this connection."""
        return _crc32(self._all(connection))

    def write(self, connection: sqlite3.Connection, number: int) -> None:
        """
        Write it over the zeros of a row that was made with its size.

        :param number: the row's.
        """
        with connection.blobopen(self._table, _COLUMNS[self._table], number) as blob:
            for piece in self._all(connection):
                blob.write(piece)

    def stored(self, source: Source, number: int) -> StoredBody:
        """Say where the body is once it is written."""
        return StoredBody(source, self._table, number, len(self._head), len(self.delivery.body))

    def _all(self, connection: sqlite3.Connection) -> Iterator[bytes]:
        body = self.delivery.body
        middle = body.pieces(connection) if isinstance(body, StoredBody) else pieces(body)
        return chain((self._head,), middle, (self._tail,))


class StoredBody:
    """
    A body in the file.

    :param source: has the file.
    :param number: the row's.
    :param start: where in the row it begins.
    :param length: how many bytes it has.
    """

    def __init__(self, source: Source, table: Table, number: int, start: int, length: int) -> None:
        self._source = source
        self._table: Table = table
        self._number = number
        self._start = start
        self._length = length

    def __len__(self) -> int:
        return self._length

    def pieces(self, connection: sqlite3.Connection | None = None) -> Iterator[bytes]:
        """
        Read it.

        :param connection: ``None`` for the one for questions.
        :raises mqhooks.errors.OutboxError: when it can no longer be read.
        """
        for at in range(0, self._length, PIECE):
            # A row that stayed open while its body is sent would keep the log of writes growing.
            try:
                with _open(connection or self._source.reader, self._table, self._number) as blob:
                    blob.seek(self._start + at)
                    piece = blob.read(min(PIECE, self._length - at))
            except sqlite3.DatabaseError as error:
                self._source.lost(error)
                raise OutboxError(f"row {self._number} of {self._table} cannot be read ({error})") from None
            yield piece


def read(source: Source, table: Table, number: int) -> Delivery:
    """
    Read a row's one delivery, but leave its body where it is if it is long.

    :raises sqlite3.DatabaseError: when the row cannot be read.
    :raises msgspec.DecodeError: when it is damaged; ``UnicodeDecodeError`` when a string is.
    """
    with _open(source.reader, table, number) as blob:
        before = len(_LIST_OF_ONE) if table == "batch" else 0
        start = end = before + len(_FIELDS)
        for _ in range(3):
            end = _skip(_at(blob, end), end)
        kind = _at(blob, end)
        if kind[:1] in _SHORT_BYTES:
            # It is the client that is long.
            blob.seek(before)
            return _decode(blob.read())
        if kind[:1] != _BYTES:
            raise msgspec.DecodeError("no body is where one should be")
        length = int.from_bytes(kind[1:], "big")
        if end + 5 + length > len(blob):
            raise msgspec.DecodeError("a body is longer than its row")
        blob.seek(start)
        fields = blob.read(end - start)
        blob.seek(end + 5 + length)
        delivery = _decode(b"%b%b%b%b" % (_FIELDS, fields, _NO_BYTES, blob.read()))
    stored = StoredBody(source, table, number, end + 5, length)
    delivery.body = stored if length > LONG_BODY else whole(stored)
    return delivery


def checksum(connection: sqlite3.Connection, number: int) -> int:
    """
    Work out the checksum of what a row of ``batch`` holds.

    :raises sqlite3.DatabaseError: when it cannot be read.
    """
    with _open(connection, "batch", number) as blob:
        return _crc32(iter(lambda: blob.read(PIECE), b""))


def _open(connection: sqlite3.Connection, table: Table, number: int) -> sqlite3.Blob:
    return connection.blobopen(table, _COLUMNS[table], number, readonly=True)


def _crc32(data: Iterator[bytes]) -> int:
    checksum = 0
    for piece in data:
        checksum = crc32(piece, checksum)
    return checksum


def _at(blob: sqlite3.Blob, at: int) -> bytes:
    """Read what says how long a value is."""
    blob.seek(min(at, len(blob)))
    return blob.read(5)


def _skip(head: bytes, at: int) -> int:
    """Find the end of a string or a number that begins with ``head`` and at a place, as MessagePack writes them."""
    kind = head[0] if head else 0xC1
    if kind < 0x80 or kind >= 0xE0:
        return at + 1
    if 0xA0 <= kind < 0xC0:
        return at + 1 + kind - 0xA0
    if kind in (0xD9, 0xDA, 0xDB):
        size = 1 << (kind - 0xD9)
        return at + 1 + size + int.from_bytes(head[1 : 1 + size], "big")
    if 0xCC <= kind <= 0xD3:
        return at + 1 + (1 << (kind & 3))
    raise msgspec.DecodeError(f"neither a string nor a number begins with {kind:#x}")
