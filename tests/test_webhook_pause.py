"""A webhook that is paused by hand, and what is known of its endpoint."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.app.sendtest import make_test
from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.webhook.counters import failure_of
from mqhooks.webhook.settings import LimitSettings
from mqhooks.webhook.sink import WebhookSink
from tests.webhooks import URL, SinkMixin, publish, respond


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


class PauseUntilTests(SinkCase):
    def test_it_goes_on_at_its_time(self):
        self.sink.pause(3600.0)
        self.publish("a")
        self.clock.advance(3599)
        self.assertEqual((self.clients, self.sink.paused_until), ([], 3600.0))
        self.clock.pump([1] * 61)
        self.assertEqual((self.clients, self.sink.paused, self.sink.paused_until), (["a"], False, None))
        self.assertEqual(self.lines()[:1], ["webhook w: paused until 1970-01-01T01:00:00Z"])

    def test_time_of_day_that_is_set_meanwhile(self):
        clock, ahead = Clock(), [0]
        self.sink = WebhookSink(
            clock, self.sink.settings, MemoryOutbox(), self.transport, now=lambda: clock.seconds() + ahead[0]
        )
        self.sink.startService()
        self.sink.pause(3600.0)
        ahead[0] = 3600
        clock.advance(60)
        self.assertFalse(self.sink.paused)
        self.sink.pause(7200.0)
        ahead[0] = 0
        clock.pump([60] * 60)
        self.assertTrue(self.sink.paused)

    def test_another_pause_replaces_it_and_resuming_ends_it(self):
        for then in (self.sink.pause, lambda: self.sink.pause(7200.0)):
            self.sink.pause(10.0)
            then()
            self.clock.pump([1] * 60)
            self.assertTrue(self.sink.paused)
        self.sink.resume()
        self.sink.pause()
        self.clock.pump([60] * 240)
        self.assertTrue(self.sink.paused)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_time_that_is_over_is_no_pause(self):
        self.clock.advance(10)
        self.sink.pause(5.0)
        self.clock.advance(0)
        self.assertFalse(self.sink.paused)

    def test_stopping_ends_its_timer(self):
        self.sink.pause(3600.0)
        self.successResultOf(self.sink.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_goes_on_at_its_time_while_it_stops(self):
        """What is only in memory is still delivered."""
        self.sink.pause(5.0)
        self.publish("a")
        stopped = self.sink.stopService()
        self.clock.advance(5)
        self.transport.end()
        self.successResultOf(stopped)
        self.assertEqual((self.outbox.counts.pending, self.clock.getDelayedCalls()), (0, []))

    def test_a_pause_that_begins_while_it_stops_leaves_no_timer(self):
        for stop in (WebhookSink.stopService, WebhookSink.retire):
            self.make(pool_size=4)
            self.publish("a")
            stopped = stop(self.sink)
            self.sink.pause(3600.0)
            self.transport.end()
            self.successResultOf(stopped)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_ends_before_the_start(self):
        """A reload hands a pause to the new sink, which starts when the old one has finished."""
        for limit in (None, LimitSettings(rate=10.0, burst=1)):
            for end in (lambda: self.sink.resume(), lambda: self.clock.advance(5)):
                self.make(pool_size=4, limit=limit, start=False)
                self.sink.pause(5.0)
                end()
                self.sink.startService()
                self.publish("a")
                self.assertEqual(self.clients, ["a"])

    def test_one_that_goes_on_after_the_start(self):
        self.make(pool_size=4, start=False)
        self.sink.pause()
        self.sink.startService()
        self.publish("a")
        self.assertEqual(self.clients, [])
        self.sink.resume()
        self.assertEqual(self.clients, ["a"])


class AttemptTests(SinkCase):
    def test_the_last_hundred(self):
        for number in range(101):
            self.publish(f"c{number}")
            self.clock.advance(1)
            self.transport.end(respond(200, body=b"%d" % number))
        self.assertEqual([attempt.said for attempt in self.sink.counters.tried], [b"%d" % number for number in range(1, 101)])
        last = self.sink.counters.tried[-1]
        self.assertEqual((last.at, last.seconds, last.client, last.together, last.status), (101.0, 1.0, "c100", 1, 200))

    def test_whatever_came_of_it(self):
        self.publish("a", "b", "c")
        for result in (respond(410, body=b"gone"), respond(503, body=b"busy"), DeliveryTimeout("no answer " + "x" * 10_000)):
            self.transport.end(result)
        tried = self.sink.counters.tried
        self.assertEqual([attempt.status for attempt in tried], [410, 503, 0])
        self.assertEqual([attempt.said[:9] for attempt in tried], [b"gone", b"busy", b"no answer"])
        self.assertLessEqual(len(tried[2].said), 512)

    def test_long_client_ids_are_not_kept_whole(self):
        self.publish("c" * 60_000)
        self.transport.end()
        self.assertEqual(self.sink.counters.tried[0].client, "c" * 512)

    def test_a_test_changes_nothing(self):
        self.sink.pause()
        self.publish("a")
        delivery, request = make_test(self.sink.settings)
        counts, counters = self.outbox.counts, self.sink.counters
        answered = self.sink.send_test(delivery, request)
        self.assertTrue(self.sink.testing)
        self.transport.end(ConnectFailed("refused"))
        attempt = self.successResultOf(answered)
        self.assertEqual((attempt.status, attempt.said, attempt.client), (0, b"refused", "mqhooks-test"))
        self.assertEqual((self.sink.testing, self.sink.paused, self.sink.down_since), (False, True, None))
        self.assertEqual((self.outbox.counts, counters.attempts, counters.failed), (counts, 0, 0))
        self.assertEqual(counters.tried, [attempt])

    def test_a_transport_that_raises(self):
        send = self.transport.send

        def broken(_):
            raise RuntimeError("no way")

        self.transport.send = broken
        attempt = self.successResultOf(self.sink.send_test(*make_test(self.sink.settings)))
        self.assertEqual((self.sink.testing, attempt.status, attempt.said), (False, 0, f"{URL}: no way".encode()))
        # The same goes for deliveries: they are tried again.
        self.publish("a")
        self.assertEqual(self.sink.failure.reason, f"{URL}: no way")
        self.transport.send = send
        self.clock.advance(2)
        self.transport.end()
        self.assertEqual(self.outbox.counts.delivered, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)


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
