"""The durable outbox keeps what every outbox keeps."""

from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from mqhooks.outbox.sqlite import SqliteStore
from tests.contract.outbox import DurableContract
from tests.outboxes import ReactorClock


class SqliteTests(DurableContract, TestCase):
    """In one thread, with a clock."""

    timeout = 120

    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")

    def open(self):
        self.clock = ReactorClock()
        self.store = SqliteStore(self.clock, self.path, max_size=self.max_size, dead_max=10, now=self.clock.seconds)
        outbox = self.store.outbox("w")
        self.store.startService()
        self.addCleanup(self.close)
        return outbox

    def close(self):
        if self.store.running:
            self.store.stopService()
            self.settle()
        self.assertFalse(self.store.running)

    def settle(self):
        self.clock.pump([0, 0.005, 0.005])

    def reopen(self):
        self.close()
        return self.open()


class FullSyncTests(DurableContract, TestCase):
    """With a thread that waits for the disk."""

    timeout = 120

    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")

    def open(self):
        self.store = SqliteStore(reactor, self.path, sync="full", max_size=self.max_size, dead_max=10)
        outbox = self.store.outbox("w")
        self.store.startService()
        self.addCleanup(lambda store=self.store: store.stopService() if store.running else None)
        return outbox

    def settle(self):
        return self.store.flushed()

    async def reopen(self):
        await self.store.stopService()
        return self.open()
