"""
Dead letters, also seen from outside the process that owns the outbox.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from mqhooks.errors import OutboxError
from mqhooks.outbox import longrows, schema
from mqhooks.outbox.delivery import LONG_BODY, DeadLetter, Delivery

Action = Literal["replay", "purge"]

# What is long is not read with the rest.
_LETTER = f"CASE WHEN length(delivery) <= {LONG_BODY} THEN delivery END"

_decode = msgspec.msgpack.Decoder(Delivery).decode


def list_dead(
    source: longrows.Source, webhook: str | None, after: int, limit: int, reason: str | None = None
) -> list[DeadLetter]:
    """
    Read dead letters, oldest first, as :meth:`mqhooks.outbox.sqlite.SqliteStore.dead_letters` does.

    :raises sqlite3.DatabaseError: when something else of one than its delivery is damaged.
    """
    rows = source.reader.execute(
        f"SELECT id, webhook, {_LETTER}, url, reason, status, answer, died FROM dead "
        "WHERE id > ?1 AND (?2 IS NULL OR webhook = ?2) AND (?4 IS NULL OR instr(reason, ?4)) ORDER BY id LIMIT ?3",
        (after, webhook, limit, reason),
    ).fetchall()
    letters = []
    for number, name, data, url, why, status, answer, died in rows:
        damage = ""
        try:
            delivery = longrows.read(source, "dead", number) if data is None else _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            delivery, damage = Delivery("", "", 0, b""), str(error)
            why += f" (its row is damaged: {damage})"
        letters.append(DeadLetter(number, name, delivery, url, why, status, answer, died, damage))
    return letters


class Letters:
    """
    The dead letters in a file that another process may be using.

    What is asked for is done by that process within a second, or by the next one that opens the file.

    :param path: the outbox.
    :ivar reader: reads it.
    :raises mqhooks.errors.OutboxError: when there is none.
    """

    def __init__(self, path: str) -> None:
        if not os.path.exists(path):
            raise OutboxError(f"{path}: does not exist; name the outbox with --outbox or the configuration with --config")
        try:
            schema.check(path)
            self.reader = schema.connect(path)
        except sqlite3.DatabaseError as error:
            raise OutboxError(f"{path}: cannot be read ({error})") from None

    def lost(self, error: sqlite3.DatabaseError) -> None:
        """Nothing is to be done: the file is another process's."""

    def __iter__(self) -> Iterator[DeadLetter]:
        """Go through all of them, oldest first."""
        return self.of(None)

    def of(self, webhook: str | None) -> Iterator[DeadLetter]:
        """Go through those of one webhook, oldest first; of all for ``None``."""
        after = 0
        while found := list_dead(self, webhook, after, 100):
            yield from found
            after = found[-1].number

    def get(self, number: int) -> DeadLetter:
        """
        Get one.

        :raises mqhooks.errors.OutboxError: when there is none of that number.
        """
        found = list_dead(self, None, number - 1, 1)
        if not found or found[0].number != number:
            raise OutboxError(f"there is no dead letter {number}")
        return found[0]

    def ask(self, action: Action, numbers: Iterable[int]) -> int:
        """
        Ask for dead letters to be replayed or purged.

        :returns: how many.
        """
        rows = [(action, number) for number in numbers]
        with self.reader:
            self.reader.execute("BEGIN IMMEDIATE")
            self.reader.executemany("INSERT INTO request (action, dead) VALUES (?, ?)", rows)
        return len(rows)

    def close(self) -> None:
        """Close the file."""
        self.reader.close()
