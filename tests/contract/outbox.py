"""
The contract that every outbox has to keep.

Mix :class:`OutboxContract` into a ``TestCase`` that opens an outbox. Answers may come later: claims and recalls are
awaited.
"""

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from zope.interface.verify import verifyObject

from mqhooks.delivery import Counts, Delivery, Variation
from mqhooks.interfaces import IOutbox

PLENTY = 1 << 30


def make(count, start=0, body=b"{}", **more):
    """Make deliveries that can be told apart by their ids and timestamps."""
    return [
        Delivery(f"msg_{number}", f"client-{number % 3}", number, body, 1000 + number, **more)
        for number in range(start, start + count)
    ]


def ids(deliveries):
    return [delivery.id for delivery in deliveries]


def numbered(*numbers):
    return [f"msg_{number}" for number in numbers]


class OutboxContract:
    """
    Define ``open()``: open an empty outbox and return it, or a Deferred that fires with it. Its limits are :attr:`max_size` and
    at least 10 dead letters.

    If time is not the reactor's, define ``settle()``: let the outbox do its deferred work; it may return a Deferred.
    A durable one defines ``reopen()``: end the outbox as a crash would, after ``settle()``, and open it again.
    """

    max_size = 100_000

    def settle(self):
        """Let the outbox do its deferred work."""

    async def answer(self, result):
        """Wait for an answer that may be there already."""
        if isinstance(result, Deferred):
            await maybeDeferred(self.settle)
            return await result
        return result

    async def append(self, outbox, deliveries):
        """Append, and wait until it is accepted. Don't use it on a full outbox: the wait would not end."""
        return await self.answer(outbox.append(deliveries))

    async def claim(self, outbox, limit=1000, size=PLENTY):
        return await self.answer(outbox.claim(limit, size))

    async def claim_all(self, outbox):
        """Claim all pending deliveries, none of which may be claimed already."""
        claimed = []
        while len(claimed) < outbox.counts.pending:
            claimed += await self.claim(outbox)
        return claimed

    async def recall(self, outbox, places):
        return list(await self.answer(outbox.recall(places)))

    async def nothing_to_claim(self, outbox):
        claim = outbox.claim(10, PLENTY)
        self.assertIsInstance(claim, Deferred)
        await maybeDeferred(self.settle)
        self.assertFalse(claim.called)
        claim.addErrback(lambda failure: failure.trap(CancelledError))
        claim.cancel()

    def check(self, outbox, **expected):
        """Check that the counts add up and are as expected."""
        counts = outbox.counts
        self.assertIsInstance(counts, Counts)
        self.assertEqual(counts.accepted, counts.appended + counts.resumed + counts.replayed)
        self.assertEqual(counts.accepted, counts.delivered + counts.dead + counts.dropped + counts.pending)
        self.assertGreaterEqual(min(getattr(counts, name) for name in counts.__struct_fields__), 0)
        for name, value in expected.items():
            self.assertEqual(getattr(counts, name), value, name)

    async def test_interface(self):
        outbox = await maybeDeferred(self.open)
        verifyObject(IOutbox, outbox)
        self.assertIsInstance(outbox.durable, bool)
        self.assertEqual(outbox.max_size, self.max_size)

    async def test_empty(self):
        outbox = await maybeDeferred(self.open)
        self.check(outbox, accepted=0, pending=0)
        self.assertEqual((outbox.oldest, outbox.waiting_since, outbox.letters, outbox.full), (None, None, 0, False))
        self.assertEqual(outbox.used, 0)
        await self.append(outbox, [])
        self.check(outbox, accepted=0)
        await self.nothing_to_claim(outbox)

    async def test_first_in_first_out(self):
        outbox = await maybeDeferred(self.open)
        for start in (0, 4, 8):
            await self.append(outbox, make(4, start))
        self.assertEqual(ids(await self.claim(outbox, 6)), numbered(*range(6)))
        self.assertEqual(ids(await self.claim_rest(outbox, 6)), numbered(*range(6, 12)))
        self.check(outbox, accepted=12, appended=12, pending=12)
        await self.nothing_to_claim(outbox)

    async def claim_rest(self, outbox, count):
        claimed = []
        while len(claimed) < count:
            claimed += await self.claim(outbox)
        return claimed

    async def test_what_comes_out_is_what_went_in(self):
        outbox = await maybeDeferred(self.open)
        variation = Variation("PUT", "/other?x=1", (("x-a", "b"),))
        await self.append(outbox, [*make(1), *make(1, 1, b"\xff\x00", window=False, variation=variation)])
        plain, varied = await self.claim_all(outbox)
        self.assertEqual(
            (plain.id, plain.client, plain.timestamp, plain.body, plain.accepted), ("msg_0", "client-0", 0, b"{}", 1000)
        )
        self.assertEqual((plain.window, plain.variation, plain.attempts), (True, None, 0))
        self.assertEqual((varied.body, varied.window, varied.variation), (b"\xff\x00", False, variation))
        self.assertNotEqual(plain.place, varied.place)

    async def test_claim_is_bounded_by_number_and_by_size(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(10, body=b"x" * 1000))
        self.assertEqual(len(await self.claim(outbox, 1)), 1)
        self.assertEqual(len(await self.claim(outbox, 3)), 3)
        self.assertEqual(len(await self.claim(outbox, 10, 10)), 1)
        self.assertLessEqual(len(await self.claim(outbox, 10, 2000)), 3)

    async def test_claim_waits_for_an_append(self):
        outbox = await maybeDeferred(self.open)
        claim = outbox.claim(2, PLENTY)
        self.assertIsInstance(claim, Deferred)
        accepted = outbox.append(make(3))
        self.assertEqual(ids(await self.answer(claim)), numbered(0, 1))
        await self.answer(accepted)
        self.assertEqual(ids(await self.claim(outbox)), numbered(2))

    async def test_cancelled_claim_claims_nothing(self):
        outbox = await maybeDeferred(self.open)
        claim = outbox.claim(2, PLENTY)
        claim.cancel()
        with self.assertRaises(CancelledError):
            await claim
        await self.append(outbox, make(3))
        self.assertEqual(ids(await self.claim(outbox)), numbered(0, 1, 2))

    async def test_acknowledged_is_pending_no_more(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(6))
        claimed = await self.claim_all(outbox)
        outbox.acknowledge(claimed[1:3])
        self.check(outbox, delivered=2, pending=4)
        outbox.acknowledge(claimed[5:])
        outbox.acknowledge([])
        self.check(outbox, delivered=3, pending=3)
        outbox.acknowledge([claimed[0], *claimed[3:5]])
        self.check(outbox, delivered=6, pending=0)
        await maybeDeferred(self.settle)
        self.assertEqual((outbox.used, outbox.oldest), (0, None))

    async def test_acknowledging_twice_counts_once(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(2))
        first, second = await self.claim_all(outbox)
        outbox.acknowledge([first])
        outbox.acknowledge([first])
        await maybeDeferred(self.settle)
        outbox.acknowledge([first])
        outbox.bury(first, "http://h/", "late", 410, b"", 5)
        self.check(outbox, delivered=1, dead=0, pending=1)
        outbox.acknowledge([second])
        self.check(outbox, delivered=2, pending=0)
        await maybeDeferred(self.settle)
        outbox.acknowledge([second])
        self.check(outbox, delivered=2, pending=0)
        self.assertEqual(outbox.letters, 0)

    async def test_buried_is_a_dead_letter(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(3))
        first, second, _ = await self.claim_all(outbox)
        outbox.bury(second, "http://h/", "answered 410", 410, b"gone", 5)
        self.check(outbox, dead=1, pending=2)
        self.assertEqual(outbox.letters, 1)
        outbox.bury(second, "http://h/", "answered 410", 410, b"gone", 5)
        outbox.acknowledge([second, first])
        self.check(outbox, dead=1, delivered=1, pending=1)
        await maybeDeferred(self.settle)
        self.assertEqual(outbox.letters, 1)

    async def test_recall_in_the_order_asked_for(self):
        outbox = await maybeDeferred(self.open)
        for start in (0, 5):
            await self.append(outbox, make(5, start))
        claimed = await self.claim_all(outbox)
        places = [claimed[index].place for index in (7, 2, 3)]
        self.assertEqual(ids(await self.recall(outbox, places)), numbered(7, 2, 3))
        self.assertEqual([delivery.place for delivery in await self.recall(outbox, places)], places)
        self.check(outbox, pending=10)

    async def test_what_is_shelved_is_recalled(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(4))
        places = [delivery.place for delivery in await self.claim_all(outbox)]
        outbox.shelve(places[1:3])
        outbox.shelve([])
        self.check(outbox, pending=4)
        recalled = await self.recall(outbox, places[1:3])
        self.assertEqual(ids(recalled), numbered(1, 2))
        outbox.acknowledge(recalled)
        outbox.shelve(places[1:3])
        self.check(outbox, delivered=2, pending=2)
        self.assertEqual(await self.recall(outbox, places[1:3]), [])

    async def test_what_is_recalled_can_be_acknowledged(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(2))
        places = [delivery.place for delivery in await self.claim_all(outbox)]
        outbox.acknowledge(await self.recall(outbox, places[:1]))
        self.check(outbox, delivered=1, pending=1)
        self.assertEqual(ids(await self.recall(outbox, places)), numbered(1))

    async def test_reclaim_hands_out_anew_what_is_pending(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(6))
        claimed = await self.claim(outbox, 4)
        outbox.acknowledge(claimed[1:2])
        outbox.bury(claimed[2], "http://h/", "410", 410, b"", 0)
        outbox.reclaim()
        await self.append(outbox, make(1, 6))
        self.assertEqual(ids(await self.claim_all(outbox)), numbered(0, 3, 4, 5, 6))
        self.check(outbox, accepted=7, delivered=1, dead=1, pending=5)

    async def test_reclaim_cancels_the_claim_that_waits(self):
        outbox = await maybeDeferred(self.open)
        claim = outbox.claim(2, PLENTY)
        outbox.reclaim()
        with self.assertRaises(CancelledError):
            await claim
        await self.append(outbox, make(1))
        self.assertEqual(ids(await self.claim(outbox)), numbered(0))

    async def test_full_holds_up_until_there_is_room(self):
        outbox = await maybeDeferred(self.open)
        accepted = outbox.append(make(12, body=b"x" * (self.max_size // 10)))
        await maybeDeferred(self.settle)
        self.assertFalse(accepted.called)
        self.assertTrue(outbox.full)
        self.check(outbox, accepted=12, pending=12)
        claimed = await self.claim_all(outbox)
        outbox.acknowledge(claimed)
        await self.answer(accepted)
        self.assertFalse(outbox.full)
        await self.append(outbox, make(1, 12))

    async def test_who_does_not_wait_for_room_is_told_of_the_commit_when_it_is_full(self):
        outbox = await maybeDeferred(self.open)
        self.assertFalse(outbox.full)
        await self.answer(outbox.append(make(12, body=b"x" * (self.max_size // 10)), room=False))
        self.check(outbox, accepted=12, pending=12)
        self.assertTrue(outbox.full)
        await self.answer(outbox.append(make(1, 12), room=False))
        self.check(outbox, accepted=13, pending=13)
        outbox.acknowledge(await self.claim_all(outbox))
        await maybeDeferred(self.settle)
        self.check(outbox, delivered=13, pending=0)
        self.assertFalse(outbox.full)

    async def test_abandoned_holds_nobody_up(self):
        outbox = await maybeDeferred(self.open)
        accepted = outbox.append(make(12, body=b"x" * (self.max_size // 10)))
        await maybeDeferred(self.settle)
        self.assertFalse(accepted.called)
        outbox.abandon()
        await self.answer(accepted)
        await self.append(outbox, make(1, 12))
        outbox.reclaim()
        accepted = outbox.append(make(1, 13))
        await maybeDeferred(self.settle)
        self.assertFalse(accepted.called)
        self.assertEqual(ids(await self.claim_all(outbox)), numbered(*range(14)))

    async def test_abandon_cancels_the_claim_that_waits(self):
        outbox = await maybeDeferred(self.open)
        claim = outbox.claim(2, PLENTY)
        outbox.abandon()
        with self.assertRaises(CancelledError):
            await claim

    async def test_oldest(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(1))
        await self.append(outbox, make(1, 1000))
        self.assertEqual(outbox.oldest, 1000)
        (first,) = await self.claim(outbox, 1)
        self.assertEqual(outbox.oldest, 1000)
        outbox.acknowledge([first])
        self.assertEqual(outbox.oldest, 2000)


class DurableContract(OutboxContract):
    """For outboxes that outlive their process."""

    async def test_durable(self):
        self.assertTrue((await maybeDeferred(self.open)).durable)

    async def test_nothing_counts_before_it_is_committed(self):
        outbox = await maybeDeferred(self.open)
        accepted = outbox.append(make(3))
        self.assertIsInstance(accepted, Deferred)
        self.check(outbox, accepted=0)
        self.assertIsNotNone(outbox.waiting_since)
        await self.answer(accepted)
        self.check(outbox, accepted=3, pending=3)
        self.assertIsNone(outbox.waiting_since)

    async def test_what_is_pending_is_resumed(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(8))
        claimed = await self.claim(outbox, 6)
        outbox.acknowledge(claimed[:4:2])
        outbox.bury(claimed[1], "http://h/", "410", 410, b"", 0)
        await maybeDeferred(self.settle)
        outbox = await maybeDeferred(self.reopen)
        self.check(outbox, accepted=5, resumed=5, appended=0, delivered=0, dead=0, pending=5)
        self.assertEqual(outbox.letters, 1)
        self.assertEqual(outbox.oldest, 1003)
        self.assertEqual(ids(await self.claim_all(outbox)), numbered(3, 4, 5, 6, 7))

    async def test_places_outlive_nobody_but_their_claim(self):
        outbox = await maybeDeferred(self.open)
        await self.append(outbox, make(3))
        await maybeDeferred(self.settle)
        outbox = await maybeDeferred(self.reopen)
        await self.append(outbox, make(3, 3))
        claimed = await self.claim_all(outbox)
        self.assertEqual(ids(claimed), numbered(*range(6)))
        self.assertEqual(len({delivery.place for delivery in claimed}), 6)
