"""What several webhooks hold in memory together, whatever they send and however that ends."""

import gc
from collections import defaultdict
from functools import partial
from itertools import product
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import ConnectFailed, DeliveryTimeout, OutboxError
from mqhooks.nanomq.settings import Rule
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.intake import PATIENCE, WINDOW
from mqhooks.webhook.settings import BatchSettings, LimitSettings, RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.webhooks import URL, DurableOutbox, FakeTransport

LIMIT = 300_000
LONGEST = 500_000
SIZES = (200, 3_000, 20_000, 70_000, 150_000, LONGEST)
TIMEOUT = 10.0


class Body(bytes):
    """A body that is counted as long as anybody has it."""

    held = 0

    def __new__(cls, size):
        cls.held += size
        return super().__new__(cls, b'{"n":"%b"}' % (b"x" * (size - 8)))

    def __del__(self):
        Body.held -= len(self)


class DiskOutbox(DurableOutbox):
    """Makes bodies anew each time that it hands deliveries out, as an outbox on disk does."""

    later = fails = None

    def claim(self, limit, size):
        claimed = super().claim(limit, size)
        return claimed.addCallback(self.read) if isinstance(claimed, Deferred) else self.read(claimed)

    def recall(self, places):
        if self.fails and self.fails():
            raise OutboxError("cannot be read now")
        found = super().recall(places)
        if self.later is None:
            return self.read(found)
        return self.later().addCallback(lambda _: self.read(found))

    @staticmethod
    def read(found):
        return [
            Delivery(one.id, one.client, one.timestamp, Body(len(one.body)), one.accepted, place=one.place) for one in found
        ]


class Webhooks:
    """Webhooks with endpoints that answer as they are told, and what has arrived at them."""

    def __init__(self, limit=LIMIT):
        gc.collect()
        Body.held = 0
        self.clock, self.budget = Clock(), Budget(limit)
        self.sinks, self.transports, self.arrived = [], [], []
        self.sent, self.since = defaultdict(list), {}

    def add(self, *, outbox=None, **options):
        """Start one more."""
        number = len(self.sinks)
        retry = RetrySettings(initial=1, maximum=4, jitter=0, max_age=1 << 30)
        made = WebhookSettings(
            f"w{number}", URL, (Rule("on_message_publish"),), **{"merge_window": 0, "retry": retry} | options
        )
        transport, outbox = FakeTransport(), outbox or DiskOutbox(1 << 30)
        sink = WebhookSink(self.clock, made, outbox, transport, budget=self.budget, random=Random(0), now=self.clock.seconds)
        self.sinks.append(sink)
        self.transports.append(transport)
        self.arrived.append([])
        sink.startService()

    def append(self, index, client, size):
        number = len(self.sent[index, client])
        delivery = Delivery(f"{client}-{number:04}", client, number, b"x" * size, int(self.clock.seconds() * 1000))
        self.sent[index, client].append(delivery.id)
        self.sinks[index].outbox.append([delivery])

    def end(self, index, result, at=0):
        """End an attempt of a webhook."""
        attempt = self.transports[index].in_flight[at]
        self.since.pop(id(attempt), None)
        ids = [attempt.id] if attempt.request.body[:1] == b"{" else [body["webhook_id"] for body in attempt.bodies]
        del attempt
        if result == 200:
            self.arrived[index] += ids
        self.transports[index].end(result, at)

    def advance(self, seconds):
        """Let time pass; attempts that take longer than the timeout end."""
        until = self.clock.seconds() + seconds
        while (left := until - self.clock.seconds()) > 1e-6:
            for index, transport in enumerate(self.transports):
                for at in reversed(range(len(transport.in_flight))):
                    since = self.since.setdefault(id(transport.in_flight[at]), self.clock.seconds())
                    if self.clock.seconds() - since >= TIMEOUT:
                        self.end(index, DeliveryTimeout("late"), at)
            self.clock.advance(min(0.05, left))

    def answer(self, index):
        """Answer everything that a webhook has in flight with 200."""
        for _ in range(len(self.transports[index].in_flight)):
            self.end(index, 200)

    def check(self, limit=LIMIT + LONGEST):
        if Body.held > limit:
            # An exception may have kept some.
            gc.collect()
        assert Body.held <= limit, f"{Body.held} bytes are held"

    def drain(self):
        """All endpoints answer: everything arrives, each client's in order, and nothing is held any more."""
        for sink in self.sinks:
            sink.resume()
        for _ in range(2000):
            for index in range(len(self.sinks)):
                self.answer(index)
            self.check()
            if not any(sink.outbox.counts.pending for sink in self.sinks):
                break
            self.advance(0.1)
        arrived = defaultdict(list)
        for index, ids in enumerate(self.arrived):
            for id_ in ids:
                arrived[index, id_.partition("-")[0]].append(id_)
        assert arrived == self.sent, "lost, stuck, or out of order"
        gc.collect()
        assert Body.held == 0, f"{Body.held} bytes are held"


class Machine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed):
        self.random = Random(seed)
        self.webhooks = Webhooks()
        for _ in range(self.random.randint(1, 4)):
            self.join()

    def outbox(self):
        """One that answers at once, later, or now and then not at all."""
        random, clock = self.random, self.webhooks.clock
        outbox = DiskOutbox(1 << 30)
        kind = random.choice(["at once", "at once", "later", "fails"])
        if kind == "fails":
            outbox.fails = lambda: random.random() < 0.2
        elif kind == "later":

            def later():
                read = Deferred()
                clock.callLater(0.01, read.callback, None)
                if random.random() < 0.2:
                    read.addCallback(lambda _: fail(OutboxError("cannot be read now")))
                return read

            outbox.later = later
        return outbox

    @precondition(lambda self: len(self.webhooks.sinks) < 6)
    @rule()
    def join(self):
        choose = self.random.choice
        batch = choose([None, None, BatchSettings(size=3, linger=0), BatchSettings(size=3, linger=0.2)])
        self.webhooks.add(outbox=self.outbox(), merge_window=choose([0, 0.05, 2]), pool_size=choose([1, 2, 4]), batch=batch)

    @rule(
        index=st.integers(0, 5), client=st.sampled_from("abc"), sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4)
    )
    def append(self, index, client, sizes):
        for size in sizes:
            self.webhooks.append(index % len(self.webhooks.sinks), client, size)

    @rule(index=st.integers(0, 5), at=st.integers(0, 3), result=st.sampled_from([200, 200, 503, "refused"]))
    def end(self, index, at, result):
        index %= len(self.webhooks.sinks)
        in_flight = len(self.webhooks.transports[index].in_flight)
        if in_flight:
            # The first webhook's endpoint is always down.
            result = result if index or result != 200 else "refused"
            self.webhooks.end(index, ConnectFailed("refused") if result == "refused" else result, at % in_flight)

    @rule(index=st.integers(0, 5), pause=st.booleans())
    def pause_or_resume(self, index, pause):
        sink = self.webhooks.sinks[index % len(self.webhooks.sinks)]
        (sink.pause if pause else sink.resume)()

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.5, 3.0]))
    def advance(self, seconds):
        self.webhooks.advance(seconds)

    @invariant()
    def bounded(self):
        if hasattr(self, "webhooks"):
            self.webhooks.check()

    def teardown(self):
        if hasattr(self, "webhooks"):
            self.webhooks.drain()


class HeldTests(SynchronousTestCase):
    def test_whatever_happens_no_more_than_the_limit_and_one_body_is_held_and_all_arrives_in_order(self):
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))

    def test_long_bodies_of_many_webhooks_whose_endpoints_are_down_then_up(self):
        webhooks = Webhooks()
        for _ in range(20):
            webhooks.add(merge_window=0.05)
        for number in range(60):
            webhooks.append(number % 20, "abc"[number // 20], LONGEST)
        for _ in range(200):
            for index, transport in enumerate(webhooks.transports):
                while transport.in_flight:
                    webhooks.end(index, ConnectFailed("refused"))
            webhooks.check(LONGEST)
            webhooks.advance(0.2)
        webhooks.drain()

    def test_a_webhook_that_joins_gets_its_part_from_one_that_is_down(self):
        webhooks = Webhooks()
        webhooks.add(pool_size=4)
        for number in range(100):
            webhooks.append(0, f"{number}", 20_000)
        while webhooks.transports[0].in_flight:
            webhooks.end(0, ConnectFailed("refused"))
        self.assertGreater(Body.held, LIMIT // 2)
        webhooks.add(pool_size=1)
        webhooks.add(pool_size=1)
        self.assertLessEqual(Body.held, LIMIT // 3)
        webhooks.drain()

    def test_a_slow_webhook_keeps_another_waiting_for_its_timeout_at_most(self):
        for merge_window in (0, 0.05):
            webhooks = Webhooks()
            for _ in range(2):
                webhooks.add(merge_window=merge_window)
            for client in "abc":
                webhooks.append(0, client, LONGEST)
            webhooks.advance(1)
            self.assertEqual(len(webhooks.transports[0].in_flight), 1)
            for client in "abc":
                webhooks.append(1, client, LONGEST)
                webhooks.append(1, f"{client}{client}", 200)
                # What needs no more than the webhook's own part does not wait at all.
                webhooks.advance(0.1)
                webhooks.answer(1)
                self.assertEqual(webhooks.arrived[1][-1], f"{client}{client}-0000")
                webhooks.advance(TIMEOUT)
                webhooks.answer(1)
                self.assertEqual(webhooks.arrived[1][-1], f"{client}-0000")
                webhooks.advance(0.1)
            webhooks.drain()

    def test_all_that_are_slow_keep_another_waiting_for_one_timeout_each(self):
        webhooks = Webhooks()
        for _ in range(4):
            webhooks.add()
        for index in range(3):
            for client in "abc":
                webhooks.append(index, client, LONGEST)
        webhooks.append(3, "d", LONGEST)
        webhooks.advance(3 * (TIMEOUT + 0.1))
        webhooks.answer(3)
        self.assertEqual(webhooks.arrived[3], ["d-0000"])
        webhooks.drain()

    def test_what_could_not_be_read_at_first_is_not_kept_when_it_has_gone(self):
        webhooks = Webhooks()
        outbox, asked = DiskOutbox(1 << 30), []
        outbox.fails = lambda: asked.append(None) or len(asked) == 1
        webhooks.add(merge_window=0.05, outbox=outbox)
        for number in range(20):
            webhooks.append(0, f"{number}", 20_000)
        webhooks.drain()
        self.assertGreater(len(asked), 1)

    def test_a_long_body_is_not_passed_over_where_few_requests_may_be_sent(self):
        for later, limit in product((False, True), (None, LimitSettings(rate=10, burst=1))):
            webhooks, outbox = Webhooks(), DiskOutbox(1 << 30)
            if later:
                outbox.later = partial(deferLater, webhooks.clock, 0.01)
            webhooks.add(pool_size=4, outbox=outbox, limit=limit)
            webhooks.append(0, "long", LONGEST)
            webhooks.advance(0.1)
            webhooks.end(0, 429)
            for turn in range(100):
                # More than may be sent.
                for number in range(4 if turn < 10 else 1):
                    webhooks.append(0, f"{turn}.{number}", 200)
                webhooks.advance(0.11)
                # Whoever is short may have one request in flight, or now and then two.
                for _ in range(len(webhooks.transports[0].in_flight)):
                    webhooks.end(0, 429 if turn % 2 and webhooks.transports[0].in_flight[0].id != "long-0000" else 200)
            self.assertIn("long-0000", webhooks.arrived[0], (later, limit))
            self.assertGreater(webhooks.sinks[0].outbox.counts.pending, 10)
            webhooks.drain()

    def test_a_backlog_makes_room_for_others_while_a_long_body_waits_for_its_turn(self):
        webhooks = Webhooks(64 << 20)
        for _ in range(2):
            webhooks.add(pool_size=4)
        # The first webhook has what is lent, and its endpoint does not answer.
        long = (32 << 20) + 1
        webhooks.append(0, "a", long)
        webhooks.append(1, "a", long)
        webhooks.advance(0.1)
        for _ in range(WINDOW):
            webhooks.append(1, "b", 200)
        webhooks.append(1, "d", 200)
        webhooks.advance(PATIENCE + 0.1)
        self.assertEqual(sorted(attempt.id for attempt in webhooks.transports[1].in_flight), ["b-0000", "d-0000"])

    def test_what_was_parked_while_the_part_was_larger_takes_no_more_than_there_is(self):
        webhooks, outbox = Webhooks(), DiskOutbox(1 << 30)
        outbox.later = partial(deferLater, webhooks.clock, 0.01)
        webhooks.add(pool_size=32, outbox=outbox)
        for number in range(40):
            webhooks.append(0, f"{number}", 18_000)
        for number in range(40):
            webhooks.end(0, 503 if number % 5 else 200)
        for index in range(1, 6):
            webhooks.add()
            for client in "abc":
                webhooks.append(index, client, 12_000)
        for _ in range(100):
            webhooks.advance(0.05)
            webhooks.check(LIMIT + 18_000)
        webhooks.drain()

    def test_what_is_read_for_a_sink_that_has_been_replaced_is_left_to_the_next(self):
        for answer, merge_window in product((None, OutboxError("cannot be read now")), (0, 0.05)):
            webhooks, outbox, reads = Webhooks(), DiskOutbox(1 << 30), []

            def later(reads=reads):
                reads.append(Deferred())
                return reads[-1]

            outbox.later = later
            webhooks.add(outbox=outbox, merge_window=merge_window, pool_size=4)
            for number in range(30):
                webhooks.append(0, f"{number}", 20_000)
            webhooks.advance(0.1)
            while not reads:
                if webhooks.transports[0].in_flight:
                    webhooks.end(0, 503)
                webhooks.advance(1)
            retired = webhooks.sinks[0].retire()
            while webhooks.transports[0].in_flight:
                webhooks.end(0, 503)
            self.successResultOf(retired)
            gc.collect()
            self.assertEqual(Body.held, 0)
            outbox.reclaim()
            shelved = []
            outbox.shelve = shelved.extend
            for read in reads:
                read.callback(None) if answer is None else read.errback(answer)
            self.assertEqual((shelved, webhooks.clock.getDelayedCalls()), ([], []))

    def test_many_webhooks_do_not_make_each_delivery_dearer(self):
        webhooks, asked = Webhooks(), []
        webhooks.budget.join("another", lambda: asked.append(None) or 0)
        for _ in range(50):
            webhooks.add()
        # Each that joins asks the others once.
        self.assertLessEqual(len(asked), 50)
        del asked[:]
        for client in "abcd":
            webhooks.append(0, client, 5_000)
            webhooks.end(0, 503)
        webhooks.drain()
        self.assertEqual(asked, [])


class BudgetTests(SynchronousTestCase):
    def make(self, *members):
        self.budget, self.turns = Budget(90), []
        for member in members:
            self.budget.join(member)

    def borrow(self, *members):
        for member in members:
            self.budget.borrow(member, lambda member=member: self.turns.append(member))

    def test_what_is_lent_goes_from_one_to_the_next_in_line(self):
        self.make("a", "b", "c")
        self.borrow("b", "a", "c", "a", "b")
        self.assertEqual(self.turns, ["b"])
        self.budget.give_back("b")
        self.borrow("b")
        self.budget.give_back("a")
        self.budget.give_back("c")
        self.budget.give_back("b")
        self.borrow("c")
        self.assertEqual(self.turns, ["b", "a", "c", "b", "c"])

    def test_only_who_has_it_gives_it_back(self):
        self.make("a", "b", "c")
        self.borrow("a", "b")
        self.budget.give_back("b")
        self.assertEqual(self.turns, ["a"])

    def test_who_leaves_gives_it_back_and_leaves_the_line(self):
        self.make("a", "b", "c")
        self.borrow("a", "b", "c")
        self.budget.leave("b")
        self.budget.leave("a")
        self.assertEqual(self.turns, ["a", "c"])

    def test_others_hear_that_their_part_is_smaller(self):
        budget, heard = Budget(90), []
        budget.join("a", lambda: 10, lambda: heard.append(("a", budget.part)))
        budget.join("b", lambda: 20, lambda: heard.append(("b", budget.part)))
        self.assertEqual(heard, [("a", 45)])
        self.assertEqual(budget.free, 60)

    def test_who_holds_more_than_its_part_is_known(self):
        budget, held = Budget(90), {"a": 50, "b": 10, "c": 10}
        for member in "ab":
            budget.join(member, lambda member=member: held[member])
        self.assertTrue(budget.exceeded)
        held["a"] = 45
        self.assertFalse(budget.exceeded)
        budget.join("c", lambda: held["c"])
        self.assertTrue(budget.exceeded)
        budget.leave("a")
        self.assertFalse(budget.exceeded)
