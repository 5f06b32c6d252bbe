"""What waits in memory."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mqhooks.interfaces import IOutbox
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.memory import DELIVERY_SIZE, MemoryOutbox


def deliveries(count, size=0):
    return [Delivery(str(number), "c", 0, b"x" * size) for number in range(count)]


class MemoryOutboxTests(SynchronousTestCase):
    """Order, bounds, counts."""

    def test_interface(self):
        verifyObject(IOutbox, MemoryOutbox())

    def test_first_in_first_out(self):
        outbox = MemoryOutbox()
        self.assertIsNone(outbox.append(deliveries(5)))
        self.assertEqual([delivery.id for delivery in outbox.claim(2)], ["0", "1"])
        self.assertEqual([delivery.id for delivery in outbox.claim(9)], ["2", "3", "4"])
        self.assertEqual(list(outbox.claim(9)), [])
        self.assertEqual(outbox.pending, 5)

    def test_full_until_a_quarter_is_free(self):
        outbox = MemoryOutbox((DELIVERY_SIZE + 100) * 8)
        self.assertIsNone(outbox.append(deliveries(8, 100)))
        first, second = outbox.append(deliveries(1, 100)), outbox.append(deliveries(1, 100))
        claimed = outbox.claim(10)
        self.assertEqual(len(claimed), 10)
        for delivery in claimed[:3]:
            outbox.settle(delivery)
        self.assertNoResult(first)
        outbox.settle(claimed[3])
        self.assertIsNone(self.successResultOf(first))
        self.assertIsNone(self.successResultOf(second))
        self.assertIsNone(outbox.append(deliveries(1, 100)))

    def test_once_full_later_batches_wait_too(self):
        outbox = MemoryOutbox((DELIVERY_SIZE + 1000) * 2)
        first = outbox.append(deliveries(3, 1000))
        outbox.settle(outbox.claim(1)[0])
        self.assertNoResult(outbox.append([]))
        self.assertNoResult(first)

    @given(st.lists(st.integers(0, 20), max_size=20), st.integers(1, 5000))
    def test_everything_appended_comes_out_and_is_accepted(self, sizes, limit):
        outbox = MemoryOutbox(limit)
        waiting = [outbox.append(deliveries(size, size)) for size in sizes]
        settled = 0
        while claimed := outbox.claim(3):
            for delivery in claimed:
                outbox.settle(delivery)
                settled += 1
        self.assertEqual((settled, outbox.pending), (sum(sizes), 0))
        for accepted in waiting:
            if accepted is not None:
                self.successResultOf(accepted)
