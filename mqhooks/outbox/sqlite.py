"""
An outbox on disk: what was accepted survives the process.

One SQLite file holds the deliveries of all webhooks. What one turn of the reactor accepts and settles is one transaction; the
deliveries that are accepted together are one row, and a row leaves when all of its deliveries are settled.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import time
from typing import Any, Literal

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from mqhooks.errors import OutboxError
from mqhooks.outbox import schema
from mqhooks.outbox.delivery import DeadLetter
from mqhooks.outbox.letters import count_dead, list_dead
from mqhooks.outbox.lock import Lock
from mqhooks.outbox.queue import UNWRITTEN_BYTES, SqliteOutbox
from mqhooks.outbox.rows import UNSTORABLE, Plan
from mqhooks.outbox.salvage import finish, salvage
from mqhooks.support.ratelimit import RateLimit

CLOSING_TIME = 5.0
"""How many seconds stopping waits for the last transaction."""

NOTED = 0.005
"""How many seconds after a delivery has arrived this is committed at the latest."""

RETRY = 1.0
"""Seconds before a transaction that failed is tried again."""

REQUESTS = 50
"""How many requests of other processes go into one transaction."""


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
        # Who comes by another name, through a link, has to find the same lock.
        self.path = path = os.path.realpath(path)
        self.max_size = max_size
        self.on_full = on_full
        self.dead_max = dead_max
        self.complaints = RateLimit(reactor)
        self.failing: str | None = None
        self._reactor = reactor
        self._now = now
        self._full = sync == "full"
        self._threads: ThreadPool | None = None
        self._lock = Lock(path)
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._outboxes: dict[str, SqliteOutbox] = {}
        self._dirty: dict[SqliteOutbox, None] = {}
        self._turn: IDelayedCall | None = None
        self._later = False
        self._plan: list[Plan] | None = None
        # Who waits for the transaction that is under way, and for the next one.
        self._flushing: list[Deferred[None]] = []
        self._flushed: list[Deferred[None]] = []
        self._poll: IDelayedCall | None = None
        self._data_version = 0
        # The last request that was taken up, those that are to be forgotten, and those of the transaction that is under way.
        self._asked = 0
        self._more_asked: IDelayedCall | None = None
        self._requests: list[int] = []
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
        damaged = self._lock.take()
        try:
            try:
                finish(self.path)
                if self._lock.known and os.path.exists(self.path) and not os.path.getsize(self.path):
                    lost = "{path}: is damaged: empty, though it was used before; what it held is lost"
                    self.log.critical(lost, path=self.path)
                if damaged and os.path.exists(self.path):
                    raise sqlite3.DatabaseError("found when it was read")
                schema.prepare(self.path)
                self._open()
            except (sqlite3.DatabaseError, ValueError, TypeError) as error:
                if schema.passing(error):
                    raise OutboxError(f"{self.path}: cannot be used ({error})") from None
                self._close()
                if not self._lock.known:
                    problem = f"is no outbox of mqhooks ({error}); give outbox.path another name"
                    raise OutboxError(f"{self.path}: {problem}") from None
                self._salvage(error)
                self._open()
            self._lock.note_repair()
        except BaseException:
            self._close()
            self._lock.withdraw()
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
        for timer in (self._poll, self._more_asked):
            if timer is not None and timer.active():
                timer.cancel()
        self._poll = None
        return self._drain(self._reactor.callLater(CLOSING_TIME, self._give_up))

    def _drain(self, late: IDelayedCall) -> Deferred[None]:
        if late.active() and (self._dirty or self._plan is not None):
            return self.flushed().addCallback(lambda _: self._drain(late))
        if late.active():
            late.cancel()
        self._stopped()
        return succeed(None)

    def flushed(self) -> Deferred[None]:
        """
        Wait until everything so far is committed.
        """
        flushed: Deferred[None] = Deferred()
        if self._dirty:
            self._flushed.append(flushed)
            self._schedule()
        elif self._plan is not None:
            self._flushing.append(flushed)
        else:
            flushed.callback(None)
        return flushed

    def _give_up(self) -> None:
        self.log.critical("{path}: stopped without having been written to; what was not accepted yet is lost", path=self.path)
        self._flushing += self._flushed
        self._flushed = []
        self._tell_flushed()

    def _tell_flushed(self) -> None:
        flushing, self._flushing = self._flushing, []
        for deferred in flushing:
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
        return list_dead(self.reader, webhook, after, limit, reason)

    def count_dead(self, webhook: str | None = None, reason: str | None = None) -> int:
        """
        Count dead letters.

        :param webhook: of one webhook only.
        :param reason: those with this in their reason.
        """
        if reason is None:
            return sum(outbox.letters for name, outbox in self._outboxes.items() if webhook in (None, name))
        return count_dead(self.reader, webhook, reason)

    def last_dead(self) -> int:
        """Get the highest number of a dead letter; 0 when there is none."""
        return int(self.reader.execute("SELECT coalesce(max(id), 0) FROM dead").fetchone()[0])

    def dead_letter(self, number: int) -> DeadLetter | None:
        """Get one dead letter; ``None`` when there is none of that number."""
        found = list_dead(self.reader, None, number - 1, 1)
        return found[0] if found and found[0].number == number else None

    def replay(self, numbers: Iterable[int]) -> int:
        """
        Put dead letters back, behind what waits. Their ids stay, their age begins anew.

        :returns: how many.
        :raises mqhooks.errors.OutboxError: when one is damaged; those before it are back.
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
            if letter is not None and replay:
                letter.check()
            if letter is not None and self.outbox(letter.webhook).resolve(letter, replay=replay):
                count += 1
        return count

    # The file.

    def _open(self) -> None:
        self._writer = schema.connect(self.path, full=self._full)
        self._reader = schema.connect(self.path) if self._full else self._writer
        left = [bytes.decode(row[0]) for row in self._reader.execute("SELECT CAST(name AS BLOB) FROM webhook").fetchall()]
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

    def _stopped(self) -> None:
        super().stopService()
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        if self._threads is not None:
            self._threads.stop()
            self._threads = None
        self._close()
        self._lock.release()

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
        """Once a second: make room, read again what could not be read, see whether another process asks for something."""
        self._poll = self._reactor.callLater(1.0, self._look)
        for outbox in self._outboxes.values():
            outbox.thin()
            if self.on_full == "drop_oldest" and outbox.excess > 0 and outbox.overflow is not None:
                outbox.overflow(outbox.excess)
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
            if self._plan is None:
                try:
                    outbox.compare()
                except sqlite3.DatabaseError as error:
                    self.damaged(error)
        if not self._requests and not self._handled:
            self._take_up_requests()

    def _take_up_requests(self) -> None:
        """Do some of what other processes ask for; the end of the transaction that does it has it go on."""
        try:
            version = self.reader.execute("PRAGMA data_version").fetchone()[0]
            if version == self._data_version and not self._full:
                return
            question = "SELECT id, action, dead FROM request WHERE id > ? ORDER BY id LIMIT ?"
            found = self.reader.execute(question, (self._asked, REQUESTS)).fetchall()
            for number, action, dead in found:
                self._do(action, dead)
                self._asked = number
                self._requests.append(number)
                self._schedule()
                if sum(outbox.unwritten for outbox in self._outboxes.values()) > UNWRITTEN_BYTES:
                    return
            if not found:
                self._data_version = version
        except sqlite3.DatabaseError as error:
            self.unreadable(error)

    def _do(self, action: Any, dead: Any) -> None:
        try:
            if type(dead) is int and self._resolve([dead], replay=action == "replay"):
                self.log.info("dead letter {dead}: {action} as asked for", dead=dead, action=action)
        except OutboxError as error:
            self.log.error("{path}: {action} was asked for, but {error}", path=self.path, action=action, error=error)

    def unreadable(self, error: sqlite3.DatabaseError) -> None:
        """Say that something cannot be read: it may pass, or the file may be damaged."""
        if not isinstance(error, sqlite3.OperationalError):
            self.damaged(error)
        elif self.complaints.allow("read") is not None:
            self.log.error("{path}: cannot be read ({error}); trying again", path=self.path, error=error)

    def damaged(self, error: sqlite3.DatabaseError) -> None:
        """Stop the process: its next start sets the file aside and takes over what can be read."""
        self._lock.note_damage()
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
            self._flushing, self._flushed = self._flushed, []
            self._handled, self._requests = self._requests, []
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

    def _write(self, plans: list[Plan]) -> None:
        connection = self._writer
        assert connection is not None
        if self.failing is not None:
            self._make_room(connection)
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

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Move what stands in the log of writes into the file, where there may be room that it cannot grow into."""
        with suppress(sqlite3.DatabaseError):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _written(self, _: None) -> None:
        self.failing = None
        plans, self._plan = self._plan, None
        if plans is None or self._writer is None:
            return
        for plan in plans:
            plan.outbox.written(plan)
        if self._handled and self._poll is not None:
            self._more_asked = self._reactor.callLater(0, self._take_up_requests)
        self._handled = []
        if self._dirty or self._requests:
            self._schedule()
        self._tell_flushed()

    def _failed(self, failure: Failure) -> None:
        if self._writer is None:
            return
        if isinstance(failure.value, UNSTORABLE):
            if self._leave_out():
                self._turn = self._reactor.callLater(0, self._flush)
                return
        elif isinstance(failure.value, sqlite3.DatabaseError) and not isinstance(failure.value, sqlite3.OperationalError):
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

    def _leave_out(self) -> bool:
        """Find what the transaction that failed cannot store, so that the rest of it can be."""
        connection = self._writer
        assert connection is not None
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                return any(plan.leave_out(connection) for plan in self._plan or ())
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            # It will be found again.
            return False
