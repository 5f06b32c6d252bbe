"""
An outbox on disk: what was accepted survives the process.

One SQLite file holds the deliveries of all webhooks. What one turn of the reactor accepts and settles is one transaction; the
deliveries that are accepted together are one row, and a row leaves when all of its deliveries are settled.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby, islice
from time import time
from typing import Any, Literal
from zlib import crc32

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from mqhooks.errors import OutboxError
from mqhooks.interfaces import IOutbox
from mqhooks.outbox import longrows, schema
from mqhooks.outbox.delivery import LONG_BODY, DeadLetter, Delivery
from mqhooks.outbox.longrows import LongRow
from mqhooks.outbox.salvage import finish, salvage
from mqhooks.outbox.totals import Totals
from mqhooks.ratelimit import RateLimit

CACHE = 4096
"""How many deliveries that nobody has claimed yet are kept in memory for each webhook; what is beyond them is read again."""

CACHE_BYTES = 8 << 20
"""How many bytes their bodies may have, about."""

CLAIM_BYTES = 4 << 20
"""How many bytes of bodies are claimed at a time, about."""

BATCH = 512
"""How many deliveries one row has at most."""

BATCH_BYTES = 1 << 20
"""How many bytes of bodies one row has at most, unless a single body is longer."""

DAMAGED = b"damaged"
"""What the lock file says when the file was found damaged while it was in use."""

CLOSING_TIME = 5.0
"""How many seconds stopping waits for the last transaction."""

UNWRITTEN_BYTES = 8 << 20
"""How many bytes of bodies are kept until the end of a turn, unless a single append brings more."""

THINNED = 100
"""How many of the oldest rows are looked at each second for what they could free."""

THIN_SIZE = 4096
"""A row of fewer bytes is not worth it."""

NOTED = 0.005
"""How many seconds after a delivery has arrived this is committed at the latest."""

UNNOTED = 64
"""How many deliveries of a webhook have arrived, at most about, without that being committed: a kill has them sent again."""

RETRY = 1.0
"""Seconds before a transaction that failed is tried again."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Delivery | None]).decode
_decode_one = msgspec.msgpack.Decoder(Delivery).decode

# What is long is not read with the rest.
_LETTER = f"CASE WHEN length(delivery) <= {LONG_BODY} THEN delivery END"
_ROW = f"""
    id, count, checksum, length(deliveries),
    CASE WHEN count > 1 OR length(deliveries) <= {LONG_BODY} THEN deliveries END
"""


class SqliteStore(Service):
    """
    The file. It has to be started before its outboxes are used, and stopped after them.

    :param reactor: tells the time, calls back, and has threads.
    :param path: the file; its directory has to exist.
    :param sync: ``normal``: a power failure may take back the last seconds, the process's end takes nothing. ``full``: what is
        accepted is on the disk; the reactor does not wait for it.
    :param max_size: bytes of deliveries, for each webhook.
    :param on_full: ``pause``: nothing more is accepted until there is room. ``drop_oldest``: the oldest make room.
    :param dead_max: how many dead letters are kept for each webhook; the oldest make room.
    :param now: tells the time that is stored, in seconds since 1970.
    :ivar failing: why the last transaction failed; ``None`` when it did not.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        *,
        sync: Literal["normal", "full"] = "normal",
        max_size: int = 1 << 30,
        on_full: Literal["pause", "drop_oldest"] = "pause",
        dead_max: int = 100_000,
        now: Callable[[], float] = time,
    ) -> None:
        self.path = path
        self.max_size = max_size
        self.on_full = on_full
        self.dead_max = dead_max
        self.complaints = RateLimit(reactor)
        self.failing: str | None = None
        self._reactor = reactor
        self._now = now
        self._full = sync == "full"
        self._threads: ThreadPool | None = None
        self._lock: int | None = None
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._outboxes: dict[str, SqliteOutbox] = {}
        self._dirty: dict[SqliteOutbox, None] = {}
        self._turn: IDelayedCall | None = None
        self._later = False
        self._plan: list[_Plan] | None = None
        self._flushed: list[Deferred[None]] = []
        self._poll: IDelayedCall | None = None
        self._data_version = 0
        self._requests: dict[int, None] = {}
        self._handled: list[int] = []

    def outbox(self, name: str) -> SqliteOutbox:
        """
        Get the outbox of a webhook.

        :param name: the webhook's name; the outbox holds what was left under it.
        :raises mqhooks.errors.OutboxError: when it is a new one, and the file, which is open, cannot be written.
        """
        if name not in self._outboxes:
            outbox = SqliteOutbox(self, name)
            if self._writer is not None:
                self._load(outbox)
            self._outboxes[name] = outbox
        return self._outboxes[name]

    def resize(self, max_size: int, on_full: Literal["pause", "drop_oldest"], dead_max: int) -> None:
        """
        Have another size, do something else when it is full, keep another number of dead letters: as the parameters of the same
        names say.
        """
        self.max_size, self.on_full, self.dead_max = max_size, on_full, dead_max
        for outbox in self._outboxes.values():
            outbox.dead_max = dead_max
            outbox.release()

    def startService(self) -> None:
        """
        Open the file, or make it. A damaged one is set aside, and what can be read of it is taken over.

        :raises mqhooks.errors.OutboxError: when it is in use, not ours, of a newer version or cannot be used.
        """
        wanted = set(self._outboxes)
        marked = os.path.exists(self._lock_path)
        damaged = self._take_lock()
        try:
            try:
                finish(self.path)
                if marked and os.path.exists(self.path) and not os.path.getsize(self.path):
                    lost = "{path}: is damaged: empty, though it was used before; what it held is lost"
                    self.log.critical(lost, path=self.path)
                if damaged:
                    raise sqlite3.DatabaseError("found when it was read")
                schema.prepare(self.path)
                self._open()
            except sqlite3.OperationalError as error:
                raise OutboxError(f"{self.path}: cannot be used ({error})") from None
            except (sqlite3.DatabaseError, ValueError, TypeError) as error:
                self._close()
                if not marked:
                    problem = f"is no outbox of mqhooks ({error}); give outbox.path another name"
                    raise OutboxError(f"{self.path}: {problem}") from None
                self._salvage(error)
                self._open()
        except BaseException:
            self._close()
            self._drop_lock()
            if not marked:
                # It says that the file beside it is ours.
                os.unlink(self._lock_path)
            raise
        for outbox in self._outboxes.values():
            if outbox.pending and outbox.name not in wanted:
                self.log.warn(
                    "{path}: holds {pending} deliveries of webhook {name}, which is not configured: they stay there",
                    path=self.path,
                    pending=outbox.pending,
                    name=outbox.name,
                )
        super().startService()
        if self._full:
            self._threads = ThreadPool(1, 1, "outbox")
            self._threads.start()
        self._poll = self._reactor.callLater(1.0, self._look)

    def stopService(self) -> Deferred[None]:
        """
        Write what is not yet written, and close the file; what cannot be written within :data:`CLOSING_TIME` is lost.

        :returns: a ``Deferred`` that fires when it is closed.
        """
        if self._poll is not None and self._poll.active():
            self._poll.cancel()
        late = self._reactor.callLater(CLOSING_TIME, self._give_up)
        return self.flushed().addCallback(lambda _: late.cancel() if late.active() else None).addCallback(self._stopped)

    def flushed(self) -> Deferred[None]:
        """
        Wait until everything so far is committed.
        """
        if self._plan is None and not self._dirty:
            return succeed(None)
        self._schedule()
        flushed: Deferred[None] = Deferred()
        self._flushed.append(flushed)
        return flushed

    def _give_up(self) -> None:
        self.log.critical("{path}: stopped without having been written to; what was not accepted yet is lost", path=self.path)
        self._tell_flushed()

    def _tell_flushed(self) -> None:
        flushed, self._flushed = self._flushed, []
        for deferred in flushed:
            deferred.callback(None)

    # What the outboxes ask for.

    @property
    def reader(self) -> sqlite3.Connection:
        """The connection for questions."""
        if self._reader is None:
            raise OutboxError(f"{self.path}: is not open")
        return self._reader

    def touch(self, outbox: SqliteOutbox) -> None:
        """Commit what an outbox has to write, when this turn of the reactor is over."""
        self._dirty[outbox] = None
        self._schedule()

    def note(self, outbox: SqliteOutbox) -> None:
        """Commit what an outbox has to write, within :data:`NOTED`: a commit for each answer would cost as much as all else."""
        self._dirty[outbox] = None
        if self._turn is None and self._plan is None:
            self._turn = self._reactor.callLater(NOTED, self._flush)
            self._later = True

    # Dead letters.

    def dead_letters(
        self, webhook: str | None = None, *, after: int = 0, limit: int = 100, reason: str | None = None
    ) -> list[DeadLetter]:
        """
        List dead letters, oldest first.

        :param webhook: of one webhook only.
        :param after: those with a higher number.
        :param reason: those with this in their reason.
        """
        return list_dead(self, webhook, after, limit, reason)

    def count_dead(self, webhook: str | None = None, reason: str | None = None) -> int:
        """
        Count dead letters.

        :param webhook: of one webhook only.
        :param reason: those with this in their reason.
        """
        if reason is None:
            return sum(outbox.letters for name, outbox in self._outboxes.items() if webhook in (None, name))
        question = "SELECT count(*) FROM dead WHERE (?1 IS NULL OR webhook = ?1) AND instr(reason, ?2)"
        return int(self.reader.execute(question, (webhook, reason)).fetchone()[0])

    def last_dead(self) -> int:
        """Get the highest number of a dead letter; 0 when there is none."""
        return int(self.reader.execute("SELECT coalesce(max(id), 0) FROM dead").fetchone()[0])

    def dead_letter(self, number: int) -> DeadLetter | None:
        """Get one dead letter; ``None`` when there is none of that number."""
        found = list_dead(self, None, number - 1, 1)
        return found[0] if found and found[0].number == number else None

    def replay(self, numbers: Iterable[int]) -> int:
        """
        Put dead letters back, behind what waits. Their ids stay, their age begins anew.

        :returns: how many.
        """
        return self._resolve(numbers, replay=True)

    def purge(self, numbers: Iterable[int]) -> int:
        """
        Remove dead letters for good.

        :returns: how many.
        """
        return self._resolve(numbers, replay=False)

    def _resolve(self, numbers: Iterable[int], *, replay: bool) -> int:
        count = 0
        for number in numbers:
            letter = self.dead_letter(number)
            if letter is not None and self.outbox(letter.webhook).resolve(letter, replay=replay):
                count += 1
        return count

    # The file.

    @property
    def _lock_path(self) -> str:
        return f"{self.path}.lock"

    def _take_lock(self) -> bool:
        """
        Keep other processes away.

        :returns: whether the last one found the file damaged.
        """
        try:
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            remedy = "its directory has to exist and be writable; outbox.path names it"
            raise OutboxError(f"{self._lock_path}: cannot be written: {error.strerror}; {remedy}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            self._lock = None
            raise OutboxError(
                f"{self.path}: is in use by process {owner or 'unknown'}; stop that one or give outbox.path another name"
            ) from None
        damaged = os.pread(self._lock, len(DAMAGED), 0) == DAMAGED
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return damaged

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> None:
        self._writer = schema.connect(self.path, full=self._full)
        self._reader = schema.connect(self.path) if self._full else self._writer
        left = [row[0] for row in self._reader.execute("SELECT name FROM webhook").fetchall()]
        for name in dict.fromkeys([*left, *self._outboxes]):
            self._outboxes.setdefault(name, SqliteOutbox(self, name)).load(self._writer)
        # Requests may be waiting, whatever the version says.
        self._data_version = -1

    def _load(self, outbox: SqliteOutbox) -> None:
        # A thread may be in the middle of a transaction on the writer's connection.
        connection = None
        try:
            connection = schema.connect(self.path)
            connection.execute("PRAGMA busy_timeout = 1000")
            outbox.load(connection)
        except sqlite3.DatabaseError as error:
            raise OutboxError(f"{self.path}: cannot take in webhook {outbox.name} ({error})") from None
        finally:
            if connection is not None:
                connection.close()

    def _close(self) -> None:
        for connection in {self._reader, self._writer} - {None}:
            assert connection is not None
            connection.close()
        self._reader = self._writer = None

    def _stopped(self, _: None) -> None:
        super().stopService()
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        if self._threads is not None:
            self._threads.stop()
            self._threads = None
        self._close()
        self._drop_lock()

    def _salvage(self, error: Exception) -> None:
        try:
            aside, found = salvage(self.path)
        except (sqlite3.Error, OSError, ValueError, TypeError) as problem:
            remedy = "move it away, or give outbox.path another name"
            raise OutboxError(f"{self.path}: is damaged ({error}) and cannot be repaired ({problem}); {remedy}") from None
        self.log.critical(
            "{path}: is damaged ({error}): set aside as {aside}; taken over: {found}",
            path=self.path,
            error=error,
            aside=aside,
            found=found,
        )

    def _look(self) -> None:
        """See once a second whether another process has asked for something."""
        self._poll = self._reactor.callLater(1.0, self._look)
        for outbox in self._outboxes.values():
            outbox.thin()
            excess = outbox.bytes - self.max_size
            if self.on_full == "drop_oldest" and excess > 0 and outbox.overflow is not None:
                outbox.overflow(excess)
            # What could not be read a second ago may be now.
            if outbox.more is not None:
                outbox.more()
            if outbox.paused and self.complaints.allow(("full", outbox.name)) is not None:
                self.log.warn(
                    "{path}: webhook {name} is full ({bytes} bytes, outbox.max_size): nothing more is read from VerneMQ",
                    path=self.path,
                    name=outbox.name,
                    bytes=outbox.bytes,
                )
        try:
            self._read_requests()
        except sqlite3.DatabaseError as error:
            self.unreadable(error)

    def _read_requests(self) -> None:
        version = self.reader.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version and not self._full:
            return
        self._data_version = version
        for number, action, dead in self.reader.execute("SELECT id, action, dead FROM request ORDER BY id").fetchall():
            try:
                if number not in self._requests and self._resolve([dead], replay=action == "replay"):
                    self.log.info("dead letter {dead}: {action} as asked for", dead=dead, action=action)
            except OutboxError as error:
                self.log.error("{path}: {action} was asked for, but {error}", path=self.path, action=action, error=error)
            self._requests[number] = None
            self._schedule()

    def unreadable(self, error: sqlite3.DatabaseError) -> None:
        """Say that something cannot be read: it may pass, or the file may be damaged."""
        if not isinstance(error, sqlite3.OperationalError):
            self.damaged(error)
        elif self.complaints.allow("read") is not None:
            self.log.error("{path}: cannot be read ({error}); trying again", path=self.path, error=error)

    def lost(self, error: sqlite3.DatabaseError) -> None:
        """Do as :meth:`unreadable` does, whichever thread this is."""
        if self._threads is None:
            self.unreadable(error)
        else:
            self._reactor.callFromThread(self.unreadable, error)

    def damaged(self, error: sqlite3.DatabaseError) -> None:
        """Stop the process: its next start sets the file aside and takes over what can be read."""
        if self._lock is not None:
            with suppress(OSError):
                os.pwrite(self._lock, DAMAGED + b"\n", 0)
        if self.complaints.allow("damaged") is not None:
            self.log.critical("{path}: is damaged ({error}); stopping, the next start repairs it", path=self.path, error=error)
            # It may be found while the sinks are started.
            self._reactor.callWhenRunning(self._stop_process)

    def _stop_process(self) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def seconds(self) -> float:
        """The reactor's time."""
        seconds: float = self._reactor.seconds()
        return seconds

    def now(self) -> int:
        """The time in milliseconds since 1970."""
        return int(self._now() * 1000)

    # Transactions.

    def hurry(self) -> None:
        """Commit now what waits for this turn's end, unless a thread does it: it is too much to be kept."""
        if self._threads is None and self._turn is not None and self._plan is None:
            self._turn.cancel()
            self._flush()

    def _schedule(self) -> None:
        if self._plan is not None:
            return
        if self._turn is None:
            self._turn = self._reactor.callLater(0, self._flush)
        elif self._later:
            self._turn.reset(0)
        self._later = False

    def _flush(self) -> None:
        self._turn = None
        if self._plan is None:
            self._plan = [outbox.plan() for outbox in self._dirty]
            self._dirty.clear()
            self._handled = list(self._requests)
        plan = self._plan
        if self._threads is None:
            try:
                self._write(plan)
            except Exception:
                self._failed(Failure())
            else:
                self._written(None)
        else:
            deferToThreadPool(self._reactor, self._threads, self._write, plan).addCallbacks(self._written, self._failed)

    def _write(self, plans: list[_Plan]) -> None:
        connection = self._writer
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            for plan in plans:
                plan.write(connection)
            if self._handled:
                connection.executemany("DELETE FROM request WHERE id = ?", [(number,) for number in self._handled])
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _written(self, _: None) -> None:
        self.failing = None
        plans, self._plan = self._plan, None
        if plans is None or self._writer is None:
            return
        for number in self._handled:
            self._requests.pop(number, None)
        for plan in plans:
            plan.outbox.written(plan)
        if self._dirty:
            self._schedule()
        else:
            self._tell_flushed()

    def _failed(self, failure: Failure) -> None:
        if self._writer is None:
            return
        if isinstance(failure.value, sqlite3.DatabaseError) and not isinstance(failure.value, sqlite3.OperationalError):
            self.damaged(failure.value)
        self.failing = failure.getErrorMessage()
        held = self.complaints.allow("write")
        if held is not None:
            self.log.error(
                "{path}: cannot be written ({reason}): nothing more is accepted until it can; trying each second",
                path=self.path,
                reason=self.failing,
            )
        self._turn = self._reactor.callLater(RETRY, self._flush)


class _Batch:
    """A row that was read, and what of it is settled."""

    __slots__ = ("accepted", "id", "kept", "left", "marked", "settled", "size")

    def __init__(self, id_: int, count: int, size: int, settled: bytes | None = None) -> None:
        self.id = id_
        self.accepted: int | None = None
        self.size = size
        self.kept = count
        self.marked = settled is not None
        self.settled = bytearray(settled if settled is not None else (count + 7) // 8)
        self.left = count - sum(byte.bit_count() for byte in self.settled)

    def holds(self, index: int) -> bool:
        return not self.settled[index >> 3] >> (index & 7) & 1


class _Plan:
    """What one transaction writes for one outbox."""

    def __init__(self, outbox: SqliteOutbox) -> None:
        self.outbox = outbox
        self.rows: list[tuple[int, int, int, bytes]] = []
        self.long_rows: list[tuple[int, LongRow]] = []
        self.batches: list[tuple[_Batch, Sequence[Delivery]]] = []
        self.accepting: list[Deferred[None]] = []
        self.finished: list[_Batch] = []
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
        for number, row in self.long_rows:
            values = (number, row.checksum(connection), row.size)
            connection.execute("INSERT INTO batch VALUES (?, 1, ?, zeroblob(?))", values)
            row.write(connection, number)
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
        long = LongRow(letter.delivery, "dead") if len(letter.delivery.body) > LONG_BODY else None
        number = connection.execute(
            "INSERT INTO dead (webhook, url, reason, status, answer, died, delivery) "
            f"VALUES (?, ?, ?, ?, ?, ?, {'?' if long is None else 'zeroblob(?)'})",
            (
                letter.webhook,
                letter.url,
                letter.reason,
                letter.status,
                letter.answer,
                letter.died,
                _encode(letter.delivery) if long is None else long.size,
            ),
        ).lastrowid
        if long is not None and number is not None:
            long.write(connection, number)


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


@implementer(IOutbox)
class SqliteOutbox:
    """
    What one webhook has accepted and not settled.

    ``accepted = delivered + dead + dropped + pending`` holds at every moment, also across restarts.

    :ivar accepted: deliveries that were appended.
    :ivar delivered: deliveries that arrived.
    :ivar dead: deliveries that became dead letters and were not replayed.
    :ivar dropped: deliveries that had to make room, or that a damaged file has lost.
    :ivar bytes: what the rows take that are not yet deleted.
    :ivar letters: how many dead letters are kept.
    """

    durable = True

    def __init__(self, store: SqliteStore, name: str) -> None:
        self.name = name
        self.key = 0
        self.dead_max = store.dead_max
        self.accepted = self.delivered = self.dead = self.dropped = self.bytes = self.letters = 0
        self._loaded = (0, 0, 0, 0)
        self._replayed = 0
        self._store = store
        self._cache: deque[Delivery] = deque()
        self._batches: dict[int, _Batch] = {}
        self._progress: dict[int, bytes] = {}
        self._read = 0
        self._last = 0
        self._assigned = 0
        self._new: list[Delivery] = []
        self._accepting: list[Deferred[None]] = []
        self._unaccepted: list[Deferred[None]] = []
        self._touched: dict[int, _Batch] = {}
        self._finished: list[_Batch] = []
        self._dead: list[DeadLetter] = []
        # Dead letters that are to go, and which of them are replayed.
        self._resolved: dict[int, Delivery | None] = {}
        self._thinned: list[_Batch] = []
        self._cached = 0
        # Rows to be read once more, oldest first.
        self._again: deque[int] = deque()
        self._abandoned = False
        self.more: Callable[[], object] | None = None
        self.overflow: Callable[[int], object] | None = None
        self._size = 0
        self._unnoted = 0
        self._appended: float | None = None
        self._writing: float | None = None

    @property
    def pending(self) -> int:
        """How many deliveries were appended and are not settled."""
        return self.accepted - self.delivered - self.dead - self.dropped

    @property
    def used(self) -> int:
        """How many bytes of the room are used."""
        return self.bytes

    @property
    def max_size(self) -> int:
        """How many bytes of deliveries there is room for."""
        return self._store.max_size

    @property
    def totals(self) -> Totals:
        """What was taken over since the file was opened, and what became of it."""
        accepted, delivered, dead, dropped = self._loaded
        return Totals(
            appended=self.accepted - accepted,
            resumed=accepted - delivered - dead - dropped,
            replayed=self._replayed,
            delivered=self.delivered - delivered,
            dead=self.dead - dead + self._replayed,
            dropped=self.dropped - dropped,
            pending=self.pending,
        )

    @property
    def oldest(self) -> int | None:
        """About when the oldest pending delivery was accepted, in milliseconds since 1970."""
        if not self.pending:
            return None
        if not self._batches and self._read < self._last:
            self._fill()
        batch = next(iter(self._batches.values()), None)
        if batch is not None:
            return batch.accepted
        since = self.waiting_since
        return None if since is None else self._store.now() - int((self._store.seconds() - since) * 1000)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest delivery was appended that is not committed; the reactor's seconds."""
        return self._appended if self._writing is None else self._writing

    def load(self, connection: sqlite3.Connection) -> None:
        """Take up what the file holds for this webhook, or make a place for it."""
        connection.execute("INSERT OR IGNORE INTO webhook (name) VALUES (?)", (self.name,))
        question = "SELECT id, accepted, delivered, dead, dropped, bytes, last FROM webhook WHERE name = ?"
        row = connection.execute(question, (self.name,)).fetchone()
        self.key, self.accepted, self.delivered, self.dead, self.dropped, self.bytes, assigned = row
        first, last = self.key << 40, ((self.key + 1) << 40) - 1
        question = "SELECT max(id) FROM batch WHERE id BETWEEN ? AND ?"
        self._last = connection.execute(question, (first, last)).fetchone()[0] or first
        self._loaded = self.accepted, self.delivered, self.dead, self.dropped
        self.letters = connection.execute("SELECT count(*) FROM dead WHERE webhook = ?", (self.name,)).fetchone()[0]
        # A row's number is never given again: what a row of that number has left behind must not be taken for this one's.
        self._assigned = max(self._last, assigned)
        question = "SELECT min(id) FROM batch WHERE id BETWEEN ? AND ?"
        self._read = (connection.execute(question, (first, last)).fetchone()[0] or first + 1) - 1
        question = "SELECT batch, settled FROM progress WHERE batch BETWEEN ? AND ?"
        self._progress = dict(connection.execute(question, (first, last)).fetchall())

    # IOutbox

    def append(self, deliveries: Sequence[Delivery]) -> Deferred[None] | None:
        """Take deliveries over; they are accepted when they are committed."""
        if not deliveries:
            return None
        size = sum([len(delivery.body) for delivery in deliveries])
        if self._new and self._size + size > UNWRITTEN_BYTES:
            self._store.hurry()
        if self._appended is None:
            self._appended = self._store.seconds()
        self._new.extend(deliveries)
        self.accepted += len(deliveries)
        accepted: Deferred[None] = Deferred()
        self._accepting.append(accepted)
        self._size += size
        self._store.touch(self)
        return accepted

    def claim(self, limit: int) -> Sequence[Delivery]:
        """Hand out the oldest unclaimed deliveries."""
        cache = self._cache
        if not cache and (self._again or self._read < self._last):
            self._fill()
        claimed: list[Delivery]
        if len(cache) <= limit and self._cached <= CLAIM_BYTES:
            claimed = list(cache)
            cache.clear()
            self._cached = 0
            return claimed
        claimed = []
        size = 0
        while cache and len(claimed) < limit and size < CLAIM_BYTES:
            delivery = cache.popleft()
            size += len(delivery.body)
            claimed.append(delivery)
        self._cached -= size
        return claimed

    def settle(self, *deliveries: Delivery) -> None:
        """Forget deliveries that arrived."""
        self.delivered += len(deliveries)
        self._settle(deliveries)

    def discard(self, *deliveries: Delivery) -> None:
        """Forget deliveries for want of room."""
        self.dropped += len(deliveries)
        self._settle(deliveries)

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Make a dead letter of a delivery."""
        self.dead += 1
        self.letters += 1
        self._dead.append(DeadLetter(0, self.name, delivery, url, reason, status, answer, died))
        self._settle((delivery,))
        self._store.touch(self)

    def recall(self, places: Iterable[int]) -> list[Delivery]:
        """Read deliveries again that were claimed before, by their places."""
        recalled = []
        for number, group in groupby(places, lambda place: place >> 16):
            row = self._row(number)
            for place in group:
                delivery = row[place & 0xFFFF] if row else None
                if delivery is not None:
                    delivery.place = place
                    recalled.append(delivery)
        return recalled

    def reclaim(self) -> None:
        """Hand out anew what was claimed."""
        self._abandoned = False
        self._cache.clear()
        self._cached = 0
        # A row whose deliveries are all settled is not among them, committed or not.
        self._again = deque(sorted(self._batches))

    def abandon(self) -> None:
        """Keep what is pending, and hold nobody up."""
        self._abandoned = True
        self.more = self.overflow = None
        self.release()

    # Dead letters

    def resolve(self, letter: DeadLetter, *, replay: bool) -> bool:
        """
        Remove a dead letter, and append its delivery anew if it is to be replayed.

        :returns: whether it was still there.
        """
        if letter.number in self._resolved:
            return False
        self._resolved[letter.number] = letter.delivery if replay else None
        self.letters -= 1
        if replay:
            delivery = letter.delivery
            delivery.attempts = 0
            delivery.accepted = self._store.now()
            self.dead -= 1
            self._replayed += 1
            self._size += len(delivery.body)
            self._new.append(delivery)
        self._store.touch(self)
        return True

    # Transactions

    def plan(self) -> _Plan:
        """Say what is to be written now; :meth:`written` is called when it was."""
        plan = _Plan(self)
        new, self._new = self._new, []
        self._writing, self._appended = self._appended, None
        size, self._size = self._size, 0
        for chunk in _chunks(new, size):
            self._assigned += 1
            if len(chunk[0].body) > LONG_BODY:
                row = LongRow(chunk[0], "batch")
                plan.long_rows.append((self._assigned, row))
                size = row.size
            else:
                data = _encode(chunk)
                plan.rows.append((self._assigned, len(chunk), crc32(data), data))
                size = len(data)
            plan.batches.append((_Batch(self._assigned, len(chunk), size), chunk))
            self.bytes += size
        plan.accepting, self._accepting = self._accepting, []
        plan.finished, self._finished = self._finished, []
        self.bytes -= sum(batch.size for batch in plan.finished)
        for batch in self._touched.values():
            if batch.left:
                batch.marked = True
                plan.progress.append((batch.id, bytes(batch.settled)))
        self._touched.clear()
        self._unnoted = 0
        plan.dead, self._dead = self._dead, []
        plan.resolved = list(self._resolved)
        plan.thinned = self._thin()
        if self.bytes > self._store.max_size and self._store.on_full == "drop_oldest":
            try:
                plan.dropped = self._drop(self.bytes - self._store.max_size)
            except sqlite3.DatabaseError as error:
                self._store.unreadable(error)
            if self._store.complaints.allow(("dropped", self.name)) is not None:
                self._store.log.warn(
                    "{path}: webhook {name} is full (outbox.max_size): the oldest make room, {dropped} are dropped so far",
                    path=self._store.path,
                    name=self.name,
                    dropped=self.dropped,
                )
        plan.counters = (self.accepted, self.delivered, self.dead, self.dropped, self.bytes, self._assigned)
        return plan

    def written(self, plan: _Plan) -> None:
        """Go on after a transaction."""
        self._writing = None
        self.letters -= plan.forgotten
        for number, row in plan.long_rows:
            row.delivery.body = row.stored(self._store, number)
        caught_up = self._read == self._last and not self._again
        for batch, deliveries in plan.batches:
            self._last = batch.id
            if caught_up and len(self._cache) < CACHE and self._cached < CACHE_BYTES:
                self._read = batch.id
                self._take(batch, deliveries)
            else:
                caught_up = False
        for number in plan.resolved:
            self._resolved.pop(number, None)
        if plan.forgotten:
            self._miss_forgotten()
        self._unaccepted += plan.accepting
        self.release()
        if plan.batches and self.more is not None:
            self.more()

    def _miss_forgotten(self) -> None:
        """See which dead letters were resolved while a transaction that was under way made room for newer ones."""
        for number, delivery in list(self._resolved.items()):
            if self._store.dead_letter(number) is None:
                self.letters += 1
                del self._resolved[number]
                if delivery is not None and not isinstance(delivery.body, bytes):
                    # There is nothing left to replay.
                    self._new = [other for other in self._new if other is not delivery]
                    self._size -= len(delivery.body)
                    self.dropped += 1

    def release(self) -> None:
        """Tell that there is room, if there is."""
        room = self.bytes <= self._store.max_size or self._store.on_full == "drop_oldest"
        if self._unaccepted and (room or self._abandoned):
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)

    def thin(self) -> None:
        """
        Free what settled deliveries still take in rows that others keep: those of clients that wait long for their retries.
        """
        oldest = islice(self._batches.values(), THINNED)
        self._thinned = [batch for batch in oldest if batch.left * 2 <= batch.kept and batch.size > THIN_SIZE]
        if self._thinned:
            self._store.touch(self)

    @property
    def paused(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unaccepted)

    def _drop(self, excess: int) -> list[int]:
        """Give up the oldest rows that nobody has read."""
        rows = self._store.reader.execute(
            "SELECT id, count, length(deliveries) FROM batch WHERE id > ? AND id <= ? ORDER BY id", (self._read, self._last)
        )
        dropped = []
        for number, count, size in rows:
            if excess <= 0:
                break
            # What a crash has left half settled is not pending as a whole.
            batch = _Batch(number, count, size, self._progress.pop(number, None))
            self.dropped += batch.left
            self.bytes -= size
            excess -= size
            self._read = number
            dropped.append(number)
        rows.close()
        return dropped

    def _thin(self) -> list[tuple[int, bytes, int]]:
        thinned = []
        batches, self._thinned = self._thinned, []
        for batch in batches:
            row = self._row(batch.id) if batch.left else ()
            if row:
                data = _encode([delivery if batch.holds(index) else None for index, delivery in enumerate(row)])
                thinned.append((crc32(data), data, batch.id))
                self.bytes -= batch.size - len(data)
                batch.size = len(data)
                batch.kept = batch.left
        return thinned

    def _take(self, batch: _Batch, row: Sequence[Delivery | None]) -> None:
        """Keep the deliveries of a row that are not settled, for who claims them."""
        self._batches[batch.id] = batch
        held = []
        for place, delivery in enumerate(row, batch.id << 16):
            if delivery is not None:
                delivery.place = place
                held.append(delivery)
        if batch.left < len(held):
            held = [delivery for delivery in held if batch.holds(delivery.place & 0xFFFF)]
        self._cache.extend(held)
        self._cached += sum([len(delivery.body) for delivery in held])
        if held:
            batch.accepted = held[0].accepted

    def _fill(self) -> None:
        question = f"SELECT {_ROW} FROM batch WHERE id > ? AND id <= ? ORDER BY id"
        one = f"SELECT {_ROW} FROM batch WHERE id = ?"
        rows = None
        try:
            while self._again and self._wants_more():
                again = self._store.reader.execute(one, (self._again[0],)).fetchone()
                number = self._again.popleft()
                self._load_row(*again or (number, 0, 1, 0, b""))
            rows = self._store.reader.execute(question, (self._read, self._last))
            while not self._again and self._wants_more():
                row = rows.fetchone()
                if row is None:
                    self._read = self._last
                    break
                self._load_row(*row)
        except sqlite3.DatabaseError as error:
            self._store.unreadable(error)
        finally:
            if rows is not None:
                rows.close()

    def _wants_more(self) -> bool:
        return len(self._cache) < CACHE // 4 and self._cached < CACHE_BYTES

    def _load_row(self, number: int, count: int, checksum: int, size: int, data: bytes | None) -> None:
        self._read = max(self._read, number)
        # When it was read before, what is settled of it since may not be written yet.
        batch = self._batches.get(number) or _Batch(number, count, size, self._progress.pop(number, None))
        row = self._sound(number, checksum, size, data)
        if row is not None:
            self._take(batch, row)
        else:
            self._store.log.critical(
                "{path}: row {number} of webhook {name} is damaged: {lost} deliveries are lost",
                path=self._store.path,
                number=number,
                name=self.name,
                lost=batch.left,
            )
            self.dropped += batch.left
            batch.left = 0
        if not batch.left:
            self._batches.pop(number, None)
            self._finished.append(batch)
            self._store.touch(self)

    def _row(self, number: int) -> Sequence[Delivery | None]:
        try:
            row = self._store.reader.execute(f"SELECT {_ROW} FROM batch WHERE id = ?", (number,)).fetchone()
            return () if row is None else self._sound(number, *row[2:]) or ()
        except sqlite3.DatabaseError as error:
            self._store.unreadable(error)
            return ()

    def _sound(self, number: int, checksum: int, size: int, data: bytes | None) -> Sequence[Delivery | None] | None:
        """Take a row's deliveries, or ``None`` when it is damaged. A long body is left where it is."""
        if isinstance(data, bytes):
            return _decode(data) if crc32(data) == checksum else None
        if data is None and size and longrows.checksum(self._store.reader, number) == checksum:
            return [longrows.read(self._store, "batch", number)]
        return None

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        batch: _Batch | None = None
        for delivery in deliveries:
            place = delivery.place
            # Those of one row mostly come one after the other.
            if batch is None or batch.id != place >> 16:
                batch = self._batches[place >> 16]
                self._touched[batch.id] = batch
            batch.settled[place >> 3 & 0x1FFF] |= 1 << (place & 7)
            batch.left -= 1
            if not batch.left:
                del self._batches[batch.id], self._touched[batch.id]
                self._finished.append(batch)
                batch = None
        unnoted = self._unnoted
        self._unnoted += len(deliveries)
        if unnoted < UNNOTED <= self._unnoted:
            self._store.touch(self)
        elif not unnoted:
            self._store.note(self)


def _chunks(deliveries: Sequence[Delivery], size: int) -> Iterable[Sequence[Delivery]]:
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


def list_dead(
    source: longrows.Source, webhook: str | None, after: int, limit: int, reason: str | None = None
) -> list[DeadLetter]:
    """
    Read dead letters, oldest first, as :meth:`SqliteStore.dead_letters` does.

    :raises mqhooks.errors.OutboxError: when one is damaged.
    """
    rows = source.reader.execute(
        f"SELECT id, webhook, {_LETTER}, url, reason, status, answer, died FROM dead "
        "WHERE id > ?1 AND (?2 IS NULL OR webhook = ?2) AND (?4 IS NULL OR instr(reason, ?4)) ORDER BY id LIMIT ?3",
        (after, webhook, limit, reason),
    ).fetchall()
    letters = []
    for number, name, data, *rest in rows:
        try:
            delivery = longrows.read(source, "dead", number) if data is None else _decode_one(data)
        except msgspec.DecodeError as error:
            raise OutboxError(f"dead letter {number} is damaged ({error})") from None
        letters.append(DeadLetter(number, name, delivery, *rest))
    return letters
