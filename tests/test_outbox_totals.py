"""What an outbox says of itself while it is used."""

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mqhooks.interfaces import IOutbox
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.memory import DELIVERY_SIZE, MemoryOutbox
from mqhooks.outbox.sqlite import NOTED, SqliteStore


def deliveries(*accepted):
    return [Delivery(f"msg_{number}", f"c{number}", number, b"body", time) for number, time in enumerate(accepted)]


class OutboxCase:
    def numbers(self):
        totals = self.outbox.totals
        self.assertEqual(totals.accepted, totals.delivered + totals.dead + totals.dropped + totals.pending)
        self.assertEqual(totals.pending, self.outbox.pending)
        return totals.accepted, totals.delivered, totals.dead, totals.dropped, totals.pending

    def bury(self, delivery):
        self.outbox.bury(delivery, "http://h/", "refused", 410, b"", 0)

    def test_interface(self):
        verifyObject(IOutbox, self.outbox)

    def test_totals(self):
        self.assertEqual(self.numbers(), (0, 0, 0, 0, 0))
        self.append(1, 2, 3, 4)
        one, two, three = self.outbox.claim(3)
        self.outbox.settle(one)
        self.bury(two)
        self.outbox.discard(three)
        self.assertEqual(self.numbers(), (4, 1, 1, 1, 1))
        self.assertEqual(self.outbox.letters, 1)
        self.assertEqual(self.outbox.totals.appended, 4)

    def test_oldest(self):
        self.assertIsNone(self.outbox.oldest)
        self.append(1000)
        self.append(2000)
        self.assertEqual(self.outbox.oldest, 1000)
        one, two = self.outbox.claim(2)
        self.append(3000)
        self.assertEqual(self.outbox.oldest, 1000)
        self.outbox.settle(one)
        self.assertEqual(self.outbox.oldest, 2000)
        self.outbox.settle(two)
        self.assertEqual(self.outbox.oldest, 3000)
        self.outbox.settle(*self.outbox.claim(1))
        self.assertIsNone(self.outbox.oldest)

    def test_used(self):
        self.append(1, 2)
        self.assertGreater(self.outbox.used, 2 * len(b"body"))
        for delivery in self.outbox.claim(2):
            self.outbox.settle(delivery)
        self.turn()
        self.assertEqual(self.outbox.used, 0)
        self.assertEqual(self.outbox.max_size, 1 << 20)


class MemoryTests(OutboxCase, SynchronousTestCase):
    def setUp(self):
        self.outbox = MemoryOutbox(1 << 20)

    def append(self, *accepted):
        self.outbox.append(deliveries(*accepted))

    def turn(self):
        pass

    def test_room(self):
        self.append(1)
        self.assertEqual(self.outbox.used, DELIVERY_SIZE + len(b"body"))


class SqliteTests(OutboxCase, SynchronousTestCase):
    def setUp(self):
        self.path = self.mktemp()
        self.open()

    def open(self, **settings):
        self.clock = MemoryReactorClock()
        self.clock.advance(9.0)
        self.store = SqliteStore(self.clock, self.path, max_size=1 << 20, now=self.clock.seconds, **settings)
        self.outbox = self.store.outbox("w")
        self.store.startService()
        self.addCleanup(self.store.stopService)

    def append(self, *accepted):
        self.outbox.append(deliveries(*accepted))
        self.turn()

    def turn(self):
        self.clock.advance(NOTED)

    def reopen(self, **settings):
        self.store.stopService()
        self.turn()
        self.open(**settings)

    def test_what_an_earlier_process_left_is_resumed(self):
        self.append(1000, 1000, 1000, 1000)
        one, two, _, _ = self.outbox.claim(4)
        self.outbox.settle(one)
        self.bury(two)
        self.turn()
        self.reopen()
        self.assertEqual(self.numbers(), (2, 0, 0, 0, 2))
        self.assertEqual((self.outbox.totals.resumed, self.outbox.totals.appended, self.outbox.letters), (2, 0, 1))
        self.assertEqual(self.outbox.oldest, 1000)

    def test_the_oldest_of_a_row_of_which_some_are_settled(self):
        self.append(1000, 7000)
        self.outbox.settle(self.outbox.claim(1)[0])
        self.turn()
        self.reopen()
        self.assertEqual(self.outbox.oldest, 7000)

    def test_a_replayed_letter_is_accepted_once_more(self):
        self.append(1)
        self.bury(*self.outbox.claim(1))
        self.turn()
        self.assertEqual(self.store.replay([1, 2]), 1)
        self.assertEqual(self.numbers(), (2, 0, 1, 0, 1))
        self.assertEqual((self.outbox.totals.replayed, self.outbox.letters), (1, 0))
        self.turn()
        self.assertIn(self.outbox.oldest, range(9000, 9100))
        self.bury(*self.outbox.claim(1))
        self.turn()
        self.assertEqual(self.store.purge([2]), 1)
        self.assertEqual(self.numbers(), (2, 0, 2, 0, 0))
        self.assertEqual(self.outbox.letters, 0)

    def test_letters_beyond_the_most_are_forgotten(self):
        self.reopen(dead_max=2)
        self.append(*range(5))
        for delivery in self.outbox.claim(5):
            self.bury(delivery)
        self.assertEqual(self.outbox.letters, 5)
        self.turn()
        self.assertEqual(self.outbox.letters, 2)
        self.assertEqual(self.store.count_dead("w"), 2)
        self.store.purge([5])
        self.append(9)
        self.bury(*self.outbox.claim(1))
        self.turn()
        self.assertEqual((self.outbox.letters, self.store.count_dead()), (2, 2))

    def test_what_cannot_be_committed_is_the_oldest_too(self):
        self.patch(self.store, "_write", self.fail_to_write)
        self.append(9000)
        self.assertEqual(self.store.failing, "no space left")
        self.clock.advance(5)
        self.assertIn(self.outbox.oldest, range(9000, 9100))

    def fail_to_write(self, plans):
        raise OSError("no space left")

    def test_failing_until_it_is_written(self):
        self.assertIsNone(self.store.failing)
        write = self.store._write
        self.patch(self.store, "_write", self.fail_to_write)
        self.append(1)
        self.assertEqual(self.store.failing, "no space left")
        self.store._write = write
        self.clock.advance(1)
        self.assertIsNone(self.store.failing)

    def test_letters_by_reason(self):
        self.append(1, 2)
        for delivery, reason in zip(self.outbox.claim(2), ("answered 410: refused", "100% of it"), strict=True):
            self.outbox.bury(delivery, "http://h/", reason, 410, b"", 0)
        self.turn()
        self.assertEqual([letter.number for letter in self.store.dead_letters(reason="answered 4")], [1])
        self.assertEqual([letter.number for letter in self.store.dead_letters(reason="%")], [2])
        self.assertEqual(self.store.count_dead("w", "410"), 1)
        self.assertEqual(self.store.count_dead("other"), 0)
        self.assertEqual(self.store.last_dead(), 2)
