"""An operator who does not want to wait for the next attempt."""

from mqhooks.errors import ConnectFailed
from mqhooks.webhook.settings import RetrySettings
from tests.test_webhook_pause import SinkCase
from tests.webhooks import respond

HOUR = RetrySettings(initial=3600, maximum=3600, jitter=0)


class TryNowTests(SinkCase):
    def setUp(self):
        self.make(pool_size=4, retry=HOUR)

    def test_endpoint_that_is_down_is_probed(self):
        self.publish("a", "b")
        self.transport.end(ConnectFailed("refused"))
        self.transport.end(ConnectFailed("refused"))
        self.clock.advance(60)
        # The first probe comes early and fails; the next one is far away.
        while self.in_flight:
            self.transport.end(ConnectFailed("refused"))
        self.assertGreater(self.sink.next_probe, 60)
        self.assertTrue(self.sink.try_now())
        self.clock.advance(0)
        self.assertEqual(len(self.clients), 1, "one probe, not everything")
        self.assertFalse(self.sink.try_now(), "it is being tried")
        self.end_all()
        self.clock.advance(0)
        self.end_all()
        self.assertEqual((self.outbox.counts.delivered, self.sink.down_since), (2, None))
        self.assert_identities()

    def test_probe_that_fails_waits_again(self):
        self.publish("a")
        self.transport.end(ConnectFailed("refused"))
        self.assertTrue(self.sink.try_now())
        self.clock.advance(0)
        self.transport.end(ConnectFailed("refused"))
        self.clock.advance(0)
        self.assertEqual(self.clients, [])
        self.assertGreater(self.sink.next_probe, 0)

    def test_parked_clients_are_tried_in_their_order(self):
        self.publish("a", "b", "a")
        self.transport.end(500)
        self.transport.end(500)
        self.assertEqual((self.clients, self.sink.retrying), ([], 2))
        self.assertTrue(self.sink.try_now())
        self.assertEqual((sorted(self.clients), self.sink.retrying), (["a", "b"], 0))
        sent = []
        while self.in_flight:
            sent.append(self.transport.end().number)
        self.assertEqual([number for number in sent if number != 1], [0, 2])
        self.clock.advance(7200)
        self.assertEqual((self.clients, self.outbox.counts.delivered), ([], 3), "its timer is gone")
        self.assert_identities()

    def test_retry_after_is_not_waited_for(self):
        self.publish("a")
        self.transport.end(respond(503, [("retry-after", "3000")]))
        self.assertTrue(self.sink.try_now())
        self.assertEqual(self.clients, ["a"])

    def test_nothing_waits(self):
        self.assertFalse(self.sink.try_now())
        self.publish("a")
        self.assertFalse(self.sink.try_now())
        self.assertEqual(self.clients, ["a"])

    def test_paused_webhook_sends_nothing(self):
        self.publish("a")
        self.transport.end(500)
        self.sink.pause()
        self.assertFalse(self.sink.try_now())
        self.assertEqual((self.clients, self.sink.retrying), ([], 1))
        self.sink.resume()
        self.assertTrue(self.sink.try_now())
        self.assertEqual(self.clients, ["a"])
