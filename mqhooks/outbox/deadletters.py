"""
Reading dead letters, also from outside the process that owns the outbox.

- A damaged dead letter hides no other: it is listed, with its damage, so that it can be purged.
- Another process only reads. What it wants done it writes into a table, and the owner does it: no port, no second owner.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import OutboxDamaged, OutboxError, OutboxUnavailable
from mqhooks.outbox import schema
from mqhooks.outbox.stored import decode_delivery

Action = Literal["replay", "purge"]

STRETCH = 5000
"""How many dead letters one call looks through, at half a microsecond each."""

REQUESTS = 1000
"""How many requests are written in one transaction, so that the outbox's owner never waits long for its turn."""

_LAST = (1 << 63) - 1
_COLUMNS = "id, version, checksum, delivery, webhook, url, reason, status, answer, died, damage"
_TYPES = (str, str, str, int, bytes, int, str)
_REASON = _COLUMNS.split(", ").index("reason")


def list_dead(
    reader: sqlite3.Connection,
    webhook: str | None,
    after: int,
    limit: int,
    reason: str | None = None,
    upto: int | None = None,
) -> list[DeadLetter]:
    """
    Read dead letters, oldest first, as :meth:`mqhooks.outbox.sqlite.SqliteStore.dead_letters` does.

    :raises mqhooks.errors.OutboxError: when not even their numbers can be read.
    """
    question = (
        f"SELECT {_COLUMNS} FROM dead "
        "WHERE id > ?1 AND id <= ?5 AND (?2 IS NULL OR webhook = ?2) AND (?4 IS NULL OR instr(reason, ?4)) ORDER BY id LIMIT ?3"
    )
    last = _LAST if upto is None else upto
    with _ours():
        try:
            rows = reader.execute(question, (after, webhook, limit, reason, last)).fetchall()
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            rows = list(islice(_one_by_one(reader, webhook, after, reason, last), limit))
    return [_letter(*row) for row in rows]


def count_dead(reader: sqlite3.Connection, webhook: str | None, reason: str, after: int = 0, upto: int | None = None) -> int:
    """Count dead letters, as :meth:`mqhooks.outbox.sqlite.SqliteStore.count_dead` does."""
    question = "SELECT count(*) FROM dead WHERE id > ?3 AND id <= ?4 AND (?1 IS NULL OR webhook = ?1) AND instr(reason, ?2)"
    last = _LAST if upto is None else upto
    with _ours():
        try:
            return int(reader.execute(question, (webhook, reason, after, last)).fetchone()[0])
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            return sum(1 for _ in _one_by_one(reader, webhook, after, reason, last))


def stretch(reader: sqlite3.Connection, after: int) -> int | None:
    """Say how far one look goes, as :meth:`mqhooks.outbox.sqlite.SqliteStore.stretch_of_dead` does."""
    question = "SELECT max(id) FROM (SELECT id FROM dead %s WHERE id > ? ORDER BY id LIMIT ?)"
    with _ours():
        try:
            (found,) = reader.execute(question % "", (after, STRETCH)).fetchone()
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            (found,) = reader.execute(question % "INDEXED BY dead_webhook", (after, STRETCH)).fetchone()
    return None if found is None else int(found)


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise (OutboxUnavailable if schema.passing(error) else OutboxDamaged)(str(error)) from None


def _one_by_one(
    reader: sqlite3.Connection, webhook: str | None, after: int, reason: str | None, last: int
) -> Iterator[Sequence[Any]]:
    """Go through dead letters by their index, so that an unreadable one hides no other."""
    question = (
        "SELECT id, webhook FROM dead INDEXED BY dead_webhook "
        "WHERE id > ?1 AND id <= ?3 AND (?2 IS NULL OR webhook = ?2) ORDER BY id"
    )
    for number, name in reader.execute(question, (after, webhook, last)).fetchall():
        row: Sequence[Any] | None
        try:
            row = reader.execute(f"SELECT {_COLUMNS} FROM dead WHERE id = ?", (number,)).fetchone()
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            row = (number, 0, 0, b"", name, "", str(error), 0, b"", 0, "")
        if row is not None and (reason is None or reason in str(row[_REASON])):
            yield row


def _letter(number: int, version: object, check: object, data: object, *values: Any) -> DeadLetter:
    sound: list[Any] = [value if isinstance(value, type_) else type_() for value, type_ in zip(values, _TYPES, strict=True)]
    name, url, reason, status, answer, died, bare = sound
    damage = "" if values == tuple(sound) else "a value is of another type than it was"
    delivery = Delivery("", "", 0, b"")
    try:
        delivery = decode_delivery(name, version, check, data)
    except ValueError as error:
        damage = damage or str(error)
    if damage:
        reason += f" (its row is damaged: {damage})"
    return DeadLetter(number, name, delivery, url, reason, status, answer, died, damage or bare)


class Letters:
    """
    The dead letters in a file that another process may be using.

    Requests are carried out by that process within a second, or by the next one that opens the file.

    :param path: the outbox.
    :ivar reader: a connection to it.
    :raises mqhooks.errors.OutboxError: when there is no outbox, or it cannot be read.
    """

    def __init__(self, path: str) -> None:
        if not os.path.exists(path):
            raise OutboxError(f"{path}: does not exist; name the outbox with --outbox or the configuration with --config")
        schema.check(path)
        try:
            self.reader = schema.connect(path)
        except sqlite3.DatabaseError as error:
            raise OutboxError(f"{path}: cannot be read ({error})") from None

    def __iter__(self) -> Iterator[DeadLetter]:
        """Go through all of them, oldest first."""
        return self.of(None)

    def of(self, webhook: str | None) -> Iterator[DeadLetter]:
        """Go through those of one webhook, oldest first; of all for ``None``."""
        after = 0
        while found := list_dead(self.reader, webhook, after, 100):
            yield from found
            after = found[-1].number

    def webhooks(self) -> list[str]:
        """List the webhooks that the outbox knows."""
        with _ours():
            return [str(name) for (name,) in self.reader.execute("SELECT name FROM webhook ORDER BY name")]

    def get(self, number: int) -> DeadLetter:
        """
        Get one.

        :raises mqhooks.errors.OutboxError: when there is none with that number.
        """
        found = list_dead(self.reader, None, number - 1, 1)
        if not found or found[0].number != number:
            raise OutboxError(f"there is no dead letter {number}")
        return found[0]

    def ask(self, action: Action, numbers: Iterable[int]) -> int:
        """
        Ask for dead letters to be replayed or purged.

        :returns: how many.
        """
        rows = [(action, number) for number in numbers]
        for start in range(0, len(rows), REQUESTS):
            with _ours(), self.reader:
                self.reader.execute("BEGIN IMMEDIATE")
                self.reader.executemany("INSERT INTO request (action, dead) VALUES (?, ?)", rows[start : start + REQUESTS])
        return len(rows)

    def close(self) -> None:
        """Close the file."""
        self.reader.close()
