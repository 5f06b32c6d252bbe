"""What waits in memory."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.outbox.memory import DELIVERY_SIZE, MemoryOutbox, MemoryStore
from tests.contract.outbox import PLENTY, OutboxContract, ids, make, numbered


class ContractTests(OutboxContract, TestCase):
    def open(self):
        return MemoryOutbox(self.max_size, dead_max=10)


class MemoryOutboxTests(SynchronousTestCase):
    def test_full_until_a_quarter_is_free(self):
        outbox = MemoryOutbox((DELIVERY_SIZE + 100) * 8)
        self.assertIsNone(outbox.append(make(8, body=b"x" * 100)))
        first, second = outbox.append(make(1, 8, b"x" * 100)), outbox.append(make(1, 9, b"x" * 100))
        claimed = outbox.claim(10, PLENTY)
        self.assertEqual(len(claimed), 10)
        outbox.acknowledge(claimed[:3])
        self.assertNoResult(first)
        outbox.acknowledge(claimed[3:4])
        self.assertIsNone(self.successResultOf(first))
        self.assertIsNone(self.successResultOf(second))
        self.assertIsNone(outbox.append(make(1, 10, b"x" * 100)))

    def test_once_full_later_batches_wait_too(self):
        outbox = MemoryOutbox((DELIVERY_SIZE + 1000) * 2)
        first = outbox.append(make(3, body=b"x" * 1000))
        outbox.acknowledge(outbox.claim(1, PLENTY))
        self.assertNoResult(outbox.append([]))
        self.assertNoResult(first)

    def test_used(self):
        outbox = MemoryOutbox()
        outbox.append(make(2, body=b"body"))
        self.assertEqual(outbox.used, 2 * (DELIVERY_SIZE + len(b"body")))

    def test_letters_beyond_the_most_are_forgotten(self):
        outbox = MemoryOutbox(dead_max=2)
        outbox.append(make(5))
        for delivery in outbox.claim(5, PLENTY):
            outbox.bury(delivery, "http://h/", "410", 410, b"", 0)
        self.assertEqual((outbox.letters, outbox.counts.dead, outbox.counts.forgotten), (2, 5, 3))
        outbox.resize(1000, 1)
        self.assertEqual((outbox.letters, outbox.counts.forgotten), (1, 4))

    def test_other_limits(self):
        store = MemoryStore(DELIVERY_SIZE, 5)
        outbox = store.outbox("w")
        self.assertIs(store.outbox("w"), outbox)
        waiting = outbox.append(make(5))
        for delivery in outbox.claim(4, PLENTY):
            outbox.bury(delivery, "http://h/", "410", 410, b"", 0)
        self.assertNoResult(waiting)
        store.resize(DELIVERY_SIZE * 10, 2)
        self.successResultOf(waiting)
        self.assertEqual(ids(letter.delivery for letter in outbox.dead_letters), numbered(2, 3))
        self.assertEqual(store.outbox("other").max_size, DELIVERY_SIZE * 10)

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 20), max_size=20), st.integers(1, 5000))
    def test_everything_appended_comes_out_and_is_accepted(self, sizes, limit):
        outbox = MemoryOutbox(limit)
        waiting = [outbox.append(make(size, body=b"x" * size)) for size in sizes]
        acknowledged = 0
        while not isinstance(claimed := outbox.claim(3, PLENTY), Deferred):
            outbox.acknowledge(claimed)
            acknowledged += len(claimed)
        self.assertEqual((acknowledged, outbox.counts.pending), (sum(sizes), 0))
        for accepted in waiting:
            if accepted is not None:
                self.successResultOf(accepted)
