"""The ledger, against a model that remembers every delivery."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.outbox.ledger import INDEX, INDEX_BITS, READY, Ledger, Row, chunks


class Storage:
    """Rows as a file has them: deliveries, size and bits, by number."""

    def __init__(self):
        self.rows = {}
        self.bits = {}

    def size(self):
        return sum(size for _, size in self.rows.values())

    def row(self, number):
        deliveries, size = self.rows[number]
        row = Row(number, len(deliveries), size, self.bits.get(number))
        # Decoding makes new ones each time.
        return row, [one and Delivery(one.id, one.client, one.timestamp, one.body, one.accepted) for one in deliveries]

    def write(self, ledger):
        for row in ledger.finished():
            del self.rows[row.number]
            self.bits.pop(row.number, None)
        self.bits.update(ledger.progress())

    def read(self, ledger):
        """Do as the queue does when the ledger has nothing ready."""
        while (number := ledger.again()) is not None:
            if number in self.rows:
                ledger.load(*self.row(number))
            else:
                ledger.gone(number)
        after, upto = ledger.unread
        rest = iter(sorted(number for number in self.rows if after < number <= upto))
        while ledger.wants_more:
            number = next(rest, None)
            if number is None:
                ledger.read_up()
            else:
                ledger.load(*self.row(number))


class LedgerMachine(RuleBasedStateMachine):
    """
    ``waiting`` and ``claimed`` are the ids that the model takes for pending, in order; the latter with their places.
    """

    @initialize(ready=st.sampled_from([4, 12, READY]))
    def begin(self, ready):
        self.ready = ready
        self.storage = Storage()
        self.ledger = Ledger(ready=ready)
        self.number = 0
        self.made = 0
        self.waiting = []
        self.claimed = {}
        self.shelved = set()
        self.stale = {}
        self.counts = dict.fromkeys(["appended", "replayed", "resumed", "delivered", "dead", "dropped"], 0)

    @rule(count=st.integers(1, 20), length=st.integers(0, 300), kind=st.sampled_from(["appended", "replayed", "resumed"]))
    def commit(self, count, length, kind):
        deliveries = [Delivery(str(self.made + n), "c", 0, b"x" * length, self.made + n) for n in range(count)]
        self.made += count
        self.number += 1
        size = count * (length + 20)
        self.storage.rows[self.number] = (list(deliveries), size)
        self.ledger.accept(**{"appended": 0, kind: count})
        self.ledger.add(self.number, deliveries, size)
        self.waiting += [delivery.id for delivery in deliveries]
        self.counts[kind] += count

    def take(self, claimed):
        ids = [delivery.id for delivery in claimed]
        assert ids == self.waiting[: len(ids)], (ids, self.waiting)
        assert len({delivery.place for delivery in claimed}) == len(claimed)
        del self.waiting[: len(ids)]
        self.claimed.update({delivery.id: delivery for delivery in claimed})

    @rule(limit=st.integers(1, 30), size=st.integers(0, 3000))
    def claim(self, limit, size):
        claimed = self.ledger.claim(limit, size)
        if not claimed:
            self.storage.read(self.ledger)
            claimed = self.ledger.claim(limit, size)
            assert bool(claimed) == bool(self.waiting)
        assert len(claimed) <= limit
        assert sum(len(delivery.body) for delivery in claimed[:-1]) <= max(size, 0)
        self.take(claimed)

    def some_of(self, data, pool):
        ids = list(pool)
        chosen = data.draw(st.lists(st.sampled_from(ids), unique=True, max_size=20)) if ids else []
        return [pool[id_] for id_ in chosen]

    @rule(data=st.data(), twice=st.booleans())
    def acknowledge(self, data, twice):
        chosen = self.some_of(data, self.claimed)
        self.ledger.acknowledge(chosen + chosen if twice else chosen)
        self.settled(chosen, "delivered")

    @rule(data=st.data())
    def shelve(self, data):
        chosen = self.some_of(data, self.claimed)
        self.ledger.shelve([delivery.place for delivery in chosen])
        self.shelved |= {delivery.id for delivery in chosen}

    @rule(data=st.data())
    def recall(self, data):
        chosen = self.some_of(data, self.claimed)
        places = [delivery.place for delivery in chosen]
        assert self.ledger.recall([*places, *(delivery.place for delivery in self.stale.values())]) == places
        self.shelved -= {delivery.id for delivery in chosen}

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def acknowledge_what_is_not_pending(self, data):
        self.ledger.acknowledge(self.some_of(data, self.stale))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def bury(self, data):
        (delivery,) = self.some_of(data, self.claimed)[:1] or [next(iter(self.claimed.values()))]
        assert self.ledger.bury(delivery.place)
        assert not self.ledger.bury(delivery.place)
        self.settled([delivery], "dead")

    @rule(data=st.data())
    def lose(self, data):
        chosen = self.some_of(data, self.claimed)
        assert self.ledger.lose([delivery.place for delivery in chosen]) == len(chosen)
        self.settled(chosen, "dropped")

    def settled(self, deliveries, kind):
        for delivery in deliveries:
            self.stale[delivery.id] = self.claimed.pop(delivery.id)
        self.counts[kind] += len(deliveries)

    @rule()
    def write(self):
        self.storage.write(self.ledger)

    @rule(data=st.data(), late=st.booleans())
    def reclaim(self, data, late):
        self.ledger.reclaim()
        if late:
            # Whoever claimed them has an answer for some before they are read again.
            self.acknowledge(data, twice=False)
        self.waiting = sorted([*self.claimed, *self.waiting], key=int)
        self.stale.update(self.claimed)
        self.claimed, self.shelved = {}, set()
        # A place is the same when it is handed out again: it must not be acknowledged by its old owner.
        self.stale = {id_: delivery for id_, delivery in self.stale.items() if id_ not in set(self.waiting)}

    @rule(max_size=st.integers(0, 5000))
    def thin(self, max_size):
        for row in self.ledger.sparse(max_size):
            deliveries, size = self.storage.rows[row.number]
            kept = [delivery if row.holds(index) else None for index, delivery in enumerate(deliveries)]
            thinner = size - sum(len(one.body) for one, still in zip(deliveries, kept, strict=True) if one and not still)
            self.storage.rows[row.number] = (kept, thinner)
            self.ledger.thinned(row, thinner)
        self.storage.write(self.ledger)

    @rule(excess=st.integers(1, 20_000))
    def drop_oldest(self, excess):
        self.storage.write(self.ledger)
        after, upto = self.ledger.unread
        unread = (self.storage.row(number)[0] for number in sorted(self.storage.rows) if after < number <= upto)
        before, size = self.ledger.counts.pending, self.ledger.size
        dropped = self.ledger.drop_oldest(excess, unread)
        gone = [self.storage.rows[row.number][0] for row in self.ledger.finished()]
        for id_, delivery in list(self.claimed.items()):
            if not self.ledger.holds(delivery.place):
                assert id_ in self.shelved, "what is about to be sent was dropped"
                self.stale[id_] = self.claimed.pop(id_)
        for deliveries in gone:
            ids = {delivery.id for delivery in deliveries if delivery}
            self.waiting = [id_ for id_ in self.waiting if id_ not in ids]
        assert before - dropped == len(self.waiting) + len(self.claimed)
        assert size - self.ledger.size <= excess + 20 * 320
        self.counts["dropped"] += dropped
        for number in [number for number, (held, _) in self.storage.rows.items() if held in gone]:
            del self.storage.rows[number]
            self.storage.bits.pop(number, None)

    @rule()
    def begin_anew(self):
        """What a crash leaves after a commit."""
        self.storage.write(self.ledger)
        first = min(self.storage.rows, default=self.number + 1) - 1
        pending = len(self.waiting) + len(self.claimed)
        self.ledger = Ledger(first, max(self.storage.rows, default=first), pending, self.storage.size(), self.ready)
        self.waiting = sorted([*self.claimed, *self.waiting], key=int)
        self.claimed, self.stale, self.shelved = {}, {}, set()
        self.counts = dict.fromkeys(self.counts, 0) | {"resumed": pending}

    @invariant()
    def counted(self):
        counts = self.ledger.counts
        assert {name: getattr(counts, name) for name in self.counts} == self.counts
        assert counts.pending == len(self.waiting) + len(self.claimed)
        assert self.ledger.surplus == 0
        assert all(self.ledger.holds(delivery.place) for delivery in self.claimed.values())
        assert not any(self.ledger.holds(delivery.place) for delivery in self.stale.values())

    @invariant()
    def empty_when_nothing_is_pending(self):
        if not self.waiting and not self.claimed:
            assert self.ledger.size == 0
        else:
            assert not self.ledger.empty


class MachineTests(SynchronousTestCase):
    def test_all_that_may_happen_in_any_order(self):
        run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


class RowTests(SynchronousTestCase):
    def test_bits_are_those_that_were_given(self):
        row = Row(1, 10, 100, b"\x05\x02")
        self.assertEqual((row.left, row.bits), (7, b"\x05\x02"))
        self.assertEqual([index for index in range(12) if row.holds(index)], [1, 3, 4, 5, 6, 7, 8])

    def test_settling_in_any_pattern(self):
        for places in ([0, 1, 2], [3, 5, 9], [7]):
            row = Row(4, 10, 100)
            self.assertEqual(row.settle([4 << INDEX_BITS | index for index in places]), len(places))
            self.assertEqual([index for index in range(10) if not row.holds(index)], places)
            self.assertEqual(row.settle([4 << INDEX_BITS | index for index in places]), 0)
            self.assertEqual(row.left, 10 - len(places))

    def test_places_beyond_the_row_are_nobodys(self):
        self.assertEqual(Row(4, 10, 100).settle([4 << INDEX_BITS | 10, 4 << INDEX_BITS | INDEX]), 0)


class DamageTests(SynchronousTestCase):
    """What storage has is not what the ledger knows."""

    def filled(self):
        ledger = Ledger()
        for number in (1, 2):
            ledger.accept(3)
            ledger.add(number, [Delivery(f"{number}{n}", "c", 0, b"x") for n in range(3)], 60)
        return ledger

    def test_lost_row_is_dropped(self):
        ledger = Ledger(0, 2, 6, 120)
        self.assertEqual(ledger.load(Row(1, 3, 60), None), 3)
        self.assertEqual(ledger.load(Row(2, 3, 60), [Delivery(str(n), "c", 0, b"x") for n in range(3)]), 0)
        self.assertEqual((ledger.counts.dropped, ledger.counts.pending, ledger.size), (3, 3, 60))

    def test_row_that_says_it_was_longer_costs_no_more_than_is_pending(self):
        ledger = Ledger(0, 1, 3, 60)
        self.assertEqual(ledger.load(Row(1, 60_000, 60), None), 3)
        self.assertEqual((ledger.counts.dropped, ledger.counts.pending), (3, 0))

    def test_row_that_is_gone_when_it_is_handed_out_again(self):
        ledger = self.filled()
        ledger.claim(6, 1000)
        ledger.reclaim()
        self.assertEqual(ledger.again(), 1)
        self.assertEqual(ledger.gone(1), 3)
        self.assertEqual([row.number for row in ledger.finished()], [])
        self.assertEqual((ledger.counts.dropped, ledger.counts.pending), (3, 3))

    def test_row_that_is_settled_before_it_is_read_again(self):
        ledger = self.filled()
        claimed = ledger.claim(6, 1000)
        ledger.reclaim()
        ledger.acknowledge(claimed[:3])
        self.assertEqual([row.number for row in ledger.finished()], [1])
        self.assertEqual(ledger.again(), 2)
        ledger.acknowledge(claimed[3:])
        self.assertEqual((ledger.again(), ledger.behind, ledger.empty, ledger.size), (None, False, True, 0))
        self.assertEqual((ledger.counts.delivered, ledger.counts.pending), (6, 0))

    def test_more_settled_than_was_pending_is_never_negative(self):
        ledger = Ledger(0, 1, 1, 60)
        ledger.load(Row(1, 3, 60), [Delivery(str(n), "c", 0, b"x") for n in range(3)])
        ledger.acknowledge(ledger.claim(3, 1000))
        counts = ledger.counts
        self.assertEqual((counts.pending, counts.delivered, counts.resumed, ledger.surplus), (0, 3, 3, 2))

    def test_thinned_out_is_settled_whatever_the_bits_say(self):
        ledger = Ledger(0, 1, 1, 60)
        ledger.load(Row(1, 3, 60), [None, Delivery("1", "c", 0, b"x"), None])
        self.assertEqual([delivery.id for delivery in ledger.claim(3, 1000)], ["1"])
        ledger.acknowledge([Delivery("1", "c", 0, b"x", place=1 << INDEX_BITS | 1)])
        self.assertEqual((ledger.counts.pending, [row.number for row in ledger.finished()]), (0, [1]))


class LongRowTests(SynchronousTestCase):
    """A row with a long body is in memory only when it is about to be claimed."""

    def add(self, ledger, number, length, **options):
        ledger.accept(1)
        ledger.add(number, [Delivery(str(number), "c", 0, b"x" * length)], length + 20, **options)

    def claim(self, ledger):
        return [delivery.id for delivery in ledger.claim(10, 1 << 30)]

    def test_it_is_read_later_when_nobody_waits_for_it(self):
        ledger = Ledger()
        self.add(ledger, 1, 2 << 20, wanted=False)
        self.assertEqual((self.claim(ledger), ledger.unread), ([], (0, 1)))
        # What comes next stays behind it.
        self.add(ledger, 2, 10)
        self.assertEqual((self.claim(ledger), ledger.unread), ([], (0, 2)))

    def test_it_is_handed_out_at_once_when_somebody_does(self):
        ledger = Ledger()
        self.add(ledger, 1, 2 << 20, wanted=True)
        self.assertEqual(self.claim(ledger), ["1"])

    def test_it_is_read_later_when_there_is_something_else_to_claim(self):
        ledger = Ledger()
        self.add(ledger, 1, 10, wanted=True)
        self.add(ledger, 2, 2 << 20, wanted=True)
        self.assertEqual((ledger.takes(2 << 20), ledger.takes(10)), (False, True))
        self.assertEqual((self.claim(ledger), ledger.unread), (["1"], (1, 2)))
        self.assertTrue(ledger.takes(2 << 20))

    def test_what_is_kept_in_memory_is_bounded_in_bytes(self):
        ledger = Ledger()
        ledger.ready_bytes = 3000
        for number in range(1, 11):
            self.add(ledger, number, 1000)
        self.assertEqual((self.claim(ledger), ledger.unread), (["1", "2", "3"], (3, 10)))


class ChunkTests(SynchronousTestCase):
    def test_rows_are_bounded_by_number_and_bytes(self):
        small = [Delivery(str(n), "c", 0, b"x") for n in range(1025)]
        self.assertEqual([len(chunk) for chunk in chunks(small, 1025)], [512, 512, 1])
        large = [Delivery(str(n), "c", 0, b"x" * (1 << 19)) for n in range(5)]
        self.assertEqual([len(chunk) for chunk in chunks(large, 5 << 19)], [2, 2, 1])
