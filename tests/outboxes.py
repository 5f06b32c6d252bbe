"""Helpers for tests of the durable outbox."""

import sqlite3
from collections import deque
from contextlib import closing
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mqhooks.delivery import Delivery
from mqhooks.errors import OutboxNoRoom
from mqhooks.outbox.file import LONGEST_ROW, OutboxFile
from mqhooks.outbox.queue import NOTED
from mqhooks.outbox.sqlite import CLOSING_TIME, SqliteStore

PLENTY = 1 << 40


def deliveries(count, start=0, size=0):
    return [
        Delivery(f"msg_{number}", f"c{number % 7}", number, b"x" * size or b"%d" % number, 1000 + number)
        for number in range(start, start + count)
    ]


class ReactorClock(MemoryReactorClock):
    """A clock as a running reactor, which runs ``callWhenRunning`` at once and counts calls of ``stop``."""

    def __init__(self):
        super().__init__()
        self.stopped = 0

    def callWhenRunning(self, function):  # noqa: N802
        function()

    def stop(self):
        self.stopped += 1


@implementer(IReactorThreads)
class ThreadedClock(ReactorClock):
    """A clock with threads: it runs their ``callFromThread`` calls when it is advanced."""

    def __init__(self):
        super().__init__()
        self._calls = deque()

    def callFromThread(self, function, *args):  # noqa: N802
        self._calls.append((function, args))

    def callInThread(self, function, *args):  # noqa: N802
        raise NotImplementedError

    getThreadPool = suggestThreadPoolSize = callInThread  # noqa: N815

    def advance(self, amount):
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)
        super().advance(amount)


class Faults:
    """
    Makes files that fail when the test wants it.

    :ivar writes: errors for the next transactions, one after the other; ``None`` lets one succeed.
    :ivar before_write: called once, before the next transaction, to act while a thread writes; it may set itself again.
    :ivar room: bytes of new and rewritten rows that a transaction may have; a longer one finds no room. ``None``: any.
    :ivar reads: raised by every read; ``None`` lets reads succeed.
    :ivar written: the transactions that succeeded, as lists of changes.
    :ivar before_move: called before the log is moved, in the thread.
    :ivar moved: times that the log was moved.
    :ivar log_length: length in pages to report for the log; ``None`` for the true one.
    """

    def __init__(self, longest_row=LONGEST_ROW):
        self.longest_row = longest_row
        self.writes = []
        self.always = None
        self.reads = self.room = None
        self.before_write = self.before_move = self.log_length = None
        self.moved = 0
        self.written = []
        self.files = []

    def open(self, *args, **options):
        faults = self

        class Faulty(OutboxFile):
            def write(self, changes, *more):
                hook, faults.before_write = faults.before_write, None
                if hook is not None:
                    hook()
                error = faults.writes.pop(0) if faults.writes else faults.always
                if error is None and faults.room is not None:
                    rows = [row.data for each in changes for row in each.rows]
                    rows += [data for each in changes for _, data in each.thinned]
                    error = OutboxNoRoom("full") if sum(map(len, rows)) > faults.room else None
                if error is not None:
                    raise error
                super().write(changes, *more)
                faults.written.append(list(changes))

            def move_log(self):
                if faults.before_move is not None:
                    faults.before_move()
                length = super().move_log()
                faults.moved += 1
                return faults.log_length or length

            def rows(self, *between):
                self.check()
                yield from super().rows(*between)

            def requests(self, *args):
                self.check()
                return super().requests(*args)

            def check(self):
                if faults.reads is not None:
                    raise faults.reads

        file = Faulty(*args, longest=self.longest_row, **options)
        self.files.append(file)
        return file


class StoreCase(SynchronousTestCase):
    make_clock = ReactorClock

    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.addCleanup(self.kill_all)
        self.stores = []

    def lines(self):
        return [formatEvent(event) for event in self.logged]

    def log(self):
        return "\n".join(self.lines())

    def open(self, longest_row=LONGEST_ROW, **options):
        self.clock = self.make_clock()
        self.faults = Faults(longest_row)
        store = SqliteStore(self.clock, self.path, now=self.clock.seconds, open_file=self.faults.open, **options)
        self.outbox = store.outbox("w")
        self.stores.append((store, self.clock, self.faults))
        try:
            store.startService()
        except BaseException:
            self.stores.pop()
            raise
        return store

    def kill_all(self):
        while self.stores:
            self.kill(self.stores[-1][0])

    def kill(self, store):
        """Stop a store as a SIGKILL does: leave the file as it is, and no lock."""
        ((_, clock, faults),) = [each for each in self.stores if each[0] is store]
        self.stores = [each for each in self.stores if each[0] is not store]
        if store.running:
            faults.always = OSError("it is killed")
            stopped = store.stopService()
            clock.pump([0.1] * int(CLOSING_TIME * 10 + 2))
            self.successResultOf(stopped)
            self.logged[:] = [event for event in self.logged if "stopped without having been" not in formatEvent(event)]

    def turn(self):
        self.clock.advance(NOTED)

    def second(self):
        self.clock.advance(1)
        self.turn()

    def append(self, *args, **kwargs):
        accepted = self.outbox.append(deliveries(*args, **kwargs))
        self.turn()
        return accepted

    def claim(self, limit=PLENTY, size=PLENTY, outbox=None):
        """Claim all deliveries that can be claimed now."""
        outbox = outbox or self.outbox
        claimed = []
        while len(claimed) < limit:
            found = outbox.claim(limit - len(claimed), size)
            if isinstance(found, Deferred):
                found.addErrback(lambda _: None)
                found.cancel()
                break
            claimed += found
        return claimed

    def pending(self):
        return self.outbox.counts.pending

    def check_counts(self, outbox=None):
        counts = (outbox or self.outbox).counts
        self.assertEqual(counts.accepted, counts.delivered + counts.dead + counts.dropped + counts.pending)
        self.assertGreaterEqual(min(getattr(counts, name) for name in counts.__struct_fields__), 0)

    def query(self, question, *values):
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(question, values).fetchall()

    def count(self, table):
        return self.query(f"SELECT count(*) FROM {table}")[0][0]
