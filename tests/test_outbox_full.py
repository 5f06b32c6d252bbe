"""The outbox on disk with a real reactor: commits that wait for the disk do not hold it up."""

import sqlite3
from pathlib import Path
from threading import current_thread, main_thread

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mqhooks.outbox.sqlite import SqliteStore
from tests.test_outbox_sqlite import deliveries


class FullTests(TestCase):
    timeout = 30

    def open(self, path=None):
        if path is None:
            directory = Path(self.mktemp()).resolve()
            directory.mkdir()
            path = str(directory / "outbox")
        self.path = path
        store = SqliteStore(reactor, path, sync="full")
        self.outbox = store.outbox("w")
        store.startService()
        self.addCleanup(lambda: store.stopService() if store.running else None)
        return store

    async def test_commits_in_another_thread_with_fsync(self):
        store = self.open()
        threads = []
        write = store._write

        def spy(plans):
            threads.append(current_thread())
            write(plans)

        store._write = spy
        self.assertEqual(store._writer.execute("PRAGMA synchronous").fetchone(), (2,))
        await gatherResults([self.outbox.append(deliveries(10, start)) for start in range(0, 100, 10)])
        self.assertNotIn(main_thread(), threads)
        claimed = self.outbox.claim(100)
        self.assertEqual([delivery.timestamp for delivery in claimed], list(range(100)))
        for delivery in claimed[:60]:
            self.outbox.settle(delivery)
        await store.stopService()
        self.open(self.path)
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(100)], list(range(60, 100)))

    async def test_what_comes_while_a_commit_is_under_way_is_in_the_next(self):
        store = self.open()
        first = self.outbox.append(deliveries(5))
        await deferLater(reactor, 0)
        second = self.outbox.append(deliveries(5, 5))
        await gatherResults([first, second])
        self.assertEqual(self.outbox.pending, 10)
        await store.flushed()
        self.assertEqual([delivery.timestamp for delivery in self.outbox.claim(100)], list(range(10)))

    async def test_a_commit_that_fails_is_tried_again(self):
        store = self.open()
        write, failures = store._write, []

        def fail(plans):
            if not failures:
                failures.append(1)
                raise sqlite3.OperationalError("disk I/O error")
            write(plans)

        store._write = fail
        await self.outbox.append(deliveries(5))
        self.assertEqual((failures, self.outbox.pending), ([1], 5))
