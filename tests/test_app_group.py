"""All webhooks of a configuration get every event."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from mqhooks.app.group import LONG_PAYLOAD, WebhookGroup
from mqhooks.interfaces import IHolding
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryStore
from mqhooks.sinks import FanOut
from mqhooks.testing import RecordingSink, make_event
from mqhooks.webhook.settings import WebhookSettings
from tests.webhooks import publish


class LongPayloadTests(SynchronousTestCase):
    """Each webhook makes a body of it in a turn of its own."""

    def make(self, count, max_size=1 << 30, holding=()):
        self.clock = Clock()
        store = MemoryStore(max_size, 10)
        settings = [WebhookSettings(f"w{number}", "http://h/", (Rule("on_message_publish"),)) for number in range(count)]
        self.outboxes = [store.outbox(each.name) for each in settings]
        for number in holding:
            alsoProvides(self.outboxes[number], IHolding)
            self.outboxes[number].holds = True
        self.settings = settings
        return WebhookGroup(self.clock, settings, store.outbox, drain_time=1.0)

    def accepted(self):
        return [outbox.counts.accepted for outbox in self.outboxes]

    def long(self):
        return make_event("on_publish", client_id="c", payload=bytes(LONG_PAYLOAD + 1))

    def test_one_after_the_other(self):
        group = self.make(3)
        seen = []

        def between():
            seen.append(self.accepted())
            if self.accepted() != [1, 1, 1]:
                self.clock.callLater(0, between)

        result = group.receive([self.long()])
        between()
        self.clock.advance(0)
        self.assertEqual(seen, [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
        self.successResultOf(result)

    def test_what_comes_meanwhile_keeps_its_order(self):
        group = self.make(3)
        results = [group.receive([self.long()]), group.receive([publish("c", 2)]), group.receive([self.long()])]
        self.assertEqual(self.accepted(), [1, 0, 0])
        self.clock.pump([0] * 10)
        for result in results:
            self.successResultOf(result)
        sizes = [[len(each.body) > LONG_PAYLOAD for each in outbox.claim(10, 1 << 30)] for outbox in self.outboxes]
        self.assertEqual(sizes, [[True, False, True]] * 3)
        self.assertIsNone(group.receive([publish("c", 3)]))

    def test_what_comes_meanwhile_is_not_held_by_outboxes(self):
        self.assertFalse(self.make(2).holds)
        group = self.make(2, holding=(0, 1))
        self.assertTrue(group.holds)
        group.receive([self.long()])
        self.assertFalse(group.holds)
        self.clock.pump([0] * 10)
        self.assertTrue(group.holds)
        for outbox in self.outboxes:
            outbox.holds = False
        self.assertFalse(group.holds)

    def test_what_waits_here_is_not_held_by_another_sink(self):
        other = RecordingSink()
        alsoProvides(other, IHolding)
        other.holds = True
        both = FanOut([self.make(2, holding=(0, 1)), other])
        self.assertTrue(both.holds)
        both.receive([self.long()])
        self.assertFalse(both.holds)
        self.clock.pump([0] * 10)
        self.assertTrue(both.holds)

    def test_an_outbox_that_never_holds_is_waited_for(self):
        group = self.make(2, max_size=100, holding=(0,))
        self.assertEqual([IHolding.providedBy(sink) for sink in group.sinks], [True, False])
        self.assertTrue(group.holds)
        waiting = group.receive([publish("c", number) for number in range(10)])
        self.assertFalse(group.holds)
        for outbox in self.outboxes:
            outbox.resize(1 << 30, 10)
        self.successResultOf(waiting)
        self.assertTrue(group.holds)

    def test_a_full_outbox_is_waited_for(self):
        group = self.make(2, max_size=LONG_PAYLOAD)
        result = group.receive([self.long()])
        self.clock.pump([0] * 10)
        self.assertNoResult(result)
        for outbox in self.outboxes:
            outbox.resize(1 << 30, 10)
            self.clock.pump([0] * 10)
        self.successResultOf(result)
        self.assertEqual(self.accepted(), [1, 1])

    def test_a_webhook_that_is_removed_meanwhile_gets_no_more(self):
        group = self.make(3)
        result = group.receive([self.long()])
        group.apply(group.plan(self.settings[:2]))
        self.clock.pump([0] * 10)
        self.successResultOf(result)
        self.assertEqual(self.accepted(), [1, 1, 0])

    def test_a_stop_passes_on_what_waits(self):
        for max_size in (1 << 30, 1000):
            group = self.make(3, max_size)
            group.startService()
            group.receive([self.long()])
            group.receive([publish("c", 2)])
            group.stopService()
            self.clock.pump([0] * 10)
            self.assertEqual(self.accepted(), [2, 2, 2])

    def test_one_webhook_has_it_at_once(self):
        self.assertIsNone(self.make(1).receive([self.long()]))
