"""Long frames on many connections share what memory there is for them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mqhooks.sources.sidecar import protocol
from mqhooks.sources.sidecar.longframes import SHARES, STALLED
from tests.test_sources_sidecar_protocol import ProtocolCase, publish

HELD = 4000


class LongFramesTests(ProtocolCase):
    def setUp(self):
        self.patch(protocol, "LONG", 200)
        self.patch(protocol, "HELD", HELD)
        self.patch(protocol, "COMMON", 1000)
        self.patch(protocol, "HELD_COMMON", 1500)
        super().setUp()
        self.factory.max_frame = 10_000

    def states(self, *protocols):
        return [each.transport.producerState for each in protocols]

    def one_waits(self):
        """Two connections for which there is no room together: the first waits until the second's frame is whole."""
        first, second = self.connect(), self.connect()
        self.feed(first, publish(1, 5000)[:3000])
        self.feed(second, publish(2, 5000)[:3000])
        self.feed(first, publish(1, 5000)[3000:3100])
        self.assertEqual(self.states(first, second), ["paused", "producing"])
        return first, second

    def test_few_are_read_together(self):
        protocols = [self.connect() for _ in range(3)]
        for each in protocols:
            self.feed(each, publish(1, 2000)[:1300])
        self.assertEqual(self.states(*protocols), ["producing"] * 3)

    def test_many_are_read_one_by_one(self):
        first, second, third = protocols = [self.connect() for _ in range(3)]
        frames = [publish(number, 5000) for number in range(3)]
        for each, frame in zip(protocols, frames, strict=True):
            self.feed(each, frame[:3000])
        self.assertEqual(self.states(*protocols), ["producing", "producing", "paused"])
        self.feed(first, frames[0][3000:3500])
        self.assertEqual(self.states(*protocols), ["paused", "producing", "paused"])
        self.feed(second, frames[1][3000:])
        self.assertEqual(self.states(*protocols), ["paused", "producing", "producing"])
        self.feed(third, frames[2][3000:])
        self.assertEqual(self.states(*protocols), ["producing"] * 3)
        self.feed(first, frames[0][3500:])
        self.assertEqual([event.client_id for event in self.sink.events], ["c1", "c2", "c0"])

    def test_common_ones_do_not_wait_for_longer_ones(self):
        self.one_waits()
        third = self.connect()
        self.feed(third, publish(3, 800)[:500])
        self.feed(third, publish(3, 800)[500:600])
        self.assertEqual(self.states(third), ["producing"])
        self.feed(third, publish(3, 800)[600:] + publish(4, 5000)[:2000])
        self.feed(third, publish(4, 5000)[2000:2100])
        self.assertEqual(self.states(third), ["paused"])
        self.assertEqual([event.client_id for event in self.sink.events], ["c3"])

    def test_common_ones_take_turns_among_themselves(self):
        first, second, third = protocols = [self.connect() for _ in range(3)]
        for each in protocols:
            self.feed(each, publish(1, 900)[:600])
        self.feed(first, publish(1, 900)[600:700])
        self.assertEqual(self.states(*protocols), ["paused", "producing", "producing"])
        self.feed(third, publish(1, 900)[600:])
        self.assertEqual(self.states(*protocols), ["producing"] * 3)
        self.feed(second, publish(1, 900)[600:])
        self.feed(first, publish(1, 900)[700:])
        self.assertEqual((len(self.sink.events), self.factory.common_frames.held), (3, 0))

    def test_short_frames_go_on(self):
        long, other, short = [self.connect() for _ in range(3)]
        for each in (long, other):
            self.feed(each, publish(1, 5000)[:3000])
        self.assertEqual(self.states(long, other), ["producing", "producing"])
        self.feed(short, publish(2) + publish(3, 50)[:40])
        self.assertEqual(self.states(short), ["producing"])
        self.assertEqual([event.client_id for event in self.sink.events], ["c2"])

    def test_a_frame_that_is_whole_after_all_while_it_waits(self):
        first, second = self.one_waits()
        # As TLS does: it had been read already.
        self.feed(first, publish(1, 5000)[3100:])
        self.assertEqual(self.states(first, second), ["producing", "producing"])

    def test_nobody_stalls_while_none_is_read(self):
        self.one_waits()
        self.patch(protocol, "UNACCEPTED_LIMIT", 10)
        self.sink.held = []
        self.feed(self.connect(), publish(3))
        self.assertTrue(self.factory.braked)
        for _ in range(int(3 * STALLED)):
            self.clock.advance(1)
        self.sink.held.pop().callback(None)
        self.clock.advance(STALLED - 1)
        self.assertEqual(self.warnings()[1:], [])
        self.clock.advance(STALLED)
        self.assertIn("arrives too slowly", self.warnings()[-1])

    def test_who_leaves_makes_room(self):
        first, second = self.one_waits()
        second.connectionLost()
        self.assertEqual(self.states(first), ["producing"])
        first.connectionLost()
        self.assertEqual(self.counters.truncated, 2)
        self.assertFalse(self.clock.getDelayedCalls())

    def test_who_waits_may_leave(self):
        first, second = self.one_waits()
        first.connectionLost()
        self.feed(second, publish(2, 5000)[3000:])
        self.assertEqual([event.client_id for event in self.sink.events], ["c2"])
        self.assertFalse(self.clock.getDelayedCalls())

    def test_the_sinks_brake_is_another(self):
        first, second = self.one_waits()
        self.patch(protocol, "UNACCEPTED_LIMIT", 100)
        self.sink.held = []
        self.feed(second, publish(2, 5000)[3000:])
        self.assertEqual(self.states(first, second), ["paused", "paused"])
        self.sink.held[0].callback(None)
        self.assertEqual(self.states(first, second), ["producing", "producing"])

    def test_a_stalled_frame_is_left_out_and_its_connection_goes_on(self):
        first, second = self.one_waits()
        self.clock.advance(STALLED - 1)
        self.feed(second, publish(2, 5000)[3000:3100])
        self.assertEqual(self.states(first, second), ["paused", "producing"])
        self.clock.advance(1)
        self.assertEqual(self.states(first, second), ["producing", "producing"])
        (line,) = self.warnings()
        self.assertIn("a frame of 50", line)
        self.assertIn("arrives too slowly while other long frames wait: skipped", line)
        self.assertFalse(second.transport.disconnected)
        self.assertEqual(second.held, 0)
        self.feed(second, publish(2, 5000)[3100:] + publish(3))
        self.feed(first, publish(1, 5000)[3100:])
        self.assertEqual([event.client_id for event in self.sink.events], ["c3", "c1"])
        self.assertEqual((self.counters.frames, self.counters.truncated), (3, 1))
        self.assertFalse(self.clock.getDelayedCalls())

    def test_a_frame_left_out_is_counted_once(self):
        _, second = self.one_waits()
        self.clock.advance(STALLED)
        second.connectionLost()
        self.assertEqual(self.counters.truncated, 1)
        self.assert_identity()

    def test_a_trickling_frame_holds_others_up_for_seconds(self):
        first, second = self.one_waits()
        seconds = 0
        while self.states(first) == ["paused"]:
            self.clock.advance(1)
            seconds += 1
            self.feed(second, publish(2, 5000)[3000 + seconds : 3001 + seconds])
        self.assertLessEqual(seconds, STALLED)

    def test_the_least_rate_ends_a_turn_within_seconds(self):
        first, second = self.one_waits()
        left, seconds = publish(2, 5000)[3000:], 0
        share = -(-second.length // SHARES)
        while left:
            self.assertEqual(self.states(first, second), ["paused", "producing"])
            self.clock.advance(STALLED - 1)
            seconds += STALLED - 1
            self.feed(second, left[:share])
            left = left[share:]
        self.assertEqual(self.states(first), ["producing"])
        self.assertLessEqual(seconds, SHARES * STALLED)
        self.assertEqual([event.client_id for event in self.sink.events], ["c2"])
        self.assertEqual(self.warnings(), [])

    def test_what_came_while_this_process_was_busy_counts(self):
        _, second = self.one_waits()
        # The reactor is late: its timers run before what has come meanwhile is read.
        self.clock.rightNow += 3 * STALLED
        self.clock.callLater(0, second.dataReceived, publish(2, 5000)[3000:])
        self.clock.advance(0)
        self.assertEqual([event.client_id for event in self.sink.events], ["c2"])
        self.assertEqual(self.warnings(), [])

    def test_short_brakes_help_nobody_who_trickles(self):
        first, second = self.one_waits()
        for number in range(9):
            self.clock.advance(STALLED - 1)
            for braked in (True, False):
                self.factory.long_frames.brake(braked=braked)
                self.clock.advance(0.1)
            if self.states(first) == ["producing"]:
                break
            self.feed(second, publish(2, 5000)[3000 + number : 3001 + number])
        self.assertEqual(number, 1)

    def test_nobody_is_given_up_while_nobody_waits(self):
        only = self.connect()
        self.feed(only, publish(1, 9000)[:8000])
        self.assertFalse(self.clock.getDelayedCalls())
        self.assertEqual(self.states(only), ["producing"])

    @settings(deadline=None)
    @given(
        st.lists(st.lists(st.integers(0, 9000), min_size=1, max_size=4), min_size=1, max_size=6),
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3000)), max_size=60),
    )
    def test_all_arrives_and_little_is_held(self, sizes, steps):
        self.setUp()
        self.factory.max_frame = 20_000
        protocols = [self.connect() for _ in sizes]
        left = [b"".join(publish(index, size) for size in each) for index, each in enumerate(sizes)]

        def feed(index, count):
            if protocols[index].transport.producerState == "producing":
                data, left[index] = left[index][:count], left[index][count:]
                self.feed(protocols[index], data)
            held = sum(each.held for each in protocols)
            self.assertLess(held, HELD + 9200 + 3000 * len(protocols))

        for index, count in steps:
            feed(index % len(protocols), count)
        for _ in range(100):
            for index in range(len(protocols)):
                feed(index, 2999)
        self.assertFalse(any(left))
        self.assertEqual(self.counters.events, sum(map(len, sizes)))
        self.assertEqual(self.factory.long_frames.held, 0)
        self.assertFalse(self.clock.getDelayedCalls())
