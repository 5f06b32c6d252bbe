"""Payloads that go into a body as the JSON that they are, or not at all."""

import json
from time import process_time

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.nanomq.bodies import as_json
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.testing import make_event
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.settings import BatchSettings, WebhookSettings

CARRIERS = {
    "on_message_publish": "on_publish",
    "on_message_delivered": "on_deliver",
    "on_message_acked": "on_delivery_complete",
    **{hook: hook for hook in ("on_publish", "on_deliver", "on_delivery_complete", "on_offline_message", "on_message_drop")},
}
MALFORMED = (
    b"NaN", b"01", b"1.", b"-", b"", b"  ", b'{"a":1}x', b"\xef\xbb\xbf1", b'"\xff"', b'"a\nb"', b'"\x00"', b'"\\ud800"',
    b'"\\x"', b"[1,]", b"nul", b"{1:2}", b"'a'", b"[" * 500_000 + b"]" * 500_000, b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
    b"[" * 1_000_000,
)  # fmt: skip
VERBATIM = (
    b'{"t": 1.10, "n": 12345678901234567890123, "e": 1E5, "z": -0.0, "d":1, "d":2}', b" [1,\n2] ", b'"\\u00e9\\/"', b"null",
    '{"é":"😀"}'.encode(), b"[" * 200 + b"]" * 200,
)  # fmt: skip


def body(rule, payload, encoding="json", **more):
    settings = BodySettings((Rule(rule),), encoding, **more)
    (made,) = Rules(settings).bodies(make_event(CARRIERS[rule], payload=payload))
    return made


class JSONTests(SynchronousTestCase):
    def test_json_goes_in_as_it_came(self):
        for rule in CARRIERS:
            for payload in VERBATIM:
                made = body(rule, payload)
                self.assertIn(b'"payload":' + payload.strip(), made)
                self.assertNotIn("payload_encoding", json.loads(made))
                self.assertEqual(json.loads(made)["payload"], json.loads(payload))

    def test_anything_else_is_text(self):
        for rule in CARRIERS:
            for payload in MALFORMED:
                self.assertEqual(body(rule, payload), body(rule, payload, "plain"))

    def test_details_follow(self):
        made = json.loads(body("on_message_publish", b'{"a":[1]}', details=True))
        self.assertEqual((made["payload"], made["matched_acl"]["name"]), ({"a": [1]}, "default"))

    @given(
        st.binary()
        | st.text().map(str.encode)
        | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
    )
    @example(b'{"a":1}\n')
    @example(b'"\xed\xa0\x80"')
    def test_the_body_is_json_whatever_the_payload_is(self, payload):
        made = json.loads(body("on_message_publish", payload))
        value = as_json(payload)
        expected = json.loads(body("on_message_publish", payload, "plain")) if value is None else json.loads(payload)
        self.assertEqual(made["payload"], expected["payload"] if value is None else expected)

    def test_a_line_of_ndjson_is_one_line(self):
        settings = WebhookSettings("w", "http://h/", (), batch=BatchSettings(format="ndjson"))
        payloads = (b'{\r\n "a": 1\n}', b"[]", b"1")
        deliveries = [Delivery(f"msg_{n}", "c", 0, body("on_message_publish", each)) for n, each in enumerate(payloads)]
        made = RequestMaker(settings, lambda: 0.0).make(deliveries).body
        self.assertEqual([json.loads(line)["payload"] for line in made.splitlines()], [{"a": 1}, [], 1])

    def test_a_long_one_costs_less_than_text(self):
        payload = json.dumps([{"x": 1.25, "y": "abc\n"}] * 500_000).encode()
        self.assertGreater(len(payload), 10 << 20)
        spent = {"plain": [], "json": []}
        # Garbage of other tests may be collected within one of them.
        for encoding in ("plain", "json") * 3:
            before = process_time()
            made = body("on_message_publish", payload, encoding)
            spent[encoding].append(process_time() - before)
        self.assertIn(payload, made)
        self.assertLess(min(spent["json"]), 2 * min(spent["plain"]))


class OmitTests(SynchronousTestCase):
    def test_the_key_is_left_out(self):
        for rule in CARRIERS:
            for payload in (b"hello", b"", b"\xff"):
                made, usual = json.loads(body(rule, payload, "omit")), json.loads(body(rule, b"x", "plain"))
                del usual["payload"]
                self.assertEqual(made, usual)
