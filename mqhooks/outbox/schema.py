"""
The tables of an outbox's file, and the check that a file is an outbox.

- A file's tables are upgraded version by version when it is opened; a newer version is refused, not guessed at.
- This module decides, for all others, which errors may pass and which mean damage.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from mqhooks.errors import OutboxDamaged, OutboxError, OutboxUnavailable
from mqhooks.outbox.stored import is_client

APPLICATION_ID = 0x6D716877
"""SQLite's application id in the file's header: ``mqhw``."""

MAGIC = b"SQLite format 3\0"

FIRST = 2
"""The version that the first of :data:`MIGRATIONS` makes. Version 1 was that of mqhooks 0.1.0, which was never released."""

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
    -- The last number that was given to a row of batch: none is given twice.
    last INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Deliveries that were accepted together. The id is the webhook's id * 2**40 and a number that grows.
CREATE TABLE batch (
    id INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    count INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    deliveries BLOB NOT NULL
) STRICT;
-- Which deliveries of a batch are settled, a bit for each; once all are, the batch is deleted.
CREATE TABLE progress (
    batch INTEGER PRIMARY KEY,
    checksum INTEGER NOT NULL,
    settled BLOB NOT NULL
) STRICT;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL,
    version INTEGER NOT NULL,
    -- Of the webhook and the delivery.
    checksum INTEGER NOT NULL,
    url TEXT NOT NULL,
    reason TEXT NOT NULL,
    status INTEGER NOT NULL,
    answer BLOB NOT NULL,
    died INTEGER NOT NULL,
    -- Why it cannot be replayed; empty when it can.
    damage TEXT NOT NULL,
    delivery BLOB NOT NULL
) STRICT;
CREATE INDEX dead_webhook ON dead (webhook, id);
-- What another process wants done with dead letters.
CREATE TABLE request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action TEXT NOT NULL,
    dead INTEGER NOT NULL
) STRICT;
-- What another process hands over: deliveries that were accepted together, or one dead letter.
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL,
    version INTEGER NOT NULL,
    letter INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    content BLOB NOT NULL
) STRICT;
-- How far a damaged file, by a hash of its content, has been taken over.
CREATE TABLE salvage (
    source TEXT PRIMARY KEY,
    batch INTEGER NOT NULL,
    dead INTEGER NOT NULL
) STRICT;
"""
]
"""The SQL that makes each version of the tables from the one before it; the first makes :data:`FIRST` from an empty file."""


def connect(path: str, *, full: bool = False) -> sqlite3.Connection:
    """
    Open a file that :func:`prepare` has checked.

    :param full: whether each commit waits until the disk has it.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.1)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # Debian's SQLite overwrites deleted data with zeros by default, which doubles the cost of settling.
        connection.execute("PRAGMA secure_delete = OFF")
        connection.create_function("is_client", 2, is_client, deterministic=True)
        connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
    except BaseException:
        # Closed any later, it could take another file's write-ahead log for its own.
        connection.close()
        raise
    # Damaged text must not hide the rest of its row.
    connection.text_factory = lambda data: data.decode(errors="replace")
    return connection


def passing(error: BaseException) -> bool:
    """Return whether an error may pass, as on a full disk. All others mean that the file is damaged."""
    # A missing table or column is an OperationalError too, with SQLITE_ERROR.
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR


def prepare(path: str) -> None:
    """
    Create the file, or check that it is one of ours and bring it up to date.

    :raises mqhooks.errors.OutboxDamaged: when it is damaged, or no database.
    :raises mqhooks.errors.OutboxError: when it is not ours, or of another version, or cannot be used.
    """
    check_regular(path)
    try:
        with Path(path).open("rb") as file:
            head = file.read(len(MAGIC))
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise OutboxError(f"{path}: cannot be read: {error.strerror}") from None
    if head and head != MAGIC:
        raise OutboxDamaged("file is not a database")
    try:
        # Bodies are private; SQLite gives the files beside this one the same permissions.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        connection = connect(path)
    except OSError as error:
        raise OutboxError(f"{path}: cannot be written: {error.strerror}") from None
    except sqlite3.OperationalError as error:
        raise OutboxError(f"{path}: cannot be opened ({error}); its directory has to exist and be writable") from None
    except sqlite3.DatabaseError as error:
        raise OutboxDamaged(str(error)) from None
    try:
        for version in range(_check(path, connection), FIRST - 1 + len(MIGRATIONS)):
            header = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version + 1};"
            connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[version + 1 - FIRST]} {header} COMMIT;")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if passing(error):
            raise OutboxUnavailable(f"{path}: cannot be used ({error})") from None
        raise OutboxDamaged(str(error)) from None
    finally:
        connection.close()


def check_regular(path: str, remedy: str = "give outbox.path another name") -> None:
    """
    Check that a file, if it exists, is a regular one: opening a FIFO would block forever.

    :param remedy: what to do when it is not.
    :raises mqhooks.errors.OutboxError: when it is not.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        # Opening it will show why.
        return
    if stat.S_ISDIR(mode):
        raise OutboxError(f"{path}: cannot be read: Is a directory; {remedy}")
    if not stat.S_ISREG(mode):
        raise OutboxError(f"{path}: is not a regular file; {remedy}")


def check(path: str) -> None:
    """
    Check that a file is an outbox of this version, without changing it.

    :raises mqhooks.errors.OutboxError: when it is not.
    """
    check_regular(path)
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if _check(path, connection) < FIRST:
                raise OutboxError(f"{path}: is empty")
    except sqlite3.DatabaseError as error:
        other = error.sqlite_errorcode == sqlite3.SQLITE_NOTADB
        remedy = "; name the outbox with --outbox or the configuration with --config" if other else ""
        raise OutboxError(f"{path}: cannot be read ({error}){remedy}") from None


def _check(path: str, connection: sqlite3.Connection) -> int:
    """
    Check which program and version a file belongs to.

    :returns: the version of its tables; one below the first when it has none.
    """
    application, version, tables = (
        connection.execute(question).fetchone()[0]
        for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
    )
    if application != APPLICATION_ID and (tables or application):
        raise OutboxError(f"{path}: is the database of another program; give outbox.path another name")
    newest = FIRST - 1 + len(MIGRATIONS)
    if version > newest:
        raise OutboxError(f"{path}: was written by a newer mqhooks (version {version}, not {newest}); update mqhooks")
    if tables and version < FIRST:
        remedy = "run that mqhooks until it is empty, or move the file away"
        raise OutboxError(f"{path}: was written by mqhooks 0.1.0, which was never released; {remedy}")
    return max(int(version), FIRST - 1) if tables else FIRST - 1
