"""What cannot be stored is a dead letter without its body, and costs nobody else anything."""

import sqlite3

from mqhooks.errors import OutboxError
from mqhooks.outbox import queue
from mqhooks.outbox.delivery import Delivery
from tests.test_outbox_sqlite import StoreCase, deliveries

TOO_LONG = Delivery("msg_bad", "cl", 5, b"x" * 200_000, 7)
SURROGATE = Delivery("msg_bad", "c\ud800l", 5, b"x" * 20, 7)
NUMBER = Delivery("msg_bad", "cl", 1 << 70, b"x" * 20, 7)


class UnstorableTests(StoreCase):
    def bad_between_good(self, bad):
        accepted = self.outbox.append([*deliveries(3), bad, *deliveries(3, 3)])
        self.turn()
        self.turn()
        self.successResultOf(accepted)
        self.assertEqual([delivery.id for delivery in self.claim()], [f"msg_{number}" for number in range(6)])

    def check_letter(self, store, size, problem):
        totals = self.outbox.totals
        self.assertEqual((totals.accepted, totals.dead, totals.pending, self.outbox.letters), (7, 1, 6, 1))
        (letter,) = store.dead_letters()
        self.assertRegex(letter.reason, rf"^cannot be stored: .*{problem}.*: id msg_bad, client 'c.?l', {size} bytes\)$")
        self.assertEqual((letter.delivery.id, letter.delivery.body), ("msg_bad", b""))
        self.assertIn("without its body", letter.damage)
        self.assertRaises(OutboxError, store.replay, [letter.number])
        (line,) = [line for line in self.lines() if "is a dead letter" in line]
        self.assertIn(letter.reason, line)

    def check(self, bad, problem):
        store = self.open()
        self.bad_between_good(bad)
        self.check_letter(store, len(bad.body), problem)
        self.outbox.settle(*self.outbox.recall([delivery.place for delivery in self.again()]))
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress"), self.count("dead")), (0, 0, 1))
        self.kill(store)
        self.open()
        self.assertEqual((self.outbox.pending, self.claim()), (0, []))

    def again(self):
        self.outbox.reclaim()
        return self.claim()

    def test_body_longer_than_the_longest(self):
        self.patch(queue, "LONGEST", 100_000)
        self.check(TOO_LONG, "at most")

    def test_text_that_is_no_unicode(self):
        self.check(SURROGATE, "surrogate")

    def test_number_that_is_too_large(self):
        self.check(NUMBER, "")

    def limited(self):
        store = self.open()
        store._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        return store

    def test_row_that_the_file_refuses(self):
        store = self.limited()
        self.bad_between_good(TOO_LONG)
        self.check_letter(store, 200_000, "too big")
        self.assertIsNone(store.failing)
        self.kill(store)
        self.open()
        self.assertEqual(len(self.claim()), 6)

    def test_only_one_row_that_the_file_refuses(self):
        store = self.limited()
        accepted = self.outbox.append([TOO_LONG])
        self.clock.pump([0.1] * 3)
        self.successResultOf(accepted)
        self.assertEqual((self.outbox.pending, self.claim(), len(store.dead_letters())), (0, [], 1))
        self.append(3)
        self.assertEqual(len(self.claim()), 3)
        self.kill(store)
        self.open()
        self.assertEqual(self.outbox.pending, 3)

    def test_dead_letter_that_the_file_refuses(self):
        store = self.open()
        self.append(2)
        first, second = self.claim()
        self.outbox.bury(first, "http://h/", "answered \ud800", 400, b"no", 5)
        self.outbox.bury(second, "http://h/", "answered 400", 400, b"no", 5)
        self.clock.pump([0.1] * 3)
        bad, good = store.dead_letters()
        self.assertEqual((good.damage, bad.delivery.id, bad.delivery.body), ("", "msg_0", b""))
        self.assertIn("without its body", bad.damage)
        self.assertEqual((self.outbox.letters, self.outbox.totals.dead, store.failing), (2, 2, None))
