"""
Hand deliveries and dead letters over to the process that owns an outbox.

They go into the table ``inbox``: the running process takes them over within a second, or else the next one does. They are
written in pieces, each in one transaction with the progress so far, so the command that hands them over may be interrupted
at any time and run again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from mqhooks.outbox.stored import VERSION, checksum

PIECE = 4 << 20
"""Bytes handed over in one transaction, approximately."""

PATIENCE = 30.0
"""Seconds that a transaction waits for those of the process that owns the outbox."""


class Handed(NamedTuple):
    """
    A row or a dead letter to hand over.

    :param number: grows from one to the next.
    :param webhook: the webhook that it belongs to.
    :param letter: 1 for a dead letter, 0 for a row.
    :param content: encoded for the inbox.
    :param deliveries: the number of deliveries in it.
    """

    number: int
    webhook: str
    letter: int
    content: bytes
    deliveries: int


def progress(target: sqlite3.Connection, source: str) -> tuple[int, int]:
    """
    Get how much of a source has been handed over already.

    :param source: a hash of its content.
    :returns: the numbers of the last row and of the last dead letter; 0 for none.
    """
    target.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
    target.execute("INSERT OR IGNORE INTO salvage VALUES (?, 0, 0)", (source,))
    batch, dead = target.execute("SELECT batch, dead FROM salvage WHERE source = ?", (source,)).fetchone()
    return batch, dead


def hand_over(target: sqlite3.Connection, source: str, kind: Literal["batch", "dead"], handed: Iterable[Handed]) -> int:
    """
    Hand over rows or dead letters, and note the progress for :func:`progress`.

    :param handed: those not handed over yet, in order.
    :returns: the number of deliveries in them.
    """
    count = 0
    for piece in pieces(handed):
        target.execute("BEGIN IMMEDIATE")
        try:
            for each in piece:
                values = (each.webhook, VERSION, each.letter, checksum(0, VERSION, each.content), each.content)
                target.execute("INSERT INTO inbox (webhook, version, letter, checksum, content) VALUES (?, ?, ?, ?, ?)", values)
                count += each.deliveries
            target.execute(f"UPDATE salvage SET {kind} = ? WHERE source = ?", (piece[-1].number, source))
            target.execute("COMMIT")
        except BaseException:
            if target.in_transaction:
                target.execute("ROLLBACK")
            raise
    return count


def pieces(handed: Iterable[Handed], most: int | None = None) -> Iterator[list[Handed]]:
    """Divide into pieces of about :data:`PIECE` bytes, and of ``most`` rows or dead letters."""
    piece: list[Handed] = []
    size = 0
    for each in handed:
        piece.append(each)
        size += len(each.content)
        if size >= PIECE or len(piece) == most:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
