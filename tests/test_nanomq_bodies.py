"""
The bodies: of every frame that VerneMQ's own encoder made, and those recorded from a real NanoMQ 0.25.5.
"""

import json
import re
from base64 import b64decode, b64encode
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.events import HOOKS, M5_HOOKS
from mqhooks.nanomq.bodies import hook_body
from mqhooks.nanomq.events import CAUSES, NANOMQ_EVENTS
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.sources.sidecar.decode import decode
from mqhooks.testing import make_event
from tests.frames import DATA, golden_frames

DELIVERED = "timestamp username client_id mountpoint topic qos is_retain payload matched_acl persisted session_id"
FIELDS = {
    "on_register": "timestamp peer_addr peer_port username mountpoint client_id user_properties session_id",
    "on_register_failed": "timestamp mountpoint client_id peer_addr peer_port username clean_session reason",
    "on_publish": "timestamp username client_id mountpoint qos topic payload retain matched_acl session_id",
    "on_subscribe": "timestamp client_id mountpoint username topics session_id",
    "on_unsubscribe": "timestamp username client_id mountpoint topics session_id",
    "on_deliver": DELIVERED,
    "on_delivery_complete": DELIVERED,
    "on_offline_message": "timestamp client_id mountpoint qos topic payload retain session_id",
    "on_client_wakeup": "timestamp client_id mountpoint session_id",
    "on_client_offline": "timestamp client_id mountpoint reason username session_id",
    "on_client_gone": "timestamp client_id mountpoint reason username session_id",
    "on_session_expired": "timestamp client_id mountpoint session_id",
    "on_message_drop": "timestamp client_id mountpoint qos topic payload reason matched_acl session_id",
}
ABSENT = {
    "timestamp": "1970-01-01T00:00:00Z",
    "user_properties": {},
    "matched_acl": {},
    "topics": [],
    **dict.fromkeys(("peer_port", "qos"), 0),
    **dict.fromkeys(("clean_session", "retain", "is_retain", "persisted"), False),
}
BAD = "\N{REPLACEMENT CHARACTER}"
NOT_JSON = {
    # What protobuf's JSON cannot show: a time before 1970, and strings that are not UTF-8.
    "publish_ts_before_epoch": {"timestamp": "1969-12-31T23:59:58.500000Z"},
    "invalid_utf8_clientid_latin1": {"client_id": f"caf{BAD}"},
    "invalid_utf8_clientid_truncated": {"client_id": f"c{BAD}"},
    "invalid_utf8_clientid_overlong": {"client_id": f"c{BAD * 2}"},
    "invalid_utf8_clientid_above_10ffff": {"client_id": f"c{BAD * 4}"},
    "invalid_utf8_username_ff": {"username": f"u{BAD}"},
    "invalid_utf8_acl_ff": {"matched_acl": {"name": BAD, "pattern": BAD}},
    "invalid_utf8_userprop_value_ff": {"peer_addr": "10.1.2.3", "peer_port": 1, "user_properties": {"k": BAD}},
    "invalid_utf8_subscribe_topic_ff": {
        "topics": [{"topic": f"t/{BAD}", "qos": 1, "matched_acl": {"name": "orders-acl", "pattern": "orders/+/status"}}]
    },
}
TYPICAL = {
    "timestamp": "2026-01-01T00:00:00.123456789Z",
    "username": "u",
    "client_id": "c",
    "qos": 1,
    "topic": "t",
    "payload": "eyJzdGF0dXMiOiJEUklWRVJfRk9VTkQiLCJvcmRlciI6NDJ9",
    "matched_acl": {"name": "orders-acl", "pattern": "orders/+/status"},
    "session_id": "96366244-e848-4ef4-82c1-5ee7c5cf8102",
}


def webhook(*names, **options):
    return Rules(BodySettings(tuple(Rule(name) for name in names), **options))


def compact(body):
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def payload(data, encoding):
    """How the payload stands in the body, and what the body ends with."""
    if encoding == "plain":
        try:
            return data.decode(), {}
        except UnicodeDecodeError:
            return b64encode(data).decode(), {"payload_encoding": "base64"}
    return b64encode(data).decode(), {}


def acl(value):
    return {"name": value.get("name", ""), "pattern": value.get("pattern", "")}


def milliseconds(text):
    whole, _, fraction = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 1000 + int(f"{fraction:0<3}"[:3])


class Message:
    """What a frame says, by the JSON that protobuf made of it."""

    def __init__(self, hook, fields):
        fields = {name: fields.get(name, ABSENT.get(name, "")) for name in FIELDS[hook].split()}
        self.hook = hook
        self.ts = milliseconds(fields["timestamp"])
        self.data = b64decode(fields.get("payload", ""))
        fields["timestamp"] = self.ts
        if hook in ("on_client_offline", "on_client_gone", "on_register_failed"):
            number = fields["reason"]
            fields["reason"] = (
                f"reason_{number}" if isinstance(number, int) else number.removeprefix("REASON_").lower() or "unspecified"
            )
        if "matched_acl" in fields:
            fields["matched_acl"] = acl(fields["matched_acl"])
        if "user_properties" in fields:
            fields["user_properties"] = dict(sorted(fields["user_properties"].items()))
        if hook == "on_subscribe":
            fields["topics"] = [
                {"topic": info.get("topic", ""), "qos": info.get("qos", 0), "matched_acl": acl(info["matched_acl"])}
                for info in fields["topics"]
            ]
        self.fields = fields

    def in_own_words(self, encoding):
        body = {"action": self.hook.removeprefix("on_"), **self.fields}
        if "payload" in body:
            body["payload"], tail = payload(self.data, encoding)
            body |= tail
        return body

    def in_nanomq_words(self, encoding):
        fields = self.fields
        who = {"username": fields.get("username") or "undefined", "clientid": fields["client_id"]}
        version = {"proto_ver": 5 if fields.get("user_properties") else None, "keepalive": None}
        address = {"ipaddress": fields.get("peer_addr") or None}
        reason = fields.get("reason")
        if reason in ("normal_disconnect", "mqtt_client_disconnect"):
            reason = "normal"
        text, tail = payload(self.data, encoding)
        if self.hook in ("on_register", "on_register_failed"):
            yield {**version, **who, **address, "action": "client_connect"}
            yield {**version, "conn_ack": reason or "success", **who, "action": "client_connack"}
        if self.hook == "on_register":
            yield {**version, "connected_at": self.ts, **who, **address, "action": "client_connected"}
        if self.hook in ("on_client_offline", "on_client_gone"):
            yield {"reason": reason, **who, "action": "client_disconnected"}
        if self.hook == "on_client_gone":
            yield {"reason": reason, **who, "action": "session_terminated"}
        if self.hook == "on_session_expired":
            yield {"reason": "expired", **who, "action": "session_terminated"}
        if self.hook == "on_subscribe":
            for action in ("client_subscribe", "session_subscribed"):
                for info in fields["topics"]:
                    if action == "client_subscribe" or info["qos"] != 128:
                        yield {"topic": info["topic"], "opts": {"qos": info["qos"]}, **who, "action": action}
        if self.hook == "on_unsubscribe":
            for action in ("client_unsubscribe", "session_unsubscribed"):
                for topic in fields["topics"]:
                    yield {"topic": topic, **who, "action": action}
        message = {"ts": self.ts, "topic": fields.get("topic")}
        if self.hook == "on_publish":
            message |= {"retain": fields["retain"], "qos": fields["qos"], "action": "message_publish"}
            message |= {"from_username": who["username"], "from_client_id": who["clientid"]}
            yield {**message, "payload": text, **tail}
        if self.hook in ("on_deliver", "on_delivery_complete"):
            action = "message_delivered" if self.hook == "on_deliver" else "message_acked"
            message |= {"retain": fields["is_retain"], "qos": fields["qos"], "action": action}
            yield {**message, **who, "from_username": None, "from_client_id": None, "payload": text, **tail}


class FramesTests(SynchronousTestCase):
    def setUp(self):
        self.frames = []
        for golden in golden_frames():
            fields = golden.decoded
            if fields is None and golden.frame:
                fields = TYPICAL | NOT_JSON[golden.case]
                if golden.encoder.endswith("2024"):
                    del fields["session_id"]
            if golden.frame:
                self.frames.append((f"{golden.case} {golden.encoder}", decode(golden.frame), Message(golden.hook, fields)))
        self.assertEqual({event.hook for _, event, _ in self.frames}, set(HOOKS))

    def test_in_nanomq_words(self):
        for encoding in ("plain", "base64"):
            rules = webhook(*NANOMQ_EVENTS, encoding=encoding)
            for case, event, message in self.frames:
                expected = [compact(body) for body in message.in_nanomq_words(encoding)]
                self.assertEqual(list(rules.bodies(event)), expected, case)

    def test_in_own_words(self):
        for encoding in ("plain", "base64"):
            for case, event, message in self.frames:
                expected = compact(message.in_own_words(encoding))
                self.assertEqual(hook_body(event, encoding), expected, case)
                self.assertEqual(webhook(event.hook, encoding=encoding).bodies(event), [expected], case)


def requests():
    with (DATA / "nanomq-requests.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["case"], record["encoding"], record.get("event"), b64decode(record["body_b64"])


def connected(version, keepalive, client_id, username=""):
    event = make_event("on_register", client_id=client_id, username=username)
    return webhook("on_client_connack", proto_ver=version, keepalive=keepalive), event


def refused(version, client_id, username=""):
    event = make_event("on_register_failed", client_id=client_id, username=username)
    return webhook("on_client_connack", proto_ver=version, keepalive=60), event


def gone(client_id, username="", reason="REASON_NORMAL_DISCONNECT"):
    event = make_event("on_client_gone", client_id=client_id, username=username, reason=reason)
    return webhook("on_client_disconnected"), event


def published(topic, data, client_id="c311", username="", *, qos=0, retain=False, encoding="plain"):
    event = make_event("on_publish", topic=topic, payload=data, client_id=client_id, username=username, qos=qos, retain=retain)
    return webhook("on_message_publish", encoding=encoding), event


ACTIONS = {
    "connack_v311_user": [connected(4, 30, "cuser", "alice")],
    "connack_v31": [connected(3, 60, "c31")],
    "connack_empty_clientid": [connected(4, 60, "nanomq-72efe6ea")],
    "connack_v5_empty_clientid": [connected(5, 60, "nanomq-3361d0a8")],
    "connack_unicode_ids": [connected(4, 60, "klüß", '世"q')],
    "connack_session_keep": [connected(4, 60, "keep")],
    "publish_v311_qos0_retain0": [published("a/b", b"m0")],
    "publish_v5_qos0_retain0": [published("a/b5", b"m0", "c5", "bob")],
    "publish_v311_qos1_retain1": [published("a/b", b"m1", qos=1, retain=True)],
    "publish_v311_qos2_retain1": [published("a/b", b"m2", qos=2, retain=True)],
    "publish_v5_qos2_retain1": [published("a/b5", b"m2", "c5", "bob", qos=2, retain=True)],
    "publish_user": [published("a/b", b"hi", "cuser", "alice")],
    "publish_v31": [published("a/b", b"hi", "c31")],
    "publish_empty_clientid": [published("a/b", b"hi", "nanomq-72efe6ea")],
    "publish_unicode_ids": [published("tópic/世", b"x", "klüß", '世"q')],
    "publish_v5_topic_alias": [published("a/alias", data, "c5", "bob") for data in (b"first", b"second")],
    "publish_retain_clear": [published("a/b", b"", retain=True)],
    "publish_dollar_topic": [published("$foo/bar", b"d")],
    "publish_leading_trailing_slash": [published("/lead/slash/", b"d")],
    "order_200_qos0": [published("o/t", b"000"), published("o/t", b"001")],
    "disconnect_normal_v5": [gone("c5", "bob")],
    "disconnect_tcp_rst": [gone("nanomq-3361d0a8", reason="REASON_TCP_CLOSED")],
    "disconnect_keepalive_timeout": [connected(4, 2, "ka1"), gone("ka1", reason="REASON_DISCONNECT_KEEP_ALIVE")],
    "publish_wildcard_topic": [connected(4, 60, "wild"), gone("wild")],
    "session_keep_return": [connected(4, 60, "keep"), gone("keep")],
    "paho_v311": [
        connected(4, 30, "paho-v311", "pu"),
        published("paho/t", b"q1", "paho-v311", "pu", qos=1, retain=True),
        gone("paho-v311", "pu"),
    ],
    # NanoMQ lets a refused client disconnect as well; VerneMQ, which never registered it, has no event for that.
    "auth_wrong_password_v5": [gone("bad5", "admin"), refused(5, "bad5", "admin")],
    "auth_unknown_user": [refused(4, "bad2", "nobody"), gone("bad2", "nobody")],
    "auth_anonymous_refused": [refused(4, "anon"), gone("anon")],
    "empty_clientid_clean0": [connected(4, 60, "nanomq-12620359", "admin")],
}


class RecordedTests(SynchronousTestCase):
    def pairs(self):
        """Each recorded request: what it is called, NanoMQ's body, ours."""
        actions = {case: list(prepared) for case, prepared in ACTIONS.items()}
        for case, encoding, event, theirs in requests():
            if event is None:
                rules, made = actions[case].pop(0)
            else:
                data = b64decode(event["payload_b64"])
                rules, made = published(
                    event["topic"],
                    data,
                    event["client_id"],
                    event["username"],
                    qos=event["qos"],
                    retain=event["retain"],
                    encoding=encoding,
                )
            ts = re.match(rb'{"ts":(\d+),', theirs)
            if ts is not None:
                made = replace(made, timestamp=int(ts[1]) * 1_000_000)
            action = re.search(rb'"action":"(\w+)"', theirs)[1].decode()
            (ours,) = rules.bodies(made)
            yield (case, encoding, action), theirs, ours
        self.assertEqual([case for case, left in actions.items() if left], [])

    def test_same_but_for_the_deliberate_differences(self):
        def in_base64(data):
            return b'"payload":"%b","payload_encoding":"base64"}' % b64encode(data)

        def reason(word):
            return b'"reason":"normal"', b'"reason":"%b"' % word

        refusal = b'"conn_ack":"fail"', b'"conn_ack":"invalid_credentials"'
        payload_on = b'"payload":'
        cut = b'"payload":""}'
        differences = {
            # An empty payload is there, and a string.
            ("payload_empty", "plain", "message_publish"): (b"}", b',"payload":""}'),
            ("publish_retain_clear", "plain", "message_publish"): (b"}", b',"payload":""}'),
            ("payload_empty", "base64", "message_publish"): (b'"payload":null', b'"payload":""'),
            # A NUL does not end the payload.
            ("payload_nul_middle", "plain", "message_publish"): (b'"payload":"ab"}', b'"payload":"ab\\u0000cd"}'),
            ("payload_nul_first", "plain", "message_publish"): (cut, b'"payload":"\\u0000\\u0001\\u0002"}'),
            ("payload_zeros3", "plain", "message_publish"): (cut, b'"payload":"\\u0000\\u0000\\u0000"}'),
            # The body is JSON, also when the payload is not UTF-8.
            ("payload_all_bytes", "plain", "message_publish"): (cut, in_base64(bytes(range(256)))),
            ("payload_all_bytes_no_nul", "plain", "message_publish"): (payload_on, in_base64(bytes(range(1, 256)))),
            ("payload_ff", "plain", "message_publish"): (payload_on, in_base64(b"\xff\xfe\xfd")),
            ("payload_invalid_utf8_mixed", "plain", "message_publish"): (payload_on, in_base64(b"ok\xc3(\xe2\x82end")),
            ("payload_overlong_lone_surrogate", "plain", "message_publish"): (payload_on, in_base64(b"\xed\xa0\x80\xc0\xaf")),
            # Why a connection ended, and why it was refused.
            ("disconnect_tcp_rst", "plain", "client_disconnected"): reason(b"tcp_closed"),
            ("disconnect_keepalive_timeout", "plain", "client_disconnected"): reason(b"disconnect_keep_alive"),
            ("auth_wrong_password_v5", "plain", "client_connack"): refusal,
            ("auth_unknown_user", "plain", "client_connack"): refusal,
            ("auth_anonymous_refused", "plain", "client_connack"): refusal,
        }
        met = set()
        for name, theirs, ours in self.pairs():
            if name in differences:
                met.add(name)
                old, new = differences[name]
                before, found, after = theirs.rpartition(old)
                self.assertTrue(found, name)
                theirs = before + new + (b"" if old == payload_on else after)
            self.assertEqual(ours, theirs, name)
        self.assertEqual(met, set(differences))


class DetailsTests(SynchronousTestCase):
    ACL = {"name": "default", "pattern": "a/#"}

    def tail(self, name, event, **options):
        """What details add to a body."""
        (short,) = webhook(name, **options).bodies(event)
        (long,) = webhook(name, details=True, **options).bodies(event)
        short, long = json.loads(short), json.loads(long)
        self.assertEqual(list(long)[: len(short)], list(short))
        self.assertEqual({key: long[key] for key in short}, short)
        return {key: long[key] for key in list(long)[len(short) :]}

    def test_all(self):
        event = make_event(
            "on_register",
            timestamp=1_999_999,
            mountpoint="mp",
            session_id="s",
            peer_addr="::1",
            peer_port=7,
            user_properties={"b": "2", "a": "1"},
        )
        tail = self.tail("on_client_connack", event)
        expected = {"ts": 1, "mountpoint": "mp", "session_id": "s", "ipaddress": "::1", "port": 7}
        self.assertEqual(compact(tail), compact(expected | {"user_properties": {"a": "1", "b": "2"}}))

    def test_user_properties_of_every_event(self):
        for hook in M5_HOOKS:
            event = make_event(hook, user_properties={"b": "2", "a": "1"})
            for name in CAUSES[hook]:
                with_them, without = self.tail(name, event), self.tail(name, make_event(hook))
                self.assertEqual(compact(with_them), compact(without | {"user_properties": {"a": "1", "b": "2"}}))

    def test_user_properties_without_details(self):
        for hook in set(M5_HOOKS) - {"on_register"}:
            for name in CAUSES[hook]:
                bodies = [list(webhook(name).bodies(make_event(hook, user_properties=each))) for each in ({}, {"a": "b"})]
                self.assertEqual(bodies[0], bodies[1])

    def test_user_properties_in_own_words(self):
        for hook in M5_HOOKS:
            plain, event = hook_body(make_event(hook)), make_event(hook, user_properties={"b": "2", "a": "1"})
            body = hook_body(event)
            self.assertEqual(list(json.loads(body))[1:], list(HOOKS[hook].__struct_fields__))
            self.assertIn(b'"user_properties":{"a":"1","b":"2"}', body)
            if hook == "on_register":
                self.assertIn(b'"user_properties":{}', plain)
            else:
                self.assertEqual(body, plain[:-1] + b',"user_properties":{"a":"1","b":"2"}}')

    def test_payload_encoding_stands_behind_user_properties(self):
        event = make_event("on_publish", payload=b"\xff", user_properties={"a": "b"})
        end = b'"user_properties":{"a":"b"},"payload_encoding":"base64"}'
        (details,) = webhook("on_message_publish", details=True).bodies(event)
        for body in (hook_body(event), details):
            self.assertTrue(body.endswith(end), body)

    def test_nothing_twice(self):
        event = make_event("on_register", peer_addr="::1", peer_port=7)
        for name in ("on_client_connect", "on_client_connected"):
            self.assertEqual(list(self.tail(name, event)), ["ts", "port"])
        event = make_event("on_publish", session_id="s", matched_acl=self.ACL)
        self.assertEqual(self.tail("on_message_publish", event), {"session_id": "s", "matched_acl": self.ACL})

    def test_nothing_to_add(self):
        event = make_event("on_publish", matched_acl={})
        self.assertEqual(self.tail("on_message_publish", event), {})

    def test_of_one_topic(self):
        event = make_event("on_subscribe", timestamp=0, topics=[{"topic": "a/b", "matched_acl": self.ACL}])
        self.assertEqual(self.tail("on_client_subscribe", event), {"ts": 0, "matched_acl": self.ACL})
        event = make_event("on_subscribe", timestamp=0, topics=[{"topic": "a/b", "matched_acl": {}}])
        self.assertEqual(self.tail("on_client_subscribe", event), {"ts": 0})

    def test_payload_encoding_stays_last(self):
        event = make_event("on_deliver", payload=b"\xff", session_id="s", matched_acl={})
        (body,) = webhook("on_message_delivered", details=True).bodies(event)
        self.assertTrue(body.endswith(b',"payload":"/w==","session_id":"s","payload_encoding":"base64"}'), body)

    def test_every_event(self):
        for hook, names in CAUSES.items():
            for name in names:
                self.assertLessEqual(
                    set(self.tail(name, make_event(hook, timestamp=0))), {"ts", "ipaddress", "port", "matched_acl"}
                )


class PayloadTests(SynchronousTestCase):
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_text_is_plain(self, text):
        (body,) = webhook("on_message_publish").bodies(make_event("on_publish", payload=text.encode()))
        self.assertTrue(body.endswith(b'"payload":%b}' % json.dumps(text, ensure_ascii=False).encode()), body)

    @given(st.binary())
    def test_any_payload_is_found_again(self, data):
        event = make_event("on_publish", payload=data)
        for body in (*webhook("on_message_publish").bodies(event), hook_body(event)):
            parsed = json.loads(body)
            text = parsed["payload"]
            self.assertEqual(b64decode(text) if "payload_encoding" in parsed else text.encode(), data)

    def test_base62(self):
        event = make_event("on_publish", payload=b"AB")
        (body,) = webhook("on_message_publish", encoding="base62").bodies(event)
        self.assertTrue(body.endswith(b'"payload":"4LS"}'))
        self.assertEqual(json.loads(hook_body(event, "base62"))["payload"], "4LS")


class UnknownTests(SynchronousTestCase):
    """What the stream does not carry."""

    def version(self, event, **options):
        (body,) = webhook("on_client_connect", **options).bodies(event)
        parsed = json.loads(body)
        return parsed["proto_ver"], parsed["keepalive"]

    def test_version_and_keepalive(self):
        plain, five = make_event("on_register"), make_event("on_register", user_properties={"k": ""})
        refused = make_event("on_register_failed")
        self.assertEqual([self.version(event) for event in (plain, five, refused)], [(None, None), (5, None), (None, None)])
        given = [self.version(event, proto_ver=4, keepalive=60) for event in (plain, five, refused)]
        self.assertEqual(given, [(4, 60), (5, 60), (4, 60)])

    def test_remembered_username(self):
        event = make_event("on_session_expired", username="alice", client_id="c")
        (body,) = webhook("on_session_terminated").bodies(event)
        self.assertEqual(body, b'{"reason":"expired","username":"alice","clientid":"c","action":"session_terminated"}')
