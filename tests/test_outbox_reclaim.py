"""What one has claimed and another is to deliver."""

from sqlite3 import OperationalError

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.errors import OutboxError
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.memory import DELIVERY_SIZE, MemoryOutbox, MemoryStore
from mqhooks.outbox.queue import CACHE
from mqhooks.outbox.rows import BATCH
from mqhooks.outbox.sqlite import SqliteStore
from tests.test_outbox_sqlite import StoreCase, deliveries


def ids(found):
    return [delivery.id for delivery in found]


def expected(*numbers):
    return [f"msg_{number}" for number in numbers]


class MemoryTests(SynchronousTestCase):
    def test_what_is_claimed_comes_again_before_the_rest(self):
        outbox = MemoryOutbox()
        outbox.append(deliveries(6))
        claimed = outbox.claim(4)
        claimed[0].attempts = 3
        outbox.settle(claimed[1])
        outbox.bury(claimed[2], "http://h/", "410", 410, b"", 0)
        outbox.reclaim()
        outbox.append(deliveries(1, 6))
        again = outbox.claim(9)
        self.assertEqual(ids(again), expected(0, 3, 4, 5, 6))
        self.assertEqual(again[0].attempts, 3)
        for delivery in again:
            outbox.settle(delivery)
        self.assertEqual((outbox.pending, outbox.used, outbox.claim(9)), (0, 0, []))

    def test_nobody_waits_for_what_is_abandoned(self):
        outbox = MemoryOutbox(DELIVERY_SIZE)
        waiting = outbox.append(deliveries(3))
        self.assertNoResult(waiting)
        outbox.abandon()
        self.successResultOf(waiting)
        self.assertIsNone(outbox.append(deliveries(1, 3)))
        outbox.reclaim()
        self.assertNoResult(outbox.append(deliveries(1, 4)))
        self.assertEqual(ids(outbox.claim(9)), expected(0, 1, 2, 3, 4))

    def test_another_size(self):
        store = MemoryStore(DELIVERY_SIZE, 5)
        outbox = store.outbox("w")
        self.assertIs(store.outbox("w"), outbox)
        waiting = outbox.append(deliveries(5))
        for delivery in outbox.claim(4):
            outbox.bury(delivery, "http://h/", "410", 410, b"", 0)
        self.assertNoResult(waiting)
        store.resize(DELIVERY_SIZE * 10, 2)
        self.successResultOf(waiting)
        self.assertEqual([letter.delivery.id for letter in outbox.dead_letters], expected(2, 3))
        self.assertEqual(store.outbox("other").max_size, DELIVERY_SIZE * 10)


class SqliteTests(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()

    def test_what_is_claimed_comes_again_before_the_rest(self):
        self.append(6)
        claimed = self.claim(4)
        self.outbox.settle(claimed[1])
        self.outbox.bury(claimed[2], "http://h/", "410", 410, b"", 0)
        self.outbox.reclaim()
        self.append(1, 6)
        self.assertEqual(ids(self.claim()), expected(0, 3, 4, 5, 6))

    def test_what_was_settled_and_is_not_committed_does_not_come_again(self):
        self.append(2)
        self.append(2, 2)
        for delivery in self.claim()[:3]:
            self.outbox.settle(delivery)
        self.outbox.reclaim()
        self.assertEqual(ids(self.claim()), expected(3))
        self.clock.advance(1)
        self.outbox.reclaim()
        (left,) = self.claim()
        self.outbox.settle(left)
        self.clock.advance(1)
        self.assertEqual((self.outbox.pending, self.count("batch"), self.count("progress")), (0, 0, 0))

    def test_what_is_not_committed_yet_comes_after(self):
        self.append(2)
        self.claim()
        self.outbox.append(deliveries(2, 2))
        self.outbox.reclaim()
        self.turn()
        self.append(2, 4)
        self.assertEqual(ids(self.claim()), expected(*range(6)))

    def test_more_than_is_kept_in_memory(self):
        count = CACHE + 3 * BATCH
        self.append(count)
        for delivery in self.claim()[::2]:
            self.outbox.settle(delivery)
        self.outbox.reclaim()
        self.append(10, count)
        self.assertEqual(ids(self.claim()), expected(*range(1, count, 2), *range(count, count + 10)))
        self.assertEqual(self.claim(), [])

    def test_a_row_that_is_damaged_meanwhile_is_counted(self):
        self.append(2)
        self.append(2, 2)
        self.claim()
        self.store._writer.execute("UPDATE batch SET checksum = checksum + 1 WHERE id = (SELECT min(id) FROM batch)")
        self.outbox.reclaim()
        self.assertEqual(ids(self.claim()), expected(2, 3))
        self.assertEqual((self.outbox.dropped, self.outbox.pending), (2, 2))
        self.assertTrue(any("2 deliveries are lost" in line for line in self.lines()))
        self.assert_identity()

    def test_what_cannot_be_read_now_comes_later(self):
        self.append(2)
        self.claim()
        self.outbox.reclaim()
        reader, self.store._reader = self.store._reader, BrokenReader()
        self.assertEqual(self.claim(), [])
        self.store._reader = reader
        self.assertEqual(ids(self.claim()), expected(0, 1))

    def test_nobody_waits_for_what_is_abandoned(self):
        self.store.resize(1 << 20, "pause", 10)
        large = self.append(20, size=1 << 17)
        self.assertNoResult(large)
        uncommitted = self.outbox.append(deliveries(1, 20))
        self.outbox.abandon()
        self.successResultOf(large)
        self.turn()
        self.successResultOf(uncommitted)
        self.outbox.reclaim()
        self.assertNoResult(self.append(1, 21))
        self.assertEqual(ids(self.claim()), expected(*range(22)))

    def test_another_size_lets_go_who_waits(self):
        self.store.resize(1 << 20, "pause", 10)
        first = self.append(20, size=1 << 17)
        self.assertNoResult(first)
        self.store.resize(1 << 30, "pause", 7)
        self.successResultOf(first)
        self.assertEqual((self.outbox.max_size, self.outbox.dead_max), (1 << 30, 7))
        self.store.resize(1 << 20, "pause", 7)
        second = self.append(1, 20)
        self.assertNoResult(second)
        self.store.resize(1 << 20, "drop_oldest", 7)
        self.successResultOf(second)

    def test_an_outbox_that_cannot_be_made(self):
        self.store._writer.execute("BEGIN IMMEDIATE")
        self.addCleanup(lambda: self.store._writer.execute("ROLLBACK"))
        error = self.assertRaises(OutboxError, self.store.outbox, "new")
        self.assertIn("cannot take in webhook new (database is locked)", str(error))
        self.assertNotIn("new", self.store._outboxes)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(("append", "claim", "settle", "reclaim", "turn")), max_size=60), st.randoms())
    def test_none_twice_none_lost_in_order(self, steps, random):
        for store in self.stores:
            self.kill(store)
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
            elif step == "settle":
                for delivery in random.sample(held, random.randint(0, len(held))):
                    held.remove(delivery)
                    settled.add(delivery.id)
                    self.outbox.settle(delivery)
            else:
                self.outbox.reclaim()
                held = []
            self.assertEqual(self.outbox.pending, appended - len(settled))
        held += self.claim()
        self.assertEqual(ids(held), [id_ for id_ in expected(*range(appended)) if id_ not in settled])
        self.clock.advance(1)
        self.kill(self.stores[-1])
        self.open()
        self.assertEqual(ids(self.claim()), ids(held))


class BrokenReader:
    def execute(self, *_):
        raise OperationalError("disk I/O error")

    def close(self):
        pass


class ThreadTests(TestCase):
    """With ``sync = full`` a thread commits."""

    timeout = 60

    async def test_a_new_outbox_while_a_thread_commits(self):
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
        self.assertEqual(ids(second.claim(9)), ["msg_x"])
        self.assertNotEqual(first.key, second.key)
