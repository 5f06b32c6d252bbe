"""What waits on disk."""

import os
import sqlite3
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mqhooks.errors import OutboxError
from mqhooks.interfaces import IOutbox
from mqhooks.outbox import schema
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.queue import CACHE, UNWRITTEN_BYTES
from mqhooks.outbox.rows import BATCH
from mqhooks.outbox.sqlite import NOTED, RETRY, SqliteStore


def deliveries(count, start=0, size=0):
    return [
        Delivery(f"msg_{number}", f"c{number % 7}", number, b"x" * size or b"%d" % number, 1000 + number)
        for number in range(start, start + count)
    ]


class StoreCase(SynchronousTestCase):
    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.stores = []

    def lines(self):
        return [formatEvent(event) for event in self.logged]

    def open(self, **options):
        self.clock = MemoryReactorClock()
        self.clock.callWhenRunning = lambda function: function()
        store = SqliteStore(self.clock, self.path, now=self.clock.seconds, **options)
        self.outbox = store.outbox("w")
        store.startService()
        self.stores.append(store)
        self.addCleanup(self.kill, store)
        return store

    def kill(self, store):
        """What a SIGKILL leaves: the file as it is, and no lock."""
        store._close()
        store._lock.release()

    def turn(self):
        self.clock.advance(NOTED)

    def append(self, *args, **kwargs):
        accepted = self.outbox.append(deliveries(*args, **kwargs))
        self.turn()
        return accepted

    def claim(self, limit=10**9):
        claimed = []
        while found := self.outbox.claim(limit - len(claimed)):
            claimed += found
        return claimed

    def assert_identity(self):
        outbox = self.outbox
        self.assertEqual(outbox.accepted, outbox.delivered + outbox.dead + outbox.dropped + outbox.pending)

    def count(self, table):
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        finally:
            connection.close()


class SqliteOutboxTests(StoreCase):
    def test_interface(self):
        self.open()
        verifyObject(IOutbox, self.outbox)
        self.assertTrue(self.outbox.durable)

    def test_accepted_means_committed(self):
        self.open()
        accepted = self.outbox.append(deliveries(3))
        self.assertNoResult(accepted)
        self.assertEqual(self.count("batch"), 0)
        self.turn()
        self.assertIsNone(self.successResultOf(accepted))
        self.assertEqual(self.count("batch"), 1)

    def test_one_turn_is_one_transaction(self):
        store = self.open()
        written = []
        self.patch(store, "_write", lambda plans: written.append(plans))
        for number in range(5):
            self.outbox.append(deliveries(2, number * 2))
        self.turn()
        self.assertEqual(len(written), 1)

    def test_long_bodies(self):
        store = self.open()
        expected = [*deliveries(2), *deliveries(1, 2, size=3 << 20), *deliveries(2, 3), *deliveries(1, 5, size=15 << 20)]
        self.outbox.append(expected)
        self.turn()
        self.assertEqual(self.claim(), expected)
        self.kill(store)
        self.open()
        self.assertEqual(self.claim(), expected)
        self.assertEqual((self.outbox.pending, self.outbox.dropped), (6, 0))

    def test_a_long_row_that_the_disk_has_no_room_for(self):
        store = self.open()
        store._writer.execute("PRAGMA max_page_count = 100")
        accepted = self.outbox.append([*deliveries(1), *deliveries(1, 1, size=2 << 20)])
        self.turn()
        self.assertNoResult(accepted)
        self.assertEqual((self.count("batch"), store.failing), (0, "database or disk is full"))
        store._writer.execute("PRAGMA max_page_count = 10000")
        self.clock.advance(RETRY)
        self.assertIsNone(self.successResultOf(accepted))
        self.assertEqual([len(delivery.body) for delivery in self.claim()], [1, 2 << 20])

    def test_much_in_one_turn_is_committed_before_it_ends(self):
        self.open()
        appended = [self.outbox.append(deliveries(1, number, size=UNWRITTEN_BYTES // 3)) for number in range(4)]
        self.assertEqual([deferred.called for deferred in appended], [True, True, True, False])
        self.turn()
        self.assertTrue(appended[3].called)

    def test_first_in_first_out(self):
        self.open()
        for number in range(0, 30, 10):
            self.append(10, number)
        self.assertEqual([delivery.id for delivery in self.claim(15)], [f"msg_{number}" for number in range(15)])
        self.assertEqual([delivery.id for delivery in self.claim()], [f"msg_{number}" for number in range(15, 30)])
        self.assertEqual(self.outbox.pending, 30)

    def test_what_is_settled_leaves(self):
        self.open()
        self.append(20)
        for delivery in self.claim():
            self.outbox.settle(delivery)
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress"), self.outbox.pending, self.outbox.bytes), (0, 0, 0, 0))
        self.assert_identity()

    def test_what_is_not_settled_comes_back_after_a_kill(self):
        store = self.open()
        self.append(20)
        claimed = self.claim()
        for delivery in claimed[::2]:
            self.outbox.settle(delivery)
        self.turn()
        self.kill(store)
        self.open()
        self.assertEqual((self.outbox.accepted, self.outbox.delivered, self.outbox.pending), (20, 10, 10))
        again = self.claim()
        self.assertEqual([delivery.id for delivery in again], [delivery.id for delivery in claimed[1::2]])
        self.assertEqual([delivery.body for delivery in again], [delivery.body for delivery in claimed[1::2]])
        self.assertEqual([delivery.accepted for delivery in again], [delivery.accepted for delivery in claimed[1::2]])
        for delivery in again:
            self.outbox.settle(delivery)
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress")), (0, 0))

    def test_much_at_once_is_not_kept_until_the_end_of_the_turn(self):
        self.open()
        waiting = [self.outbox.append(deliveries(1, number, size=1 << 20)) for number in range(40)]
        self.assertLess(sum(len(delivery.body) for delivery in self.outbox._new), 10 << 20)
        self.turn()
        for accepted in waiting:
            self.successResultOf(accepted)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(40)))

    def test_webhooks_are_apart(self):
        store = self.open()
        other = store.outbox("other")
        other.append(deliveries(3))
        self.append(2)
        self.assertEqual((len(self.claim()), len(other.claim(9))), (2, 3))
        self.kill(store)
        store = self.open()
        self.assertEqual((self.outbox.pending, store.outbox("other").pending), (2, 3))
        self.assertEqual((len(self.claim()), len(store.outbox("other").claim(9))), (2, 3))

    def test_a_backlog_is_not_kept_in_memory(self):
        store = self.open()
        count = CACHE * 3
        for start in range(0, count, 1000):
            self.append(min(1000, count - start), start)
        self.assertLess(len(self.outbox._cache), CACHE + 1000)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(count)))
        self.kill(store)
        self.open()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(count)))

    def test_appending_while_a_backlog_drains(self):
        self.open()
        self.append(CACHE * 2)
        seen = []
        for start in range(CACHE * 2, CACHE * 3, 100):
            seen += self.outbox.claim(150)
            self.append(100, start)
        seen += self.claim()
        numbers = [delivery.timestamp for delivery in seen]
        self.assertEqual(numbers, list(range(len(numbers))))
        self.assertGreaterEqual(len(numbers), CACHE * 3)

    def test_large_batches_are_several_rows(self):
        self.open()
        self.append(BATCH * 2 + 1)
        self.assertEqual(self.count("batch"), 3)
        self.append(5, 10_000, size=1 << 19)
        self.assertEqual(self.count("batch"), 6)

    def test_large_bodies_are_few_at_a_time(self):
        store = self.open()
        self.append(100, size=1 << 20)
        self.assertLess(len(self.outbox._cache), 12)
        self.assertLess(len(self.outbox.claim(100)), 6)
        self.kill(store)
        self.open()
        numbers = []
        while claimed := self.outbox.claim(100):
            self.assertLess(len(claimed), 6)
            self.assertLess(self.outbox._cached, 12 << 20)
            numbers += [delivery.timestamp for delivery in claimed]
        self.assertEqual((numbers, self.outbox._cached), (list(range(100)), 0))

    def test_recall(self):
        self.open()
        self.append(20)
        self.append(20, 20)
        claimed = self.claim()
        places = [delivery.place for delivery in claimed if delivery.client == "c3"]
        recalled = self.outbox.recall(places)
        self.assertEqual(recalled, [delivery for delivery in claimed if delivery.client == "c3"])

    def test_full_pauses_until_there_is_room(self):
        self.open(max_size=10_000)
        first = self.append(1, size=9_000)
        self.successResultOf(first)
        second = self.append(1, 1, size=9_000)
        self.assertNoResult(second)
        self.assertEqual(self.outbox.pending, 2)
        self.clock.advance(1)
        self.assertIn("webhook w is full", "\n".join(self.lines()))
        self.outbox.settle(self.claim()[0])
        self.turn()
        self.successResultOf(second)

    def test_full_drops_the_oldest_that_nobody_has_read(self):
        self.open(max_size=100_000, on_full="drop_oldest")
        for start in range(0, CACHE + 2000, 100):
            self.successResultOf(self.append(100, start))
        self.assertGreater(self.outbox.dropped, 0)
        self.assert_identity()
        self.assertEqual(len(self.claim()), self.outbox.pending)

    def test_numbers_of_dropped_rows_are_not_given_again(self):
        store = self.open(max_size=20_000, on_full="drop_oldest")
        for start in range(0, CACHE + 2000, 100):
            self.append(100, start)
        for delivery in self.claim():
            self.outbox.settle(delivery)
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress")), (0, 0))
        self.kill(store)
        store = self.open()
        self.append(5, 90_000)
        self.kill(store)
        self.open()
        self.assertEqual(len(self.claim()), 5)

    def test_several_gigabytes_are_not_loaded_to_start(self):
        store = self.open()
        for start in range(0, 20_000, 1000):
            self.append(1000, start)
        self.kill(store)
        self.open()
        self.assertEqual((len(self.outbox._cache), self.outbox.pending), (0, 20_000))

    def test_rows_that_a_few_keep_are_thinned(self):
        store = self.open()
        self.append(400, size=500)
        claimed = self.claim()
        kept = claimed[::50]
        for delivery in claimed:
            if delivery not in kept:
                self.outbox.settle(delivery)
        self.turn()
        before = self.outbox.bytes
        self.clock.pump([1, 0])
        self.assertLess(self.outbox.bytes, before / 20)
        self.assertEqual(self.outbox.recall([delivery.place for delivery in kept]), kept)
        self.kill(store)
        self.open()
        self.assertEqual([delivery.id for delivery in self.claim()], [delivery.id for delivery in kept])
        for delivery in self.outbox.recall([delivery.place for delivery in kept]):
            self.outbox.settle(delivery)
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress"), self.outbox.bytes), (0, 0, 0))

    def test_what_is_left_of_a_webhook_that_is_gone(self):
        store = self.open()
        self.append(3)
        self.kill(store)
        store = SqliteStore(self.clock, self.path)
        self.addCleanup(self.kill, store)
        store.startService()
        self.assertIn("holds 3 deliveries of webhook w, which is not configured", "\n".join(self.lines()))

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_whatever_happens_nothing_is_lost_or_kept(self, data):
        self.setUp()
        random = Random(data.draw(st.integers()))
        store = self.open()
        appended = 0
        under_way = []
        done = set()
        for _ in range(data.draw(st.integers(1, 25))):
            step = data.draw(st.integers(0, 5))
            if step == 5:
                self.clock.advance(1)
            elif step == 0:
                count = random.randrange(1, 700)
                self.outbox.append(deliveries(count, appended))
                appended += count
            elif step == 1:
                under_way += self.outbox.claim(random.randrange(1, 400))
            elif step == 2:
                random.shuffle(under_way)
                for _ in range(random.randrange(len(under_way) + 1)):
                    delivery = under_way.pop()
                    self.outbox.settle(delivery)
                    done.add(delivery.timestamp)
            elif step == 3:
                self.turn()
            else:
                self.turn()
                self.kill(store)
                under_way = []
                store = self.open()
            self.assert_identity()
            self.assertEqual(self.outbox.pending, appended - len(done))
        self.turn()
        self.kill(store)
        self.open()
        left = [delivery.timestamp for delivery in self.claim()]
        self.assertEqual(left, [number for number in range(appended) if number not in done])


class FailureTests(StoreCase):
    def test_a_transaction_that_fails_is_tried_again(self):
        store = self.open()
        write, failures = store._write, []

        def fail(plans):
            failures.append(1)
            raise sqlite3.OperationalError("database or disk is full")

        self.patch(store, "_write", fail)
        accepted = self.append(5)
        later = self.append(5, 5)
        self.clock.pump([1, 1])
        self.assertNoResult(accepted)
        self.assertGreater(len(failures), 1)
        self.assertEqual(len([line for line in self.lines() if "disk is full" in line]), 1)
        self.patch(store, "_write", write)
        self.clock.advance(1)
        self.turn()
        self.successResultOf(accepted)
        self.successResultOf(later)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(10)))

    def test_stopping_writes_what_is_not_yet_written(self):
        store = self.open()
        accepted = self.outbox.append(deliveries(3))
        stopped = store.stopService()
        self.assertNoResult(stopped)
        self.turn()
        self.successResultOf(accepted)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.open()
        self.assertEqual(len(self.claim()), 3)

    def test_stopping_is_bounded(self):
        store = self.open()

        def fail(plans):
            raise sqlite3.OperationalError("database or disk is full")

        self.patch(store, "_write", fail)
        self.outbox.append(deliveries(3))
        stopped = store.stopService()
        self.clock.pump([1] * 6)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn("is lost", self.lines()[-1])

    def test_a_transaction_that_finds_damage_stops_the_process(self):
        store = self.open()

        def fail(plans):
            raise sqlite3.DatabaseError("database disk image is malformed")

        stopped = []
        self.patch(self.clock, "stop", lambda: stopped.append(1))
        self.patch(store, "_write", fail)
        self.append(3)
        self.assertEqual(stopped, [1])
        self.kill(store)
        self.open()
        self.assertIn("set aside", "\n".join(self.lines()))

    def test_nobody_else_may_read_it(self):
        self.open()
        self.append(1)
        for suffix in ("", "-wal", "-shm", ".lock"):
            self.assertEqual(os.stat(self.path + suffix).st_mode & 0o007, 0)

    def refused(self):
        store = SqliteStore(Clock(), self.path)
        error = self.assertRaises(OutboxError, store.startService)
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_a_second_process_is_refused(self):
        self.open()
        self.assertEqual(
            self.refused(), f"{self.path}: is in use by process {os.getpid()}; stop that one or give outbox.path another name"
        )

    def test_a_missing_directory(self):
        self.path = "/nowhere/outbox"
        self.assertIn("/nowhere/outbox", self.refused())

    def test_a_foreign_file(self):
        Path(self.path).write_text("my diary, page one\n" * 100)
        self.assertIn("is no outbox of mqhooks", self.refused())
        # The first attempt must not make it ours.
        self.assertIn("is no outbox of mqhooks", self.refused())
        self.assertIn("my diary", Path(self.path).read_text())

    def test_a_foreign_database(self):
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE diary (page TEXT)")
        connection.close()
        self.assertIn("is the database of another program", self.refused())

    def test_a_newer_version(self):
        self.kill(self.open())
        connection = sqlite3.connect(self.path)
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
        connection.close()
        self.assertIn("newer mqhooks", self.refused())

    def test_an_older_version_is_migrated(self):
        store = self.open()
        self.append(3)
        self.kill(store)
        self.patch(schema, "MIGRATIONS", [*schema.MIGRATIONS, "CREATE TABLE later (x INTEGER); INSERT INTO later VALUES (7);"])
        for _ in range(2):
            store = self.open()
            self.assertEqual(store.reader.execute("SELECT x FROM later").fetchall(), [(7,)])
            self.assertEqual(store.reader.execute("PRAGMA user_version").fetchone(), (2,))
            self.kill(store)
        self.open()
        self.assertEqual(len(self.claim()), 3)

    def test_a_directory(self):
        os.mkdir(self.path)
        self.assertIn("Is a directory", self.refused())


class PassingErrorTests(StoreCase):
    def test_a_read_that_fails_is_tried_again(self):
        store = self.open()
        self.append(CACHE + 2000)
        self.append(1000, 50_000)
        claimed = self.claim(CACHE)

        class Failing:
            def execute(self, *args):
                raise sqlite3.OperationalError("disk I/O error")

        reader, store._reader = store._reader, Failing()
        found = self.claim()
        store._reader = reader
        found += self.claim()
        self.assertEqual(len(claimed) + len(found), CACHE + 3000)

    def test_a_full_outbox_tells_that_there_is_something_to_claim(self):
        self.open(max_size=10_000)
        woken = []
        self.outbox.more = lambda: woken.append(len(self.outbox.claim(99)))
        self.assertNoResult(self.append(50, size=1000))
        self.assertEqual(sum(woken), 50)


class DamageTests(StoreCase):
    COUNT = 5000

    def damage(self, change):
        store = self.open()
        for start in range(0, self.COUNT, 100):
            self.append(100, start, size=300)
        for delivery in self.claim(150):
            self.outbox.settle(delivery)
        self.turn()
        self.kill(store)
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        content = bytearray(Path(self.path).read_bytes())
        change(content)
        Path(self.path).write_bytes(content)

    def salvaged(self):
        (line,) = [line for line in self.lines() if "set aside" in line]
        (aside,) = [path for path in Path(self.path).parent.glob("*.damaged-*") if path.suffix not in ("-wal", "-shm")]
        self.assertIn(str(aside), line)
        self.assert_identity()
        left = [delivery.timestamp for delivery in self.claim()]
        self.assertEqual(left, sorted(left))
        self.assertEqual(len(left), self.outbox.pending)
        return left

    def test_the_first_page(self):
        def change(content):
            content[:4096] = bytes(4096)

        self.damage(change)
        self.open()
        self.assertEqual(self.salvaged(), list(range(150, self.COUNT)))

    def test_the_header(self):
        def change(content):
            content[:16] = b"not any more...."

        self.damage(change)
        self.open()
        self.assertEqual(self.salvaged(), list(range(150, self.COUNT)))

    def test_rows_that_cannot_be_found_any_more(self):
        store = self.open()
        self.append(10)
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute("DELETE FROM batch")
        connection.close()
        self.outbox.settle(*self.claim())
        self.turn()
        self.assertIn("is damaged (rows of batch cannot be found); stopping", "\n".join(self.lines()))
        # They are not counted as settled: that is what the next start finds.
        connection = sqlite3.connect(self.path)
        self.assertEqual(connection.execute("SELECT accepted, delivered FROM webhook").fetchall(), [(10, 0)])
        connection.close()
        self.kill(store)
        self.open()
        self.assertEqual(self.salvaged(), [])
        self.assertEqual((self.outbox.accepted, self.outbox.dropped), (10, 10))

    def test_a_flipped_byte_costs_its_row(self):
        def change(content):
            index = content.index(b"msg_777\xa2")
            content[index + 4] ^= 1

        self.damage(change)
        self.open()
        left = [delivery.timestamp for delivery in self.claim()]
        self.turn()
        self.assertEqual(left, [*range(150, 700), *range(800, self.COUNT)])
        self.assertEqual(self.outbox.dropped, 100)
        self.assert_identity()
        self.assertIn("100 deliveries are lost", "\n".join(self.lines()))

    def test_random_damage_never_ends_in_a_traceback(self):
        for seed in range(12):
            self.setUp()
            random = Random(seed)

            def change(content, random=random):
                for _ in range(random.randrange(1, 6)):
                    start = random.randrange(len(content))
                    size = random.choice([1, 100, 5000, 50_000])
                    content[start : start + size] = random.randbytes(len(content[start : start + size]))
                if random.random() < 0.3:
                    del content[random.randrange(len(content)) :]

            self.damage(change)
            stopped = []
            for _ in range(3):
                try:
                    store = self.open()
                except OutboxError:
                    break
                self.patch(self.clock, "stop", lambda stopped=stopped: stopped.append(1))
                self.claim()
                self.turn()
                self.assert_identity()
                self.kill(store)
                if not stopped:
                    break
                stopped.clear()
            else:
                self.fail(f"seed {seed}: was never repaired")
