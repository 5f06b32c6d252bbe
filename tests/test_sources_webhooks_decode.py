"""From the body of a request to an event."""

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import MalformedBody
from mqhooks.events import FAILURES, REASONS, Event, SubscriptionOptions, failure_name, reason_name
from mqhooks.nanomq.bodies import hook_body
from mqhooks.nanomq.events import NANOMQ_EVENTS
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import Rule
from mqhooks.sources.sidecar.decode import decode as decode_frame
from mqhooks.sources.sidecar.pieces import MANY, NAMES, PIECE
from mqhooks.sources.webhooks.decode import HOOKS, OTHERS, OTHERS_SIZE, QUESTIONS, decode, divide
from mqhooks.testing import make_event
from mqhooks.webhook.settings import WebhookSettings
from tests.frames import golden_frames
from tests.vernemq import recorded

NOW = 1_700_000_000_123_456_789


def read(hook, body, **options):
    """Decode what may be given as a value."""
    return decode(HOOKS[hook.encode()], body if isinstance(body, bytes) else json.dumps(body).encode(), NOW, **options)


def message(**values):
    return {
        "mountpoint": "",
        "client_id": "c",
        "username": "u",
        "qos": 1,
        "topic": "t",
        "payload": "aGk=",
        "retain": False,
    } | values


def everything(**settings):
    """Rules for all events, with details."""
    rules = tuple(map(Rule, (*NANOMQ_EVENTS, *{hook.decode().removesuffix("_m5") for hook in HOOKS})))
    return Rules(WebhookSettings("w", "http://h/", rules, details=True, **settings).bodies)


def pairs(*items):
    def encode(text):
        return b64encode(text.encode()).decode()

    return [{"key": encode(key), "val": encode(value)} for key, value in items]


def native(hook, **settings):
    """Makes the bodies of a rule that names a hook."""
    return Rules(WebhookSettings("w", "http://h/", (Rule(hook),), **settings).bodies).bodies


class GoldenTests(SynchronousTestCase):
    def test_every_recorded_request(self):
        seen = set()
        for record in recorded():
            if record.hook in QUESTIONS:
                continue
            seen.add(record.hook)
            values = record.values
            text = record.case.startswith("base64-off")
            event = read(record.hook, record.body, text=text)
            with self.subTest(record):
                self.assertEqual(event.hook, record.hook.removesuffix("_m5"))
                self.assertEqual(event.mqtt5, record.hook.endswith("_m5"))
                self.assertFalse(event.window)
                self.assert_told(event, values, text)
                for body in everything().bodies(event):
                    msgspec.json.decode(body)
                fields = json.loads(hook_body(event))
                self.assertEqual((fields["client_id"], fields["mountpoint"]), (values["client_id"], values["mountpoint"]))
        self.assertLessEqual(seen, {hook.decode() for hook in HOOKS})
        self.assertEqual(len(seen), 17)

    def test_details_of_native_bodies(self):
        """Options and properties are in the bodies of rules that name a hook, if they are asked for."""
        options = properties = 0
        for record in recorded():
            if record.hook in QUESTIONS:
                continue
            event, values = read(record.hook, record.body), record.values
            (plain,) = native(event.hook)(event)
            self.assertEqual(plain, hook_body(event))
            plain, detailed = (
                json.loads(body) for (body,) in (native(event.hook)(event), native(event.hook, details=True)(event))
            )
            others = {key: value for key, value in values.get("properties", {}).items() if key != "p_user_property"}
            self.assertEqual(detailed.pop("properties", {}), others)
            properties += bool(others)
            if event.hook == "on_subscribe":
                for topic, asked in zip(detailed["topics"], values["topics"], strict=True):
                    for key in ("no_local", "rap", "retain_handling"):
                        self.assertEqual(topic.pop(key, None), asked.get(key))
                        options += key in asked
            self.assertEqual(detailed, plain)
        self.assertGreater(min(options, properties), 3)

    def assert_told(self, event, values, text):
        said = event.message
        for key, value in values.items():
            if key in ("client_id", "mountpoint"):
                self.assertEqual(getattr(event, key), value)
                self.assertEqual(getattr(said, key), value)
            elif key == "username":
                unset = value == "undefined" and event.hook.startswith("on_client")
                self.assertEqual(event.username, "" if unset or value is None else value)
            elif key == "payload":
                self.assertEqual(said.payload, value.encode() if text else b64decode(value))
            elif key == "retain":
                self.assertEqual(getattr(said, "is_retain", getattr(said, "retain", None)), value)
            elif key == "topics":
                topics = [topic if isinstance(topic, str) else (topic["topic"], min(topic["qos"], 128)) for topic in value]
                self.assertEqual([t if isinstance(t, str) else (t.topic, t.qos) for t in said.topics], topics)
            elif key == "timestamp":
                self.assertEqual(event.timestamp % 1_000_000_000, int(value[20:29]))
            elif key == "session_id":
                self.assertEqual(said.session_id, "" if value == "undefined" else value)
            elif key == "reason":
                name = failure_name(said.reason) if event.hook == "on_register_failed" else reason_name(said.reason)
                expected = value.removeprefix("REASON_").removeprefix("ERR ").lower()
                self.assertEqual(name, "unspecified" if expected == "undefined" else expected)
            elif value == "undefined":
                self.assertIn(getattr(said, key), ("", 0))
            elif key == "properties":
                others = {name: one for name, one in value.items() if name != "p_user_property"}
                self.assertEqual(json.loads(json.dumps(event.properties)), others or None)
                hash(event)
                user = {
                    b64decode(one["key"]).decode(): b64decode(one["val"]).decode() for one in value.get("p_user_property", [])
                }
                self.assertEqual(said.user_properties, user)
            else:
                self.assertEqual(getattr(said, key), value)
        if "timestamp" not in values:
            self.assertEqual((event.timestamp, said.timestamp), (NOW, NOW))

    def test_the_same_event_as_from_the_sidecar(self):
        # What the fork's two plugins say of the same call; what the webhook does not have is left out.
        compared = set()
        for golden in golden_frames():
            if golden.decoded is None or golden.hook.encode() not in HOOKS:
                continue
            event = decode_frame(golden.frame)
            values = dict(event.fields())
            if event.timestamp < 0:
                continue
            body = self.told(event, values)
            seconds, nanoseconds = divmod(event.timestamp, 1_000_000_000)
            again = read(golden.hook, body | {"timestamp": self.rfc3339(seconds, nanoseconds)})
            compared.add(golden.hook)
            expected = msgspec.structs.replace(event, window=False, message=self.without_acl(event.message))
            self.assertEqual(again, expected)
        self.assertEqual(len(compared), 12)

    @staticmethod
    def rfc3339(seconds, nanoseconds):
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"

    @staticmethod
    def told(event, values):
        body = {
            key: value for key, value in values.items() if key not in ("timestamp", "matched_acl", "persisted", "is_retain")
        }
        if "is_retain" in values:
            body["retain"] = values["is_retain"]
        if "payload" in body:
            body["payload"] = b64encode(values["payload"]).decode()
        if "reason" in body:
            body["reason"] = body["reason"] if event.hook == "on_register_failed" else f"REASON_{body['reason'].upper()}"
        if event.hook == "on_subscribe":
            body["topics"] = [{"topic": topic["topic"], "qos": topic["qos"]} for topic in values["topics"]]
        return body

    @staticmethod
    def without_acl(said):
        changes = {}
        if hasattr(said, "matched_acl"):
            changes["matched_acl"] = type(said.matched_acl)()
        if hasattr(said, "persisted"):
            changes["persisted"] = False
        if "topics" in said.__struct_fields__ and said.topics and not isinstance(said.topics[0], str):
            changes["topics"] = tuple(type(topic)(topic.topic, topic.qos) for topic in said.topics)
        names = REASONS if type(said).__name__.startswith("Client") else FAILURES
        if isinstance(getattr(said, "reason", None), int) and said.reason >= len(names):
            changes["reason"] = 0
        return msgspec.structs.replace(said, **changes)


class ValueTests(SynchronousTestCase):
    def test_payloads(self):
        self.assertEqual(read("on_publish", message(payload="AP/+")).message.payload, b"\x00\xff\xfe")
        self.assertEqual(read("on_publish", message(payload="true"), text=True).message.payload, b"true")
        for text in ('{"temp":21.5}', "a", "aGk", "aGk=\n", "käse", "a=b="):
            self.assertEqual(read("on_publish", message(payload=text)).message.payload, text.encode())

    def test_times(self):
        for text, nanoseconds in (
            ("2026-11-25T19:12:39.131356671Z", 1_795_633_959_131_356_671),
            ("2026-11-25T19:12:39Z", 1_795_633_959_000_000_000),
            ("2026-11-25T21:12:39.5+02:00", 1_795_633_959_500_000_000),
            ("1969-12-31T23:59:59.999999999Z", -1),
            ("9999-12-31T23:59:59Z", (1 << 63) - 1),
            ("0001-01-01T00:00:00Z", -(1 << 63)),
            ("2026-02-30T00:00:00Z", NOW),
            ("0001-01-01T00:00:00+23:59", -(1 << 63)),
            ("yesterday", NOW),
            (None, NOW),
        ):
            event = read("on_publish", message(timestamp=text))
            self.assertEqual((event.timestamp, event.message.timestamp), (nanoseconds, nanoseconds), text)

    def test_mqtt_5(self):
        register = {"mountpoint": "", "client_id": "c", "username": None, "peer_addr": "::1", "peer_port": 1}
        (connect, *_) = everything(proto_ver=4).bodies(read("on_register_m5", register | {"properties": {}}))
        self.assertEqual(json.loads(connect)["proto_ver"], 5)
        (connect, *_) = everything(proto_ver=4).bodies(read("on_register", register))
        self.assertEqual(json.loads(connect)["proto_ver"], 4)

    def test_properties(self):
        user = pairs(("region", "eu"), ("region", "us"), ("kü", ""))
        properties = {"p_subscription_id": [1, 2], "p_user_property": user, "p_content_type": "x"}
        register = {"mountpoint": "", "client_id": "c", "peer_addr": "::1", "peer_port": 1, "properties": properties}
        event = read("on_register_m5", register)
        self.assertEqual(event.message.user_properties, {"region": "us", "kü": ""})
        self.assertEqual(event.properties, {"p_subscription_id": (1, 2), "p_content_type": "x"})
        (connect, *_) = everything().bodies(event)
        self.assertTrue(
            connect.endswith(
                b'"user_properties":{"k\xc3\xbc":"","region":"us"},"properties":{"p_subscription_id":[1,2],"p_content_type":"x"}}'
            ),
            connect,
        )

    def test_many_user_properties(self):
        user = pairs(*((str(number), "") for number in range(MANY + 5)))
        event = read("on_register_m5", {"client_id": "c", "properties": {"p_user_property": user}})
        self.assertEqual(len(event.message.user_properties), MANY)

    def test_many_user_properties_of_the_fork(self):
        event = read("on_register", {"client_id": "c", "user_properties": {str(number): "" for number in range(MANY + 5)}})
        self.assertEqual(list(event.message.user_properties), [str(number) for number in range(MANY)])

    def test_long_user_properties(self):
        value = "v" * 1000
        plain = {str(number): value for number in range(200)}
        for hook, body in (
            ("on_register", {"user_properties": plain}),
            ("on_publish_m5", {"topic": "t", "properties": {"p_user_property": pairs(*plain.items())}}),
        ):
            kept = read(hook, {"client_id": "c", **body}).message.user_properties
            self.assertEqual(dict(kept), {str(number): value for number in range(len(kept))})
            self.assertLess(abs(len(kept) * len(value) - PIECE), 2 * len(value))

    def test_what_topics_repeat(self):
        # Each topic becomes a body, which names the client: a thousand of them would take hundreds of megabytes.
        topics = [str(number) for number in range(100)]
        for body in (
            {"client_id": "c" * 60_000},
            {"client_id": "c", "username": "u" * 60_000},
            {"client_id": "c", "properties": {"p_user_property": pairs(("k", "v" * 60_000))}},
            {"client_id": "c", "properties": {"p_x": "v" * 60_000}},
        ):
            parts = list(divide(read("on_unsubscribe_m5", {**body, "topics": topics})))
            self.assertLessEqual(max(len(part.topics) for part in parts), NAMES // 60_000)
            self.assertEqual([topic for part in parts for topic in part.topics], topics)
        long = [f"{number:01000}" for number in range(200)]
        parts = list(divide(read("on_unsubscribe", {"client_id": "c", "topics": long})))
        self.assertLessEqual(max(sum(map(len, part.topics)) for part in parts), PIECE + 1000)
        self.assertEqual([topic for part in parts for topic in part.topics], long)

    def test_properties_are_bounded(self):
        # Decoded, they would take seconds and a gigabyte.
        text = "," * OTHERS_SIZE
        for properties, mistake in (
            ({"p_x": [{}] * (OTHERS + 1)}, f"{OTHERS} values"),
            ({str(number): 1 for number in range(OTHERS + 1)}, f"{OTHERS} values"),
            ({"a": [1] * (OTHERS // 2), "b": {str(number): 1 for number in range(OTHERS // 2)}, "c": 1}, f"{OTHERS} values"),
            ({"p_content_type": text}, f"{OTHERS_SIZE} bytes"),
        ):
            error = self.assertRaises(MalformedBody, read, "on_register_m5", {"client_id": "c", "properties": properties})
            self.assertEqual(str(error), f"not what this hook sends: its properties have more than {mistake}")
        most = "," * (OTHERS_SIZE // 2)
        properties = {
            "p_user_property": pairs(("k", text)),
            "p_content_type": most,
            "p_subscription_id": list(range(OTHERS - 1)),
        }
        event = read("on_register_m5", {"client_id": "c", "properties": properties})
        self.assertEqual((event.message.user_properties, event.properties["p_content_type"]), ({"k": text}, most))
        self.assertEqual(event.properties["p_subscription_id"], tuple(range(OTHERS - 1)))

    def test_each_part_has_the_options_of_its_topics(self):
        topics = [
            {"topic": f"t/{number}", "qos": 1}
            | ({"no_local": number % 3 == 0, "retain_handling": "later"} if number % 2 else {})
            for number in range(2 * MANY + 1)
        ]
        parts = list(divide(read("on_subscribe_m5", {"client_id": "c", "topics": topics})))
        self.assertEqual([len(part.options) for part in parts], [MANY, MANY, 1])
        for topic, options in zip(topics, [options for part in parts for options in part.options], strict=True):
            asked = SubscriptionOptions(topic["no_local"], False, "later") if "no_local" in topic else None
            self.assertEqual(options, asked)
        self.assertEqual(read("on_subscribe_m5", {"client_id": "c", "topics": [{"topic": "t"}]}).options, ())

    def test_many_topics(self):
        topics = [{"topic": f"t/{number}", "qos": number % 3} for number in range(2 * MANY + 1)]
        parts = list(divide(read("on_subscribe", {"client_id": "c", "topics": topics})))
        self.assertEqual([len(part.message.topics) for part in parts], [MANY, MANY, 1])
        self.assertEqual([topic.topic for part in parts for topic in part.message.topics], [topic["topic"] for topic in topics])

    def test_a_peer_without_an_address(self):
        event = read("on_register", {"client_id": "c", "peer_addr": "undefined", "peer_port": "undefined"})
        self.assertEqual((event.message.peer_addr, event.message.peer_port), ("", 0))

    def test_reasons(self):
        for reason, name in (
            ("REASON_TCP_CLOSED", "tcp_closed"),
            ("undefined", "unspecified"),
            (None, "unspecified"),
            ("x", "unspecified"),
        ):
            event = read("on_client_gone", {"client_id": "c", "reason": reason})
            self.assertEqual(reason_name(event.message.reason), name)

    def test_malformed(self):
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b"\xff",
            b'{"client_id":"\\ud800","topic":"t"}',
            b'{"client_id":"c","topic":"t","qos":NaN}',
            b'{"client_id":"c","topic":"t","qos":' + b"9" * 5000 + b"}",
            b'{"client_id":"c","topic":"t","x":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
            message(qos=256),
            message(qos=-1),
            message(qos="1"),
            message(client_id=None),
            message(payload=1),
            message(properties=[]),
            message(properties={"p_x": [[[[[[[[[1]]]]]]]]]}),
            message(properties={"p_x": 1 << 64}),
            message(properties={"p_user_property": {}}),
            message(properties={"p_user_property": [{"key": "%", "val": ""}]}),
        ):
            with self.assertRaises(MalformedBody) as raised:
                read("on_publish_m5", body)
            self.assertLess(len(str(raised.exception)), 200)

    def test_content_is_not_told(self):
        for body in (
            message(qos="hidden"),
            message(client_id=["hidden"]),
            message(properties={"hidden": {"hidden": 1 << 70}}),
            b'{"hidden',
        ):
            with self.assertRaises(MalformedBody) as raised:
                read("on_publish_m5", body)
            self.assertNotIn("hidden", str(raised.exception))

    def test_unknown_and_repeated_keys(self):
        event = read("on_publish", b'{"client_id":"a","x":{"y":[1e300]},"topic":"t","client_id":"b"}')
        self.assertEqual(event.client_id, "b")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("undefined"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("p_user_property"), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = [
    "client_id",
    "mountpoint",
    "username",
    "topic",
    "topics",
    "qos",
    "payload",
    "retain",
    "properties",
    "timestamp",
    "session_id",
    "peer_addr",
    "peer_port",
    "reason",
    "user_properties",
    "clean_session",
]


class AnythingTests(SynchronousTestCase):
    @given(st.sampled_from(sorted(HOOKS)), st.binary(max_size=200))
    def test_bytes(self, hook, body):
        self.check(hook, body)

    @given(st.sampled_from(sorted(HOOKS)), st.dictionaries(st.sampled_from(KEYS), JSON))
    @example(b"on_publish_m5", {"client_id": "c", "topic": "t", "properties": {"x": 1e400}})
    def test_json(self, hook, values):
        base = {"client_id": "c", "topic": "t", "topics": []}
        self.check(hook, json.dumps(base | values).encode())

    def check(self, hook, body):
        try:
            event = decode(HOOKS[hook], body, NOW)
        except MalformedBody:
            return
        self.assertIsInstance(event, Event)
        for part in everything().bodies(event):
            msgspec.json.decode(part)


class EventTests(SynchronousTestCase):
    def test_events_of_other_sources_wait_in_the_window(self):
        event = make_event("on_publish")
        self.assertEqual((event.window, event.mqtt5, event.properties), (True, False, None))
