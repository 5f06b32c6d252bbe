"""How many requests a webhook sends: what is configured, and what the endpoint bears."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ConnectFailed
from mqhooks.webhook.rate import Rate
from mqhooks.webhook.settings import BatchSettings, LimitSettings, RetrySettings
from tests.webhooks import SinkMixin, publish, respond


def windows(times, rate, burst):
    """Whether in any time there were at most ``rate * t + burst``."""
    return all(
        later - earlier + 1 <= rate * (times[later] - times[earlier]) + burst + 1e-6
        for earlier in range(len(times))
        for later in range(earlier, len(times))
    )


class RateTests(SynchronousTestCase):
    @given(
        st.floats(0.01, 5000),
        st.integers(1, 50),
        st.floats(0, 1e9),
        st.lists(st.floats(0, 30), max_size=80),
    )
    @settings(deadline=None)
    def test_never_more_than_allowed_and_never_longer_than_needed(self, rate, burst, begin, pauses):
        bucket = Rate(LimitSettings(rate, burst))
        now, times = begin, []
        for pause in pauses:
            now += pause
            wait = bucket.wait(now)
            if wait:
                self.assertFalse(windows([*times, now], rate, burst - 2e-6), "it need not have waited")
            now += wait
            self.assertEqual(bucket.wait(now), 0)
            bucket.take(now)
            times.append(now)
            self.assertTrue(windows(times, rate, burst + rate * now * 1e-12))

    def test_held(self):
        bucket = Rate(LimitSettings(10, 3))
        self.assertEqual(bucket.wait(5), 0)
        bucket.hold(8)
        bucket.hold(6)
        self.assertAlmostEqual(bucket.wait(5), 3, 3)
        self.assertEqual(bucket.wait(8), 0)
        self.assertTrue(bucket.release(5))
        self.assertFalse(bucket.release(5))
        self.assertEqual(bucket.wait(5), 0)


class LimitTests(SinkMixin, SynchronousTestCase):
    def start(self, rate=10, burst=2, **more):
        self.make(limit=LimitSettings(rate, burst), **more)

    def publish(self, *clients):
        self.sink.receive([publish(client, index) for index, client in enumerate(clients)])

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_in_any_window_no_more_than_allowed(self, data):
        rate, burst = data.draw(st.floats(1, 200)), data.draw(st.integers(1, 10))
        batch = data.draw(st.sampled_from([None, BatchSettings(size=3, linger=0.01)]))
        self.start(rate, burst, pool_size=data.draw(st.integers(1, 6)), batch=batch)
        times, seen = [], set()
        order = {}

        def note():
            for attempt in self.in_flight:
                if id(attempt) not in seen:
                    seen.add(id(attempt))
                    kept.append(attempt)
                    times.append(self.clock.seconds())
                    for body in attempt.bodies:
                        order.setdefault(body["from_client_id"], []).append(int(body["payload"]))

        kept, sent, number = [], 0, 0
        for _ in range(data.draw(st.integers(1, 40))):
            for client in data.draw(st.lists(st.sampled_from("abcdefgh"), max_size=8)):
                self.sink.receive([publish(client, number)])
                number += 1
                sent += 1
                note()
            self.clock.advance(data.draw(st.floats(0, 0.5)))
            note()
            while self.in_flight and data.draw(st.booleans()):
                self.transport.end()
                note()
        for _ in range(20_000):
            if not self.outbox.counts.pending:
                break
            while self.in_flight:
                self.transport.end()
                note()
            self.clock.advance(min(0.05, 1 / rate))
            note()
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.pending), (sent, 0))
        self.assertTrue(windows(times, rate, burst))
        for numbers in order.values():
            self.assertEqual(numbers, sorted(numbers))

    def test_as_many_as_are_allowed(self):
        self.start(rate=10, burst=5, pool_size=32)
        self.publish(*(f"c{n}" for n in range(100)))
        self.assertEqual(len(self.in_flight), 5)
        for _ in range(950):
            self.end_all()
            self.clock.advance(0.01)
        self.assertIn(self.outbox.counts.delivered, range(98, 101))

    def test_nobody_starves(self):
        self.start(rate=10, burst=1, pool_size=8)
        self.publish(*["greedy"] * 500, *(f"c{n}" for n in range(20)))
        first = {}

        def answer(attempt):
            first.setdefault(attempt.client, self.clock.seconds())
            return respond(200)

        self.end_all()
        self.transport.at_once = answer
        self.clock.pump([0.01] * 500)
        # Those in other lanes than the greedy one have their turn at once, and the others theirs.
        self.assertGreater(len(first), 14)
        self.clock.pump([0.01] * 5500)
        self.assertEqual(len(first), 21)

    def test_a_batch_is_one_request(self):
        self.start(rate=1, burst=1, batch=BatchSettings(size=50, linger=0), pool_size=1)
        self.publish(*["c"] * 101)
        found = []
        for _ in range(3):
            (attempt,) = self.in_flight
            found.append(len(attempt.bodies))
            self.transport.end()
            self.assertEqual(self.in_flight, [])
            self.clock.advance(1.1)
        self.assertEqual(found, [50, 50, 1])

    def test_retry_after_holds_everybody(self):
        self.start(rate=100, burst=100)
        self.publish("a", "b")
        self.transport.end(respond(429, [(b"Retry-After", b"30")]))
        self.publish("c", "d")
        self.clock.advance(29)
        self.assertEqual([attempt.client for attempt in self.in_flight], ["b"])
        self.clock.pump([1.5, 0.1])
        self.assertEqual(sorted(attempt.client for attempt in self.in_flight), ["a", "b", "c", "d"])
        self.assertIn("nothing more is sent for 30 s", "".join(self.lines()))

    def test_retry_after_as_a_date(self):
        self.start(rate=100, burst=100)
        self.publish("a")
        self.transport.end(respond(503, [(b"retry-after", b"Thu, 01 Jan 1970 00:01:00 GMT")]))
        self.publish("c")
        self.clock.advance(59)
        self.assertEqual(self.in_flight, [])
        self.clock.advance(2)
        self.assertEqual(len(self.in_flight), 2)

    def test_without_a_limit_it_parks_its_client(self):
        self.make()
        self.publish("a")
        self.transport.end(respond(429, [(b"Retry-After", b"30")]))
        self.publish("a", "b")
        self.clock.advance(1)
        self.assertEqual([attempt.client for attempt in self.in_flight], ["b"])

    def test_try_now_does_not_wait_for_retry_after(self):
        self.start(rate=1, burst=1)
        self.publish("a")
        self.transport.end(respond(429, [(b"Retry-After", b"3000")]))
        self.clock.advance(2)
        self.publish("c")
        self.assertEqual(self.in_flight, [])
        self.assertTrue(self.sink.try_now())
        self.assertEqual(len(self.in_flight), 1)
        self.clock.advance(1.1)
        self.assertEqual(len(self.in_flight), 2)

    def test_a_probe_waits_for_its_token(self):
        self.start(rate=0.01, burst=1)
        self.publish("a")
        self.transport.end(ConnectFailed("refused"))
        self.clock.advance(50)
        self.assertEqual(self.in_flight, [])
        self.clock.advance(51)
        self.assertEqual(len(self.in_flight), 1)
        self.transport.end()
        self.assertIsNone(self.sink.down_since)

    def test_paused_and_stopped(self):
        self.start(rate=1, burst=1)
        self.publish("a", "b", "c")
        self.end_all()
        self.sink.pause()
        self.clock.advance(10)
        self.assertEqual(self.in_flight, [])
        self.sink.resume()
        self.assertEqual(len(self.in_flight), 1)
        self.sink.retire()
        self.transport.end()
        self.clock.advance(10)
        self.assertEqual((self.in_flight, self.clock.getDelayedCalls()), ([], []))


class PressureTests(SinkMixin, SynchronousTestCase):
    def start(self, pool_size=16, **more):
        self.make(pool_size=pool_size, retry=RetrySettings(jitter=0, initial=0.5, maximum=0.5), **more)
        self.sink.receive([publish(f"c{n % 300}", n) for n in range(3000)])

    def test_half_as_many_and_one_more_with_each_success(self):
        for status in (429, 503):
            self.start()
            self.assertEqual((len(self.in_flight), self.sink.in_flight_limit), (16, 16))
            self.transport.end(status)
            self.assertEqual((len(self.in_flight), self.sink.in_flight_limit), (15, 8))
            self.transport.end(status)
            self.assertEqual(self.sink.in_flight_limit, 4)
            for limit in range(5, 17):
                self.transport.end()
                self.assertEqual(self.sink.in_flight_limit, limit)
                self.assertLessEqual(len(self.in_flight), max(limit, 18 - limit))
            self.transport.end()
            self.assertEqual((self.sink.in_flight_limit, len(self.in_flight)), (16, 16))

    def test_never_below_one(self):
        self.start()
        for _ in range(9):
            self.transport.end(429)
        self.assertIsNone(self.sink.down_since)
        self.assertEqual(self.sink.in_flight_limit, 1)
        self.transport.end()
        self.assertEqual(self.sink.in_flight_limit, 2)

    def test_other_failures_are_no_pressure(self):
        self.start()
        self.transport.end(500)
        self.transport.end(422)
        self.assertEqual(self.sink.in_flight_limit, 16)

    def test_after_it_was_down_it_doubles(self):
        self.start()
        for _ in range(10):
            self.transport.end(503)
        self.assertEqual((self.sink.down_since is not None, self.sink.in_flight_limit), (True, 0))
        while self.in_flight:
            self.transport.end(503)
        while not self.in_flight:
            self.clock.advance(0.5)
        limits = []
        for _ in range(6):
            self.transport.end()
            limits.append(self.sink.in_flight_limit)
        self.assertEqual(limits, [2, 4, 8, 16, 16, 16])

    def test_paused(self):
        self.start()
        self.sink.pause()
        self.assertEqual(self.sink.in_flight_limit, 0)

    def test_who_has_waited_longer_goes_first(self):
        self.make(pool_size=4, retry=RetrySettings(jitter=0))
        clients = [f"c{n}" for n in range(40)]
        self.sink.receive([publish(client, number) for number in range(50) for client in clients])
        seen = set()
        # It bears one at a time.
        for turn in range(40):
            while len(self.in_flight) > 1:
                seen.add(self.transport.end(429 if turn % 9 else 200).client)
            if self.in_flight:
                seen.add(self.transport.end(429 if turn % 2 else 200).client)
            self.clock.advance(1)
        self.assertEqual(self.sink.down_since, None)
        self.assertGreater(len(seen), 20)
