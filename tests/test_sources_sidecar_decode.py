"""Frames become events."""

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError as ProtobufError
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import DecodeError, MalformedFrame, UnknownType
from mqhooks.events import HOOKS, M5_HOOKS, NO_PROPERTIES, failure_name, reason_name
from mqhooks.pb.on_client_gone_pb2 import OnClientGone
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.pb.on_register_pb2 import OnRegister
from mqhooks.pb.on_subscribe_pb2 import OnSubscribe
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.encode import encode
from mqhooks.sources.sidecar.messages import MESSAGES
from tests.frames import envelope, golden_frames


class GoldenTests(SynchronousTestCase):
    """VerneMQ's own frames, of both generations."""

    def test_every_frame(self):
        hooks = set()
        for golden in golden_frames():
            if not golden.frame:
                continue
            event = decode(golden.frame)
            hooks.add(event.hook)
            self.assertEqual((golden.case, event.hook), (golden.case, golden.hook))
            self.assertIsInstance(event.message, HOOKS[golden.hook])
            if golden.decoded is None:
                continue
            value = AnyMessage.FromString(encode(event.message)).value
            decoded = MessageToDict(MESSAGES[golden.hook].protobuf.FromString(value), preserving_proto_field_name=True)
            if golden.hook == "on_register_failed":
                # The wire is the same; our proto file gives the values a prefix of their own.
                decoded["reason"] = decoded["reason"].replace("REGISTRATION_", "")
            self.assertEqual((golden.case, decoded), (golden.case, golden.decoded))
            self.assertEqual(event.client_id, golden.decoded.get("client_id", ""))
            self.assertEqual(event.mountpoint, golden.decoded.get("mountpoint", ""))
            self.assertEqual(event.username, golden.decoded.get("username", ""))
        self.assertEqual(hooks, set(HOOKS))

    def test_timestamps(self):
        by_case = {golden.case: decode(golden.frame) for golden in golden_frames() if golden.frame}
        self.assertEqual(by_case["publish_typical_q0"].timestamp, 1_767_225_600_123_456_789)
        self.assertEqual(by_case["publish_ts_nanos_only"].timestamp, 5)
        self.assertEqual(by_case["publish_ts_before_epoch"].timestamp, -1_500_000_000)

    def test_not_utf_8(self):
        by_case = {golden.case: decode(golden.frame) for golden in golden_frames() if "synthetic" in golden.encoder}
        self.assertEqual(by_case["invalid_utf8_clientid_latin1"].client_id, "caf\ufffd")
        self.assertEqual(by_case["invalid_utf8_clientid_latin1"].message.payload, b'{"status":"DRIVER_FOUND","order":42}')
        self.assertEqual(by_case["invalid_utf8_username_ff"].username, "u\ufffd")
        self.assertEqual(by_case["invalid_utf8_acl_ff"].message.matched_acl.name, "\ufffd")
        self.assertEqual(dict(by_case["invalid_utf8_userprop_value_ff"].message.user_properties), {"k": "\ufffd"})
        self.assertEqual(by_case["invalid_utf8_subscribe_topic_ff"].topics, ("t/\ufffd",))
        self.assertEqual(by_case["invalid_utf8_clientid_noncharacter_fffe_OK"].client_id, "c\ufffe")


class DecodeTests(SynchronousTestCase):
    """What the recorded frames don't show."""

    def test_unknown_type_is_named(self):
        error = self.assertRaises(UnknownType, decode, envelope(OnPublish(), "eventssidecar.v1.OnLunch"))
        self.assertEqual(error.name, "eventssidecar.v1.OnLunch")
        self.assertIn("'eventssidecar.v1.OnLunch'", str(error))

    def test_unknown_name_is_shortened(self):
        self.assertEqual(len(self.assertRaises(UnknownType, decode, envelope(OnPublish(), "x" * 1000)).name), 128)

    def test_no_type(self):
        self.assertRaises(UnknownType, decode, AnyMessage(value=b"x").SerializeToString())

    def test_other_type_url_prefix(self):
        frame = AnyMessage(type_url="example.org/eventssidecar.v1.OnPublish").SerializeToString()
        self.assertEqual(decode(frame).hook, "on_publish")

    def test_malformed(self):
        for frame in (b"\xff", b"\x0a\x05abc", envelope(OnPublish())[:-3]):
            self.assertRaises(MalformedFrame, decode, frame)
        wrong = AnyMessage(type_url="type.googleapis.com/eventssidecar.v1.OnPublish", value=b"\x0a\xff")
        self.assertRaises(MalformedFrame, decode, wrong.SerializeToString())

    def test_unknown_fields_are_ignored(self):
        message = OnPublish(client_id="c", topic="t").SerializeToString() + b"\xfa\x3f\x03new"
        frame = AnyMessage(type_url="type.googleapis.com/eventssidecar.v1.OnPublish", value=message).SerializeToString()
        self.assertEqual(decode(frame + b"\x1a\x03new").client_id, "c")

    def test_timestamps_that_nobody_means(self):
        for seconds, expected in ((2**62, 2**63 - 1), (-(2**62), -(2**63))):
            message = OnPublish()
            message.timestamp.seconds = seconds
            self.assertEqual(decode(envelope(message)).timestamp, expected)

    def test_no_timestamp(self):
        self.assertEqual(decode(envelope(OnPublish())).timestamp, 0)

    def test_repeated_property_of_a_lenient_message(self):
        entry = b"\x3a\x07\x0a\x01k\x12\x02\xffa", b"\x3a\x06\x0a\x01k\x12\x01b"
        frame = AnyMessage(
            type_url="type.googleapis.com/eventssidecar.v1.OnRegister", value=b"".join(entry)
        ).SerializeToString()
        self.assertEqual(dict(decode(frame).message.user_properties), {"k": "b"})

    def test_user_properties(self):
        for hook in M5_HOOKS:
            message = MESSAGES[hook].protobuf(client_id="c", user_properties={"b": "ü", "": "", "a": "2"}, session_id="s")
            event = decode(envelope(message))
            self.assertEqual((event.hook, event.client_id, event.message.session_id), (hook, "c", "s"))
            self.assertEqual(event.message.user_properties, {"a": "2", "b": "ü", "": ""})
            self.assertEqual(dict(event.fields())["user_properties"], {"": "", "a": "2", "b": "ü"})
            message.user_properties.clear()
            self.assertIs(decode(envelope(message)).message.user_properties, NO_PROPERTIES)

    @given(st.sampled_from(M5_HOOKS), st.data())
    def test_user_properties_stand_anywhere_and_the_last_of_a_key_wins(self, hook, data):
        protobuf = MESSAGES[hook].protobuf
        pairs = data.draw(st.lists(st.tuples(st.sampled_from(("", "a", "b")), st.text(max_size=3))))
        fields = [protobuf(user_properties={key: value}).SerializeToString() for key, value in pairs]
        for number in range(len(fields) + 1):
            fields.insert(2 * number, protobuf(client_id=f"c{number}").SerializeToString())
        frame = AnyMessage(type_url=f"type.googleapis.com/{protobuf.DESCRIPTOR.full_name}", value=b"".join(fields))
        event = decode(frame.SerializeToString())
        self.assertEqual(event.message.user_properties, dict(pairs))
        self.assertEqual(event.client_id, f"c{len(pairs)}")

    def test_an_entry_without_key_and_value_is_one(self):
        """Encoders may leave out what is empty: then the entry itself is, also when it comes last, or is the only one."""
        for hook in M5_HOOKS:
            protobuf = MESSAGES[hook].protobuf
            empty = b"%c\0" % (protobuf.DESCRIPTOR.fields_by_name["user_properties"].number << 3 | 2)
            other = protobuf(client_id="c", user_properties={"a": "1"}).SerializeToString()
            for value, expected in (
                (other + empty, {"a": "1", "": ""}),
                (empty + other, {"a": "1", "": ""}),
                (empty, {"": ""}),
                (empty + protobuf(client_id="c\0").SerializeToString().replace(b"\0", b"\xff"), {"": ""}),
            ):
                frame = AnyMessage(type_url=f"type.googleapis.com/{protobuf.DESCRIPTOR.full_name}", value=value)
                self.assertEqual(decode(frame.SerializeToString()).message.user_properties, expected, (hook, value))

    def test_user_properties_that_are_not_utf_8(self):
        for hook in M5_HOOKS:
            message = MESSAGES[hook].protobuf(client_id="cX", user_properties={"kX": "vX", "ü": "ü"})
            for bad, client, properties in (
                ((b"cX", b"c\xff"), "c\ufffd", {"kX": "vX", "ü": "ü"}),
                ((b"vX", b"v\xff"), "cX", {"kX": "v\ufffd", "ü": "ü"}),
                ((b"kX", b"k\xff"), "cX", {"k\ufffd": "vX", "ü": "ü"}),
            ):
                event = decode(envelope(message).replace(*bad))
                self.assertEqual((event.client_id, event.message.user_properties), (client, properties))

    def test_user_properties_that_are_none(self):
        for hook in M5_HOOKS:
            protobuf = MESSAGES[hook].protobuf
            tag = protobuf.DESCRIPTOR.fields_by_name["user_properties"].number << 3 | 2
            frame = AnyMessage(type_url=f"type.googleapis.com/{protobuf.DESCRIPTOR.full_name}", value=b"%c\x02\x0a\x05" % tag)
            self.assertRaises(MalformedFrame, decode, frame.SerializeToString())

    def test_topics(self):
        subscription = OnSubscribe()
        subscription.topics.add(topic="a")
        subscription.topics.add(topic="b/#")
        self.assertEqual(decode(envelope(subscription)).topics, ("a", "b/#"))
        self.assertEqual(decode(envelope(OnPublish(topic="t"))).topics, ("t",))
        self.assertEqual(decode(envelope(OnRegister())).topics, ())

    def test_fields(self):
        message = OnClientGone(client_id="c", reason=9, session_id="s")
        message.timestamp.FromMilliseconds(1234)
        self.assertEqual(
            list(decode(envelope(message)).fields()),
            [
                ("timestamp", 1234),
                ("client_id", "c"),
                ("mountpoint", ""),
                ("reason", "mqtt_client_disconnect"),
                ("username", ""),
                ("session_id", "s"),
            ],
        )

    def test_reasons(self):
        self.assertEqual(reason_name(5), "disconnect_keep_alive")
        self.assertEqual(reason_name(99), "reason_99")
        self.assertEqual(failure_name(2), "invalid_credentials")
        self.assertEqual(failure_name(-1), "reason_-1")

    @settings(deadline=None)
    @given(st.binary())
    def test_random_bytes(self, frame):
        try:
            decode(frame)
        except DecodeError as error:
            self.assertNotIn("\n", str(error).replace("\\n", ""))

    @settings(deadline=None)
    @given(st.sampled_from(sorted(HOOKS)), st.binary())
    def test_random_messages(self, hook, value):
        name = MESSAGES[hook].protobuf.DESCRIPTOR.full_name
        frame = AnyMessage(type_url=f"type.googleapis.com/{name}", value=value).SerializeToString()
        try:
            event = decode(frame)
        except DecodeError:
            return
        self.assertEqual(event.hook, hook)
        self.assertEqual([name for name, _ in event.fields()], list(MESSAGES[hook].protobuf.DESCRIPTOR.fields_by_name))

    @settings(deadline=None)
    @given(st.sampled_from(sorted(HOOKS)), st.binary(min_size=1, max_size=6), st.binary(max_size=300), st.booleans())
    def test_protobuf_decides_what_an_envelope_is(self, hook, length, value, fits):
        """The value's length is any bytes: varints that are too long, do not end, or promise more than there is."""
        url = f"type.googleapis.com/{MESSAGES[hook].protobuf.DESCRIPTOR.full_name}".encode()
        if fits and value:
            length = bytes([len(value) & 0x7F | 0x80, len(value) >> 7])
        frame = b"\x0a" + bytes([len(url)]) + url + b"\x12" + length + value
        try:
            # What follows may be anything, another type among it: the last one counts.
            expected = decode(AnyMessage.FromString(frame).SerializeToString())
        except (ProtobufError, MalformedFrame):
            self.assertRaises(MalformedFrame, decode, frame)
        except UnknownType:
            self.assertRaises(UnknownType, decode, frame)
        else:
            self.assertEqual(decode(frame), expected)

    def test_a_length_that_does_not_end_is_refused_at_any_size(self):
        for size in (0, 5, 200, 70_000):
            frame = envelope(OnPublish(topic="t"))[:-4] + b"\x85" + b"\x80" * 10 + bytes(size)
            self.assertRaises(MalformedFrame, decode, frame)

    def test_a_third_byte_of_the_length_is_not_mistaken_for_the_value(self):
        # Its first byte alone would fit the rest of the frame exactly, and that would be a message of unknown fields.
        rest = b"\x80\x01\x00" * 44 + b"\x28\x00"
        frame = envelope(OnPublish(topic="t"))[:-4] + b"\x86" + rest
        self.assertEqual(len(rest), 134)
        self.assertRaises(MalformedFrame, decode, frame)

    @settings(deadline=None)
    @given(st.sampled_from([golden.frame for golden in golden_frames() if 0 < len(golden.frame) < 1000]), st.data())
    def test_damaged_frames(self, frame, data):
        position = data.draw(st.integers(0, len(frame) - 1))
        damaged = frame[:position] + data.draw(st.binary(min_size=1, max_size=4)) + frame[position + 1 :]
        try:
            list(decode(damaged).fields())
        except DecodeError:
            pass
