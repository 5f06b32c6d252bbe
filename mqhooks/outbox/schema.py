"""
The outbox's file: what it holds, and whether a file is one.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from mqhooks.errors import OutboxError

APPLICATION_ID = 0x6D716877
"""What the file's header says of who made it: ``mqhw``."""

MAGIC = b"SQLite format 3\0"

MIGRATIONS = [
    """
CREATE TABLE webhook (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    accepted INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    -- The last number that was given to a row of batch.
    last INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Deliveries that were accepted together. The id is the webhook's id * 2**40 and a number that grows.
CREATE TABLE batch (
    id INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    deliveries BLOB NOT NULL
) STRICT;
-- Which deliveries of a batch are settled, one bit each; a batch of which all are is deleted.
CREATE TABLE progress (
    batch INTEGER PRIMARY KEY,
    settled BLOB NOT NULL
) STRICT;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL,
    url TEXT NOT NULL,
    reason TEXT NOT NULL,
    status INTEGER NOT NULL,
    answer BLOB NOT NULL,
    died INTEGER NOT NULL,
    -- The last column, so that SQLite needs no memory for the zeros over which a long one is written.
    delivery BLOB NOT NULL
) STRICT;
CREATE INDEX dead_webhook ON dead (webhook, id);
-- What another process wants done with dead letters.
CREATE TABLE request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action TEXT NOT NULL,
    dead INTEGER NOT NULL
) STRICT;
"""
]
"""What makes each version of the tables of the one before it, the first of an empty file. A newer file is refused."""


def connect(path: str, *, full: bool = False) -> sqlite3.Connection:
    """
    Open a file that :func:`prepare` found good.

    :param full: whether each commit waits until the disk has it.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.1)
    connection.execute("PRAGMA journal_mode = WAL")
    # Debian's SQLite overwrites with zeros what is deleted, unless told otherwise: half of what settling costs.
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
    # A damaged text must not hide the row in which it stands.
    connection.text_factory = lambda data: data.decode(errors="replace")
    return connection


def passing(error: Exception) -> bool:
    """Say whether an error may pass by itself, as that of a full disk does: others mean that the file is damaged."""
    # A table or a value that is not there is an OperationalError too.
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR


def prepare(path: str) -> None:
    """
    Make the file, or check that it is one of ours and bring it up to date.

    :raises mqhooks.errors.OutboxError: when it is not ours, or of a newer version, or cannot be used.
    :raises sqlite3.DatabaseError: when it is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(len(MAGIC))
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise OutboxError(f"{path}: cannot be read: {error.strerror}") from None
    if head and head != MAGIC:
        raise sqlite3.DatabaseError("file is not a database")
    try:
        # The bodies are nobody else's business; SQLite gives the files beside it the same permissions.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        connection = connect(path)
    except OSError as error:
        raise OutboxError(f"{path}: cannot be written: {error.strerror}") from None
    except sqlite3.OperationalError as error:
        raise OutboxError(f"{path}: cannot be opened ({error}); its directory has to exist and be writable") from None
    try:
        for version in range(_check(path, connection), len(MIGRATIONS)):
            header = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version + 1};"
            connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[version]} {header} COMMIT;")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        raise OutboxError(f"{path}: cannot be used ({error})") from None
    finally:
        connection.close()


def check(path: str) -> None:
    """
    Check that a file is an outbox of ours, without changing it.

    :raises mqhooks.errors.OutboxError: when it is not, or of another version.
    :raises sqlite3.DatabaseError: when it is damaged, or no database.
    """
    connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
    try:
        if not _check(path, connection):
            raise OutboxError(f"{path}: is empty")
    finally:
        connection.close()


def _check(path: str, connection: sqlite3.Connection) -> int:
    """
    See whose file it is.

    :returns: the version of its tables; 0 when it has none.
    """
    application, version, tables = (
        connection.execute(question).fetchone()[0]
        for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
    )
    if application != APPLICATION_ID and (tables or application):
        raise OutboxError(f"{path}: is the database of another program; give outbox.path another name")
    if version > len(MIGRATIONS):
        raise OutboxError(f"{path}: was written by a newer mqhooks (version {version}, not {len(MIGRATIONS)}); update mqhooks")
    return int(version) if tables else 0
