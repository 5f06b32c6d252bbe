"""What is held in memory, and when it is let go."""

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import ConnectFailed
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.webhook import budget as budget_module
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.settings import RetrySettings, WebhookSettings
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
