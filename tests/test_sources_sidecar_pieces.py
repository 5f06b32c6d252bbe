"""A frame that carries very much is worked off piece by piece, between which others have their turn."""

import tracemalloc
from time import process_time

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import MalformedFrame
from mqhooks.events import M5_HOOKS
from mqhooks.pb.on_client_gone_pb2 import OnClientGone
from mqhooks.pb.on_deliver_pb2 import OnDeliver
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.pb.on_register_pb2 import OnRegister
from mqhooks.pb.on_subscribe_pb2 import OnSubscribe
from mqhooks.pb.on_unsubscribe_pb2 import OnUnsubscribe
from mqhooks.sources.sidecar import longframes, pieces, protocol
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.messages import MESSAGES
from mqhooks.sources.sidecar.pieces import MANY, NAMES, PIECE, divide
from tests.frames import TYPE_URL, AnyMessage, envelope, framed
from tests.test_sources_sidecar_protocol import HoldingSink, ProtocolCase, publish


def subscribe(client, count, **fields):
    message = OnSubscribe(client_id=client, username="u", session_id="s", **fields)
    for number in range(count):
        message.topics.add(topic=f"{number}", qos=number % 3).matched_acl.name = "a"
    return message


def raw(value, message=OnSubscribe):
    return AnyMessage(type_url=TYPE_URL + message.DESCRIPTOR.full_name, value=value).SerializeToString()


def backwards(message):
    """A message with its user properties first."""
    properties = OnSubscribe(user_properties=message.user_properties).SerializeToString()
    rest = OnSubscribe.FromString(message.SerializeToString())
    rest.user_properties.clear()
    return properties + rest.SerializeToString()


def topics(events):
    return [topic for event in events for topic in event.topics]


class DivideTests(SynchronousTestCase):
    """A frame becomes several events."""

    def events(self, frame):
        return [event for event, _ in divide(frame).events]

    def test_together_they_are_what_the_frame_says(self):
        for message in (subscribe("c", 3 * MANY + 1), OnUnsubscribe(client_id="c", topics=map(str, range(2 * MANY)))):
            frame = envelope(message)
            whole, events = decode(frame), self.events(frame)
            self.assertEqual([len(event.topics) for event in events[:-1]], [MANY] * (len(events) - 1))
            self.assertEqual(tuple(topic for event in events for topic in event.message.topics), whole.message.topics)
            bare = {replace(event, message=replace(event.message, topics=())) for event in events}
            self.assertEqual(bare, {replace(whole, message=replace(whole.message, topics=()))})

    def test_up_to_a_thousand_stay_together(self):
        self.assertIsNone(divide(envelope(subscribe("c", MANY))))
        self.assertIsNotNone(divide(envelope(subscribe("c", MANY + 1))))

    def test_other_messages_stay_as_they_are(self):
        self.assertIsNone(divide(envelope(OnPublish(payload=bytes(100_000)))))
        self.assertIsNone(divide(envelope(OnRegister(username="u" * 100_000))))

    def test_long_names_make_small_pieces(self):
        message = subscribe("c" * 60_000, MANY + 1)
        self.assertLessEqual(max(len(event.topics) for event in self.events(envelope(message))), NAMES // 60_000)

    def test_long_topics_make_small_pieces(self):
        message = OnUnsubscribe(topics=[f"{number}" * 10_000 for number in range(40)])
        events = self.events(envelope(message))
        self.assertGreater(len(events), 5)
        self.assertEqual(topics(events), list(message.topics))

    def test_not_utf_8(self):
        frame = raw(b"\x12\x02c\xff" + b"\x2a\x03\x0a\x01\xfe" * 1500)
        events = self.events(frame)
        self.assertEqual((events[0].client_id, topics(events)), ("c\ufffd", ["\ufffd"] * 1500))

    def test_only_the_first_user_properties_are_kept(self):
        message = OnRegister(client_id="c", user_properties={f"{number}": "v" for number in range(2 * MANY)}, session_id="s")
        divided = divide(envelope(message))
        ((event, _),) = divided.events
        self.assertTrue(divided.cut)
        self.assertEqual((len(event.message.user_properties), event.message.session_id), (MANY, "s"))

    def test_so_it_is_with_every_message_that_has_some(self):
        properties = {f"{number}": "v" for number in range(2 * MANY)}
        for hook in M5_HOOKS:
            message = MESSAGES[hook].protobuf(client_id="c", username="u", user_properties=properties, session_id="s")
            if "payload" in message.DESCRIPTOR.fields_by_name:
                message.payload = bytes(2 * PIECE)
            if hook == "on_subscribe":
                message.topics.add(topic="t", qos=1)
            elif hook == "on_unsubscribe":
                message.topics.append("t")
            whole, divided = decode(envelope(message)), divide(envelope(message))
            ((event, _),) = divided.events
            self.assertTrue(divided.cut)
            kept = event.message.user_properties
            self.assertEqual((len(kept), kept.items() - properties.items()), (MANY, set()))
            self.assertEqual(replace(whole.message, user_properties=kept), event.message)

    def test_up_to_a_thousand_user_properties_and_64_kib_are_kept(self):
        for hook in M5_HOOKS:
            for count, size, cut in ((MANY, 1, False), (MANY + 1, 1, True), (60, 1000, False), (70, 1000, True)):
                properties = {f"{number}": "v" * size for number in range(count)}
                divided = divide(envelope(MESSAGES[hook].protobuf(user_properties=properties)))
                self.assertEqual(divided is not None, cut, (hook, count, size))
                if cut:
                    ((event, _),) = divided.events
                    self.assertIn(len(event.message.user_properties), (MANY, 66, 65))

    def test_a_payload_full_of_what_looks_like_user_properties(self):
        for payload in (b"Z" * 3000, b"b" * 100_000, b"\x5a\x02\x0a\x00" * 20_000):
            self.assertIsNone(divide(envelope(OnPublish(payload=payload, user_properties={"a": "b"}))))
            self.assertIsNone(divide(envelope(OnDeliver(payload=payload, user_properties={"a": "b"}))))

    def test_many_topics_and_many_user_properties(self):
        message = subscribe("c", 3 * MANY, user_properties={f"{number}": "v" for number in range(2 * MANY)})
        for value in (message.SerializeToString(), backwards(message)):
            divided = divide(raw(value))
            events = [event for event, _ in divided.events]
            self.assertTrue(divided.cut)
            self.assertEqual(topics(events), [str(number) for number in range(3 * MANY)])
            self.assertEqual({len(event.message.user_properties) for event in events}, {MANY})

    def test_each_piece_has_the_user_properties(self):
        events = self.events(envelope(subscribe("c", 3 * MANY, user_properties={"a": "b"})))
        self.assertEqual([event.message.user_properties for event in events], [{"a": "b"}] * 3)

    def test_long_user_properties_make_small_pieces(self):
        message = subscribe("c", MANY + 1, user_properties={"a": "v" * 60_000})
        self.assertLessEqual(max(len(event.topics) for event in self.events(envelope(message))), NAMES // 60_000)

    def test_a_million_user_properties_do_not_stop_anything(self):
        entries = {number: b"%c\x06\x0a\x01k\x12\x01v" % (number << 3 | 2) * 1_000_000 for number in (7, 11, 12)}
        topic = b"\x2a\x03\x0a\x01t" * 100_000
        for hook in M5_HOOKS:
            protobuf = MESSAGES[hook].protobuf
            number = protobuf.DESCRIPTOR.fields_by_name["user_properties"].number
            for before in (b"",) if hook not in ("on_subscribe", "on_unsubscribe") else (b"", topic):
                started = process_time()
                divided = divide(raw(before + entries[number], protobuf))
                next(divided.events)
                # In Python alone it takes a second.
                self.assertLess(process_time() - started, 0.5, hook)

    def test_millions_of_other_fields_are_refused(self):
        for value, message in (
            (b"\x28\x00" * 1_000_000, OnPublish),
            (b"\x28\x00" * 1_000_000 + b"\x3a\x00" * 2000, OnRegister),
            (b"\x2a\x00" * 2000 + b"\x78\x00" * 1_000_000, OnSubscribe),
        ):
            self.assertRaises(MalformedFrame, lambda frame: list(divide(frame).events), raw(value, message))

    def test_what_is_no_message_is_refused_as_ever(self):
        for value in (b"\x2a\x00" * 2000 + b"\x2a\x05", b"\x2a" + b"\xff" * 3000, b"\x2b" * 3000):
            for message in (OnSubscribe, OnPublish, OnRegister):
                self.assertRaises(MalformedFrame, decode, raw(value, message))
                self.assertRaises(
                    MalformedFrame, lambda frame: decode(frame) if divide(frame) is None else None, raw(value, message)
                )

    def test_a_group_is_refused(self):
        self.assertRaises(MalformedFrame, divide, raw(b"\x7b\x7c" + b"\x2a\x00" * 2000))

    def test_it_takes_no_more_memory_than_the_frame(self):
        frame = raw(b"\x2a\x05\x0a\x01a\x10\x01" * 300_000)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(sum(len(event.topics) for event, _ in divide(frame).events), 300_000)
        self.assertLess(tracemalloc.get_traced_memory()[1], 3 * len(frame))

    @given(st.data())
    def test_any_order_of_fields(self, data):
        fields = st.sampled_from(
            [
                b"\x2a\x03\x0a\x01t",
                b"\x12\x01c",
                b"\x22\x01u",
                b"\x32\x01s",
                b"\x78\x96\x01",
                b"\x79" + bytes(8),
                b"\xfa\x01\x01x",
            ]
        )
        value = b"".join(data.draw(st.lists(fields, max_size=30)) * 100)
        whole, divided = decode(raw(value)), divide(raw(value))
        if len(whole.topics) <= MANY:
            self.assertIsNone(divided)
        else:
            events = [event for event, _ in divided.events]
            self.assertEqual(topics(events), list(whole.topics))
            self.assertEqual({(event.client_id, event.username) for event in events}, {(whole.client_id, whole.username)})


class PiecesTests(ProtocolCase):
    """They have a turn each."""

    sink_class = HoldingSink

    def setUp(self):
        super().setUp()
        self.factory.max_frame = 1 << 20
        self.sink.held = []
        self.connection = self.connect()

    def accept(self):
        held, self.sink.held = self.sink.held, []
        for deferred in held:
            deferred.callback(None)

    def turn(self):
        self.accept()
        self.clock.advance(0)

    def turns(self):
        while self.factory.pieces.clients:
            self.turn()

    def clients(self):
        return [event.client_id for event in self.sink.events]

    def test_each_waits_until_the_one_before_is_accepted(self):
        self.feed(self.connection, framed(envelope(subscribe("c", 3 * MANY))))
        self.clock.advance(0)
        self.assertEqual(len(topics(self.sink.events)), MANY)
        self.turn()
        self.assertEqual(len(topics(self.sink.events)), 2 * MANY)
        self.turns()
        self.assertEqual(topics(self.sink.events), [str(number) for number in range(3 * MANY)])

    def test_others_have_their_turn(self):
        self.feed(self.connection, framed(envelope(subscribe("c", 3 * MANY))))
        self.feed(self.connect(), publish(1))
        self.feed(self.connection, publish(2))
        self.turns()
        self.assertEqual(self.clients(), ["c", "c1", "c2", "c", "c"])

    def test_its_client_keeps_its_order(self):
        self.feed(self.connection, framed(envelope(OnPublish(client_id="c", topic="before"))))
        self.feed(
            self.connection,
            framed(envelope(subscribe("c", 2 * MANY))) + framed(envelope(OnPublish(client_id="c", topic="behind"))),
        )
        self.feed(self.connect(), framed(envelope(subscribe("c", 2 * MANY))))
        self.feed(self.connect(), framed(envelope(OnPublish(client_id="c", topic="last"))))
        self.turns()
        all_topics = [str(number) for number in range(2 * MANY)]
        self.assertEqual(topics(self.sink.events), ["before", *all_topics, "behind", *all_topics, "last"])

    def test_afterwards_nothing_waits(self):
        self.feed(self.connection, framed(envelope(subscribe("c", 2 * MANY))))
        self.turns()
        self.sink.held = None
        self.feed(self.connection, framed(envelope(OnPublish(client_id="c"))))
        self.assertEqual(self.sink.events[-1].hook, "on_publish")
        self.assertEqual((self.factory.pieces.short, self.factory.pieces.behind), (0, 0))

    def test_a_frame_counts_once(self):
        self.feed(self.connection, framed(envelope(subscribe("c", 3 * MANY))) + publish(1))
        self.turns()
        counters = self.counters
        self.assertEqual((counters.frames, counters.hooks["on_subscribe"], counters.malformed), (2, 3, 0))

    def test_a_connection_that_ends_loses_nothing(self):
        self.feed(self.connection, framed(envelope(subscribe("c", 3 * MANY))))
        self.connection.connectionLost()
        empty = self.factory.when_empty()
        self.assertNoResult(empty)
        self.turns()
        self.successResultOf(empty)
        self.assertEqual(len(topics(self.sink.events)), 3 * MANY)

    def test_a_stop_does_not_wait_for_ever(self):
        self.feed(self.connection, framed(envelope(subscribe("c", 3 * MANY))))
        self.clock.advance(0)
        self.factory.give_up()
        self.turn()
        self.assertEqual(len(topics(self.sink.events)), MANY)
        self.assertIn("the rest of them is lost", "".join(self.warnings()))

    def test_a_stop_does_not_wait_for_what_followed_a_divided_frame(self):
        frames = framed(envelope(subscribe("c", 2 * MANY))) + framed(envelope(OnPublish(client_id="c", topic="behind")))
        self.feed(self.connection, frames)
        self.connection.connectionLost()
        empty = self.factory.when_empty()
        while topics(self.sink.events)[-1:] != ["behind"]:
            self.turn()
        self.assertNoResult(empty)
        self.factory.give_up()
        self.successResultOf(empty)
        self.assertEqual("".join(self.warnings()).count("is lost"), 0)

    def test_a_bad_piece_costs_what_follows(self):
        value = b"\x12\x01c" + b"\x2a\x03\x0a\x01t" * 1500 + b"\x2a\x01\xff" + b"\x2a\x03\x0a\x01t" * 1500
        self.feed(self.connection, framed(raw(value)) + framed(envelope(OnPublish(client_id="c"))))
        self.turns()
        self.assertEqual((len(topics(self.sink.events)), self.sink.events[-1].hook), (MANY + 1, "on_publish"))
        self.assertEqual((self.counters.frames, self.counters.undecodable), (2, 1))
        self.assertIn("skipped from there on", self.warnings()[0])

    def test_usernames_are_learned_in_order(self):
        properties = {f"{number}": "" for number in range(2 * MANY)}
        self.feed(self.connection, framed(envelope(OnRegister(client_id="c", username="u", user_properties=properties))))
        self.feed(self.connection, framed(envelope(OnClientGone(client_id="c"))))
        self.turns()
        self.assertEqual(
            [(event.hook, event.username) for event in self.sink.events], [("on_register", "u"), ("on_client_gone", "u")]
        )
        self.assertEqual(len(self.factory.sessions), 0)
        self.assertIn("more than 1000 user properties", self.warnings()[0])

    def test_a_message_with_many_user_properties_keeps_its_place(self):
        properties = {f"{number}": "" for number in range(2 * MANY)}
        many = envelope(OnPublish(client_id="c", topic="many", user_properties=properties))
        self.feed(self.connection, framed(envelope(OnPublish(client_id="c", topic="before"))) + framed(many))
        self.feed(self.connect(), framed(envelope(OnPublish(client_id="c", topic="behind"))))
        self.turns()
        self.assertEqual(topics(self.sink.events), ["before", "many", "behind"])
        self.assertEqual(len(self.sink.events[1].message.user_properties), MANY)
        self.assertIn("client c has more than 1000 user properties, or more than 64 KiB", self.warnings()[0])
        self.assertEqual((self.counters.frames, self.counters.hooks["on_publish"]), (3, 3))

    def test_many_short_frames_are_backpressure(self):
        self.patch(protocol, "SHORT_LIMIT", 50_000)
        frame = framed(envelope(subscribe("c", 2 * MANY)))
        while not self.factory.braked:
            self.feed(self.connection, frame)
        self.assertLess(self.factory.pieces.short, 150_000)
        self.turns()
        self.assertFalse(self.factory.braked)
        self.assertEqual(self.connection.transport.producerState, "producing")

    def test_many_short_frames_are_not_what_a_sink_holds(self):
        self.patch(protocol, "SHORT_LIMIT", 50_000)
        self.sink.held, self.sink.holds = [], True
        while not self.factory.braked:
            self.feed(self.connection, framed(envelope(subscribe("c", 2 * MANY))))
        self.clock.advance(protocol.PATIENCE)
        self.assertEqual((self.factory.braked, self.counters.paused), (True, True))

    def test_many_long_frames_hold_up_only_long_ones(self):
        self.patch(protocol, "LONG", 200)
        self.patch(pieces, "LONG", 200)
        self.patch(longframes, "WHOLE", 50_000)
        frame = framed(envelope(subscribe("c", 2 * MANY)))
        for _ in range(4):
            self.feed(self.connection, frame)
        late = self.connect()
        self.feed(late, frame[:1000])
        self.feed(self.connection, publish(1))
        self.assertEqual((late.transport.producerState, self.connection.transport.producerState), ("paused", "producing"))
        self.clock.advance(60)
        self.turns()
        self.assertEqual(late.transport.producerState, "producing")
        self.feed(late, frame[1000:])
        self.turns()
        self.assertEqual(len(topics([event for event in self.sink.events if event.client_id == "c"])), 10 * MANY)
