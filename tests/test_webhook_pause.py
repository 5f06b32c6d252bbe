"""A webhook that is paused by hand, and what is known of its endpoint."""

from random import Random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.webhook.connection import Answer
from mqhooks.webhook.counters import failure_of
from mqhooks.webhook.settings import RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.test_webhook_sink import FakeClient, number_of, publish


class SinkCase(SynchronousTestCase):
    def setUp(self):
        self.clock, self.client = Clock(), FakeClient()
        settings = WebhookSettings(
            "w", "http://h/hook", (Rule("on_message_publish"),), pool_size=4, merge_window=0, retry=RetrySettings(jitter=0)
        )
        self.outbox = MemoryOutbox()
        self.sink = WebhookSink(self.clock, settings, self.outbox, client=self.client, random=Random(0), now=self.clock.seconds)
        self.sink.startService()

    def publish(self, *clients):
        self.sink.receive([publish(client, index) for index, client in enumerate(clients)])

    @property
    def under_way(self):
        return [delivery.client for delivery, _ in self.client.under_way]


class PauseTests(SinkCase):
    def test_nothing_is_sent_and_everything_accepted(self):
        self.sink.pause()
        self.assertTrue(self.sink.paused)
        self.publish("a", "b")
        self.clock.advance(60)
        self.assertEqual((self.under_way, self.outbox.pending, self.sink.counters.accepted), ([], 2, 2))
        self.sink.resume()
        self.assertFalse(self.sink.paused)
        self.assertEqual(sorted(self.under_way), ["a", "b"])

    def test_what_is_under_way_goes_on_and_nothing_follows_it(self):
        self.publish("a", "a")
        self.sink.pause()
        self.client.end()
        self.assertEqual((self.under_way, self.sink.counters.delivered, self.outbox.pending), ([], 1, 1))
        self.sink.resume()
        self.assertEqual(number_of(self.client.end()), 1)
        self.assertEqual(self.outbox.pending, 0)

    def test_a_retry_that_comes_due_waits(self):
        self.publish("a")
        self.client.end(500)
        self.sink.pause()
        self.clock.advance(60)
        self.assertEqual(self.under_way, [])
        self.sink.resume()
        self.assertEqual(self.under_way, ["a"])

    def test_a_probe_waits(self):
        self.publish("a", "b")
        self.client.end(ConnectFailed("refused"))
        self.client.end(ConnectFailed("refused"))
        self.sink.pause()
        self.clock.advance(60)
        self.assertEqual(self.under_way, [])
        self.sink.resume()
        self.assertEqual(len(self.under_way), 1, "one probe goes first")

    def test_resuming_does_not_go_before_the_probe(self):
        self.publish("a")
        self.client.end(ConnectFailed("refused"))
        self.sink.pause()
        self.sink.resume()
        self.assertEqual(self.under_way, [])
        self.clock.advance(1)
        self.assertEqual(self.under_way, ["a"])

    def test_an_endpoint_that_recovers_while_it_is_paused(self):
        self.publish(*"abcdefgh")
        self.client.end(ConnectFailed("refused"))
        self.sink.pause()
        for _ in range(3):
            self.client.end()
        self.assertEqual(self.under_way, [])
        self.assertIsNone(self.sink.down_since)
        self.sink.resume()
        self.assertGreater(len(self.under_way), 0)

    def test_twice_is_as_once(self):
        self.sink.resume()
        self.sink.pause()
        self.sink.pause()
        self.publish("a")
        self.sink.resume()
        self.sink.resume()
        self.assertEqual(self.under_way, ["a"])

    def test_stopping_while_it_is_paused(self):
        self.sink.pause()
        self.publish("a")
        stopped = self.sink.stopService()
        self.sink.resume()
        self.client.end()
        self.successResultOf(stopped)
        self.assertEqual(self.outbox.pending, 0)


class KnowledgeTests(SinkCase):
    def test_down_and_up_again(self):
        self.assertIsNone(self.sink.next_probe)
        self.clock.advance(5)
        self.publish("a")
        self.client.end(ConnectFailed("refused"))
        self.assertEqual((self.sink.down_since, self.sink.next_probe), (5.0, 1.0))
        self.clock.advance(0.25)
        self.assertEqual(self.sink.next_probe, 0.75)
        self.clock.advance(0.75)
        self.assertIsNone(self.sink.next_probe)
        self.client.end(ConnectFailed("refused"))
        self.assertEqual((self.sink.down_since, self.sink.next_probe), (5.0, 2.0))
        self.clock.advance(2)
        self.client.end()
        self.assertEqual((self.sink.down_since, self.sink.next_probe), (None, None))

    def test_the_last_failure_and_the_last_answer(self):
        self.assertEqual((self.sink.failure, self.sink.refusal), (None, None))
        self.publish("a", "b")
        _, done = self.client.under_way.pop(0)
        done(Answer(410, [], b"gone", 4, complete=True))
        self.assertEqual((self.sink.failure.status, self.sink.failure.body), (410, b"gone"))
        self.assertIn("http://h/hook answered 410", self.sink.failure.reason)
        self.clock.advance(3)
        self.client.end(DeliveryTimeout("no answer"))
        self.assertEqual((self.sink.failure.at, self.sink.failure.reason), (3.0, "no answer"))
        self.assertEqual(self.sink.refusal.status, 410)

    def test_attempts_by_outcome(self):
        self.publish("a", "b", "c", "d")
        self.client.end()
        self.client.end(410)
        self.client.end(503)
        self.client.end(DeliveryTimeout("late"))
        counters = self.sink.counters
        self.assertEqual((counters.attempts, counters.delivered, counters.refused, counters.failed), (4, 1, 1, 2))
        self.assertEqual(counters.failures, {"status": 1, "timeout": 1, "connect": 0, "broken": 0, "answer": 0})
        self.assertEqual(sum(counters.failures.values()), counters.failed)

    def test_why_attempts_fail(self):
        results = (
            ConnectFailed(""),
            ConnectionBroken(""),
            DeliveryTimeout(""),
            BadAnswer(""),
            Answer(503, [], b"", 0, complete=True),
        )
        self.assertEqual([failure_of(result) for result in results], ["connect", "broken", "timeout", "answer", "status"])
