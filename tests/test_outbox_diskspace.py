"""An outbox whose disk is full."""

import os
import subprocess
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mqhooks.errors import OutboxNoRoom
from mqhooks.outbox.diskspace import RESERVE, DiskSpace
from mqhooks.outbox.queue import FileLimits, SqliteOutbox, Surroundings
from mqhooks.outbox.store import Store
from mqhooks.support.ratelimit import RateLimit
from tests.outboxes import StoreCase, ThreadedClock, deliveries


class DiskSpaceTests(SynchronousTestCase):
    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")
        self.reserve = Path(f"{self.path}.reserve")
        self.space = DiskSpace(self.path)

    def nothing(self):
        return 0

    def test_reserve_takes_room_and_nobody_else_may_read_it(self):
        self.assertTrue(self.space.make())
        found = self.reserve.stat()
        self.assertEqual((found.st_size, found.st_mode & 0o777), (RESERVE, 0o600))
        self.assertGreaterEqual(found.st_blocks * 512, RESERVE)

    def test_spent_once_and_renewed(self):
        self.space.make()
        self.assertTrue(self.space.enough(1000, self.nothing))
        self.assertTrue(self.space.spend())
        self.assertFalse(self.space.spend())
        self.assertFalse(self.reserve.exists())
        self.assertFalse(self.space.enough(1000, self.nothing))
        self.space.renew(0)
        self.assertTrue(self.reserve.exists())
        self.assertTrue(self.space.enough(1000, self.nothing))

    def full(self, free):
        class Found:
            f_frsize = 1
            f_bavail = free

        self.patch(os, "statvfs", lambda _: Found)

    def test_room_within_the_file_is_as_good_as_a_reserve(self):
        self.full(0)
        self.assertFalse(self.space.make())
        self.space.renew(RESERVE - 1)
        self.assertTrue(self.space.spent)
        self.space.renew(RESERVE)
        self.assertFalse(self.space.spent)

    def test_what_is_written_has_to_be_moved_out_of_the_log_as_well(self):
        Path(f"{self.path}-wal").write_bytes(bytes(3000))
        self.full(5000)
        self.assertTrue(self.space.enough(1000, self.nothing))
        self.assertFalse(DiskSpace(self.path).enough(1001, self.nothing))
        self.assertTrue(DiskSpace(self.path).enough(2000, lambda: 2000))
        self.assertFalse(DiskSpace(self.path).enough(5001, lambda: 1 << 30))

    def test_symbolic_link_is_not_followed(self):
        target = Path(f"{self.path}.target")
        target.write_text("mine")
        self.reserve.symlink_to(target)
        self.space.make()
        self.assertEqual(target.read_text(), "mine")


class LittleRoom:
    """A disk with room for 500 KiB at first, and for 300 KiB once its reserve is spent."""

    spent = False
    room = 500 << 10

    def enough(self, size, free_inside):
        return size <= self.room

    def spend(self):
        self.room = 300 << 10
        return True

    def renew(self, free_inside):
        pass


class LyingFile:
    """A file that has less room than it said, once."""

    def __init__(self):
        self.committed = set()
        self.refused = False

    def write(self, changes, *_):
        rows = [row for each in changes for row in each.rows]
        if rows and not self.refused:
            self.refused = True
            raise OutboxNoRoom("full")
        self.committed.update(delivery.id for row in rows for delivery in row.deliveries)

    def free(self):
        return 0

    def checkpoint(self):
        pass

    shrink_log = checkpoint


class PostponedTests(SynchronousTestCase):
    def test_what_is_written_in_smaller_parts_than_it_was_tried_is_accepted_part_by_part(self):
        clock, file, told = Clock(), LyingFile(), []
        store = Store(clock, damaged=self.fail, failed=lambda _: None)
        store.open(file, LittleRoom(), None, full=False)
        limits = FileLimits(1 << 30, "pause", 10)
        outbox = SqliteOutbox(store, "w", Surroundings(limits, lambda: 0, "path", RateLimit(clock), self.fail))
        everything = deliveries(9, size=100 << 10)
        for each in everything:
            accepted = outbox.append([each], room=False)
            accepted.addCallback(lambda _, each=each: told.append((each.id, each.id in file.committed)))
        clock.advance(0)
        self.assertEqual((file.refused, told), (True, []))
        for _ in range(5):
            clock.advance(1)
            store.look()
        self.assertEqual(told, [(each.id, True) for each in everything])


class DiskTests(StoreCase):
    """A file system of a few MiB, filled to its last byte."""

    def mount(self, size):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}M", "none", str(directory)], capture_output=True, check=False
        )
        if mounted.returncode:
            raise SkipTest("no file system may be mounted here")
        self.addCleanup(subprocess.run, ["umount", "-l", str(directory)], check=False)
        self.path = str(directory / "outbox")

    def fill(self):
        """Append until nothing is accepted any more; return what was accepted."""
        accepted, number = [], 0
        waiting = None
        for _ in range(20_000):
            waiting = self.outbox.append(deliveries(10, number, size=1000))
            self.turn()
            if not waiting.called:
                self.clock.pump([1] * 3)
            if not waiting.called:
                break
            accepted += range(number, number + 10)
            number += 10
        self.assertIsInstance(waiting, Deferred)
        return accepted, waiting, number

    def check(self, size, foreign=False):
        self.mount(size)
        store = self.open()
        accepted, waiting, number = self.fill()
        self.assertGreater(len(accepted) * 1000, size << 17)
        self.assertEqual(self.pending(), len(accepted))
        if foreign:
            # Somebody else takes what is left.
            with open(f"{self.path}.foreign", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        self.clock.pump([1] * 5)
        self.assertFalse(waiting.called)
        # A restart loses nothing, and sends nothing that has arrived.
        claimed = self.claim()
        self.assertEqual([delivery.timestamp for delivery in claimed], accepted)
        half = len(claimed) // 2
        self.outbox.acknowledge(claimed[:half])
        self.turn()
        self.clock.pump([1] * 3)
        self.successResultOf(waiting)
        accepted += range(number, number + 10)
        self.kill(store)
        store = self.open()
        claimed = self.claim()
        self.assertEqual([delivery.timestamp for delivery in claimed], accepted[half:])
        again = self.outbox.append(deliveries(10, number + 10, size=1000))
        for start in range(0, len(claimed), 50):
            self.outbox.acknowledge(claimed[start : start + 50])
            self.turn()
        self.clock.pump([1] * 5)
        self.successResultOf(again)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(number + 10, number + 20)))
        self.assertIsNone(store.failing)
        self.assertEqual((self.pending(), self.outbox.counts.resumed), (10, len(accepted) - half))

    def test_3_mib(self):
        self.check(3)

    def test_6_mib(self):
        self.check(6)

    def test_20_mib(self):
        self.check(20)

    def test_what_has_waited_is_accepted_bit_by_bit(self):
        # All of it at once would not find room in the log of writes.
        self.mount(6)
        self.open()
        _, waiting, number = self.fill()
        more = [self.outbox.append(deliveries(10, number + start, size=10_000)) for start in range(10, 400, 10)]
        self.clock.pump([1] * 5)
        claimed = self.claim()
        for _ in range(200):
            self.outbox.acknowledge(claimed)
            self.clock.pump([0, 0.005, 0.5, 0.5])
            claimed = self.claim()
        self.successResultOf(waiting)
        for accepted in more:
            self.successResultOf(accepted)
        self.assertEqual(self.pending(), 0)
        self.check_counts()

    def test_20_mib_and_others_take_what_is_left(self):
        self.check(20, foreign=True)


class ThreadedDiskTests(DiskTests):
    """The same while a thread moves the log."""

    make_clock = ThreadedClock
