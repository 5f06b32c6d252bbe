"""What waits on disk."""

import os
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mqhooks.errors import OutboxDamaged, OutboxError, OutboxNoRoom, OutboxUnavailable
from mqhooks.outbox import schema
from mqhooks.outbox.diskspace import DiskSpace
from mqhooks.outbox.file import WEBHOOKS
from mqhooks.outbox.ledger import READY as CACHE
from mqhooks.outbox.ledger import ROW as BATCH
from mqhooks.outbox.sqlite import TOO_FULL, SqliteStore
from mqhooks.outbox.store import RETRY, UNWRITTEN
from tests.outboxes import PLENTY, StoreCase, deliveries


class SqliteOutboxTests(StoreCase):
    def test_accepted_means_committed(self):
        self.open()
        accepted = self.outbox.append(deliveries(3))
        self.assertNoResult(accepted)
        self.assertEqual(self.count("batch"), 0)
        self.turn()
        self.assertIsNone(self.successResultOf(accepted))
        self.assertEqual(self.count("batch"), 1)

    def test_one_turn_is_one_transaction(self):
        self.open()
        for number in range(5):
            self.outbox.append(deliveries(2, number * 2))
        self.turn()
        self.assertEqual(len(self.faults.written), 1)

    def fill(self, webhooks, times, *size):
        """Have several webhooks accept bodies; what Python holds is traced from here on."""
        store = self.open()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        outboxes = [store.outbox(f"w{number}") for number in range(webhooks)]
        for outbox in outboxes * times:
            outbox.append(deliveries(*size))
            self.turn()
            self.faults.written.clear()
        return store, outboxes

    def assert_holds_less_than(self, size):
        self.assertLess(tracemalloc.get_traced_memory()[0], size)

    def test_long_bodies_that_nobody_has_claimed_are_not_in_memory(self):
        store, outboxes = self.fill(4, 1, 3, 0, 2 << 20)
        self.assert_holds_less_than(2 << 20)
        self.kill(store)
        store = self.open()
        outboxes = [store.outbox(outbox.name) for outbox in outboxes]
        self.assertEqual([outbox.oldest for outbox in outboxes], [1000] * 4)
        self.assert_holds_less_than(2 << 20)
        for outbox in outboxes * 3:
            self.assertEqual(len(outbox.claim(10, 1)), 1)
        self.assert_holds_less_than(2 << 20)

    def test_what_all_outboxes_read_ahead_is_bounded(self):
        _, outboxes = self.fill(16, 5, 9, 0, 100_000)
        # A MiB each, and a row.
        self.assert_holds_less_than(36 << 20)
        for outbox in outboxes:
            self.assertEqual(len(outbox.claim(1, 1)), 1)
        self.assert_holds_less_than(36 << 20)

    def test_long_bodies(self):
        store = self.open()
        expected = [*deliveries(2), *deliveries(1, 2, size=3 << 20), *deliveries(2, 3), *deliveries(1, 5, size=15 << 20)]
        self.outbox.append(expected)
        self.turn()
        self.assertEqual(self.claim(), expected)
        self.kill(store)
        self.open()
        self.assertEqual(self.claim(), expected)
        self.assertEqual((self.outbox.counts.pending, self.outbox.counts.dropped), (6, 0))

    def test_long_body_that_the_disk_has_no_room_for(self):
        store = self.open()
        self.faults.writes = [OutboxNoRoom("database or disk is full")] * 2
        accepted = self.outbox.append([*deliveries(1), *deliveries(1, 1, size=2 << 20)])
        self.turn()
        self.assertNoResult(accepted)
        self.assertEqual((self.count("batch"), store.failing, self.pending()), (0, "database or disk is full", 0))
        self.clock.pump([RETRY] * 3)
        self.assertIsNone(self.successResultOf(accepted))
        self.assertEqual([len(delivery.body) for delivery in self.claim()], [1, 2 << 20])

    def test_when_all_is_written_for_which_there_is_room_nothing_waits(self):
        self.open()
        self.patch(DiskSpace, "enough", lambda room, size, free_inside: size < 1 << 20)
        self.append(1, size=2 << 20)
        self.assertEqual(self.pending(), 1)
        self.assertIsNone(self.outbox.waiting_since)
        self.outbox.acknowledge(self.claim())
        self.assertIsNone(self.outbox.oldest)

    def test_much_in_one_turn_is_committed_before_it_ends(self):
        self.open()
        appended = [self.outbox.append(deliveries(1, number, size=UNWRITTEN // 3)) for number in range(5)]
        self.assertEqual([deferred.called for deferred in appended], [True, True, True, True, False])
        self.turn()
        self.assertTrue(appended[4].called)

    def test_much_that_comes_when_another_webhook_hears_of_a_transaction(self):
        other = self.open().outbox("other")
        accepted = []
        first = self.outbox.append(deliveries(1))
        other.append(deliveries(3)).addCallback(lambda _: accepted.append("first"))
        first.addCallback(lambda _: other.append(deliveries(9, 3, size=1 << 20)).addCallback(lambda _: accepted.append("more")))
        self.second()
        self.assertEqual(accepted, ["first", "more"])
        self.assertEqual([delivery.id for delivery in self.claim(outbox=other)], [f"msg_{number}" for number in range(12)])
        self.check_counts(other)

    def test_first_in_first_out(self):
        self.open()
        for number in range(0, 30, 10):
            self.append(10, number)
        self.assertEqual([delivery.id for delivery in self.claim(15)], [f"msg_{number}" for number in range(15)])
        self.assertEqual([delivery.id for delivery in self.claim()], [f"msg_{number}" for number in range(15, 30)])
        self.assertEqual(self.outbox.counts.pending, 30)

    def test_what_is_settled_leaves(self):
        self.open()
        self.append(20)
        for delivery in self.claim():
            self.outbox.acknowledge([delivery])
        self.turn()
        self.assertEqual(
            (self.count("batch"), self.count("progress"), self.outbox.counts.pending, self.outbox.used), (0, 0, 0, 0)
        )
        self.check_counts()

    def test_what_is_not_settled_comes_back_after_a_kill(self):
        store = self.open()
        self.append(20)
        claimed = self.claim()
        for delivery in claimed[::2]:
            self.outbox.acknowledge([delivery])
        self.turn()
        self.kill(store)
        self.open()
        self.assertEqual((self.outbox.counts.resumed, self.outbox.counts.delivered, self.pending()), (10, 0, 10))
        again = self.claim()
        self.assertEqual([delivery.id for delivery in again], [delivery.id for delivery in claimed[1::2]])
        self.assertEqual([delivery.body for delivery in again], [delivery.body for delivery in claimed[1::2]])
        self.assertEqual([delivery.accepted for delivery in again], [delivery.accepted for delivery in claimed[1::2]])
        for delivery in again:
            self.outbox.acknowledge([delivery])
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress")), (0, 0))

    def test_much_at_once_is_not_kept_until_the_end_of_the_turn(self):
        self.open()
        waiting = [self.outbox.append(deliveries(1, number, size=1 << 20)) for number in range(40)]
        self.assertLess(self.outbox.unwritten, 10 << 20)
        self.turn()
        for accepted in waiting:
            self.successResultOf(accepted)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(40)))

    def test_webhooks_are_apart(self):
        store = self.open()
        other = store.outbox("other")
        other.append(deliveries(3))
        self.append(2)
        self.assertEqual((len(self.claim()), len(other.claim(9, PLENTY))), (2, 3))
        self.kill(store)
        store = self.open()
        self.assertEqual((self.outbox.counts.pending, store.outbox("other").counts.pending), (2, 3))
        self.assertEqual((len(self.claim()), len(store.outbox("other").claim(9, PLENTY))), (2, 3))

    def test_a_backlog_is_not_kept_in_memory(self):
        store = self.open()
        count = CACHE * 3
        for start in range(0, count, 1000):
            self.append(min(1000, count - start), start)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(count)))
        self.kill(store)
        self.open()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(count)))

    def test_appending_while_a_backlog_drains(self):
        self.open()
        self.append(CACHE * 2)
        seen = []
        for start in range(CACHE * 2, CACHE * 3, 100):
            seen += self.claim(150)
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

    def test_bodies_are_claimed_by_size(self):
        store = self.open()
        self.append(100, size=1 << 20)
        self.assertLess(len(self.outbox.claim(100, 4 << 20)), 6)
        self.kill(store)
        self.open()
        numbers = []
        while len(numbers) < 100:
            claimed = self.outbox.claim(100, 4 << 20)
            self.assertLess(len(claimed), 6)
            numbers += [delivery.timestamp for delivery in claimed]
        self.assertEqual(numbers, list(range(100)))

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
        self.assertEqual(self.outbox.counts.pending, 2)
        self.clock.advance(1)
        self.assertIn("webhook w is full", "\n".join(self.lines()))
        self.outbox.acknowledge([self.claim()[0]])
        self.turn()
        self.successResultOf(second)

    def test_full_drops_the_oldest(self):
        self.open(max_size=100_000, on_full="drop_oldest")
        for start in range(0, CACHE + 2000, 100):
            self.successResultOf(self.append(100, start))
        self.assertGreater(self.outbox.counts.dropped, 0)
        self.assertLessEqual(self.outbox.used, 100_000)
        self.check_counts()
        left = [delivery.timestamp for delivery in self.claim()]
        self.assertEqual(left, list(range(6100 - self.pending(), 6100)))

    def test_what_is_shelved_is_the_oldest_and_what_is_about_to_be_sent_stays(self):
        self.open(max_size=100_000, on_full="drop_oldest")
        self.append(100, size=800)
        self.append(10, 100, size=800)
        claimed = self.claim()
        self.outbox.shelve([delivery.place for delivery in claimed[:100]])
        self.append(20, 110, size=800)
        self.second()
        self.assertEqual(self.outbox.counts.dropped, 100)
        self.assertIn("the oldest deliveries are dropped, 100 so far", self.log())
        places = [delivery.place for delivery in claimed]
        self.assertEqual([delivery.timestamp for delivery in self.outbox.recall(places)], list(range(100, 110)))
        self.outbox.acknowledge(claimed)
        self.outbox.bury(claimed[0], "http://h/", "410", 410, b"", 0)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.dead, self.pending()), (10, 0, 20))
        self.check_counts()
        self.assertEqual(len(self.claim()), 20)

    def test_nothing_is_said_of_dropping_where_nothing_can_be_dropped(self):
        self.open(max_size=10_000, on_full="drop_oldest")
        self.append(1, size=20_000)
        self.assertEqual(len(self.claim()), 1)
        self.append(1, 1)
        self.assertEqual(self.outbox.counts.dropped, 0)
        self.second()
        self.assertNotIn("dropped, 0 so far", self.log())

    def test_numbers_of_dropped_rows_are_not_given_again(self):
        store = self.open(max_size=20_000, on_full="drop_oldest")
        for start in range(0, CACHE + 2000, 100):
            self.append(100, start)
        for delivery in self.claim():
            self.outbox.acknowledge([delivery])
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress")), (0, 0))
        self.kill(store)
        store = self.open()
        self.append(5, 90_000)
        self.kill(store)
        self.open()
        self.assertEqual(len(self.claim()), 5)

    def test_rows_that_a_few_keep_are_thinned(self):
        store = self.open()
        self.append(400, size=500)
        claimed = self.claim()
        kept = claimed[::50]
        for delivery in claimed:
            if delivery not in kept:
                self.outbox.acknowledge([delivery])
        self.turn()
        before = self.outbox.used
        self.clock.pump([1, 0])
        self.assertLess(self.outbox.used, before / 20)
        self.assertEqual(self.outbox.recall([delivery.place for delivery in kept]), kept)
        self.kill(store)
        self.open()
        self.assertEqual([delivery.id for delivery in self.claim()], [delivery.id for delivery in kept])
        for delivery in self.outbox.recall([delivery.place for delivery in kept]):
            self.outbox.acknowledge([delivery])
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress"), self.outbox.used), (0, 0, 0))

    def test_what_is_left_of_a_webhook_that_is_gone(self):
        store = self.open()
        self.append(3)
        self.kill(store)
        store = SqliteStore(self.clock, self.path)
        store.startService()
        self.assertIn("holds 3 deliveries of webhook w, which is not configured", self.log())
        store.stopService()

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_whatever_happens_nothing_is_lost_or_kept(self, data):
        self.kill_all()
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
                self.append(count, appended)
                appended += count
            elif step == 1:
                under_way += self.claim(random.randrange(1, 400))
            elif step == 2:
                random.shuffle(under_way)
                for _ in range(random.randrange(len(under_way) + 1)):
                    delivery = under_way.pop()
                    self.outbox.acknowledge([delivery])
                    done.add(delivery.timestamp)
            elif step == 3:
                self.turn()
            else:
                self.turn()
                self.kill(store)
                under_way = []
                store = self.open()
            self.check_counts()
            self.assertEqual(self.pending(), appended - len(done))
        self.turn()
        self.kill(store)
        self.open()
        left = [delivery.timestamp for delivery in self.claim()]
        self.assertEqual(left, [number for number in range(appended) if number not in done])


class FailureTests(StoreCase):
    def test_transaction_that_fails_is_tried_again(self):
        store = self.open()
        self.faults.always = OutboxUnavailable("disk I/O error")
        accepted = self.append(5)
        later = self.append(5, 5)
        self.clock.pump([1, 1])
        self.assertNoResult(accepted)
        self.assertEqual((store.failing, self.pending()), ("disk I/O error", 0))
        self.assertEqual(len([line for line in self.lines() if "disk I/O error" in line]), 1)
        self.faults.always = None
        self.second()
        self.successResultOf(accepted)
        self.successResultOf(later)
        self.assertIsNone(store.failing)
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(10)))

    def test_transaction_that_fails_for_any_other_reason_is_tried_again(self):
        self.open()
        self.faults.writes = [OSError("no thread"), ValueError("no idea")]
        accepted = self.append(5)
        self.clock.pump([1, 1])
        self.successResultOf(accepted)

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
        self.faults.always = OutboxUnavailable("disk I/O error")
        self.outbox.append(deliveries(3))
        stopped = store.stopService()
        self.clock.pump([1] * 6)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn("is lost", self.lines()[-1])

    def test_transaction_that_finds_damage_stops_the_process(self):
        store = self.open()
        self.append(3)
        self.faults.always = OutboxDamaged("database disk image is malformed")
        self.append(3, 3)
        self.assertEqual(self.clock.stopped, 1)
        self.kill(store)
        self.open()
        self.assertIn("set aside", self.log())
        self.assertEqual((self.pending(), self.claim()), (0, []))

    def test_what_has_arrived_is_noted_when_the_disk_is_full(self):
        store = self.open()
        self.append(5)
        claimed = self.claim()
        self.faults.writes = [OutboxNoRoom("full")]
        accepted = self.outbox.append(deliveries(5, 5))
        self.outbox.acknowledge(claimed)
        self.turn()
        self.assertNoResult(accepted)
        self.assertEqual(store.failing, TOO_FULL)
        self.assertEqual((self.count("batch"), self.outbox.counts.delivered, self.pending()), (0, 5, 0))
        self.assertEqual(self.query("SELECT accepted, delivered FROM webhook"), [(5, 5)])
        self.second()
        self.successResultOf(accepted)
        self.assertEqual((store.failing, self.pending()), (None, 5))
        self.assertEqual(self.query("SELECT accepted, delivered FROM webhook"), [(10, 5)])

    def test_replays_are_put_off_when_the_disk_is_full(self):
        store = self.open()
        self.append(1)
        self.outbox.bury(*self.claim(), "http://h/", "410", 410, b"", 0)
        self.turn()
        self.faults.writes = [OutboxNoRoom("full")]
        store.replay([1])
        self.turn()
        self.assertEqual((self.count("dead"), self.count("batch")), (1, 0))
        self.second()
        self.assertEqual((self.count("dead"), self.count("batch"), self.pending()), (0, 1, 1))
        self.assertEqual(self.query("SELECT accepted, dead FROM webhook"), [(1, 0)])

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
        self.assertIn("is not an mqhooks outbox", self.refused())
        # The first attempt must not make it ours.
        self.assertIn("is not an mqhooks outbox", self.refused())
        self.assertIn("my diary", Path(self.path).read_text())

    def test_a_foreign_database(self):
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE diary (page TEXT)")
        connection.close()
        self.assertIn("is the database of another program", self.refused())

    def test_a_newer_version(self):
        self.kill(self.open())
        connection = sqlite3.connect(self.path)
        connection.execute(f"PRAGMA user_version = {schema.FIRST + len(schema.MIGRATIONS)}")
        connection.close()
        self.assertIn("newer mqhooks", self.refused())

    def test_an_older_version_is_migrated(self):
        store = self.open()
        self.append(3)
        self.kill(store)
        self.patch(schema, "MIGRATIONS", [*schema.MIGRATIONS, "CREATE TABLE later (x INTEGER); INSERT INTO later VALUES (7);"])
        for _ in range(2):
            store = self.open()
            self.assertEqual(self.query("SELECT x FROM later"), [(7,)])
            self.assertEqual(self.query("PRAGMA user_version"), [(3,)])
            self.kill(store)
        self.open()
        self.assertEqual(len(self.claim()), 3)

    def test_version_that_was_never_released(self):
        self.kill(self.open())
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA user_version = 1")
        for _ in range(2):
            self.assertIn("written by mqhooks 0.1.0, which was never released; run that mqhooks until it", self.refused())

    def test_a_directory(self):
        os.mkdir(self.path)
        self.assertIn("Is a directory", self.refused())

    def test_webhooks_beyond_the_most(self):
        store = self.open()
        store.outbox("another")
        self.kill(store)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE webhook SET id = ? WHERE name = 'another'", (WEBHOOKS - 1,))
        store = self.open()
        last = store.outbox("another")
        last.append(deliveries(2))
        self.turn()
        claimed = self.claim(outbox=last)
        last.bury(claimed[0], "http://h/", "410", 410, b"", 0)
        self.turn()
        self.assertEqual((store.failing, store.replay([1])), (None, 1))
        self.turn()
        self.assertEqual((store.failing, last.counts.pending), (None, 2))
        self.assertIn("cannot add webhook more", str(self.assertRaises(OutboxError, store.outbox, "more")))

    def test_the_256th_webhook(self):
        store = self.open()
        for number in range(256):
            last = store.outbox(f"webhook {number}")
        last.append(deliveries(2))
        self.turn()
        last.bury(*self.claim(1, outbox=last), "http://h/", "410", 410, b"", 0)
        self.turn()
        self.assertIsNone(store.failing)
        self.assertEqual((last.letters, last.counts.pending), (1, 1))


class PassingErrorTests(StoreCase):
    def test_read_that_fails_is_tried_again(self):
        self.open()
        self.append(CACHE + 2000)
        self.append(1000, 50_000)
        claimed = self.claim(CACHE)
        self.faults.reads = OutboxUnavailable("disk I/O error")
        claimed += self.claim()
        waiting = self.outbox.claim(9999, PLENTY)
        self.faults.reads = None
        self.second()
        claimed += self.successResultOf(waiting) + self.claim()
        self.assertEqual(len(claimed), CACHE + 3000)
        self.assertIn("cannot be read (disk I/O error); trying again", self.log())

    def test_what_could_not_be_read_comes_back_while_much_waits_to_be_written(self):
        store = self.open()
        expected = [f"msg_{number}" for number in range(30 * BATCH + 12)]
        for number in range(30):
            self.append(BATCH, number * BATCH)
        claimed = list(self.claim(CACHE))
        self.faults.reads = OutboxUnavailable("database is locked")
        claimed += self.claim()
        self.outbox.claim(PLENTY, PLENTY).addCallback(claimed.extend)
        room = []
        self.patch(DiskSpace, "enough", lambda _, size, free_inside: bool(room))
        self.outbox.append(deliveries(12, 30 * BATCH, size=1 << 20))
        self.turn()
        self.assertEqual(store.failing, TOO_FULL)
        # Each second it is looked whether there is room: before the next transaction is tried, and before this is written.
        self.clock.advance(0.999 - self.clock.seconds())
        self.outbox.acknowledge(claimed[:BATCH])
        self.faults.reads = None
        room.append(True)
        self.clock.advance(0.001)
        self.turn()
        claimed += self.claim()
        self.assertEqual([delivery.id for delivery in claimed], expected)

    def test_full_outbox_hands_out_what_it_holds(self):
        self.open(max_size=10_000)
        waiting = self.outbox.claim(99, PLENTY)
        self.assertNoResult(self.append(50, size=1000))
        self.assertEqual(len(self.successResultOf(waiting)), 50)
