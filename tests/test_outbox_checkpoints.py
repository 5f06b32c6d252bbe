"""When the write-ahead log is moved into the file, and who waits for that."""

import os

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.outbox.checkpoints import BEGIN, LONG, SCARCE, Checkpoints
from mqhooks.outbox.diskspace import DiskSpace
from tests.outboxes import ThreadedClock


class Log:
    """A file whose log has as many pages as it is told."""

    length = BEGIN
    kept = moved = 0

    def keep_log(self, pages):
        self.kept = pages

    def move_log(self):
        self.moved += 1
        return self.length


class Pool:
    """A thread that runs what it got when it is told to."""

    def __init__(self):
        self.jobs = []

    def callInThreadWithCallback(self, done, function):  # noqa: N802
        self.jobs.append((done, function))


class CheckpointTests(SynchronousTestCase):
    free = SCARCE

    def setUp(self):
        self.patch(os, "statvfs", lambda _: type("Found", (), {"f_frsize": 1, "f_bavail": self.free}))
        self.clock, self.log, self.pool = ThreadedClock(), Log(), Pool()
        self.checkpoints = Checkpoints(self.clock, self.log, DiskSpace(self.mktemp()), self.pool)
        self.resumed = 0

    def run_thread(self):
        ((done, function),) = self.pool.jobs
        self.pool.jobs.clear()
        done(True, function())
        self.clock.advance(0)

    def holds(self):
        def resume():
            self.resumed += 1

        return self.checkpoints.holds(resume)

    def test_transactions_do_not_move_the_log(self):
        self.assertGreater(self.log.kept, LONG)

    def test_log_is_moved_in_the_thread_once_there_is_enough_and_nobody_waits(self):
        self.checkpoints.wrote(BEGIN - 1)
        self.assertEqual(self.pool.jobs, [])
        self.checkpoints.wrote(1)
        self.assertEqual((len(self.pool.jobs), self.log.moved), (1, 0))
        self.assertFalse(self.holds())
        self.checkpoints.wrote(BEGIN)
        self.assertEqual(len(self.pool.jobs), 1)
        self.run_thread()
        self.assertFalse(self.holds())
        self.checkpoints.wrote(1)
        self.assertEqual(len(self.pool.jobs), 1)

    def test_transactions_wait_for_a_long_log_once(self):
        self.log.length = LONG + 1
        self.checkpoints.wrote(BEGIN)
        self.run_thread()
        self.assertTrue(self.holds())
        self.assertTrue(self.holds())
        self.run_thread()
        self.assertEqual((self.resumed, self.pool.jobs), (1, []))
        self.assertFalse(self.holds())

    def test_log_that_is_long_while_nobody_writes(self):
        self.log.length = LONG + 1
        self.checkpoints.wrote(BEGIN)
        self.run_thread()
        self.run_thread()
        self.assertEqual((self.resumed, self.pool.jobs), (0, []))
        self.assertFalse(self.holds())

    def test_with_little_space_the_log_is_moved_at_once(self):
        self.free = SCARCE - 1
        self.log.length = LONG + 1
        self.checkpoints.wrote(BEGIN)
        self.assertEqual((self.log.moved, self.pool.jobs), (2, []))
        self.assertFalse(self.holds())

    def test_space_that_becomes_scarce_while_a_transaction_waits(self):
        self.log.length = LONG + 1
        self.checkpoints.wrote(BEGIN)
        self.free = 0
        self.run_thread()
        self.assertFalse(self.holds())

    def test_nothing_is_moved_after_the_end(self):
        self.log.length = LONG + 1
        self.checkpoints.wrote(BEGIN)
        self.checkpoints.stop()
        self.run_thread()
        self.assertEqual((self.log.moved, self.pool.jobs), (1, []))
