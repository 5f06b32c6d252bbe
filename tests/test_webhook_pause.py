"""A webhook that is paused by hand, and what is known of its endpoint."""

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.webhook.counters import failure_of
from tests.webhooks import SinkMixin, publish, respond


class SinkCase(SinkMixin, SynchronousTestCase):
    def setUp(self):
        self.make(pool_size=4)

    def publish(self, *clients):
        self.sink.receive([publish(client, index) for index, client in enumerate(clients)])

    @property
    def clients(self):
        """Whose deliveries are in flight."""
        return [attempt.client for attempt in self.in_flight]


class PauseTests(SinkCase):
    def test_nothing_is_sent_and_everything_accepted(self):
        self.sink.pause()
        self.assertTrue(self.sink.paused)
        self.publish("a", "b")
        self.clock.advance(60)
        self.assertEqual((self.clients, self.outbox.counts.pending, self.outbox.counts.accepted), ([], 2, 2))
        self.sink.resume()
        self.assertFalse(self.sink.paused)
        self.assertEqual(sorted(self.clients), ["a", "b"])

    def test_what_is_under_way_goes_on_and_nothing_follows_it(self):
        self.publish("a", "a")
        self.sink.pause()
        self.transport.end()
        self.assertEqual((self.clients, self.outbox.counts.delivered, self.outbox.counts.pending), ([], 1, 1))
        self.sink.resume()
        self.assertEqual(self.transport.end().number, 1)
        self.assertEqual(self.outbox.counts.pending, 0)

    def test_a_retry_that_comes_due_waits(self):
        self.publish("a")
        self.transport.end(500)
        self.sink.pause()
        self.clock.advance(60)
        self.assertEqual(self.clients, [])
        self.sink.resume()
        self.assertEqual(self.clients, ["a"])

    def test_a_probe_waits(self):
        self.publish("a", "b")
        self.transport.end(ConnectFailed("refused"))
        self.transport.end(ConnectFailed("refused"))
        self.sink.pause()
        self.clock.advance(60)
        self.assertEqual(self.clients, [])
        self.sink.resume()
        self.assertEqual(len(self.clients), 1, "one probe goes first")

    def test_resuming_does_not_go_before_the_probe(self):
        self.publish("a")
        self.transport.end(ConnectFailed("refused"))
        self.sink.pause()
        self.sink.resume()
        self.assertEqual(self.clients, [])
        self.clock.advance(1)
        self.assertEqual(self.clients, ["a"])

    def test_an_endpoint_that_recovers_while_it_is_paused(self):
        self.publish(*"abcdefgh")
        self.transport.end(ConnectFailed("refused"))
        self.sink.pause()
        for _ in range(3):
            self.transport.end()
        self.assertEqual(self.clients, [])
        self.assertIsNone(self.sink.down_since)
        self.sink.resume()
        self.assertGreater(len(self.clients), 0)

    def test_twice_is_as_once(self):
        self.sink.resume()
        self.sink.pause()
        self.sink.pause()
        self.publish("a")
        self.sink.resume()
        self.sink.resume()
        self.assertEqual(self.clients, ["a"])

    def test_stopping_while_it_is_paused(self):
        self.sink.pause()
        self.publish("a")
        stopped = self.sink.stopService()
        self.sink.resume()
        self.transport.end()
        self.successResultOf(stopped)
        self.assertEqual(self.outbox.counts.pending, 0)


class KnowledgeTests(SinkCase):
    def test_down_and_up_again(self):
        self.assertIsNone(self.sink.next_probe)
        self.clock.advance(5)
        self.publish("a")
        self.transport.end(ConnectFailed("refused"))
        self.assertEqual((self.sink.down_since, self.sink.next_probe), (5.0, 1.0))
        self.clock.advance(0.25)
        self.assertEqual(self.sink.next_probe, 0.75)
        self.clock.advance(0.75)
        self.assertIsNone(self.sink.next_probe)
        self.transport.end(ConnectFailed("refused"))
        self.assertEqual((self.sink.down_since, self.sink.next_probe), (5.0, 2.0))
        self.clock.advance(2)
        self.transport.end()
        self.assertEqual((self.sink.down_since, self.sink.next_probe), (None, None))

    def test_the_last_failure_and_the_last_answer(self):
        self.assertEqual((self.sink.failure, self.sink.refusal), (None, None))
        self.publish("a", "b")
        self.transport.end(respond(410, body=b"gone"))
        self.assertEqual((self.sink.failure.status, self.sink.failure.body), (410, b"gone"))
        self.assertIn("http://h/hook answered 410", self.sink.failure.reason)
        self.clock.advance(3)
        self.transport.end(DeliveryTimeout("no answer"))
        self.assertEqual((self.sink.failure.at, self.sink.failure.reason), (3.0, "no answer"))
        self.assertEqual(self.sink.refusal.status, 410)

    def test_attempts_by_outcome(self):
        self.publish("a", "b", "c", "d")
        self.transport.end()
        self.transport.end(410)
        self.transport.end(503)
        self.transport.end(DeliveryTimeout("late"))
        counters = self.sink.counters
        self.assertEqual((counters.attempts, counters.arrived, counters.refused, counters.failed), (4, 1, 1, 2))
        self.assertEqual(counters.failures, {"status": 1, "timeout": 1, "connect": 0, "broken": 0, "answer": 0})
        self.assertEqual(sum(counters.failures.values()), counters.failed)

    def test_why_attempts_fail(self):
        results = (
            ConnectFailed(""),
            ConnectionBroken(""),
            DeliveryTimeout(""),
            BadAnswer(""),
            respond(503),
        )
        self.assertEqual([failure_of(result) for result in results], ["connect", "broken", "timeout", "answer", "status"])
