"""Requests in shapes of their own, on their way through outbox, lanes and breaker."""

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery, Variation
from mqhooks.errors import ConnectFailed
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.stored import VERSION, checksum, decode_row, encode
from mqhooks.shapes.settings import CloudEventsSettings, Shape
from mqhooks.testing import make_event
from mqhooks.webhook.handshake import AGAIN
from mqhooks.webhook.settings import BatchSettings, RetrySettings
from tests.webhooks import SinkMixin, respond


def rule(**shape):
    return Rule("on_message_publish", None, Shape(**shape))


def publish(client, **fields):
    return make_event("on_publish", client_id=client, **fields)


BY_CLIENT = rule(url="/c/{{clientid}}")
BY_USER = rule(url="/u/{{username}}")


class Case(SinkMixin, SynchronousTestCase):
    def letters(self):
        return [(letter.delivery.client, letter.reason) for letter in self.outbox.dead_letters]

    def receive(self, *events):
        self.sink.receive(events)
        self.clock.advance(0)


class UnsendableTests(Case):
    def test_it_is_a_dead_letter_that_says_why_and_the_others_arrive(self):
        self.make(rules=(BY_USER,))
        self.receive(publish("a"), publish("b", username=""), publish("b"), publish("c"))
        self.clock.advance(0)
        self.assertEqual(self.letters(), [("b", "it cannot be sent: url: {{username}} is missing")])
        self.end_all()
        self.clock.advance(0)
        self.end_all()
        counts = self.outbox.counts
        self.assertEqual((counts.delivered, counts.dead, counts.pending), (3, 1, 0))
        self.assertEqual(self.sink.counters.attempts, 3)
        self.assert_identities()
        self.assertEqual(self.sink.failure.reason, "it cannot be sent: url: {{username}} is missing")
        self.assertTrue(any("it cannot be sent: url: {{username}} is missing; msg_" in line for line in self.lines()))

    def test_thousands_of_them_end_in_turn(self):
        self.make(rules=(BY_USER,), pool_size=2000)
        self.transport.at_once = lambda attempt: ConnectFailed("down")
        self.receive(publish("well"))
        self.assertTrue(self.sink.down_since is not None)
        self.receive(*(publish(f"c{number}", username="") for number in range(2000)))
        self.transport.at_once = lambda attempt: 200
        for _ in range(3000):
            self.clock.advance(1)
        counts = self.outbox.counts
        self.assertEqual((counts.delivered, counts.dead, counts.pending), (1, 2000, 0))

    def test_in_a_batch_only_it_is_taken_out(self):
        # What was accepted before a reload that made it a batch.
        self.make(batch=BatchSettings(size=10, linger=0.0), pool_size=1)
        bodies = [Delivery(f"msg_{number}", "c", 0, b'{"n":%d}' % number) for number in range(6)]
        bodies[1].variation = Variation(problem="url: {{username}} is missing")
        bodies[3].variation = Variation("PUT", "/own")
        self.outbox.append(bodies)
        self.clock.advance(0)
        sent = []
        while self.in_flight:
            attempt = self.transport.end()
            sent.append((attempt.request.method, attempt.request.path, [each["n"] for each in attempt.bodies]))
            for _ in range(5):
                self.clock.advance(0)
        self.assertEqual([number for _, _, numbers in sent for number in numbers], [0, 2, 3, 4, 5])
        self.assertIn(("PUT", "/own", [3]), sent)
        self.assertEqual(len(self.letters()), 1)
        self.assert_identities()

    def test_a_retry_is_the_same_request(self):
        self.make(rules=(rule(method="PATCH", url="/c/{{clientid}}", headers=(("x-t", "{{topic}}"),), body='{"ts":{{ts}}}'),))
        self.receive(publish("c1"))
        first = self.transport.end(503)
        self.clock.advance(1)
        second = self.transport.end()
        for name in ("method", "path", "headers", "body"):
            self.assertEqual(getattr(first.request, name), getattr(second.request, name))
        self.assertEqual((first.request.method, first.request.path), ("PATCH", "/c/c1"))

    def test_what_is_stored_comes_back(self):
        variation = Variation("PUT", None, (("a", "b"),), "url: {{username}} is missing")
        row = encode([Delivery("msg_1", "c", 1, b"{}", variation=variation)])
        (back,) = decode_row(1, VERSION, checksum(1, VERSION, row), row)
        self.assertEqual(back.variation, variation)
        # As it was stored before there were such reasons.
        older = encode([["msg_1", "c", 1, b"{}", 0, 0, 0, True, ["PUT", "/x", [["a", "b"]]]]])
        (back,) = decode_row(1, VERSION, checksum(1, VERSION, older), older)
        self.assertEqual(back.variation, Variation("PUT", "/x", (("a", "b"),)))


class RefusalTests(Case):
    def refuse(self, status, rules, **more):
        self.make(rules=rules, **more)
        self.receive(*(publish(f"c{number}") for number in range(40)))
        self.end_all(status)
        return self.outbox.counts.dead, self.sink.refusing

    def test_a_refusal_of_an_address_of_its_own_says_nothing_of_the_endpoint(self):
        for status in (401, 403, 404, 405, 410, 302):
            self.assertEqual(self.refuse(status, (BY_CLIENT,)), (40, False), status)
            self.assertEqual(self.refuse(status, (rule(headers=(("x-a", "{{clientid}}"),)),)), (40, False), status)
            self.assertIsNone(self.sink.down_since)

    def test_that_of_the_webhooks_own_does(self):
        for rules, more in (
            ((rule(body='{"c":"{{clientid}}"}'),), {}),
            ((rule(method="PUT"),), {}),
            ((rule(headers=(("Content-Type", "text/plain"),)),), {}),
            ((Rule("on_message_publish"),), {"cloudevents": CloudEventsSettings(mode="binary")}),
        ):
            dead, refusing = self.refuse(401, rules, **more)
            self.assertTrue(refusing)
            self.assertLess(dead, 12)

    def test_one_shows_that_the_endpoint_is_up_again(self):
        self.make(rules=(BY_CLIENT,))
        self.receive(*(publish(f"c{number}") for number in range(20)))
        self.end_all(ConnectFailed("down"))
        self.assertIsNotNone(self.sink.down_since)
        self.clock.advance(2)
        self.transport.end(404)
        self.assertIsNone(self.sink.down_since)
        self.end_all()
        self.assertEqual(self.outbox.counts.dead, 1)


class HeaderTests(Case):
    def test_one_of_its_own_stands_in_place_of_the_webhooks(self):
        own = rule(headers=(("Content-Type", "text/plain"), ("X-A", "{{clientid}}")))
        self.make(rules=(own,), headers=(("x-a", "fixed"), ("x-b", "2")))
        self.receive(publish("c1"))
        request = self.transport.end().request
        names = [name.lower() for name, _ in (*request.head.headers, *request.headers)]
        self.assertEqual(len(names), len(set(names)))
        sent = {name.lower(): value for name, value in (*request.head.headers, *request.headers)}
        self.assertEqual((sent["content-type"], sent["x-a"], sent["x-b"]), ("text/plain", "c1", "2"))
        self.receive(publish("c2"))
        self.assertIs(self.transport.end().request.head, request.head)


class HandshakeTests(Case):
    ALLOWED = respond(200, [(b"WebHook-Allowed-Origin", b"Broker.example")])

    def shake(self, **more):
        cloudevents = CloudEventsSettings(origin="broker.example", handshake=True)
        self.make(
            rules=(Rule("on_message_publish"),), cloudevents=cloudevents, retry=RetrySettings(jitter=0, initial=1.0), **more
        )

    def end(self, result):
        (attempt,) = self.in_flight
        self.in_flight.clear()
        attempt.end(result)
        return attempt.request

    def test_nothing_is_sent_before_the_endpoint_allows_it(self):
        self.shake()
        self.receive(publish("c1"))
        for answer in (
            respond(200),
            respond(405),
            respond(200, [(b"webhook-allowed-origin", b"other")]),
            ConnectFailed("down"),
        ):
            request = self.end(answer)
            self.assertEqual((request.method, request.headers), ("OPTIONS", [("WebHook-Request-Origin", "broker.example")]))
            self.assertEqual(self.in_flight, [])
            self.clock.advance(400)
        self.end(self.ALLOWED)
        self.assertEqual(self.end(respond(200)).method, None)
        self.assertEqual(self.outbox.counts.delivered, 1)

    def test_it_is_asked_again_and_a_no_ends_it(self):
        self.shake()
        self.end(respond(204, [(b"WEBHOOK-ALLOWED-ORIGIN", b" * ")]))
        self.receive(publish("c1"))
        self.end(respond(200))
        self.clock.advance(AGAIN)
        self.end(ConnectFailed("down"))
        self.receive(publish("c2"))
        self.end(respond(200))
        self.clock.advance(1)
        self.end(respond(403))
        self.receive(publish("c3"))
        self.assertEqual(self.in_flight, [])
        self.assertIn("answered 403 to OPTIONS", self.sink.failure.reason)
        self.assertTrue(any("deliveries wait until the endpoint allows them" in line for line in self.lines()))
        self.assertTrue(self.sink.try_now())
        self.clock.advance(0)
        self.end(self.ALLOWED)
        self.end(respond(200))
        self.assertEqual(self.outbox.counts.delivered, 3)

    def test_a_sink_that_stops_asks_no_more(self):
        self.shake()
        self.end(respond(405))
        self.sink.stopService()
        self.clock.advance(500)
        self.assertEqual(self.in_flight, [])
        self.assertIsInstance(self.clock, Clock)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_fails_meanwhile_waits_too(self):
        self.shake()
        self.end(self.ALLOWED)
        self.receive(*(publish(f"c{number}") for number in range(3)))
        waiting = list(self.in_flight)
        self.in_flight.clear()
        self.clock.advance(AGAIN)
        self.end(respond(410))
        for attempt in waiting:
            attempt.end(respond(503))
        self.clock.advance(0.5)
        self.assertEqual(self.in_flight, [])
        self.assertEqual(json.loads(waiting[0].request.body)["specversion"], "1.0")
