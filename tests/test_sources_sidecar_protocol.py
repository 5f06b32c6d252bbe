"""The stream is cut into frames, whatever comes."""

import itertools
import tracemalloc
from time import process_time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols.basic import Int32StringReceiver
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mqhooks.events import HOOKS
from mqhooks.interfaces import IEventSink, IHolding
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.sources.sidecar import protocol as protocol_module
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.protocol import HARD_LIMIT, PATIENCE, UNACCEPTED_LIMIT, SidecarFactory, SidecarProtocol
from tests.frames import envelope, framed, golden_frames


@implementer(IEventSink)
class Sink(Service):
    """Keeps batches; accepts at once unless told to hold."""

    def __init__(self):
        self.batches = []
        self.held = None

    def receive(self, events):
        self.batches.append(list(events))
        if self.held is None:
            return None
        self.held.append(Deferred())
        return self.held[-1]

    @property
    def events(self):
        return [event for batch in self.batches for event in batch]


@implementer(IHolding)
class HoldingSink(Sink):
    """Holds what it has not accepted, if told to."""

    holds = False


def publish(number, size=0):
    return framed(envelope(OnPublish(client_id=f"c{number}", payload=b"x" * size)))


def bytes_missing(stream):
    """How many bytes the last frame lacks; None when its length is cut off, -1 when a length cannot be one."""
    offset = 0
    while len(stream) - offset >= 4:
        length = int.from_bytes(stream[offset : offset + 4], "big")
        if length > HARD_LIMIT:
            return -1
        offset += 4 + length
    return offset - len(stream) if offset >= len(stream) else None


class ProtocolCase(SynchronousTestCase):
    sink_class = Sink

    def setUp(self):
        self.sink = self.sink_class()
        self.clock = Clock()
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.factory = SidecarFactory(self.clock, self.sink, max_frame=1000)
        self.counters = self.factory.counters

    def connect(self):
        protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        return protocol

    def feed(self, protocol, data):
        """Have a connection read something, in a turn of the reactor of its own."""
        protocol.dataReceived(data)
        self.clock.advance(0)

    def warnings(self):
        return [formatEvent(event) for event in self.logged if event["log_level"].name in ("warn", "error")]

    def assert_identity(self):
        counters = self.counters
        self.assertEqual(
            counters.frames, counters.empty + sum(counters.unknown.values()) + counters.malformed + counters.events
        )


class FramingTests(ProtocolCase):
    """One connection."""

    def test_a_batch_is_what_one_read_gave(self):
        protocol = self.connect()
        self.feed(protocol, publish(1) + publish(2) + publish(3)[:7])
        self.feed(protocol, publish(3)[7:])
        self.assertEqual([[event.client_id for event in batch] for batch in self.sink.batches], [["c1", "c2"], ["c3"]])

    def test_events_are_counted_when_the_sink_gets_them(self):
        protocol = self.connect()
        protocol.dataReceived(publish(1) + framed(b"\xff") + publish(2))
        self.assertEqual((self.counters.frames, self.counters.events, len(self.sink.events)), (1, 0, 0))
        self.assert_identity()
        self.clock.advance(0)
        self.assertEqual((self.counters.frames, self.counters.events, len(self.sink.events)), (3, 2, 2))
        self.assert_identity()

    def test_events_are_gathered(self):
        self.factory.limit(max_frame=1000, gather=0.005)
        one, other = self.connect(), self.connect()
        batches = []
        for number in range(4):
            self.feed(one if number % 2 else other, publish(number))
            self.clock.advance(0.002)
            batches.append(len(self.sink.batches))
        # The first one has nothing to wait for.
        self.assertEqual(batches, [1, 1, 2, 2])
        self.clock.advance(0.1)
        self.assertEqual([[event.client_id for event in batch] for batch in self.sink.batches], [["c0"], ["c1", "c2"], ["c3"]])

    def test_events_are_gathered_no_longer_once_there_are_many(self):
        self.factory.limit(max_frame=60_000, gather=60)
        protocol = self.connect()
        self.feed(protocol, publish(0))
        self.feed(protocol, publish(1, 40_000))
        self.assertEqual(len(self.sink.events), 1)
        self.feed(protocol, publish(2, 40_000))
        self.assertEqual(len(self.sink.events), 3)
        self.feed(protocol, publish(3))
        self.assertEqual(len(self.sink.events), 3)
        protocol.connectionLost()
        self.assertEqual(len(self.sink.events), 4)

    def test_a_connection_that_ends_hands_over_what_it_brought(self):
        protocol = self.connect()
        protocol.dataReceived(publish(1))
        protocol.connectionLost()
        self.assertEqual([event.client_id for event in self.sink.events], ["c1"])

    def test_nothing_is_sent_back(self):
        protocol = self.connect()
        self.feed(protocol, publish(1))
        self.assertEqual(protocol.transport.value(), b"")

    def test_bad_frames_are_counted_and_passed_over(self):
        protocol = self.connect()
        self.feed(
            protocol,
            framed(b"")
            + framed(b"\xff\xff")
            + framed(envelope(OnPublish(), "eventssidecar.v1.OnLunch"))
            + framed(b"x" * 1001)
            + publish(1),
        )
        counters = self.counters
        self.assertEqual((counters.frames, counters.empty, counters.undecodable, counters.oversized), (5, 1, 1, 1))
        self.assertEqual(counters.unknown, {"eventssidecar.v1.OnLunch": 1})
        self.assertEqual(counters.hooks["on_publish"], 1)
        self.assertEqual([event.client_id for event in self.sink.events], ["c1"])
        self.assert_identity()
        self.assertFalse(protocol.transport.disconnecting)

    def test_complaints_name_the_peer_and_are_limited(self):
        protocol = self.connect()
        for _ in range(1000):
            self.feed(protocol, framed(b"\xff"))
        (warning,) = self.warnings()
        self.assertIn("192.168.1.1:54321", warning)
        self.assertIn("a frame of 1 bytes", warning)
        self.clock.advance(60)
        self.feed(protocol, framed(b"\xff"))
        self.assertIn("(999 more", self.warnings()[-1])

    def test_unknown_types_are_bounded(self):
        protocol = self.connect()
        for number in range(1000):
            self.feed(protocol, framed(envelope(OnPublish(), f"Type{number}")))
        self.assertLessEqual(len(self.counters.unknown), 65)
        self.assert_identity()

    def test_oversized_frames_are_drained_without_being_held(self):
        protocol = self.connect()
        self.feed(protocol, (10_000_000).to_bytes(4, "big") + b"x" * 500)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(99):
            self.feed(protocol, b"x" * 100_000)
        self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)
        self.assertEqual(protocol.held, 0)
        self.feed(protocol, b"x" * (100_000 - 500) + publish(1))
        self.assertEqual([event.client_id for event in self.sink.events], ["c1"])
        self.assertEqual(self.counters.oversized, 1)
        self.assertIn("sidecar.max_frame", self.warnings()[0])

    def test_beyond_the_hard_limit_the_framing_is_lost(self):
        protocol = self.connect()
        self.feed(protocol, publish(1) + (HARD_LIMIT + 1).to_bytes(4, "big") + publish(2))
        self.feed(protocol, publish(3))
        self.assertEqual([event.client_id for event in self.sink.events], ["c1"])
        self.assertTrue(protocol.transport.disconnected)
        self.assertEqual(self.counters.oversized, 1)
        self.assertIn("framing lost", self.warnings()[0])
        self.assert_identity()

    def test_truncated_at_the_end(self):
        protocol = self.factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.feed(protocol, publish(1) + publish(2)[:-1])
        transport.loseConnection()
        self.assertEqual((self.counters.truncated, self.counters.connections), (1, 0))
        self.assert_identity()

    def test_large_frames_cost_linear_time(self):
        # 16 MiB in 16,384 pieces take milliseconds; joining them anew for each piece would copy 128 GiB.
        self.factory.max_frame = HARD_LIMIT
        protocol = self.connect()
        frame = publish(1, 16 << 20)
        began = process_time()
        for offset in range(0, len(frame), 1024):
            self.feed(protocol, frame[offset : offset + 1024])
        self.assertLess(process_time() - began, 5)
        self.assertEqual(len(self.sink.events), 1)

    def test_is_a_string_receiver_that_works_as_one(self):
        self.factory.max_frame = 1 << 20
        received = []

        class Recording(SidecarProtocol):
            def stringReceived(self, string):
                received.append(string)
                super().stringReceived(string)

        protocol = Recording()
        protocol.factory = self.factory
        protocol.makeConnection(StringTransport())
        self.assertIsInstance(protocol, Int32StringReceiver)
        frames = [envelope(OnPublish(client_id="c", payload=b"x" * size)) for size in (0, 70_000, 5, 500_000, 1)]
        stream = b"".join(map(framed, frames))
        for offset in range(0, len(stream), 50_000):
            self.feed(protocol, stream[offset : offset + 50_000])
        self.assertEqual(received, frames)
        self.assertEqual({type(string) for string in received}, {bytes})
        protocol.sendString(b"abc")
        self.assertEqual(protocol.transport.value(), b"\0\0\0\x03abc")

    def test_a_fault_of_ours_costs_one_frame(self):
        protocol = self.connect()
        self.patch(protocol_module, "decode", lambda frame: 1 / 0)
        self.feed(protocol, publish(1) + publish(2))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.patch(protocol_module, "decode", decode)
        self.feed(protocol, publish(3))
        self.assertEqual([event.client_id for event in self.sink.events], ["c3"])
        self.assertEqual((self.counters.frames, self.counters.undecodable), (3, 2))
        self.assert_identity()

    def test_a_new_limit_holds_for_open_connections(self):
        protocol = self.connect()
        self.factory.limit(max_frame=100, gather=0.0)
        self.feed(protocol, publish(1, 500) + publish(2))
        self.factory.limit(max_frame=200_000, gather=0.0)
        self.feed(protocol, publish(3, 500) + publish(4, 150_000))
        self.assertEqual([event.client_id for event in self.sink.events], ["c2", "c3", "c4"])
        self.assertEqual(self.counters.oversized, 1)

    def test_every_golden_frame_in_one_stream(self):
        self.factory.max_frame = 1 << 20
        stream = b"".join(framed(golden.frame) for golden in golden_frames())
        self.feed(self.connect(), stream)
        self.assertEqual(len(self.sink.events), sum(bool(golden.frame) for golden in golden_frames()))
        self.assertEqual({event.hook for event in self.sink.events}, set(HOOKS))
        self.assertEqual(self.counters.malformed, 0)
        self.assert_identity()

    def test_usernames_are_completed(self):
        protocol = self.connect()
        for golden in golden_frames():
            if golden.encoder == "vernemq-fork-2024" and golden.case in ("register_typical", "on_client_gone_unicode_mp"):
                self.feed(protocol, framed(golden.frame))
        gone = "on_client_gone_REASON_NORMAL_DISCONNECT"
        gone = next(golden for golden in golden_frames() if golden.case == gone and golden.encoder == "vernemq-fork-2024")
        self.feed(protocol, framed(gone.frame))
        self.assertEqual(self.sink.events[-1].username, "user-1")


class ChunkingTests(ProtocolCase):
    """The same bytes in any pieces."""

    @settings(deadline=None)
    @given(
        st.lists(st.sampled_from([0, 10, 65_400, 65_536, 65_537, 70_000, 99_000, 110_000, 300_000]), max_size=8),
        st.lists(st.integers(0, 2_000_000), max_size=30),
    )
    def test_long_and_short_frames_cut_anywhere(self, sizes, cuts):
        frames = [framed(envelope(OnPublish(client_id=f"c{n}", payload=bytes(size)))) for n, size in enumerate(sizes)]
        stream = b"".join(frames)
        edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
        self.setUp()
        self.factory.max_frame = 100_000
        protocol = self.connect()
        for start, stop in itertools.pairwise(edges):
            self.feed(protocol, stream[start:stop])
        expected = [(f"c{n}", size) for n, size in enumerate(sizes) if size < 99_900]
        self.assertEqual([(event.client_id, len(event.message.payload)) for event in self.sink.events], expected)
        self.assertEqual(self.counters.oversized, len(sizes) - len(expected))
        self.assertEqual(self.factory.long_frames.held, 0)
        self.assert_identity()

    frames = st.lists(
        st.one_of(
            st.builds(lambda number: framed(envelope(OnPublish(client_id=f"c{number}"))), st.integers(0, 99)),
            st.sampled_from(
                [framed(b""), framed(b"\xff"), framed(b"y" * 1001), framed(b"y" * 5000), framed(envelope(OnPublish(), "x"))]
            ),
            st.sampled_from([framed(golden.frame) for golden in golden_frames() if len(golden.frame) < 500]),
        ),
        max_size=12,
    )

    def run_stream(self, pieces):
        self.setUp()
        protocol = self.connect()
        for piece in pieces:
            self.feed(protocol, piece)
        self.assert_identity()
        counters = self.counters
        return self.sink.events, counters.frames, counters.empty, counters.unknown, counters.undecodable, counters.oversized

    @settings(deadline=None)
    @given(frames, st.data())
    def test_any_chunking_gives_the_same_events(self, frames, data):
        stream = b"".join(frames)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
        pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        self.assertEqual(self.run_stream(pieces), self.run_stream([stream]))

    @settings(deadline=None)
    @given(frames)
    def test_byte_by_byte(self, frames):
        stream = b"".join(frames)[:3000]
        self.assertEqual(
            self.run_stream([stream[index : index + 1] for index in range(len(stream))]), self.run_stream([stream])
        )

    @settings(deadline=None)
    @given(st.lists(st.binary(), max_size=10))
    def test_random_bytes_never_escape(self, pieces):
        self.setUp()
        protocol = self.connect()
        for piece in pieces:
            self.feed(protocol, piece)
        missing = bytes_missing(b"".join(pieces))
        self.assertEqual(protocol.transport.disconnected, missing == -1)
        if missing is not None and 0 <= missing < 1 << 20:
            self.feed(protocol, bytes(missing) + publish(7))
            self.assertEqual(self.sink.events[-1].client_id, "c7")

    @settings(deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=50), max_size=10))
    def test_random_frames_do_not_stall_the_connection(self, contents):
        self.setUp()
        protocol = self.connect()
        self.feed(protocol, b"".join(map(framed, contents)) + publish(7))
        self.assertEqual(self.sink.events[-1].client_id, "c7")
        self.assertEqual(self.counters.frames, len(contents) + 1)
        self.assert_identity()


class BackpressureCase(ProtocolCase):
    def setUp(self):
        super().setUp()
        self.factory.max_frame = UNACCEPTED_LIMIT * 2
        self.protocols = [self.connect(), self.connect()]
        self.sink.held = []

    def states(self):
        return [protocol.transport.producerState for protocol in self.protocols]


class HeldTests(BackpressureCase):
    """What the sink holds does not stop them."""

    sink_class = HoldingSink

    def test_much_that_is_held_stops_nothing(self):
        self.sink.holds = True
        for number in range(5):
            self.feed(self.protocols[0], publish(number, UNACCEPTED_LIMIT))
        self.clock.advance(PATIENCE)
        self.assertEqual(self.states(), ["producing", "producing"])
        self.assertEqual((self.counters.pauses, self.clock.getDelayedCalls()), (0, []))
        # There is no memory for more.
        self.sink.holds = False
        self.feed(self.protocols[0], publish(5))
        self.assertEqual(self.states(), ["paused", "paused"])
        self.clock.advance(PATIENCE)
        self.assertEqual((self.counters.pauses, self.counters.paused), (1, True))
        for accepted in self.sink.held[:5]:
            self.assertEqual(self.states(), ["paused", "paused"])
            accepted.callback(None)
        self.assertEqual(self.states(), ["producing", "producing"])
        self.assertFalse(self.counters.paused)

    def test_what_turns_out_to_be_held_is_not_worth_a_word(self):
        self.feed(self.protocols[0], publish(1, UNACCEPTED_LIMIT))
        self.assertEqual(self.states(), ["paused", "paused"])
        self.sink.holds = True
        self.clock.advance(PATIENCE / 2)
        self.assertEqual(self.states(), ["producing", "producing"])
        self.clock.advance(PATIENCE)
        self.assertEqual((self.counters.pauses, self.warnings(), self.clock.getDelayedCalls()), (0, [], []))


class BackpressureTests(BackpressureCase):
    """The connections stop being read while too much is unaccepted, and only then."""

    def test_little_may_wait(self):
        self.feed(self.protocols[0], publish(1))
        self.assertEqual(self.states(), ["producing", "producing"])

    def test_much_stops_all(self):
        self.feed(self.protocols[0], publish(1, UNACCEPTED_LIMIT))
        self.assertEqual(self.states(), ["paused", "paused"])
        self.protocols.append(self.connect())
        self.assertEqual(self.states()[-1], "paused")
        self.assertEqual((self.counters.pauses, self.counters.paused), (0, False))
        self.clock.advance(PATIENCE)
        self.assertEqual((self.counters.pauses, self.counters.paused), (1, True))
        self.sink.held[0].callback(None)
        self.assertEqual(self.states(), ["producing"] * 3)
        self.assertEqual((self.counters.pauses, self.counters.paused), (1, False))
        self.assertEqual(len(self.warnings()), 1)

    def test_what_is_soon_accepted_is_not_worth_a_word(self):
        for number in range(3):
            self.feed(self.protocols[0], publish(1, UNACCEPTED_LIMIT))
            self.assertEqual(self.states(), ["paused", "paused"])
            self.clock.advance(PATIENCE / 2)
            self.sink.held[number].callback(None)
            self.assertEqual(self.states(), ["producing", "producing"])
        self.assertEqual((self.counters.pauses, self.warnings(), self.clock.getDelayedCalls()), (0, [], []))

    def test_nothing_is_left_when_all_have_gone(self):
        self.feed(self.protocols[0], publish(1, UNACCEPTED_LIMIT))
        for protocol in self.protocols:
            protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(
            self.warnings(),
            [
                "the last sidecar connection, from 192.168.1.1:54321, is gone: VerneMQ drops its events until it reconnects",
            ],
        )
        self.connect()
        self.clock.advance(PATIENCE)
        self.assertTrue(self.counters.paused)
        self.sink.held[0].callback(None)
        self.assertFalse(self.factory.braked)
        self.assertFalse(self.counters.paused)

    def test_a_sink_that_fails_is_logged_and_does_not_stop_the_stream(self):
        self.feed(self.protocols[0], publish(1, UNACCEPTED_LIMIT))
        self.sink.held[0].errback(RuntimeError("no"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.states(), ["producing", "producing"])

    def test_a_sink_that_raises_is_logged_and_does_not_stop_the_stream(self):
        self.sink.held = None
        self.sink.receive = lambda events: 1 / 0
        self.feed(self.protocols[0], publish(1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        del self.sink.receive
        self.feed(self.protocols[0], publish(2))
        self.assertEqual([event.client_id for event in self.sink.events], ["c2"])
