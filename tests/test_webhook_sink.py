"""Events in, webhooks out."""

import json
from collections import defaultdict
from random import Random

from msgspec.structs import replace
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from mqhooks.app.webhooks import transport_for
from mqhooks.errors import ConnectFailed, ConnectionBroken, DeliveryTimeout, OutboxError
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.testing import make_event
from mqhooks.webhook import intake
from mqhooks.webhook.settings import BatchSettings, RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.endpoints import Endpoint
from tests.webhooks import DurableOutbox, SinkMixin, publish, respond

WINDOW = 256


class SinkTests(SinkMixin, SynchronousTestCase):
    """With a clock and a transport that do as they are told."""

    def setUp(self):
        self.patch(intake, "WINDOW", WINDOW)

    def test_interface(self):
        verifyObject(IEventSink, self.make())

    def test_what_no_rule_wants_is_filtered(self):
        sink = self.make()
        self.assertIsNone(sink.receive([make_event("on_register"), publish("c", 1)]))
        self.assertEqual((sink.counters.events, sink.counters.filtered, self.outbox.counts.accepted), (2, 1, 1))
        self.assert_identities()

    def test_parked_deliveries_that_cannot_be_read_now_are_read_later(self):
        class Unreadable(DurableOutbox):
            broken = True

            def recall(self, places):
                if self.broken:
                    raise OutboxError("disk I/O error")
                return super().recall(places)

        sink = self.make(Unreadable())
        sink.receive([publish("c", 1), publish("c", 2)])
        self.transport.end(500)
        self.clock.advance(1)
        self.assertEqual(self.in_flight, [])
        self.clock.advance(1)
        self.assertEqual(self.in_flight, [])
        self.outbox.broken = False
        self.clock.advance(1)
        self.assertEqual([self.transport.end().number for _ in range(2)], [1, 2])
        self.assert_identities()

    def test_parked_deliveries_may_be_recalled_later(self):
        class Distant(DurableOutbox):
            def recall(self, places):
                found = super().recall(places)
                recalled = Deferred()
                answers.append(lambda: recalled.callback(found))
                return recalled

        answers = []
        sink = self.make(Distant(), pool_size=1)
        sink.receive([publish("c", 1), publish("c", 2), publish("d", 1)])
        self.transport.end(500)
        self.assertEqual(self.transport.end().client, "d")
        self.clock.advance(1)
        self.assertEqual(self.in_flight, [])
        sink.receive([publish("c", 3), publish("d", 2)])
        self.assertEqual(self.transport.end().client, "d")
        for number in (1, 2, 3):
            answers.pop()()
            self.assertEqual(self.transport.end().number, number)
        self.assertEqual(self.outbox.counts.pending, 0)
        self.assert_identities()

    def test_claims_may_be_answered_later(self):
        class Distant(DurableOutbox):
            def claim(self, limit, size):
                claimed = super().claim(limit, size)
                if isinstance(claimed, Deferred):
                    return claimed
                answer = Deferred()
                answers.append(lambda: answer.callback(claimed))
                return answer

        answers = []
        sink = self.make(Distant(), pool_size=1, merge_window=0.05)
        sink.receive([publish("c", number, timestamp=number) for number in (2, 1, 3)])
        stopped = []
        for _ in range(20):
            while answers:
                answers.pop()()
            self.clock.advance(0.01)
            while self.in_flight:
                stopped.append(self.transport.end().number)
        self.assertEqual(stopped, [1, 2, 3])

    def test_what_the_outbox_drops_is_found_out_when_it_is_recalled(self):
        class Dropping(DurableOutbox):
            dropped = ()

            def recall(self, places):
                return [delivery for delivery in super().recall(places) if delivery.place not in self.dropped]

        sink = self.make(Dropping(), pool_size=1)
        sink.receive([publish("c", number) for number in range(5)])
        self.transport.end(500)
        self.outbox.dropped = {1, 2, 4}
        self.clock.advance(1)
        self.assertEqual([self.transport.end().number for _ in range(2)], [2, 4])
        self.assertEqual(self.in_flight, [])
        sink.receive([publish("c", 5)])
        self.assertEqual(self.transport.end().number, 5)

    def test_one_event_may_cause_several_deliveries(self):
        sink = self.make(rules=(Rule("on_client_connect"), Rule("on_client_connack"), Rule("on_client_connected")))
        sink.receive([make_event("on_register")])
        self.assertEqual((sink.counters.matched, self.outbox.counts.accepted), (1, 3))
        actions = [self.transport.end().body["action"] for _ in range(3)]
        self.assertEqual(actions, ["client_connect", "client_connack", "client_connected"])
        self.assert_identities()

    def test_a_subscription_of_many_topics_goes_into_the_outbox_in_parts(self):
        sink = self.make(rules=(Rule("on_client_subscribe"),), pool_size=1)
        parts = []
        append = self.outbox.append
        self.outbox.append = lambda deliveries: parts.append(len(deliveries)) or append(deliveries)
        topics = [{"topic": f"t/{number}", "qos": 1} for number in range(100)]
        sink.receive([make_event("on_subscribe", username="u" * 60_000, topics=topics)])
        self.assertGreater(len(parts), 4)
        self.assertEqual((sum(parts), self.outbox.counts.accepted, sink.counters.matched), (100, 100, 1))
        self.assertEqual([self.transport.end().body["topic"] for _ in range(100)], [f"t/{n}" for n in range(100)])
        self.assert_identities()

    def test_answers_are_timed_whatever_they_are(self):
        sink = self.make()
        for result in (200, 422, DeliveryTimeout("late")):
            sink.receive([publish("c", 1)])
            self.clock.advance(0.2)
            self.transport.end(result)
        self.assertEqual(sink.counters.answers.count, 2)
        self.assertAlmostEqual(sink.counters.answers.sum, 0.4)

    def test_2xx_is_delivered(self):
        sink = self.make()
        for status in (200, 201, 204, 299):
            sink.receive([publish("c", status)])
            self.transport.end(status)
        self.assertEqual((self.outbox.counts.delivered, sink.counters.failed, self.outbox.counts.pending), (4, 0, 0))
        self.assert_identities()

    def test_what_may_succeed_later_is_tried_again(self):
        sink = self.make()
        sink.receive([publish("c", 1)])
        ids = set()
        for attempt, result in enumerate([500, 408, 503, 429, DeliveryTimeout("late"), ConnectionBroken("gone")]):
            self.assertEqual(len(self.in_flight), 1)
            ids.add(self.transport.end(result).id)
            self.assertEqual(self.in_flight, [])
            self.clock.advance(2**attempt)
            self.assert_identities()
        ids.add(self.transport.end(200).id)
        self.assertEqual(len(ids), 1)
        self.assertEqual((sink.counters.attempts, sink.counters.failed, self.outbox.counts.delivered), (7, 6, 1))

    def test_what_will_not_is_a_dead_letter_at_once(self):
        sink = self.make()
        for status in (301, 400, 404, 410, 501):
            sink.receive([publish("c", status)])
            self.transport.end(respond(status, body=b"because"))
            self.assert_identities()
        letters = self.outbox.dead_letters
        self.assertEqual([letter.status for letter in letters], [301, 400, 404, 410, 501])
        self.assertEqual(letters[0].reason, "http://h/hook answered 301: the endpoint refuses it")
        self.assertEqual((letters[0].answer, letters[0].url), (b"because", "http://h/hook"))
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.delivered, self.outbox.counts.pending), (5, 0, 0))

    def test_a_dead_letter_does_not_hold_its_client(self):
        sink = self.make()
        sink.receive([publish("c", 1), publish("c", 2)])
        self.transport.end(404)
        self.transport.end(200)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.delivered), (1, 1))

    def test_max_attempts(self):
        sink = self.make(retry=RetrySettings(jitter=0, max_attempts=3))
        sink.receive([publish("c", 1)])
        for attempt in range(3):
            self.transport.end(500)
            self.clock.advance(2**attempt)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (1, 0))
        self.assertIn("max_attempts (3) reached", self.outbox.dead_letters[0].reason)

    def test_max_age(self):
        sink = self.make(retry=RetrySettings(jitter=0, max_age=10))
        sink.receive([publish("c", 1)])
        for attempt in range(5):
            if self.in_flight:
                self.transport.end(500)
            self.clock.advance(2**attempt)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (1, 0))
        self.assertIn("older than max_age (10 s)", self.outbox.dead_letters[0].reason)

    def test_retry_after(self):
        sink = self.make()
        sink.receive([publish("c", 1)])
        self.transport.end(respond(429, [(b"Retry-After", b"30")], b""))
        self.clock.advance(29)
        self.assertEqual(self.in_flight, [])
        self.clock.advance(1)
        self.assertEqual(len(self.in_flight), 1)

    def test_no_order(self):
        sink = self.make(pool_size=1, ordering="none")
        sink.receive([publish("c", number) for number in range(3)])
        self.transport.end(500)
        self.assertEqual([self.transport.end().number for _ in range(2)], [1, 2])

    def test_the_merge_window(self):
        sink = self.make(pool_size=1, merge_window=0.05)
        for timestamp in (30, 10, 20):
            sink.receive([make_event("on_publish", client_id="c", payload=b"%d" % timestamp, timestamp=timestamp)])
            self.clock.advance(0.005)
        self.assertEqual(self.in_flight, [])
        self.clock.pump([0.01] * 10)
        self.assertEqual([self.transport.end().number for _ in range(3)], [10, 20, 30])
        self.assertEqual((self.outbox.counts.pending, sink.counters.late), (0, 0))
        sink.receive([make_event("on_publish", client_id="c", timestamp=5)])
        self.clock.pump([0.01] * 10)
        self.transport.end()
        self.assertEqual(sink.counters.late, 1)

    def test_events_of_a_source_that_keeps_the_order_do_not_wait_in_the_window(self):
        sink = self.make(pool_size=1, merge_window=0.05)
        for number, timestamp in enumerate((30, 10, 20)):
            sink.receive([replace(publish("c", number, timestamp=timestamp), window=False)])
        self.clock.advance(0)
        self.assertEqual([self.transport.end().number for _ in range(3)], [0, 1, 2])
        self.assertEqual(self.clock.seconds(), 0)

    def test_the_merge_window_waits_for_what_is_being_committed(self):
        sink = self.make(pool_size=1, merge_window=0.05)
        sink.receive([make_event("on_publish", client_id="c", payload=b"20", timestamp=20)])
        self.outbox.waiting_since = self.clock.seconds() + 0.01
        self.clock.pump([0.01] * 20)
        self.assertEqual(self.in_flight, [])
        self.outbox.waiting_since = None
        sink.receive([make_event("on_publish", client_id="c", payload=b"10", timestamp=10)])
        self.clock.pump([0.01] * 10)
        self.assertEqual([self.transport.end().number for _ in range(2)], [10, 20])
        sink.receive([publish("c", 30)])
        self.outbox.waiting_since = self.clock.seconds()
        self.clock.pump([0.01] * 120)
        self.assertEqual(self.transport.end().number, 30)

    def test_more_than_the_merge_window_holds(self):
        sink = self.make(pool_size=1, merge_window=60)
        count = WINDOW * 3
        sink.receive([publish(f"c{number % 7}", number) for number in range(count)])
        self.clock.pump([1] * 100)
        numbers = []
        while len(numbers) < count:
            while self.in_flight:
                numbers.append(self.transport.end().number)
            self.clock.pump([1] * 100)
        self.assertEqual(sorted(numbers), list(range(count)))

    def test_more_than_the_merge_window_holds_beside_a_client_that_hangs(self):
        sink = self.make(merge_window=0.05, pool_size=32)
        sink.receive([publish(f"c{number % 50}", number) for number in range(WINDOW * 8)])
        for _ in range(100):
            while others := [attempt for attempt in self.in_flight if attempt.client != "c7"]:
                self.transport.end(index=self.in_flight.index(others[0]))
            self.clock.advance(0.01)
        self.assertGreater(self.outbox.counts.delivered, WINDOW * 7)

    def test_a_retry_keeps_its_clients_order_and_holds_no_other(self):
        sink = self.make(pool_size=1)
        sink.receive([publish("a", 1), publish("b", 1), publish("a", 2), publish("b", 2)])
        self.transport.end(500)
        self.assertEqual([self.transport.end().client for _ in range(2)], ["b", "b"])
        self.clock.advance(1)
        self.assertEqual([self.transport.end().number for _ in range(2)], [1, 2])

    def test_ids_are_unique(self):
        ids = set()
        for _ in range(3):
            self.make().receive([publish(f"c{number}", number) for number in range(32)])
            ids |= {attempt.id for attempt in self.in_flight}
        self.assertGreater(len(ids), 32)
        self.assertTrue(all(id_.startswith("msg_") for id_ in ids))

    def test_mountpoints_have_their_own_order(self):
        sink = self.make(pool_size=1)
        sink.receive([make_event("on_publish", mountpoint=mountpoint) for mountpoint in ("", "m")])
        self.transport.end(500)
        self.transport.end(200)
        self.assertEqual(self.outbox.counts.delivered, 1)

    def test_never_more_under_way_than_the_pool(self):
        sink = self.make(pool_size=3)
        sink.receive([publish(f"c{number}", number) for number in range(100)])
        self.assertEqual(len(self.in_flight), 3)

    def test_what_is_beyond_the_window_stays_in_the_outbox(self):
        sink = self.make(pool_size=1)
        count = WINDOW * 3
        for number in range(count):
            sink.receive([publish("c", number)])
        self.assertGreaterEqual(len(self.outbox.claim(count, 1 << 30)), count - WINDOW)

    def test_a_backlog_drains(self):
        sink = self.make(pool_size=2)
        count = WINDOW * 3
        sink.receive([publish(f"c{number % 7}", number) for number in range(count)])
        numbers = [self.transport.end().number for _ in range(count)]
        self.assertEqual(sorted(numbers), list(range(count)))
        self.assert_identities()

    def test_nothing_is_tried_before_the_start(self):
        sink = self.make()
        self.successResultOf(sink.stopService())
        sink.receive([publish("c", 1)])
        self.assertEqual(self.in_flight, [])

    def test_a_full_outbox_is_passed_on(self):
        sink = self.make(MemoryOutbox(1000))
        waiting = [accepted for accepted in (sink.receive([publish("c", number)]) for number in range(10)) if accepted]
        self.assertTrue(waiting)
        for _ in range(10):
            self.transport.end()
        for accepted in waiting:
            self.successResultOf(accepted)

    def test_an_endpoint_that_is_down_gets_one_probe_at_a_time(self):
        sink = self.make(pool_size=8)
        sink.receive([publish(f"c{number}", number) for number in range(100)])
        self.assertEqual(len(self.in_flight), 8)
        for _ in range(8):
            self.transport.end(ConnectFailed("refused"))
        self.assertEqual(self.in_flight, [])
        tried = []
        for attempt in range(5):
            self.clock.advance(2**attempt)
            self.assertEqual(len(self.in_flight), 1)
            tried.append(self.transport.end(ConnectFailed("refused")).id)
        self.assertEqual(len(tried), 5)
        self.assertEqual(len([line for line in self.lines() if "the endpoint is down: refused" in line]), 1)
        self.clock.advance(32)
        most = []
        while self.in_flight:
            most.append(len(self.in_flight))
            self.transport.end(200)
        self.assertEqual(most[:3], [1, 2, 4])
        self.assertEqual(max(most), 8)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.pending), (100, 0))
        self.assertIn("webhook w: the endpoint is up again, 99 deliveries are waiting", self.lines())
        self.assert_identities()

    def test_refusals_let_more_and_more_go_out_again(self):
        sink = self.make(pool_size=8)
        sink.receive([publish(f"c{number}", number) for number in range(8)])
        while self.in_flight:
            self.transport.end(ConnectFailed("refused"))
        self.clock.advance(1)
        self.end_all(400)
        sink.receive([publish(f"c{number}", number) for number in range(100)])
        self.assertEqual(len(self.in_flight), 8)

    def test_many_that_fail_in_a_row_are_the_endpoints_failure(self):
        sink = self.make(pool_size=32)
        sink.receive([publish(f"c{number}", number) for number in range(60)])
        for _ in range(len(self.in_flight)):
            self.transport.end(503)
        while self.in_flight:
            self.transport.end(503)
        self.assertIn("the endpoint is down: http://h/hook answered 503", "\n".join(self.lines()))
        self.clock.advance(1)
        self.assertGreaterEqual(len(self.in_flight), 1)
        while self.in_flight:
            self.transport.end(200)
        self.clock.pump([1] * 10)
        while self.in_flight:
            self.transport.end(200)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.pending), (60, 0))

    def test_clients_that_always_fail_do_not_keep_a_good_endpoint_down(self):
        sink = self.make(pool_size=1)
        sink.receive([publish(f"bad{number}", number) for number in range(15)])
        sink.receive([publish(f"good{number}", number) for number in range(15)])
        for _ in range(3000):
            if self.in_flight:
                client = self.in_flight[0].client
                self.transport.end(500 if client.startswith("bad") else 200)
            else:
                self.clock.advance(5)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.pending), (15, 15))

    def test_wholesale_refusal_buries_nine_and_holds_the_rest(self):
        for status in (302, 401, 403, 404, 405, 410):
            sink = self.make(pool_size=4)
            sink.receive([publish(f"c{number}", number) for number in range(200)])
            for _ in range(400):
                if self.in_flight:
                    self.transport.end(status)
                else:
                    self.clock.advance(1)
            self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (9, 191))
            self.assertTrue(sink.refusing)
            self.assertIsNotNone(sink.down_since)
            self.assertIn(f"the endpoint refuses everything: http://h/hook answered {status}", "\n".join(self.lines()))
            while self.outbox.counts.delivered < 191:
                if self.in_flight:
                    self.transport.end(200)
                else:
                    self.clock.advance(1)
            self.assertFalse(sink.refusing)
            self.assertIsNone(sink.down_since)
            self.assert_identities()

    def test_wholesale_refusal_of_one_client_alone_holds_it(self):
        sink = self.make()
        sink.receive([publish("c", number) for number in range(30)])
        for _ in range(9):
            self.transport.end(401)
        self.assertFalse(sink.refusing)
        self.transport.end(401)
        self.assertTrue(sink.refusing)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending, self.in_flight), (9, 21, []))

    def test_wholesale_refusal_of_one_client_without_order_holds_what_was_parked(self):
        sink = self.make(ordering="none", pool_size=2)
        sink.receive([publish("c", number) for number in range(100)])
        while self.clock.seconds() < 20 or self.in_flight:
            self.clock.advance(1)
            self.end_all(503)
        while self.clock.seconds() < 600:
            self.clock.advance(1)
            self.end_all(401)
        self.assertTrue(sink.refusing)
        self.assertEqual(self.outbox.counts.dead, 9)

    def test_refusals_of_a_few_clients_are_theirs_while_others_wait(self):
        sink = self.make(pool_size=1)
        sink.receive([publish("bad", number) for number in range(30)] + [publish("good", 1)])
        for _ in range(30):
            self.transport.end(403)
        self.assertEqual(self.transport.end(200).client, "good")
        self.assertEqual((self.outbox.counts.dead, sink.refusing, self.outbox.counts.pending), (30, False, 0))

    def test_refusals_with_a_success_between_them_are_dead_letters(self):
        sink = self.make(pool_size=1)
        sink.receive([publish(f"c{number}", number) for number in range(100)])
        for number in range(100):
            self.transport.end(200 if number % 10 == 9 else 404)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.delivered, sink.refusing), (90, 10, False))

    def test_refusals_that_are_about_one_delivery_are_dead_letters_however_many(self):
        for status in (400, 413, 415, 422):
            sink = self.make()
            sink.receive([publish(f"c{number}", number) for number in range(100)])
            for _ in range(100):
                self.transport.end(status)
            self.assertEqual((self.outbox.counts.dead, sink.refusing, sink.down_since), (100, False, None))

    def test_one_bad_delivery_does_not_end_the_hold(self):
        sink = self.make()
        sink.receive([publish(f"c{number}", number) for number in range(40)])
        while self.in_flight:
            self.transport.end(401)
        self.clock.advance(1)
        self.transport.end(400)
        self.assertEqual(self.outbox.counts.dead, 10)
        self.assertTrue(sink.refusing)
        self.clock.advance(0)
        self.assertEqual(len(self.in_flight), 1)
        self.transport.end(401)
        self.assertEqual((self.outbox.counts.dead, self.in_flight), (10, []))

    def test_retry_on_wins_over_refusals(self):
        sink = self.make(retry=RetrySettings(jitter=0, on=(401,)))
        sink.receive([publish(f"c{number}", number) for number in range(40)])
        while self.in_flight:
            self.transport.end(401)
        self.assertEqual((self.outbox.counts.dead, sink.refusing), (0, False))
        self.assertIsNotNone(sink.down_since)

    def test_refusals_are_buried_where_that_is_configured(self):
        sink = self.make(retry=RetrySettings(jitter=0, refusals="bury"))
        sink.receive([publish(f"c{number}", number) for number in range(40)])
        while self.in_flight:
            self.transport.end(401)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending, sink.refusing), (40, 0, False))

    def test_max_age_ends_the_wait_of_what_is_held(self):
        sink = self.make(retry=RetrySettings(jitter=0, max_age=3600))
        sink.receive([publish(f"c{number}", number) for number in range(20)])
        for _ in range(3000):
            if self.in_flight:
                self.transport.end(401)
            else:
                self.clock.advance(10)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (20, 0))
        self.assertIn("older than max_age (1 h)", self.outbox.dead_letters[-1].reason)

    def test_a_batch_that_is_refused_wholesale_is_held(self):
        sink = self.make(batch=BatchSettings(size=10, linger=0), pool_size=1)
        sink.receive([publish(f"c{number}", number) for number in range(100)])
        for _ in range(100):
            if self.in_flight:
                self.transport.end(401)
            else:
                self.clock.advance(1)
        self.assertTrue(sink.refusing)
        self.assertLess(self.outbox.counts.dead, 10)
        while self.outbox.counts.pending:
            if self.in_flight:
                self.transport.end(200)
            else:
                self.clock.advance(1)
        self.assert_identities()

    def test_one_bad_delivery_at_the_head_of_a_long_batch_is_not_the_endpoints_failure(self):
        sink = self.make(batch=BatchSettings(size=1000), pool_size=1)
        sink.receive([publish(f"c{number}", number) for number in range(1000)])
        self.clock.advance(1)
        while self.in_flight:
            bad = any(body["from_client_id"] == "c0" for body in self.in_flight[0].bodies)
            self.transport.end(403 if bad else 200)
            self.assertFalse(sink.refusing)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.dead), (999, 1))

    def run_endpoint(self, answers, seconds, step=0.1):
        """Let an endpoint answer by client for a while; returns what was delivered when, by client."""
        delivered, until = {}, self.clock.seconds() + seconds
        while self.clock.seconds() < until:
            while self.in_flight:
                client = self.in_flight[0].client
                status = answers(client)
                self.transport.end(status)
                if status == 200:
                    delivered.setdefault(client, self.clock.seconds())
            self.clock.advance(step)
        return delivered

    def test_healthy_clients_are_delivered_beside_many_poisoned_ones(self):
        for max_attempts in (0, 3):
            sink = self.make(pool_size=8, retry=RetrySettings(jitter=0, max_attempts=max_attempts))
            answers = lambda client: 500 if client.startswith("bad") else 200  # noqa: E731
            sink.receive([publish(f"bad{number % 60}", number) for number in range(600)])
            self.run_endpoint(answers, 60)
            begun = self.clock.seconds()
            sink.receive([publish(f"good{number}", number) for number in range(50)])
            delivered = self.run_endpoint(answers, 10)
            self.assertEqual(len(delivered), 50)
            self.assertLess(max(delivered.values()) - begun, 2)
            self.assert_identities()

    def test_healthy_clients_are_delivered_that_shared_a_batch_with_a_poisoned_one(self):
        sink = self.make(pool_size=2, batch=BatchSettings(size=100))
        sink.receive([publish("bad", 0), *(publish(f"good{number}", number) for number in range(49))])
        while self.clock.seconds() < 20:
            self.clock.advance(0.1)
            while self.in_flight:
                bad = any(body["from_client_id"] == "bad" for body in self.in_flight[0].bodies)
                self.transport.end(500 if bad else 200)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.pending), (49, 1))

    def test_healthy_clients_with_long_bodies_are_delivered_beside_poisoned_ones(self):
        sink = self.make(pool_size=4)
        long = [publish(f"good{number}", number, username="u" * 5000) for number in range(4)]
        sink.receive([*(publish(f"bad{number}", number) for number in range(40)), *long])
        delivered = self.run_endpoint(lambda client: 500 if client.startswith("bad") else 200, 10)
        self.assertEqual(len(delivered), 4)
        self.assertLess(max(delivered.values()), 4)

    def test_a_healthy_client_is_delivered_at_once_after_hours_of_poisoned_ones(self):
        sink = self.make(pool_size=8)
        sink.receive([publish(f"bad{number}", number) for number in range(60)])
        self.run_endpoint(lambda _: 500, 7200, 5)
        for number in range(20):
            begun = self.clock.seconds()
            sink.receive([publish(f"good{number}", 1)])
            delivered = self.run_endpoint(lambda client: 200 if client.startswith("good") else 500, 3)
            self.assertLess(delivered[f"good{number}"] - begun, 2)

    def test_healthy_clients_are_delivered_although_the_window_is_full_of_poisoned_ones(self):
        sink = self.make(pool_size=2)
        sink.receive([publish(f"bad{number % 20}", number) for number in range(WINDOW * 4)])
        sink.receive([publish("good", 1)])
        delivered = self.run_endpoint(lambda client: 200 if client == "good" else 500, 10)
        self.assertIn("good", delivered)

    def test_retry_after_of_an_endpoint_that_is_down_is_kept_whoever_waits(self):
        sink = self.make(pool_size=8)
        busy = respond(503, [(b"Retry-After", b"30")], b"")
        sink.receive([publish(f"c{number}", number) for number in range(100)])
        while self.in_flight:
            self.transport.end(busy)
        sink.receive([publish("fresh", 1)])
        self.clock.advance(29)
        self.assertEqual(self.in_flight, [])
        self.clock.advance(1)
        self.assertEqual(len(self.in_flight), 1)

    def test_max_age_holds_while_the_endpoint_is_down(self):
        sink = self.make(pool_size=4, retry=RetrySettings(jitter=0, max_age=3600))
        sink.receive([publish(f"c{number}", number) for number in range(20)])
        for _ in range(3000):
            if self.in_flight:
                self.transport.end(ConnectFailed("refused"))
            else:
                self.clock.advance(10)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (20, 0))
        self.assertIn("older than max_age (1 h)", self.outbox.dead_letters[0].reason)

    def test_a_burst_over_the_outboxs_size_is_delivered(self):
        sink = self.make(MemoryOutbox(1000), merge_window=0.05)
        accepted = sink.receive([publish(f"c{number}", number) for number in range(50)])
        self.assertNoResult(accepted)
        for _ in range(100):
            self.clock.advance(0.05)
            while self.in_flight:
                self.transport.end(200)
        self.successResultOf(accepted)
        self.assertEqual(self.outbox.counts.pending, 0)

    def test_results_that_come_at_once_keep_the_order(self):
        seen = []
        sink = self.make(pool_size=2)

        def at_once(attempt):
            seen.append((attempt.client, attempt.number))
            return 200

        self.transport.at_once = at_once
        sink.receive([publish(f"c{number % 7}", number) for number in range(WINDOW * 4)])
        self.assertEqual(len(seen), WINDOW * 4)
        for client in range(7):
            numbers = [number for name, number in seen if name == f"c{client}"]
            self.assertEqual(numbers, sorted(numbers))

    def test_an_endpoint_that_is_up_again_keeps_the_order(self):
        sink = self.make(pool_size=4)
        sink.receive([publish(f"c{number % 3}", number) for number in range(30)])
        order = defaultdict(list)
        random = Random(5)
        for _ in range(2000):
            if not self.in_flight:
                self.clock.advance(400)
                continue
            index = random.randrange(len(self.in_flight))
            result = random.choice([200, 200, 503, ConnectFailed("refused"), DeliveryTimeout("late")])
            delivery = self.transport.end(result, index)
            if result == 200:
                order[delivery.client].append(delivery.number)
        self.assertEqual(order, {f"c{number}": list(range(number, 30, 3)) for number in range(3)})

    def test_failures_are_logged_and_limited(self):
        sink = self.make()
        sink.receive([publish("c", 1)])
        for _ in range(3):
            self.transport.end(503)
            self.clock.advance(20)
        (first,) = [line for line in self.lines() if "answered 503" in line]
        self.assertIn("webhook w: http://h/hook answered 503; attempt 1, retrying in 1.0 s", first)

    def test_stopping_waits_for_everything_in_memory(self):
        sink = self.make(pool_size=1)
        sink.receive([publish("c", number) for number in range(3)])
        stopped = sink.stopService()
        self.transport.end()
        self.transport.end(500)
        self.clock.advance(1)
        self.transport.end()
        self.assertNoResult(stopped)
        self.transport.end()
        self.successResultOf(stopped)
        self.assertTrue(self.transport.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse([line for line in self.lines() if "lost" in line])

    def test_stopping_is_bounded_and_says_what_is_lost(self):
        sink = self.make(pool_size=1)
        sink.receive([publish("c", number) for number in range(3)])
        self.transport.end(500)
        stopped = sink.stopService()
        self.clock.pump([1] * 10)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn("webhook w: stopped with 3 deliveries undelivered; they are lost", self.lines())

    def test_stopping_a_durable_outbox_waits_for_what_is_under_way(self):
        sink = self.make(DurableOutbox(), pool_size=1)
        sink.receive([publish("c", number) for number in range(3)])
        stopped = sink.stopService()
        self.assertNoResult(stopped)
        self.transport.end()
        self.successResultOf(stopped)
        self.assertEqual((self.in_flight, self.outbox.counts.pending), ([], 2))
        self.assertFalse([line for line in self.lines() if "lost" in line])

    def test_what_is_refused_while_connections_close_leaves_no_timer(self):
        """A status that has come counts, although the rest of its answer does not come any more."""
        sink = self.make(DurableOutbox(), pool_size=2)
        sink.receive([publish(client, 0) for client in "ad"])
        self.transport.end(ConnectFailed("refused"))
        stopped = sink.stopService()
        self.clock.advance(sink.drain_time)
        self.transport.end(401)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.outbox.counts.pending, 2)
        self.assert_identities()
        self.assertFalse([line for line in self.lines() if "401" in line and " in 1.0 s" in line])

    def test_stopping_when_nothing_waits(self):
        self.successResultOf(self.make().stopService())


class LoopbackTests(TestCase):
    """With a real endpoint."""

    timeout = 120

    def make(self, answer=None, **settings):
        self.endpoint = Endpoint(answer)
        url = self.endpoint.listen(self, reactor)
        self.outbox = MemoryOutbox()
        settings = WebhookSettings(
            "w", url, (Rule("on_message_publish"),), retry=RetrySettings(initial=0.01, maximum=0.05), **settings
        )
        sink = WebhookSink(reactor, settings, self.outbox, transport_for(reactor, settings), random=Random(1))
        sink.startService()
        self.addCleanup(sink.stopService)
        return sink

    async def drained(self):
        while self.outbox.counts.pending:
            await deferLater(reactor, 0.01)

    async def test_request(self):
        sink = self.make(headers=(("content-type", "application/json"), ("X-Token", "abc")))
        sink.receive([make_event("on_publish", topic="a/b", payload=b"m0", qos=0, username="", client_id="c311")])
        await self.drained()
        (request,) = self.endpoint.requests
        self.assertEqual((request.method, request.path), ("POST", "/hook"))
        self.assertEqual(
            request.body,
            b'{"ts":1767225600123,"topic":"a/b","retain":false,"qos":0,"action":"message_publish",'
            b'"from_username":"undefined","from_client_id":"c311","payload":"m0"}',
        )
        self.assertEqual(request.header("x-token"), "abc")

    async def test_everything_arrives_in_order_whatever_the_endpoint_does(self):
        random = Random(7)
        answered = set()
        accepted = defaultdict(list)

        def answer(request):
            chance = random.random()
            if chance < 0.1:
                request.connection.reply(500)
            elif chance < 0.15:
                request.connection.transport.loseConnection()
            elif chance < 0.2:
                request.connection.transport.abortConnection()
            elif chance < 0.22:
                request.connection.send(b"nonsense")
            else:
                body = json.loads(request.body)
                self.assertNotIn(request.header("webhook-id"), answered)
                answered.add(request.header("webhook-id"))
                accepted[body["from_client_id"]].append(int(body["payload"]))
                request.connection.reply()

        sink = self.make(answer, pool_size=8)
        for number in range(100):
            sink.receive([publish(f"c{client}", number) for client in range(20)])
        await self.drained()
        self.assertEqual(accepted, {f"c{client}": list(range(100)) for client in range(20)})
        self.assertLessEqual(self.endpoint.most_open, 8)
        self.assertGreater(sink.counters.failed, 100)

    async def test_an_endpoint_that_comes_back(self):
        sink = self.make(pool_size=4)
        port = self.endpoint.port.getHost().port
        await self.endpoint.stop(self.endpoint.port)
        sink.receive([publish(f"c{number}", number) for number in range(50)])
        while sink.counters.failed < 8:
            await deferLater(reactor, 0.01)
        self.endpoint.listen(self, reactor, port)
        await self.drained()
        self.assertEqual(len(self.endpoint.requests), 50)

    async def test_a_silent_endpoint(self):
        silent = [True]
        sink = self.make(lambda request: None if silent[0] else request.connection.reply(), cancel_timeout=0.1, pool_size=2)
        sink.receive([publish(f"c{number}", number) for number in range(4)])
        while sink.counters.failed < 8:
            await deferLater(reactor, 0.01)
        silent[0] = False
        await self.drained()
        self.assertLessEqual(self.endpoint.most_open, 2)
