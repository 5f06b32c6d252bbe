"""The outbox on disk with a real reactor: commits that wait for the disk do not hold it up."""

from pathlib import Path
from threading import current_thread, main_thread

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mqhooks.errors import OutboxUnavailable
from mqhooks.outbox.sqlite import SqliteStore
from tests.outboxes import PLENTY, Faults, deliveries


class FullTests(TestCase):
    timeout = 30

    def open(self, path=None):
        if path is None:
            directory = Path(self.mktemp()).resolve()
            directory.mkdir()
            path = str(directory / "outbox")
        self.path = path
        self.faults = Faults()
        store = SqliteStore(reactor, path, sync="full", open_file=self.faults.open)
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
