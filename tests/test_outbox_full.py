"""The outbox on disk with a real reactor: what waits for the disk does not hold it up."""

from pathlib import Path
from threading import Event, current_thread, main_thread

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mqhooks.errors import OutboxUnavailable
from mqhooks.outbox.checkpoints import LONG
from mqhooks.outbox.sqlite import SqliteStore
from tests.outboxes import PLENTY, Faults, deliveries
from tests.waiting import until


class FullTests(TestCase):
    timeout = 120
    sync = "full"

    def open(self, path=None):
        if path is None:
            directory = Path(self.mktemp()).resolve()
            directory.mkdir()
            path = str(directory / "outbox")
        self.path = path
        self.faults = Faults()
        store = SqliteStore(reactor, path, sync=self.sync, open_file=self.faults.open)
        self.outbox = store.outbox("w")
        store.startService()
        self.addCleanup(lambda: store.stopService() if store.running else None)
        return store

    async def test_commits_in_another_thread(self):
        store = self.open()
        threads = []
        self.faults.before_write = lambda: threads.append(current_thread())
        await gatherResults([self.outbox.append(deliveries(10, start)) for start in range(0, 100, 10)])
        self.assertEqual(len(threads), 1)
        self.assertNotIn(main_thread(), threads)
        claimed = self.outbox.claim(100, PLENTY)
        self.assertEqual([delivery.timestamp for delivery in claimed], list(range(100)))
        self.outbox.acknowledge(claimed[:60])
        await store.stopService()
        self.open(self.path)
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(100, PLENTY)], list(range(60, 100)))

    async def test_what_comes_while_a_commit_is_under_way_is_in_the_next(self):
        self.open()
        first = self.outbox.append(deliveries(5))
        await deferLater(reactor, 0)
        second = self.outbox.append(deliveries(5, 5))
        await gatherResults([first, second])
        self.assertEqual(self.outbox.counts.pending, 10)
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(5, PLENTY)], list(range(5)))
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(5, PLENTY)], list(range(5, 10)))

    async def test_acknowledged_while_a_commit_is_under_way(self):
        store = self.open()
        await self.outbox.append(deliveries(20))
        claimed = self.outbox.claim(20, PLENTY)
        self.outbox.acknowledge(claimed[:5])
        self.outbox.append(deliveries(1, 20))
        await deferLater(reactor, 0)
        self.outbox.acknowledge(claimed[5:20])
        await store.stopService()
        self.open(self.path)
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(100, PLENTY)], [20])

    async def test_commit_that_fails_is_tried_again(self):
        self.open()
        self.faults.writes = [OutboxUnavailable("disk I/O error")]
        await self.outbox.append(deliveries(5))
        self.assertEqual((self.faults.writes, self.outbox.counts.pending), ([], 5))


class LogTests(FullTests):
    """The same with ``sync = normal``, where only moving the write-ahead log waits for the disk."""

    sync = "normal"

    async def test_commits_in_another_thread(self):
        store = self.open()
        threads = []
        self.faults.before_write = lambda: threads.append(current_thread())
        await self.outbox.append(deliveries(10))
        self.assertEqual(threads, [main_thread()])
        await store.stopService()

    async def test_commits_go_on_while_the_log_is_moved(self):
        store = self.open()
        slow = Event()
        self.addCleanup(slow.set)
        self.faults.before_move = slow.wait
        for start in range(0, 60, 10):
            await self.outbox.append(deliveries(10, start, size=100_000))
        # The thread waits, and is not waited for.
        self.assertEqual(self.faults.moved, 0)
        size = Path(f"{self.path}-wal").stat().st_size
        self.assertGreater(size, 6_000_000)
        slow.set()
        await until(lambda: self.faults.moved)
        await self.outbox.append(deliveries(10, 60, size=100_000))
        await self.outbox.append(deliveries(10, 70, size=100_000))
        # It was started over.
        self.assertEqual(Path(f"{self.path}-wal").stat().st_size, size)
        await store.stopService()
        self.assertFalse(Path(f"{self.path}-wal").exists())
        self.open(self.path)
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(100, PLENTY)], list(range(80)))

    async def test_transaction_waits_while_a_long_log_is_moved(self):
        self.open()
        self.faults.log_length = LONG + 1
        slow = Event()
        self.addCleanup(slow.set)

        def second():
            if self.faults.moved == 1:
                slow.wait()

        self.faults.before_move = second
        await self.outbox.append(deliveries(50, size=100_000))
        await until(lambda: self.faults.moved == 1)
        await deferLater(reactor, 0)
        accepted = self.outbox.append(deliveries(10, 50))
        await deferLater(reactor, 0.01)
        self.assertNoResult(accepted)
        slow.set()
        await accepted
        self.assertEqual(self.outbox.counts.pending, 60)

    async def test_stopped_while_the_log_is_moved(self):
        store = self.open()
        slow = Event()
        self.faults.before_move = slow.wait
        await self.outbox.append(deliveries(60, size=100_000))
        deferred = self.outbox.append(deliveries(10, 60))
        self.addCleanup(slow.set)
        slow.set()
        await store.stopService()
        await deferred
        self.open(self.path)
        self.assertEqual(self.outbox.counts.pending, 70)
