"""What cannot be stored is a dead letter without its body, and costs nobody else anything."""

from mqhooks.delivery import Delivery
from mqhooks.errors import OutboxError
from mqhooks.outbox.file import Changes, NewRow, OutboxFile
from mqhooks.outbox.schema import prepare
from mqhooks.outbox.stored import encode
from tests.outboxes import StoreCase, deliveries

TOO_LONG = Delivery("msg_bad", "cl", 5, b"x" * 200_000, 7)
SURROGATE = Delivery("msg_bad", "c\ud800l", 5, b"x" * 20, 7)
NUMBER = Delivery("msg_bad", "cl", 1 << 70, b"x" * 20, 7)


class UnstorableTests(StoreCase):
    def check(self, bad, problem, **options):
        store = self.open(**options)
        accepted = self.outbox.append([*deliveries(3), bad, *deliveries(3, 3)])
        self.turn()
        self.turn()
        self.successResultOf(accepted)
        claimed = self.claim()
        self.assertEqual([delivery.id for delivery in claimed], [f"msg_{number}" for number in range(6)])
        counts = self.outbox.counts
        self.assertEqual((counts.appended, counts.dead, counts.pending, self.outbox.letters), (7, 1, 6, 1))
        self.assertEqual(self.query("SELECT accepted, delivered, dead, dropped FROM webhook"), [(7, 0, 1, 0)])
        (letter,) = store.dead_letters()
        described = f"id msg_bad, client 'c.?l', {len(bad.body)} bytes"
        self.assertRegex(letter.reason, rf"^cannot be stored: .*{problem}.* \(stored without its body: {described}\)$")
        self.assertEqual((letter.delivery.id, letter.delivery.body), ("msg_bad", b""))
        self.assertIn("without its body", letter.damage)
        self.assertRaises(OutboxError, store.replay, [letter.number])
        (line,) = [line for line in self.lines() if "became a dead letter" in line]
        self.assertIn(letter.reason, line)
        self.assertIsNone(store.failing)
        self.outbox.reclaim()
        self.assertEqual(self.claim(), claimed)
        self.kill(store)
        store = self.open()
        self.outbox.acknowledge(self.claim())
        self.turn()
        self.assertEqual((self.count("batch"), self.count("progress"), self.count("dead"), self.pending()), (0, 0, 1, 0))
        self.assertEqual(store.purge([letter.number]), 1)

    def test_body_longer_than_the_longest(self):
        self.check(TOO_LONG, "at most", longest=100_000)

    def test_text_that_is_no_unicode(self):
        self.check(SURROGATE, "surrogate")

    def test_number_that_is_too_large(self):
        self.check(NUMBER, "")

    def test_row_that_the_file_refuses(self):
        self.check(TOO_LONG, "too big", longest_row=100_000)

    def test_several_that_cannot_be_stored_and_nothing_else(self):
        store = self.open(longest=100)
        accepted = self.outbox.append([TOO_LONG, SURROGATE, NUMBER])
        self.turn()
        self.turn()
        self.successResultOf(accepted)
        self.assertEqual((self.pending(), self.claim(), len(store.dead_letters())), (0, [], 3))
        self.successResultOf(self.append(3))
        self.assertEqual(len(self.claim()), 3)
        self.assertEqual(self.query("SELECT accepted, delivered, dead, dropped FROM webhook"), [(6, 0, 3, 0)])

    def test_dead_letter_that_the_file_refuses(self):
        store = self.open()
        self.append(2)
        first, second = self.claim()
        self.outbox.bury(first, "http://h/", "answered \ud800", 400, b"no", 5)
        self.outbox.bury(second, "http://h/", "answered 400", 400, b"no", 5)
        self.clock.pump([0] * 3)
        self.turn()
        self.turn()
        bad, good = store.dead_letters()
        self.assertEqual((good.damage, bad.delivery.id, bad.delivery.body), ("", "msg_0", b""))
        self.assertIn("without its body", bad.damage)
        self.assertEqual((self.outbox.letters, self.outbox.counts.dead, store.failing), (2, 2, None))

    def test_dead_letter_with_a_time_that_the_file_refuses(self):
        store = self.open()
        self.append(1)
        self.outbox.bury(*self.claim(), "http://h/", "answered 400", 400, b"no", 1 << 70)
        self.clock.pump([0] * 3)
        (letter,) = store.dead_letters()
        self.assertEqual((letter.died, letter.delivery.body, store.failing), (0, b"", None))


class FileTests(StoreCase):
    """Which of a transaction's deliveries is at fault."""

    def test_each_is_written_alone(self):
        prepare(self.path)
        file = OutboxFile(self.path, longest=100_000)
        self.addCleanup(file.close)
        kept = file.load("w")
        rows = [deliveries(2), [*deliveries(1, 2), TOO_LONG], deliveries(1, 3)]
        changes = Changes(kept.key, "w", [NewRow(number, row, encode(row)) for number, row in enumerate(rows, 1)])
        (found,) = file.leave_out(changes)
        self.assertEqual((found[0].id, found[1]), ("msg_bad", "string or blob too big"))
        self.assertEqual([row.deliveries for row in changes.rows], [deliveries(2), [*deliveries(1, 2), None], deliveries(1, 3)])
        self.assertEqual(self.count("batch"), 0)
        file.write([changes])
        self.assertEqual([(row.number, row.settled) for row in file.rows(kept.key, 0, 3)], [(1, None), (2, b"\x02"), (3, None)])
