"""
Read dead letters, also from outside the process that owns the outbox.

- A damaged dead letter hides no other: it is listed, with its damage, so that it can be purged.
- Another process only reads. It writes its requests into a table, and the owner carries them out: no port, no second owner.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Literal, NamedTuple

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import OutboxDamaged, OutboxError, OutboxUnavailable
from mqhooks.outbox import schema
from mqhooks.outbox.exchange import import_lines
from mqhooks.outbox.handed import PATIENCE
from mqhooks.outbox.stored import CLIENT_BYTES, decode_delivery, is_client

Action = Literal["replay", "purge"]

STRETCH = 5000
"""Dead letters that one call looks through, at half a microsecond each."""

CHUNK_BYTES = 4 << 20
"""Bytes of bodies read at a time, approximately, unless a single one is longer."""

REQUESTS = 1000
"""Requests written in one transaction: few, so that the outbox's owner never waits long for its turn."""

_LAST = (1 << 63) - 1
_COLUMNS = "id, version, checksum, delivery, webhook, url, reason, status, answer, died, damage"
_TYPES = (str, str, str, int, bytes, int, str)
_ASKED = [_COLUMNS.split(", ").index(column) for column in ("delivery", "reason", "status", "died")]
_FITS = (
    "id > :after AND id <= :upto AND (:webhook IS NULL OR webhook = :webhook) "
    "AND (:least IS NULL OR status BETWEEN :least AND :most) "
    "AND (:since IS NULL OR died >= :since) AND (:until IS NULL OR died < :until) "
    "AND (:reason IS NULL OR instr(reason, :reason)) "
    # Of a long delivery, only the part with the client is read.
    f"AND (:client IS NULL OR is_client(substr(delivery, 1, {CLIENT_BYTES}), :client))"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Selects dead letters; ``None`` matches any.

    :param webhook: those of this webhook.
    :param reason: those whose reason contains this.
    :param client: those of this client, given as its id, or as its mountpoint, a slash, and its id.
    :param status: those whose last answer had a status from the first to the second of these; 0 stands for no answer.
    :param since: those given up at this time or later, in milliseconds since 1970.
    :param until: those given up before this time, likewise.
    """

    webhook: str | None = None
    reason: str | None = None
    client: str | None = None
    status: tuple[int, int] | None = None
    since: int | None = None
    until: int | None = None

    @property
    def narrow(self) -> bool:
        """Whether it selects by more than the webhook."""
        return self != Filter(self.webhook)

    def wants(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter matches."""
        client = letter.delivery.client
        return (
            self.webhook in (None, letter.webhook)
            and (self.reason is None or self.reason in letter.reason)
            and (self.client is None or self.client in (client.rpartition("\0")[2], client.replace("\0", "/")))
            and (self.status is None or self.status[0] <= letter.status <= self.status[1])
            and (self.since is None or self.since <= letter.died)
            and (self.until is None or letter.died < self.until)
        )

    def fits(self, row: Sequence[Any]) -> bool:
        """Return whether a row matches, its webhook aside; for when SQL cannot be used."""
        data, reason, status, died = (row[index] for index in _ASKED)
        numbers = [value if isinstance(value, int) else 0 for value in (status, died)]
        return (
            (self.reason is None or self.reason in str(reason))
            and (self.client is None or is_client(data, self.client))
            and (self.status is None or self.status[0] <= numbers[0] <= self.status[1])
            and (self.since is None or self.since <= numbers[1])
            and (self.until is None or numbers[1] < self.until)
        )

    def values(self, after: int, upto: int | None) -> dict[str, Any]:
        """Get the SQL's parameters, for letters with numbers above ``after`` and up to ``upto``."""
        least, most = (None, None) if self.status is None else self.status
        asked = {
            "webhook": self.webhook,
            "reason": self.reason,
            "client": self.client,
            "since": self.since,
            "until": self.until,
        }
        return asked | {"least": least, "most": most, "after": after, "upto": _LAST if upto is None else upto}


ANY = Filter()
"""All dead letters."""


def status_range(text: str) -> tuple[int, int]:
    """
    Parse a status as a person writes it: ``503``, ``5xx``, or 0 for no answer.

    :raises ValueError: when it is none of these.
    """
    if re.fullmatch("[1-9]xx", text, re.ASCII | re.IGNORECASE):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    if not re.fullmatch("0|[1-9][0-9][0-9]", text, re.ASCII):
        raise ValueError(f"{text[:80]!r} is not a status like 503 or 5xx, or 0 for no answer")
    return int(text), int(text)


def list_dead(reader: sqlite3.Connection, only: Filter, after: int, limit: int, upto: int | None = None) -> list[DeadLetter]:
    """
    Read dead letters, oldest first, as :meth:`mqhooks.outbox.sqlite.SqliteStore.dead_letters` does.

    :raises mqhooks.errors.OutboxError: when not even their numbers can be read.
    """
    question = f"SELECT {_COLUMNS} FROM dead WHERE {_FITS} ORDER BY id LIMIT :limit"
    with _ours():
        try:
            return _some(reader.execute(question, only.values(after, upto) | {"limit": limit}), limit)
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            return _some(_one_by_one(reader, only, after, upto), limit)


def _some(rows: Iterable[Sequence[Any]], limit: int) -> list[DeadLetter]:
    """Read rows until there are enough of them, or their bodies reach :data:`CHUNK_BYTES`."""
    letters: list[DeadLetter] = []
    size = 0
    for row in islice(rows, limit):
        letters.append(_letter(*row))
        size += len(letters[-1].delivery.body)
        if size >= CHUNK_BYTES:
            break
    return letters


def count_dead(reader: sqlite3.Connection, only: Filter, after: int = 0, upto: int | None = None) -> int:
    """Count dead letters, as :meth:`mqhooks.outbox.sqlite.SqliteStore.count_dead` does."""
    with _ours():
        try:
            return int(reader.execute(f"SELECT count(*) FROM dead WHERE {_FITS}", only.values(after, upto)).fetchone()[0])
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            return sum(1 for _ in _one_by_one(reader, only, after, upto))


def stretch(reader: sqlite3.Connection, after: int) -> int | None:
    """Return how far one call should look, as :meth:`mqhooks.outbox.sqlite.SqliteStore.stretch_of_dead` does."""
    return _highest(reader, "SELECT max(id) FROM (SELECT id FROM dead %s WHERE id > ? ORDER BY id LIMIT ?)", after, STRETCH)


def _highest(reader: sqlite3.Connection, question: str, *values: int) -> int | None:
    """Query a number, through the index if the table is damaged."""
    with _ours():
        try:
            (found,) = reader.execute(question % "", values).fetchone()
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            (found,) = reader.execute(question % "INDEXED BY dead_webhook", values).fetchone()
    return None if found is None else int(found)


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise (OutboxUnavailable if schema.passing(error) else OutboxDamaged)(str(error)) from None


def _one_by_one(reader: sqlite3.Connection, only: Filter, after: int, upto: int | None) -> Iterator[Sequence[Any]]:
    """Iterate over dead letters by their index, so that an unreadable one hides no other."""
    question = (
        "SELECT id, webhook FROM dead INDEXED BY dead_webhook "
        "WHERE id > :after AND id <= :upto AND (:webhook IS NULL OR webhook = :webhook) ORDER BY id"
    )
    for number, name in reader.execute(question, only.values(after, upto)).fetchall():
        row: Sequence[Any] | None
        try:
            row = reader.execute(f"SELECT {_COLUMNS} FROM dead WHERE id = ?", (number,)).fetchone()
        except sqlite3.DatabaseError as error:
            if schema.passing(error):
                raise
            row = (number, 0, 0, b"", name, "", str(error), 0, b"", 0, "")
        if row is not None and only.fits(row):
            yield row


def _letter(number: int, version: object, check: object, data: object, *values: Any) -> DeadLetter:
    sound: list[Any] = [value if isinstance(value, type_) else type_() for value, type_ in zip(values, _TYPES, strict=True)]
    name, url, reason, status, answer, died, bare = sound
    damage = "" if values == tuple(sound) else "a value has changed its type"
    delivery = Delivery("", "", 0, b"")
    try:
        delivery = decode_delivery(name, version, check, data)
    except ValueError as error:
        damage = damage or str(error)
    if damage:
        reason += f" (its row is damaged: {damage})"
    return DeadLetter(number, name, delivery, url, reason, status, answer, died, damage or bare)


class Group(NamedTuple):
    """
    Dead letters that are alike.

    :param letters: the number of them.
    :param first: when the first of them was given up, in milliseconds since 1970; likewise ``last``.
    """

    letters: int
    first: int
    last: int
    webhook: str
    url: str
    status: int
    reason: str


def grouped(letters: Iterable[DeadLetter]) -> list[Group]:
    """Group dead letters that are alike, the largest group first."""
    alike: dict[tuple[str, str, int, str], Group] = {}
    for letter in letters:
        key = letter.webhook, letter.url, letter.status, letter.reason
        known = alike.get(key, Group(0, letter.died, letter.died, *key))
        alike[key] = Group(known.letters + 1, min(known.first, letter.died), max(known.last, letter.died), *key)
    return sorted(alike.values(), key=lambda group: -group.letters)


class Letters:
    """
    The dead letters in a file that another process may be using.

    That process carries out requests within a second, or else the next one that opens the file does.

    :param path: the outbox.
    :ivar reader: a connection to the file.
    :ivar done: when a request takes effect, as part of a sentence.
    :raises mqhooks.errors.OutboxError: when there is no outbox, or it cannot be read.
    """

    done = "done within a second by the mqhooks that owns the outbox, or when one starts"

    def __init__(self, path: str) -> None:
        self._path = path
        if not os.path.exists(path):
            raise OutboxError(f"{path}: does not exist; name the outbox with --outbox or the configuration with --config")
        schema.check(path)
        try:
            self.reader = schema.connect(path)
        except sqlite3.DatabaseError as error:
            raise OutboxError(f"{path}: cannot be read ({error})") from None

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over all of them, oldest first."""
        return self.of(ANY)

    def of(self, only: Filter) -> Iterator[DeadLetter]:
        """Iterate over those that match and are there now, oldest first."""
        # A letter that is replayed and dies again meanwhile is a new one.
        with self._named():
            last = _highest(self.reader, "SELECT max(id) FROM dead %s") or 0
        after = 0
        while found := self._some(only, after, 100, last):
            yield from found
            after = found[-1].number

    def _some(self, only: Filter, after: int, limit: int, upto: int | None = None) -> list[DeadLetter]:
        with self._named():
            return list_dead(self.reader, only, after, limit, upto)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say which file an error is about, and what to do."""
        try:
            yield
        except OutboxUnavailable as error:
            raise OutboxUnavailable(f"{self._path}: cannot be used now ({error}); try again") from None
        except OutboxDamaged as error:
            raise OutboxDamaged(f"{self._path}: is damaged ({error}); see the log of the mqhooks that owns it") from None

    def groups(self, only: Filter) -> Iterator[Group]:
        """Group those that match by webhook, URL, status and reason, the largest group first."""
        question = (
            "SELECT count(*) AS number, min(died), max(died), webhook, url, status, reason FROM dead "
            f"WHERE {_FITS} GROUP BY webhook, url, status, reason ORDER BY number DESC, min(id)"
        )
        with self._named(), _ours():
            try:
                # All at once: a reader that pauses would keep the outbox's owner from reusing its write-ahead log.
                rows = self.reader.execute(question, only.values(0, None)).fetchall()
            except sqlite3.DatabaseError as error:
                if schema.passing(error):
                    raise
                rows = None
        yield from grouped(self.of(only)) if rows is None else (Group(*row) for row in rows)

    def webhooks(self) -> list[str]:
        """List the webhooks that the outbox knows."""
        with self._named(), _ours():
            return [str(name) for (name,) in self.reader.execute("SELECT name FROM webhook ORDER BY name")]

    def get(self, number: int) -> DeadLetter:
        """
        Get a dead letter.

        :raises mqhooks.errors.OutboxError: when none has that number.
        """
        found = self._some(ANY, number - 1, 1)
        if not found or found[0].number != number:
            raise OutboxError(f"there is no dead letter {number}")
        return found[0]

    def ask(self, action: Action, numbers: Iterable[int]) -> int:
        """
        Ask for dead letters to be replayed or purged.

        :returns: the number of requests.
        :raises mqhooks.errors.OutboxError: when they cannot be written. Asking for the same again does no harm.
        """
        remaining, count = iter(numbers), 0
        while rows := [(action, number) for number in islice(remaining, REQUESTS)]:
            with self._named(), _ours(), self.reader:
                # The outbox's owner may be waiting for a slow disk.
                self.reader.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
                self.reader.execute("BEGIN IMMEDIATE")
                self.reader.executemany("INSERT INTO request (action, dead) VALUES (?, ?)", rows)
            count += len(rows)
        return count

    def take_in(self, file: IO[bytes], name: str, now: int, *, dead: bool) -> int:
        """Import lines, as ``import_lines`` in ``exchange`` does."""
        return import_lines(file, name, self._path, now, dead=dead)

    def close(self) -> None:
        """Close the file."""
        self.reader.close()
