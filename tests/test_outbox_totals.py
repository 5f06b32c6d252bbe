"""What the durable outbox says of itself while it is used."""

from mqhooks.errors import OutboxError, OutboxUnavailable
from tests.outboxes import StoreCase, deliveries


class CountTests(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open(max_size=1 << 20)

    def numbers(self):
        self.check_counts()
        counts = self.outbox.counts
        return counts.accepted, counts.delivered, counts.dead, counts.dropped, counts.pending

    def bury(self, *claimed, reason="refused"):
        for delivery in claimed:
            self.outbox.bury(delivery, "http://h/", reason, 410, b"", 0)

    def reopen(self, **options):
        self.turn()
        self.kill(self.store)
        self.store = self.open(**options)

    def test_file_has_the_counters_since_it_was_made(self):
        self.append(4)
        one, two, *_ = self.claim()
        self.outbox.acknowledge([one])
        self.bury(two)
        self.reopen()
        self.assertEqual(self.numbers(), (2, 0, 0, 0, 2))
        self.append(2, 4)
        self.assertEqual(self.query("SELECT accepted, delivered, dead, dropped FROM webhook"), [(6, 1, 1, 0)])
        self.assertEqual(self.query("SELECT bytes FROM webhook"), self.query("SELECT sum(length(deliveries)) FROM batch"))

    def test_oldest_of_a_row_of_which_some_are_settled(self):
        self.append(2)
        self.outbox.acknowledge(self.claim(1))
        self.reopen()
        self.assertEqual(self.outbox.oldest, 1001)

    def test_replayed_letter_is_accepted_once_more(self):
        self.append(1)
        self.bury(*self.claim())
        self.turn()
        self.assertEqual(self.store.replay([1, 2]), 1)
        self.assertEqual(self.store.replay([1]), 0)
        self.assertEqual((self.numbers(), self.outbox.letters), ((1, 0, 1, 0, 0), 0))
        self.turn()
        self.assertEqual(self.numbers(), (2, 0, 1, 0, 1))
        self.assertEqual((self.outbox.counts.replayed, self.outbox.letters), (1, 0))
        self.assertEqual(self.query("SELECT accepted, delivered, dead, dropped FROM webhook"), [(1, 0, 0, 0)])
        self.bury(*self.claim())
        self.turn()
        self.assertEqual(self.store.purge([2]), 1)
        self.turn()
        self.assertEqual((self.numbers(), self.outbox.letters, self.count("dead")), ((2, 0, 2, 0, 0), 0, 0))

    def test_letters_beyond_the_most_are_forgotten(self):
        self.reopen(dead_max=2)
        self.append(5)
        self.bury(*self.claim())
        self.assertEqual(self.outbox.letters, 5)
        self.turn()
        self.assertEqual((self.outbox.letters, self.outbox.counts.forgotten, self.outbox.counts.dead), (2, 3, 5))
        self.assertEqual(self.store.count_dead("w"), 2)
        self.assertIn("webhook w: the oldest dead letters are discarded (outbox.dead_max), 3 so far", self.log())
        self.store.purge([5])
        self.append(1, 9)
        self.bury(*self.claim())
        self.turn()
        self.assertEqual((self.outbox.letters, self.store.count_dead()), (2, 2))
        self.assertEqual(len([line for line in self.lines() if "discarded" in line]), 1)

    def test_letter_that_is_forgotten_while_it_is_replayed(self):
        self.reopen(dead_max=1)
        self.append(1)
        self.bury(*self.claim())
        self.append(1, 1)
        self.bury(*self.claim())
        # What a thread does takes a while.
        self.faults.before_write = lambda: self.assertEqual(self.store.replay([1]), 1)
        self.turn()
        self.turn()
        self.assertEqual([letter.delivery.id for letter in self.store.dead_letters()], ["msg_1"])
        self.assertEqual((self.outbox.letters, self.outbox.counts.replayed, self.pending()), (1, 1, 1))
        self.assertEqual([delivery.id for delivery in self.claim()], ["msg_0"])

    def test_what_cannot_be_committed_is_the_oldest_too(self):
        self.clock.advance(9)
        self.faults.always = OutboxUnavailable("no space left")
        self.append(1, 9000)
        self.assertEqual((self.store.failing, self.outbox.waiting_since), ("no space left", 9.0))
        self.clock.advance(5)
        self.assertEqual(self.outbox.oldest, 9000)

    def test_letters_by_reason(self):
        self.append(2)
        for delivery, reason in zip(self.claim(2), ("answered 410: refused", "100% of it"), strict=True):
            self.bury(delivery, reason=reason)
        self.turn()
        self.assertEqual([letter.number for letter in self.store.dead_letters(reason="answered 4")], [1])
        self.assertEqual([letter.number for letter in self.store.dead_letters(reason="%")], [2])
        self.assertEqual(self.store.count_dead("w", "410"), 1)
        self.assertEqual(self.store.count_dead("other"), 0)
        self.assertEqual(self.store.last_dead(), 2)

    def test_nothing_can_be_asked_of_a_file_that_is_not_open(self):
        self.kill(self.store)
        self.assertRaises(OutboxError, self.store.dead_letters)

    def test_flushed_when_everything_so_far_is_committed(self):
        seen = []
        later = []

        def slow():
            seen.append([flushed.called, *[deferred.called for deferred in later]])
            if len(later) < 3:
                self.outbox.append(deliveries(1, 100 + len(later)))
                later.append(self.store.flushed())
                self.faults.before_write = slow

        self.outbox.append(deliveries(3))
        flushed = self.store.flushed()
        self.faults.before_write = slow
        self.clock.pump([0] * 4)
        self.assertEqual(seen, [[False], [True, False], [True, True, False], [True, True, True, False]])
        self.assertTrue(later[2].called)
