"""What is held in memory, and when it is let go."""

from collections import defaultdict
from random import Random
from zlib import crc32

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import ConnectFailed, OutboxError
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.webhook import budget as budget_module
from mqhooks.webhook import intake, outcomes
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.settings import BatchSettings, RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.webhooks import DurableOutbox, FakeTransport, SinkMixin, publish


class BudgetTests(SynchronousTestCase):
    def test_parts_are_equal(self):
        budget = Budget(90)
        for member in "abc":
            budget.join(member)
        self.assertEqual(budget.part, 30)
        budget.leave("a")
        self.assertEqual(budget.part, 45)

    def test_a_part_has_a_limit(self):
        self.patch(budget_module, "SHARE", 40)
        self.assertEqual(Budget(1000).part, 40)


class MemoryTests(SinkMixin, SynchronousTestCase):
    """Bodies of 1 MB, and room for 3 MB."""

    def setUp(self):
        self.make()

    def sinks(self, count, **settings):
        budget = Budget(3_000_000)
        sinks = []
        for number in range(count):
            transport = FakeTransport()
            sink = WebhookSink(
                self.clock,
                WebhookSettings(
                    f"w{number}",
                    "http://h/",
                    (Rule("on_message_publish"),),
                    **{"merge_window": 0, "retry": RetrySettings(jitter=0)} | settings,
                ),
                DurableOutbox(1 << 30),
                transport,
                budget=budget,
                now=self.clock.seconds,
            )
            sink.startService()
            sinks.append((sink, transport))
        return sinks

    def test_only_what_there_is_room_for_is_claimed(self):
        ((sink, transport),) = self.sinks(1, pool_size=32)
        sink.receive([publish(f"c{number}", 0, qos=1) for number in range(3)])
        big = [Delivery(f"msg_{number}", f"c{number}", 0, b"x" * 1_000_000) for number in range(50)]
        sink.outbox.append(big)
        most = 0
        for _ in range(53):
            most = max(most, len(transport.in_flight))
            transport.end()
        self.assertLessEqual(most, 8)
        self.assertEqual(sink.outbox.counts.pending, 0)

    def test_bodies_longer_than_the_share_go_one_after_the_other(self):
        for settings in ({}, {"merge_window": 0.05}):
            ((sink, transport),) = self.sinks(1, pool_size=4, **settings)
            sink.outbox.append([Delivery(f"msg_{number}", f"c{number}", 0, b"x" * 4_000_000) for number in range(10)])
            for _ in range(10):
                self.clock.pump([0.01] * 20)
                self.assertEqual(len(transport.in_flight), 1)
                transport.end()
            self.assertEqual(sink.outbox.counts.delivered, 10)

    def test_an_endpoint_that_is_down_leaves_the_room_to_others(self):
        (down, broken), (up, working) = self.sinks(2, pool_size=2)
        for sink in (down, up):
            sink.outbox.append([Delivery(f"msg_{number}", "c", 0, b"x" * 1_000_000) for number in range(20)])
        for _ in range(40):
            while broken.in_flight:
                broken.end(ConnectFailed("refused"))
            while working.in_flight:
                working.end()
            self.clock.advance(1)
        self.assertEqual((down.outbox.counts.pending, up.outbox.counts.pending), (20, 0))
        for _ in range(400):
            while broken.in_flight:
                broken.end()
            self.clock.advance(1)
        self.assertEqual(down.outbox.counts.delivered, 20)

    def test_what_is_parked_behind_a_retry_is_not_claimed_in_a_single_turn(self):
        claims = []

        class CountingOutbox(DurableOutbox):
            def claim(self, limit, size):
                claims.append(limit)
                return super().claim(limit, size)

        self.make(outbox=CountingOutbox(1 << 30), pool_size=2)
        backlog = [Delivery(f"a-{number}", "a", number, b"{}") for number in range(3 * intake.CLAIMS * intake.WINDOW)]
        self.outbox.append([*backlog, Delivery("b", "b", 0, b"{}")])
        del claims[:]
        self.transport.end(503)
        self.assertEqual((len(claims), self.in_flight), (intake.CLAIMS, []))
        self.clock.advance(0)
        self.assertEqual([attempt.id for attempt in self.in_flight], ["b"])

    def test_while_an_endpoint_is_down_its_backlog_stays_in_the_outbox(self):
        ((sink, transport),) = self.sinks(1)
        sink.outbox.append([Delivery(f"msg_{number}", f"c{number}", 0, b"x" * 5000) for number in range(5000)])
        for _ in range(20):
            while transport.in_flight:
                transport.end(ConnectFailed("refused"))
            self.clock.advance(300)
        self.assertGreater(len(sink.outbox.claim(5000, 1 << 30)), 4000)

    def test_others_that_are_paused_keep_nobody_waiting(self):
        *paused, (up, working) = self.sinks(3, pool_size=2)
        for sink, _ in paused:
            sink.pause()
            sink.outbox.append([Delivery(f"msg_{number}", f"c{number}", 0, b"x" * 1_600_000) for number in range(20)])
        up.outbox.append([Delivery(f"msg_{number}", "c", 0, b"x" * 1_000_000) for number in range(20)])
        while working.in_flight:
            working.end()
        self.assertEqual(up.outbox.counts.pending, 0)

    def test_sinks_that_never_start_take_no_part(self):
        budget = Budget(3_000_000)
        for _ in range(100):
            WebhookSink(self.clock, WebhookSettings("w", "http://h/", ()), DurableOutbox(), FakeTransport(), budget=budget)
        self.assertEqual(budget.part, 3_000_000)


class RecallTests(SinkMixin, SynchronousTestCase):
    def test_parked_deliveries_are_recalled_as_far_as_there_is_memory(self):
        self.make(DurableOutbox(1 << 30), pool_size=8, budget=Budget(300_000), retry=RetrySettings(initial=1, jitter=0))
        body = b'{"n":"%b"}' % (b"x" * 75_000)
        for client in "abcdefgh":
            self.outbox.append([Delivery(f"{client}-{number}", client, number, body) for number in range(4)])
        # Each client fails once, and is parked.
        seen, arrived = set(), []
        while self.outbox.counts.pending:
            held = sum(len(attempt.request.body) for attempt in self.in_flight)
            self.assertLessEqual(held, 300_000 + len(body))
            for attempt in self.in_flight[:]:
                failed = attempt.id not in seen and attempt.id.endswith("-0")
                seen.add(attempt.id)
                self.transport.end(503 if failed else 200)
                arrived += [] if failed else [attempt.id]
            self.clock.advance(0.5)
        self.assertEqual(len(arrived), 32)
        for client in "abcdefgh":
            self.assertEqual([id_ for id_ in arrived if id_[0] == client], [f"{client}-{number}" for number in range(4)])

    def test_what_waits_behind_a_failed_delivery_does_not_take_the_room_that_it_needs(self):
        for seed in range(30):
            random = Random(seed)
            merge_window, pool_size = random.choice([0, 0.05]), random.choice([1, 4])
            self.make(DurableOutbox(1 << 30), merge_window=merge_window, pool_size=pool_size, budget=Budget(1_000_000))
            size, clients = random.choice([75_000, 1_500_000]), random.choice([1, 3])
            for number in range(150):
                step = random.random()
                if step < 0.5:
                    body = b'{"n":"%b"}' % (b"x" * size)
                    now = int(self.clock.seconds() * 1000)
                    client = f"c{random.randrange(clients)}"
                    self.outbox.append([Delivery(f"msg_{number}", client, now - random.randrange(60), body, accepted=now)])
                elif step < 0.7 and self.in_flight:
                    self.transport.end(random.choice([200, 503, ConnectFailed("refused")]))
                elif step > 0.95:
                    (self.sink.pause if step > 0.975 else self.sink.resume)()
                self.clock.advance(random.choice([0.001, 0.02, 2]))
            self.sink.resume()
            for _ in range(2000):
                self.end_all()
                self.clock.advance(0.5)
            self.assertEqual(self.outbox.counts.pending, 0, f"seed {seed}")


class OrderTests(SinkMixin, SynchronousTestCase):
    """However long the bodies and the backlog, a client's events that come within the window of each other are in order."""

    def fill(self, pairs, clients, apart, size):
        """Each pair comes in the wrong order, its second 5 ms after its first."""
        for number in range(pairs):
            for time in (2 * number + 1, 2 * number):
                self.append(f"c{number % clients}", time, size)
                self.clock.advance(apart / 2)

    def append(self, client, time, size, **fields):
        body = b'{"n":"%b"}' % (b"x" * size)
        accepted = int(self.clock.seconds() * 1000)
        self.outbox.append([Delivery(f"{client}-{time:05}", client, time, body, accepted=accepted, **fields)])

    def assert_in_order(self, pairs):
        arrived = []
        while self.outbox.counts.pending:
            arrived += [self.transport.end().id for _ in self.in_flight[:]]
            self.clock.advance(0.001)
        clients = defaultdict(list)
        for id_ in arrived:
            clients[id_.partition("-")[0]].append(id_)
        self.assertEqual(len(arrived), 2 * pairs)
        self.assertEqual([ids for ids in clients.values() if ids != sorted(ids)], [])
        self.assertEqual(self.sink.counters.late, 0)

    def test_a_backlog_of_long_bodies(self):
        for pool_size, clients in ((1, 1), (4, 3), (32, 7)):
            for outbox in (DurableOutbox(1 << 30), MemoryOutbox(1 << 30)):
                self.make(outbox, merge_window=0.05, pool_size=pool_size, budget=Budget(1_000_000))
                self.sink.pause()
                self.fill(200, clients, 0.01, 75_000)
                self.sink.resume()
                self.assert_in_order(200)

    def test_what_need_not_wait_stays_behind_what_its_client_waits_for(self):
        """Webhooks bring one event behind the sidecar's two, which come in the wrong order."""
        for size, paused in ((10, False), (10, True), (75_000, False), (75_000, True)):
            self.make(DurableOutbox(1 << 30), merge_window=0.05, pool_size=4, budget=Budget(1_000_000))
            if paused:
                self.sink.pause()
            for number in range(0, 200, 4):
                client = f"c{number // 4 % 3}"
                for time, window in ((1, True), (0, True), (2, False), (3, False)):
                    self.append(client, number + time, size, window=window)
                    self.clock.advance(0.002)
            self.sink.resume()
            self.assert_in_order(100)

    def test_what_need_not_wait_goes_at_once_when_its_client_waits_for_nothing(self):
        self.make(DurableOutbox(1 << 30), merge_window=0.05, pool_size=4)
        self.append("a", 1, 10)
        self.append("b", 2, 10, window=False)
        self.append("a", 3, 10, window=False)
        self.assertEqual([attempt.id for attempt in self.in_flight], ["b-00002"])
        self.end_all()
        self.clock.pump([0.01] * 20)
        self.end_all()
        self.assertEqual(self.outbox.counts.pending, 0)
        self.append("a", 4, 10, window=False)
        self.assertEqual([attempt.id for attempt in self.in_flight], ["a-00004"])

    def test_what_is_claimed_while_answers_come_at_once_overtakes_nothing(self):
        """What a full window claims makes room when its answers come at once, and so more is claimed."""
        batch = BatchSettings(size=2, linger=1.0, max_bytes=1 << 30)
        self.make(merge_window=1, pool_size=2, batch=batch, budget=Budget(300_000), outbox=DurableOutbox())
        arrived = []

        def answer(attempt):
            arrived.extend(body["webhook_id"] for body in attempt.bodies)
            return 200

        self.transport.at_once = answer
        one, other = "a", next(client for client in "bcdefgh" if (crc32(client.encode()) ^ crc32(b"a")) & 1)
        sizes = {one: [190_000, 10], other: [2 * intake.AHEAD, 10, 10]}
        numbered = [(client, number, size) for client, all_of_it in sizes.items() for number, size in enumerate(all_of_it)]
        for which in (numbered[:1], numbered[1:]):
            self.outbox.append(
                [
                    Delivery(f"{client}{number}", client, 0, b'{"n":"%b"}' % (b"x" * size), window=False)
                    for client, number, size in which
                ]
            )
        self.clock.pump([0.1] * 100)
        self.assertEqual([id_ for id_ in arrived if id_[0] == other], [f"{other}{number}" for number in range(3)])

    def test_what_comes_together_stays_in_order(self):
        self.make(DurableOutbox(1 << 30), merge_window=0.05, pool_size=4)
        both = [Delivery(f"a-{time:05}", "a", time, b"{}", window=time == 1) for time in (1, 2)]
        self.outbox.append(both)
        self.assert_in_order(1)

    def test_an_outbox_that_answers_later_or_not_at_all_at_first(self):
        test = self

        class Far(DurableOutbox):
            asked = 0

            def recall(self, places):
                self.asked += 1
                if self.asked == 2:
                    raise OutboxError("out of reach")
                found = super().recall(places)
                later = Deferred()
                test.clock.callLater(0.01, later.callback, found)
                if self.asked == 4:
                    later.addCallback(lambda _: fail(OutboxError("out of reach")))
                return later

        self.make(Far(1 << 30), merge_window=0.05, pool_size=4, budget=Budget(1_000_000))
        self.sink.pause()
        self.fill(100, 3, 0.01, 75_000)
        self.sink.resume()
        self.assert_in_order(100)
        self.assertGreater(self.outbox.asked, 4)

    def test_what_was_dropped_meanwhile_is_missing(self):
        class Dropping(DurableOutbox):
            def recall(self, places):
                found = super().recall(places)
                dropped = [delivery for delivery in found if delivery.timestamp % 10 == 0]
                self.acknowledge(dropped)
                return [delivery for delivery in found if delivery not in dropped]

        self.make(Dropping(1 << 30), merge_window=0.05, pool_size=4, budget=Budget(1_000_000))
        self.sink.pause()
        self.fill(100, 3, 0.01, 75_000)
        self.sink.resume()
        arrived = []
        while self.outbox.counts.pending:
            arrived += [int(self.transport.end().id[3:]) for _ in self.in_flight[:]]
            self.clock.advance(0.001)
        # Only those of which the places were kept could be dropped.
        missing = sorted(set(range(200)) - set(arrived))
        self.assertEqual([time for time in missing if time % 10], [])
        self.assertGreater(len(missing), 10)

    def test_more_than_the_window_claims(self):
        self.patch(intake, "WINDOW", 16)
        self.patch(intake, "HELD", 16)
        self.make(DurableOutbox(1 << 30), merge_window=0.05, pool_size=4)
        self.sink.pause()
        self.fill(200, 5, 0.0005, 10)
        self.sink.resume()
        self.assert_in_order(200)

    def test_beside_a_client_that_fails(self):
        self.make(DurableOutbox(1 << 30), merge_window=0.05, pool_size=4, budget=Budget(1_000_000))
        self.sink.pause()
        self.fill(200, 5, 0.01, 75_000)
        self.sink.resume()
        for _ in range(20):
            for attempt in self.in_flight[:]:
                self.transport.end(503 if attempt.id.startswith("c0") else 200)
            self.clock.advance(0.1)
        arrived = []
        while self.outbox.counts.pending:
            arrived += [self.transport.end().id for _ in self.in_flight[:]]
            self.clock.advance(0.1)
        arrived = [id_ for id_ in arrived if id_.startswith("c0")]
        self.assertEqual((len(arrived), arrived), (80, sorted(arrived)))

    def test_nothing_goes_early_before_the_window_is_full(self):
        self.patch(intake, "WINDOW", 16)
        self.patch(intake, "HELD", 16)
        self.patch(intake, "SHELVED", 64)
        self.make(DurableOutbox(1 << 30), merge_window=60, pool_size=4)
        for time in range(100, 37, -1):
            self.append(f"c{time}", time, 10)
            self.clock.advance(0.001)
        self.clock.advance(1)
        self.assertEqual(self.in_flight, [])
        self.append("c7", 7, 10)
        self.clock.pump([0.001] * 5)
        self.assertEqual([attempt.id for attempt in self.in_flight], ["c7-00007"])

    def test_what_has_to_go_early_is_what_happened_first(self):
        self.patch(intake, "WINDOW", 16)
        self.patch(intake, "HELD", 16)
        self.patch(intake, "SHELVED", 64)
        self.make(DurableOutbox(1 << 30), merge_window=60, pool_size=4)
        self.sink.pause()
        self.fill(100, 100, 0.0001, 10)
        self.sink.resume()
        gone = []
        for _ in range(50):
            self.clock.advance(0.001)
            gone += [self.transport.end().id[-5:] for _ in self.in_flight[:]]
        self.assertGreater(len(gone), 130)
        self.assertEqual(sorted(gone), [f"{time:05}" for time in range(len(gone))])


class FairnessTests(SinkMixin, SynchronousTestCase):
    def test_one_client_with_a_backlog_keeps_nobody_waiting(self):
        self.patch(intake, "WINDOW", 64)
        for window in (0, 0.05):
            for batch in (None, BatchSettings(size=3, linger=0)):
                self.make(DurableOutbox(1 << 30), merge_window=window, pool_size=8, batch=batch)
                self.outbox.append([Delivery(f"busy-{number:05}", "busy", number, b'{"n":0}') for number in range(2000)])
                self.outbox.append([Delivery(f"other-{number}", f"other{number}", 0, b'{"n":0}') for number in range(20)])
                arrived = []
                while self.outbox.counts.pending:
                    self.clock.advance(0.01)
                    for attempt in self.in_flight[:]:
                        ids = [attempt.id] if batch is None else [body["webhook_id"] for body in attempt.bodies]
                        arrived += ids
                        self.transport.end()
                last = max(index for index, id_ in enumerate(arrived) if id_.startswith("other"))
                # A second passes before the long lane is shortened.
                self.assertLess(last, 600)
                busy = [id_ for id_ in arrived if id_.startswith("busy")]
                self.assertEqual((len(busy), busy), (2000, sorted(busy)))

    def test_unordered_deliveries_of_one_client_that_fail_keep_nobody_waiting(self):
        self.patch(outcomes, "CROWD", 100)
        self.make(DurableOutbox(1 << 30), ordering="none", retry=RetrySettings(initial=600, maximum=600, jitter=0))
        self.transport.at_once = lambda attempt: 503 if attempt.id.startswith("bad") else 200
        self.outbox.append([Delivery(f"bad-{number}", "c", number, b"{}") for number in range(200)])
        self.clock.advance(1)
        self.outbox.append([Delivery(f"good-{client}", client, 0, b"{}") for client in ("c", "d")])
        self.clock.advance(2)
        self.assertEqual((self.outbox.counts.delivered, self.sink.down_since), (2, None))


class WindowTests(SinkMixin, SynchronousTestCase):
    def test_what_must_not_wait_goes_past_the_merge_window(self):
        self.make(merge_window=0.05)
        self.outbox.append([Delivery("msg_1", "c", 5, b'{"n":1}', window=False)])
        self.assertEqual([attempt.id for attempt in self.in_flight], ["msg_1"])

    def test_a_backlog_is_not_held_for_the_window_again(self):
        outbox = MemoryOutbox()
        outbox.append([Delivery(f"msg_{number}", "c", number, b"{}", accepted=number * 100) for number in range(50)])
        self.make(outbox, merge_window=0.05, pool_size=1)
        self.clock.advance(100)
        arrived = []
        for _ in range(100):
            while self.in_flight:
                arrived.append(self.transport.end().id)
            self.clock.advance(0.01)
        self.assertEqual(arrived, [f"msg_{number}" for number in range(50)])

    def test_a_clock_that_was_set_back_holds_nothing_for_long(self):
        self.make(merge_window=0.05)
        self.outbox.append([Delivery("msg_1", "c", 5, b"{}", accepted=3_600_000)])
        self.clock.pump([0.01] * 10)
        self.assertEqual(len(self.in_flight), 1)

    def test_clients_are_stored_and_ordered_by_although_order_was_none_before(self):
        self.make(DurableOutbox(), ordering="none", pool_size=4)
        self.sink.receive([publish("c", number) for number in range(20)])
        outbox = self.outbox
        stopped = self.sink.retire()
        while self.in_flight:
            self.transport.end()
        self.successResultOf(stopped)
        outbox.reclaim()
        self.make(outbox, pool_size=4)
        self.assertEqual(len(self.in_flight), 1)
        numbers = [self.transport.end().number for _ in range(16)]
        self.assertEqual(numbers, sorted(numbers))
