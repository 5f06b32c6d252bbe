"""What one has claimed and another is to deliver."""

import sqlite3
from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import OutboxError, OutboxUnavailable
from mqhooks.outbox.ledger import READY, ROW
from mqhooks.outbox.sqlite import SqliteStore
from tests.outboxes import PLENTY, StoreCase, deliveries


def ids(found):
    return [delivery.id for delivery in found]


def expected(*numbers):
    return [f"msg_{number}" for number in numbers]


class ReclaimTests(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()

    def change(self, statement):
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement)

    def test_what_was_acknowledged_and_is_not_committed_does_not_come_again(self):
        self.append(2)
        self.append(2, 2)
        self.outbox.acknowledge(self.claim()[:3])
        self.outbox.reclaim()
        self.assertEqual(ids(self.claim()), expected(3))
        self.second()
        self.outbox.reclaim()
        self.outbox.acknowledge(self.claim())
        self.second()
        self.assertEqual((self.pending(), self.count("batch"), self.count("progress")), (0, 0, 0))

    def test_what_is_not_committed_yet_comes_after(self):
        self.append(2)
        self.claim()
        self.outbox.append(deliveries(2, 2))
        self.outbox.reclaim()
        self.turn()
        self.append(2, 4)
        self.assertEqual(ids(self.claim()), expected(*range(6)))

    def test_more_than_is_kept_in_memory(self):
        count = READY + 3 * ROW
        self.append(count)
        self.outbox.acknowledge(self.claim()[::2])
        self.outbox.reclaim()
        self.append(10, count)
        self.assertEqual(ids(self.claim()), expected(*range(1, count, 2), *range(count, count + 10)))
        self.assertEqual(self.claim(), [])

    def test_row_that_is_damaged_meanwhile_is_counted(self):
        self.append(2)
        self.append(2, 2)
        self.claim()
        self.change("UPDATE batch SET checksum = checksum + 1 WHERE id = (SELECT min(id) FROM batch)")
        self.outbox.reclaim()
        self.assertEqual(ids(self.claim()), expected(2, 3))
        self.assertEqual((self.outbox.counts.dropped, self.pending()), (2, 2))
        self.assertIn("2 deliveries are lost", self.log())
        self.check_counts()

    def test_row_that_is_gone_meanwhile_is_counted(self):
        self.append(2)
        self.append(2, 2)
        self.claim()
        self.change("DELETE FROM batch WHERE id = (SELECT min(id) FROM batch)")
        self.outbox.reclaim()
        self.outbox.acknowledge(self.claim())
        self.turn()
        self.assertEqual((self.outbox.counts.dropped, self.outbox.counts.delivered, self.pending()), (2, 2, 0))
        self.assertIsNone(self.store.failing)

    def test_what_cannot_be_read_now_comes_later(self):
        self.append(2)
        self.claim()
        self.outbox.reclaim()
        self.faults.reads = OutboxUnavailable("disk I/O error")
        waiting = self.outbox.claim(9, PLENTY)
        self.assertNoResult(waiting)
        self.faults.reads = None
        self.second()
        self.assertEqual(ids(self.successResultOf(waiting)), expected(0, 1))

    def test_recall_that_cannot_be_read_now(self):
        self.append(10)
        places = [delivery.place for delivery in self.claim()]
        self.faults.reads = OutboxUnavailable("disk I/O error")
        self.assertRaises(OutboxError, self.outbox.recall, places)
        self.faults.reads = None
        self.assertEqual([delivery.place for delivery in self.outbox.recall(places)], places)
        self.assertEqual((self.outbox.counts.dropped, self.pending()), (0, 10))

    def test_recall_of_a_damaged_row(self):
        self.append(10)
        claimed = self.claim()
        self.change("UPDATE batch SET checksum = checksum + 1")
        self.assertEqual(self.outbox.recall([claimed[3].place, claimed[7].place]), [])
        self.assertIn("is damaged: 2 deliveries are lost", self.log())
        self.assertEqual((self.outbox.counts.dropped, self.pending()), (2, 8))
        self.outbox.acknowledge(claimed)
        self.turn()
        self.assertEqual((self.outbox.counts.delivered, self.pending(), self.count("batch")), (8, 0, 0))
        self.assertIsNone(self.store.failing)

    def test_uncommitted_too_holds_nobody_up_when_abandoned(self):
        self.store.resize(1 << 20, "pause", 10)
        large = self.append(20, size=1 << 17)
        uncommitted = self.outbox.append(deliveries(1, 20))
        self.outbox.abandon()
        self.successResultOf(large)
        self.turn()
        self.successResultOf(uncommitted)

    def test_other_limits_let_go_who_waits(self):
        self.store.resize(1 << 20, "pause", 10)
        first = self.append(20, size=1 << 17)
        self.assertNoResult(first)
        self.second()
        self.assertIn("webhook w is full", self.log())
        self.store.resize(1 << 30, "pause", 7)
        self.successResultOf(first)
        self.assertEqual(self.outbox.max_size, 1 << 30)
        self.store.resize(1 << 20, "pause", 7)
        second = self.append(1, 20)
        self.assertNoResult(second)
        self.store.resize(1 << 20, "drop_oldest", 7)
        self.successResultOf(second)

    def test_outbox_that_cannot_be_made(self):
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            error = self.assertRaises(OutboxError, self.store.outbox, "new")
            connection.execute("ROLLBACK")
        self.assertIn("cannot add webhook new (database is locked)", str(error))
        self.store.outbox("new").append(deliveries(1))
        self.turn()
        self.assertEqual(len(self.claim(outbox=self.store.outbox("new"))), 1)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(("append", "claim", "acknowledge", "reclaim", "turn")), max_size=60), st.randoms())
    def test_none_twice_none_lost_in_order(self, steps, random):
        self.kill_all()
        self.path = f"{self.path}x"
        self.open()
        appended, settled, held = 0, set(), []
        for step in [*steps, "turn", "reclaim", "claim"]:
            if step == "append":
                count = random.randint(1, 30)
                self.outbox.append(deliveries(count, appended))
                appended += count
            elif step == "turn":
                self.clock.advance(random.choice((0, 1)))
            elif step == "claim":
                held += self.claim(random.randint(1, 40))
            elif step == "acknowledge":
                chosen = random.sample(held, random.randint(0, len(held)))
                self.outbox.acknowledge(chosen)
                settled.update(ids(chosen))
                held = [delivery for delivery in held if delivery.id not in settled]
            else:
                self.outbox.reclaim()
                held = []
            self.assertLessEqual(self.pending(), appended - len(settled))
        self.turn()
        held += self.claim()
        self.assertEqual(ids(held), [id_ for id_ in expected(*range(appended)) if id_ not in settled])
        self.second()
        self.kill_all()
        self.open()
        self.assertEqual(ids(self.claim()), ids(held))


class ThreadTests(TestCase):
    """With ``sync = full`` a thread commits."""

    timeout = 120

    async def test_new_outbox_while_a_thread_commits(self):
        store = SqliteStore(reactor, self.mktemp(), sync="full")
        first = store.outbox("first")
        store.startService()
        self.addCleanup(store.stopService)
        accepted = first.append(deliveries(2000, size=1000))
        await deferLater(reactor, 0)
        second = store.outbox("second")
        more = second.append([Delivery("msg_x", "c", 0, b"x")])
        await accepted
        await more
        self.assertEqual(ids(second.claim(9, PLENTY)), ["msg_x"])
        self.assertEqual(len(first.claim(9, PLENTY)), 9)
